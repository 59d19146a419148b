//! One measurement of one subject: load, time, memory.

use std::time::Duration;

use anyhow::Context;
use tokio::time::{Instant, sleep};

use super::Setting;
use super::cells::{Subject, Work};
use super::change::Changer;
use super::policy;
use super::process::Process;
use super::session::{Session, begin};
use crate::load::{Kind, Measured};
use crate::proc::{self, Busy};
use crate::record::Values;

/// Before a memory is read: what was needed only to start is given back, what grows has grown.
const SETTLE: Duration = Duration::from_millis(1500);
/// Time over fewer requests than this is no measure of one.
const ENOUGH: u64 = 20;
/// What the load generator may take longer than it was told.
const GRACE: Duration = Duration::from_secs(15);

/// Streams whose memory is read: the first are held while the others open.
const HELD: Duration = Duration::from_secs(15);

/// Values, and what went wrong besides.
pub type Outcome = (Values, String);

pub async fn measure(setting: &Setting, subject: &Subject) -> anyhow::Result<Outcome> {
    match subject.work {
        Work::Load { connections, kind } => {
            let session = Session::start(setting, subject).await?;
            let outcome = under_load(setting, subject, &session, connections, kind).await;
            session.stop().await;
            outcome
        }
        Work::Memory { streams, pace_us } => memory(setting, subject, streams, pace_us).await,
        Work::Policy { backends } => Ok((policy::call_time(setting, backends).await?, String::new())),
    }
}

async fn under_load(
    setting: &Setting,
    subject: &Subject,
    session: &Session,
    connections: usize,
    kind: Kind,
) -> anyhow::Result<Outcome> {
    let cores = setting.cores_of(subject);
    let mut loads = Vec::new();
    // More than one where one could be too slow for all workers; the connections are shared out.
    for number in 0..cores.loads {
        let mut plan = session.plan(connections / cores.loads, kind);
        (plan.seconds, plan.warm_seconds) = (setting.seconds, setting.warm_seconds);
        loads.push(begin(&plan, &cores.load, &session.folder, number).await?);
    }
    let changer = changer(setting, subject, session);
    let taken_over = match &changer {
        Some(changer) => Some(changer.taken_over().await?),
        None => None,
    };
    let before = Clocks::read(session);
    let results = async {
        let mut all = Vec::new();
        for load in &mut loads {
            all.push(result(load, setting.seconds).await?);
        }
        anyhow::Ok(all)
    };
    let measured = match &changer {
        Some(changer) => tokio::select! {
            measured = results => measured?,
            stopped = changer.run() => anyhow::bail!("nothing changes any more: {stopped:?}"),
        },
        None => results.await?,
    };
    let after = Clocks::read(session);
    for load in loads {
        load.stop().await;
    }
    let (mut values, problem) = summed(&measured, connections, kind);
    before.add_to(&mut values, &after, &cores, &measured, session.proxy.is_some());
    if let (Some(changer), Some(before)) = (changer, taken_over) {
        values.insert("changes".into(), changer.taken_over().await? - before);
    }
    Ok((values, problem))
}

fn changer(setting: &Setting, subject: &Subject, session: &Session) -> Option<Changer> {
    Some(Changer {
        change: subject.change?,
        folder: session.folder.clone(),
        policy: setting.policy.clone(),
        peer: subject.peer,
        workers: subject.workers,
        backends: session.backends.clone(),
        admin: session.admin.clone()?,
    })
}

async fn result(load: &mut Process, seconds: f64) -> anyhow::Result<Measured> {
    let line = load.line(Duration::from_secs_f64(seconds) + GRACE).await?;
    serde_json::from_str(&line).with_context(|| format!("the load generator said `{line}`"))
}

/// The numbers of all load generators together.
fn summed(all: &[Measured], connections: usize, kind: Kind) -> Outcome {
    let mut values = Values::new();
    let mut put = |name: &str, value: f64| values.insert(name.into(), value);
    let rate = |count: fn(&Measured) -> f64| all.iter().map(|one| count(one) / one.seconds).sum::<f64>();
    let mean = |number: fn(&Measured) -> f64| all.iter().map(number).sum::<f64>() / all.len() as f64;
    let most = |number: fn(&Measured) -> f64| all.iter().map(number).fold(0.0, f64::max);
    if let Kind::Streams { .. } = kind {
        put("events_per_s", rate(|one| one.events as f64));
        put("transit_p50_us", mean(|one| one.transits.p50));
        put("transit_p99_us", most(|one| one.transits.p99));
    } else {
        put("requests_per_s", rate(|one| one.requests as f64));
        put("mb_per_s", rate(|one| one.request_bytes as f64 / 1e6));
        put("p50_us", mean(|one| one.answers.p50));
        put("p99_us", most(|one| one.answers.p99));
    }
    let failures = all.iter().flat_map(|one| &one.failures);
    put("failures", failures.clone().map(|(_, count)| *count).sum::<u64>() as f64);
    let mut problems: Vec<_> = failures.map(|(what, count)| format!("{count} × {what}")).collect();
    let open: usize = all.iter().map(|one| one.open_streams).sum();
    if matches!(kind, Kind::Streams { opens_first: true, .. }) && open < connections {
        problems.push(format!("only {open} of {connections} streams opened"));
    }
    (values, problems.join(", "))
}

