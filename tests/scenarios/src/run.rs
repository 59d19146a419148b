//! One scenario with one contender: start everything, send the load, make the trouble, measure.

use std::path::Path;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::contender::{Contender, Setting};
use crate::fleet::Backend;
use crate::load::{Asked, Outcome, Planned, ask, now, plan};
use crate::measure::{Account, DIRECT, Measured, measure};
use crate::scenario::{Scenario, Trouble};

/// What is the same for every run of a suite.
pub struct Suite<'a> {
    pub program: &'a Path,
    pub seconds: f64,
    pub seed: u64,
    pub poll_interval: Duration,
}

/// The longest wait for the first byte where nothing hangs: nobody reaches it.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where something hangs, nobody should wait for longer: twice the bound, as a good answer may come that late.
const PATIENCE_WITH_THE_HUNG: Duration = Duration::from_secs(2);
/// Answers that are not there so long after the last request was sent count as failed.
const LEFTOVERS: Duration = Duration::from_secs(8);
/// Where nobody tells the slots, so long is given to learn them before anything is measured.
const LEARNING: Duration = Duration::from_secs(20);
/// No cache is to be fuller than this, the default of the proxy's `capacity.max_kv_cache`: beyond it engines throw begun
/// requests out again.
const MAX_KV_CACHE: f64 = 0.95;
/// Direct load is there this long before the clients, so that whoever asks the server can know.
const AHEAD: Duration = Duration::from_millis(1500);

pub async fn run(
    suite: &Suite<'_>,
    scenario: &Scenario,
    contender: Contender,
    folder: &Path,
) -> anyhow::Result<Measured> {
    let start = |(index, gpu): (usize, &_)| Backend::start(suite.program, *gpu, folder, index);
    let mut fleet = scenario.gpus.iter().enumerate().map(start).collect::<anyhow::Result<Vec<_>>>()?;
    let replicas = if scenario.trouble == Trouble::SecondReplica { 2 } else { 1 };
    let patience = if scenario.trouble == Trouble::Hang { PATIENCE_WITH_THE_HUNG } else { PATIENCE };
    let mut fronts = Vec::new();
    for replica in 0..replicas {
        let setting = Setting {
            program: suite.program,
            folder,
            fleet: &fleet,
            replicas,
            is_told: scenario.is_told(),
            patience,
            poll_interval: suite.poll_interval,
        };
        fronts.push(contender.start(&setting, replica).await?);
    }
    let direct = (scenario.trouble == Trouble::DirectLoad).then(|| direct_load(&fleet[0]));
    if direct.is_some() {
        sleep(AHEAD).await;
    }
    let learning = if scenario.is_told() { Duration::ZERO } else { LEARNING };
    let measured = suite.seconds * scenario.trouble.lengthens();
    let seconds = measured + learning.as_secs_f64();
    let planned = plan(scenario.load, &scenario.gpus, seconds, suite.seed);
    let (from, begin) = (now() + learning.as_micros() as u64, Instant::now());
    let addresses: Vec<_> = fronts.iter().map(|front| front.address).collect();
    let clients = clients(&planned, &addresses, begin);
    let trouble = trouble(scenario.trouble, &mut fleet[0], begin, seconds);
    let (asked, troubled) = tokio::join!(clients, trouble);
    troubled?;
    drop(direct);
    drop(fronts);
    let until = from + Duration::from_secs_f64(measured).as_micros() as u64;
    let accounts: Vec<_> = fleet.iter().map(account).collect();
    Ok(measure(&asked, &accounts, (from, until)))
}

fn account(backend: &Backend) -> Account {
    Account {
        slots: backend.gpu.slots,
        kv_tokens: backend.gpu.kv_tokens.map_or(u64::MAX, |tokens| (tokens as f64 * MAX_KV_CACHE) as u64),
        steps: backend.journal(),
        out: backend.out.clone(),
    }
}

/// Sends what is planned, by turns to each address, and collects the answers.
async fn clients(planned: &[Planned], addresses: &[std::net::SocketAddr], begin: Instant) -> Vec<Asked> {
    let mut asking = JoinSet::new();
    let mut asked = Vec::new();
    for ((index, planned), to) in planned.iter().enumerate().zip(addresses.iter().cycle()) {
        sleep_until(begin + planned.at).await;
        asking.spawn(ask(*to, format!("client-{index}"), *planned));
    }
    let deadline = Instant::now() + LEFTOVERS;
    while let Ok(Some(Ok(answer))) = timeout_at(deadline, asking.join_next()).await {
        asked.push(answer);
    }
    asking.shutdown().await;
    let lost = unanswered(planned, &asked, begin);
    asked.extend(lost);
    asked
}

/// Those given up at the end.
fn unanswered(planned: &[Planned], asked: &[Asked], begin: Instant) -> Vec<Asked> {
    let answered: std::collections::HashSet<&str> = asked.iter().map(|asked| asked.id.as_str()).collect();
    let began = now() - begin.elapsed().as_micros() as u64;
    let lost = planned.iter().enumerate().map(|(index, planned)| (format!("client-{index}"), planned));
    let lost = lost.filter(|(id, _)| !answered.contains(id.as_str()));
    let as_failed = |(id, planned): (String, &Planned)| Asked {
        id,
        kv_tokens: planned.kv_tokens(),
        sent: began + planned.at.as_micros() as u64,
        first: None,
        ended: now(),
        outcome: Outcome::Failed,
    };
    lost.map(as_failed).collect()
}

/// Troubles begin after a quarter of the time and last a third of it.
async fn trouble(trouble: Trouble, backend: &mut Backend, begin: Instant, seconds: f64) -> anyhow::Result<()> {
    let at = |share: f64| begin + Duration::from_secs_f64(seconds * share);
    match trouble {
        Trouble::None | Trouble::SecondReplica | Trouble::DirectLoad => {}
        Trouble::Hang => {
            sleep_until(at(0.25)).await;
            backend.hang(true).await?;
            sleep_until(at(0.58)).await;
            backend.hang(false).await?;
        }
        Trouble::Restart => {
            sleep_until(at(0.25)).await;
            backend.kill();
            sleep_until(at(0.58)).await;
            backend.come_back()?;
        }
    }
    Ok(())
}

/// As many requests at once as a server has slots, each followed by the next, until dropped.
fn direct_load(backend: &Backend) -> JoinSet<()> {
    let address = backend.address;
    let mut asking = JoinSet::new();
    for slot in 0..backend.gpu.slots {
        // Of different length, so that they do not end together.
        let tokens = 40 + 7 * slot as u32;
        let planned = Planned { at: Duration::ZERO, prompt_tokens: 100, images: 0, tokens };
        asking.spawn(async move {
            loop {
                ask(address, format!("{DIRECT}{slot}"), planned).await;
            }
        });
    }
    asking
}