/// Clocks of everything that runs, read at one instant.
struct Clocks {
    at: Instant,
    proxy: f64,
    backend: f64,
    busy: Busy,
}

impl Clocks {
    fn read(session: &Session) -> Self {
        Self {
            proxy: proc::cpu_seconds(&session.proxy_pids()),
            backend: proc::cpu_seconds(&session.backend.pids()),
            busy: Busy::now(),
            at: Instant::now(),
        }
    }

    fn add_to(&self, values: &mut Values, after: &Self, cores: &super::Cores, loads: &[Measured], has_proxy: bool) {
        let wall = (after.at - self.at).as_secs_f64();
        let proxy = after.proxy - self.proxy;
        let mine = proxy + after.backend - self.backend + loads.iter().map(|load| load.cpu_seconds).sum::<f64>();
        let requests: u64 = loads.iter().map(|load| load.requests).sum();
        let events: u64 = loads.iter().map(|load| load.events).sum();
        if has_proxy {
            values.insert("proxy_cores_busy".into(), proxy / wall);
        }
        if has_proxy && events >= ENOUGH {
            values.insert("cpu_us_per_event".into(), proxy * 1e6 / events as f64);
        } else if has_proxy && requests >= ENOUGH {
            values.insert("cpu_us_per_request".into(), proxy * 1e6 / requests as f64);
        }
        let busy = (after.busy.cores(&cores.load) - self.busy.cores(&cores.load)) / wall / cores.load.len() as f64;
        values.insert("load_cores_busy".into(), busy.min(1.0));
        values.insert("foreign_cores".into(), ((after.busy.all() - self.busy.all() - mine) / wall).max(0.0));
    }
}

/// Streams upon streams: what one takes is what the later ones added, when everything that is made once is made.
async fn memory(setting: &Setting, subject: &Subject, streams: [usize; 2], pace_us: u64) -> anyhow::Result<Outcome> {
    let session = Session::start(setting, subject).await?;
    let outcome = held(setting, subject, &session, streams, pace_us).await;
    session.stop().await;
    outcome
}

async fn held(
    setting: &Setting,
    subject: &Subject,
    session: &Session,
    [few, many]: [usize; 2],
    pace_us: u64,
) -> anyhow::Result<Outcome> {
    let many = many.min(setting.most_streams);
    let kind = Kind::Streams { events: u64::MAX, pace_us, opens_first: true };
    let resident = async || {
        sleep(SETTLE).await;
        proc::resident_kb(&session.proxy_pids())
    };
    let idle = resident().await;
    let mut kb = Vec::new();
    let mut loads = Vec::new();
    for (number, streams) in [few, many.saturating_sub(few)].into_iter().enumerate() {
        let mut plan = session.plan(streams, kind);
        // Held until both memories are read.
        plan.seconds = HELD.as_secs_f64();
        loads.push(begin(&plan, &setting.cores_of(subject).load, &session.folder, number).await?);
        kb.push(resident().await);
    }
    let mut open = 0;
    let mut problems = Vec::new();
    for load in &mut loads {
        let measured = result(load, HELD.as_secs_f64()).await?;
        open += measured.open_streams;
        problems.extend(measured.failures.iter().map(|(what, count)| format!("{count} × {what}")));
    }
    if open < many {
        problems.push(format!("only {open} of {many} streams opened"));
    }
    let per_stream = (kb[1] - kb[0]) / open.saturating_sub(few).max(1) as f64;
    let values = [("idle_mb", idle / 1024.0), ("few_mb", kb[0] / 1024.0), ("many_mb", kb[1] / 1024.0)];
    let values = values.into_iter().chain([("kb_per_stream", per_stream)]);
    Ok((values.map(|(name, value)| (name.to_owned(), value)).collect(), problems.join(", ")))
}
