//! A started balancing policy.
//!
//! Invariants:
//! - It was tried before it is used: with made-up backends and with the real ones, and on every instance, so that
//!   whatever a guest does only once it has done before the first request.
//! - A decision that is handed on can be followed: its row exists, its status refuses.

use std::sync::Arc;

use serde_json::Value;

use super::bindings::policy::{Policy as World, PolicyPre};
use super::bindings::{Decision, Fleet, Request};
use super::console::legible;
use super::engine::{Allowance, StartClock};
use super::instance::{Instance, Slots, Start};
use super::trial::{EXTREME, PLAIN, made_up_fleet, made_up_rows, rows};
use super::version::{self, Version};
use super::{Fault, Kind, Refusal, Stage, not_a};
use crate::config::PluginLimits;

/// A number that a policy may ask for, one a candidate. `wit/` says what each means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Column {
    /// Requests of this proxy at the backend.
    InFlight,
    /// Requests it may hold at once.
    Slots,
    /// Slots less requests in flight.
    Free,
    /// Requests in flight by slots.
    LoadPermille,
    /// The configured weight.
    Weight,
    /// Requests the engine says it runs.
    Running,
    /// Requests the engine says wait inside it.
    Waiting,
    /// KV-cache in use, as the engine says.
    KvPermille,
    /// Age of the engine's report.
    AgeMs,
    /// Moving average of the time to the first byte.
    FirstTokenUs,
    /// Moving average of failed attempts.
    ErrorsPermille,
    /// Whether the model is loaded there.
    Loaded,
}

impl Column {
    /// All there are, in the order of `wit/`.
    pub const ALL: [Self; 12] = [
        Self::InFlight,
        Self::Slots,
        Self::Free,
        Self::LoadPermille,
        Self::Weight,
        Self::Running,
        Self::Waiting,
        Self::KvPermille,
        Self::AgeMs,
        Self::FirstTokenUs,
        Self::ErrorsPermille,
        Self::Loaded,
    ];

    /// Its name in `wit/`.
    pub fn name(self) -> &'static str {
        match self {
            Self::InFlight => "in-flight",
            Self::Slots => "slots",
            Self::Free => "free",
            Self::LoadPermille => "load-permille",
            Self::Weight => "weight",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::KvPermille => "kv-permille",
            Self::AgeMs => "age-ms",
            Self::FirstTokenUs => "first-token-us",
            Self::ErrorsPermille => "errors-permille",
            Self::Loaded => "loaded",
        }
    }

    /// The columns of these names.
    fn parse(names: &[String]) -> Result<Vec<Self>, Refusal> {
        if names.len() > COLUMNS_MAX {
            return Err(Refusal::new(
                Stage::Configure,
                format!("it asks for {} columns, at most {COLUMNS_MAX} are given", names.len()),
            ));
        }
        let parse = |name: &String| {
            Self::ALL.into_iter().find(|column| column.name() == name).ok_or_else(|| {
                let known = Self::ALL.map(Self::name).join(", ");
                Refusal::new(
                    Stage::Configure,
                    format!("it asks for the column `{}`; known are {known}", legible(name.as_bytes())),
                )
            })
        };
        names.iter().map(parse).collect()
    }
}

/// As `wit/` says.
const COLUMNS_MAX: usize = 16;
/// A decision is a tag and a number: what a guest hands over while it picks is what it logs.
const PICK_ANSWER_BYTES: usize = 64 << 10;
/// What a policy may spend on one candidate: about 0.1 µs, twice what the built-in `least-busy` needs.
const FUEL_A_CANDIDATE: u64 = 800;
/// Statuses a policy may refuse with.
const REFUSING: std::ops::RangeInclusive<u16> = 400..=599;

/// One version of a policy, with one fleet, and an instance a worker.
pub struct Policy {
    start: Start,
    columns: Vec<Column>,
    slots: Slots<World>,
}

impl Policy {
    /// Starts an instance for each of `shards` workers and tries them. Blocks for milliseconds, and for five seconds
    /// of processor time where the guest is hostile: not on a worker.
    pub fn start(
        version: &Arc<Version>,
        fleet: &Fleet,
        settings: &Value,
        limits: &PluginLimits,
        shards: usize,
    ) -> Result<Self, Refusal> {
        // A built-in one is compiled here, which is not its fault.
        pre(version)?;
        let clock = StartClock::begin();
        // What a version is fit for must not depend on who happens to be in the fleet today.
        let rehearsal = Start::new(version, &made_up_fleet(), settings, *limits, 1);
        let (mut instance, columns) = new_instance(&rehearsal, 0, clock)?;
        for rows in made_up_rows(columns.len()) {
            try_pick(&mut instance, &rows, columns.len(), &rehearsal.limits)?;
        }
        let start = Start::new(version, fleet, settings, *limits, shards);
        let instances: Result<Vec<_>, _> =
            (0..shards).map(|shard| tried_instance(&start, shard, &columns, clock)).collect();
        Ok(Self { slots: Slots::new(version, instances?), start, columns })
    }

    /// The version that runs.
    pub fn version(&self) -> &Arc<Version> {
        &self.start.version
    }

    /// What `rows` consist of after the index of the backend, in this order.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// Picks one of `rows`, which has an index into the fleet and a number a column for each candidate. Takes
    /// well under a microsecond for a compiled guest, and some 30 µs for one that has to be stopped.
    /// After any fault but `Away` the slot is empty until `rebuild`.
    pub fn pick(&self, shard: usize, request: &Request, rows: &[u32]) -> Result<Decision, Fault> {
        debug_assert!(rows.len().is_multiple_of(1 + self.columns.len()));
        let candidates = rows.len() / (1 + self.columns.len());
        let call = |world: &World, store: &mut _| world.vision_proxy_plugin_balance().call_pick(store, *request, rows);
        self.slots.call(shard, allowance(&self.start.limits, candidates), call, |&decision| check(decision, candidates))
    }

    /// Fills the slot of this worker with a new, tried instance. Blocks: not on a worker.
    pub fn rebuild(&self, shard: usize) -> Result<(), Refusal> {
        let instance = tried_instance(&self.start, shard, &self.columns, StartClock::begin())?;
        self.slots.fill(shard, instance);
        Ok(())
    }
}

impl std::fmt::Debug for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.version().fmt(f)
    }
}

/// Of a pick among so many: the configured fuel is for fleets of some hundred; a policy that looks at each of thousands may.
fn allowance(limits: &PluginLimits, candidates: usize) -> Allowance {
    Allowance::call(limits.fuel.max(candidates as u64 * FUEL_A_CANDIDATE), PICK_ANSWER_BYTES)
}

fn check(decision: Decision, candidates: usize) -> Result<(), String> {
    match decision {
        Decision::Pick(row) if row as usize >= candidates => Err(format!("row {row} of {candidates}")),
        Decision::Reject(status) if !REFUSING.contains(&status) => {
            Err(format!("status {status}, which is none of 400 to 599"))
        }
        Decision::Pick(_) | Decision::Abstain | Decision::Hold | Decision::Reject(_) => Ok(()),
    }
}

/// An instance that is configured and knows the fleet, and the columns it asks for.
fn new_instance(start: &Start, shard: usize, clock: StartClock) -> Result<(Instance<World>, Vec<Column>), Refusal> {
    let pre = pre(&start.version)?;
    let mut instance = start.instance(pre.engine(), clock, |store| pre.instantiate(store))?;
    let setup = start.setup(shard);
    let configured = instance.start_call(Stage::Configure, |world, store| {
        world.vision_proxy_plugin_balance().call_configure(store, &setup)
    })?;
    let names = configured.map_err(|reason| Refusal::new(Stage::Configure, legible(reason.as_bytes())))?;
    let columns = Column::parse(&names)?;
    instance.start_call(Stage::Update, |world, store| {
        world.vision_proxy_plugin_balance().call_update(store, &start.fleet)
    })?;
    Ok((instance, columns))
}

/// An instance for a slot, tried over the whole fleet with candidates that are equal and with some that differ.
fn tried_instance(
    start: &Start,
    shard: usize,
    columns: &[Column],
    clock: StartClock,
) -> Result<Instance<World>, Refusal> {
    let (mut instance, own) = new_instance(start, shard, clock)?;
    if own != columns {
        return Err(Refusal::new(Stage::Configure, format!("instance {shard} asks for other columns than the first")));
    }
    let backends = u32::try_from(start.fleet.backends.len()).unwrap_or(u32::MAX);
    if backends > 0 {
        for numbers in [|_| 1, |backend: u32| backend.wrapping_mul(40_503) % 1_000] {
            try_pick(&mut instance, &rows(0..backends, columns.len(), numbers), columns.len(), &start.limits)?;
        }
    }
    Ok(instance)
}

fn pre(version: &Version) -> Result<&PolicyPre<super::wasi::Guest>, Refusal> {
    match version.world()? {
        version::World::Policy(pre) => Ok(pre),
        version::World::Translator(_) => Err(Refusal::new(Stage::Kind, not_a(Kind::Policy, version))),
    }
}

/// Picks among these rows with a plain and with an extreme request, and again; the first may make what the others find.
fn try_pick(
    instance: &mut Instance<World>,
    rows: &[u32],
    columns: usize,
    limits: &PluginLimits,
) -> Result<(), Refusal> {
    let candidates = rows.len() / (1 + columns);
    for (at, request) in [PLAIN, EXTREME, PLAIN].into_iter().enumerate() {
        let decision = instance.start_call(Stage::Trial, |world, store| {
            world.vision_proxy_plugin_balance().call_pick(store, request, rows)
        })?;
        check(decision, candidates).map_err(|why| Refusal::new(Stage::Trial, Fault::Nonsense(why).to_string()))?;
        if at > 0 {
            let pick = format!("a pick among {candidates}");
            instance.check_cost(allowance(limits, candidates), &pick, "`plugins.limits.fuel`")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::super::guests::{
        Guest, KEPT_WAKING, LIMITS, RANDOM_BYTES, STREAM, TIME, WAKING, built_ins, compiled, fleet, picking, request,
    };
    use super::*;
    use crate::clock::thread_time;

    const LOOP: &str = "(loop $for-ever (br $for-ever))";

    /// Does this when the seventh request comes, and else picks the first row.
    fn on_seven(then: &str) -> Arc<Version> {
        picking(&format!("(if (i64.eq (local.get $sequence) (i64.const 7)) (then {then})) (global.get $ok)"))
    }

    fn start(version: &Arc<Version>) -> Result<Policy, Refusal> {
        Policy::start(version, &fleet(3), &Value::Null, &LIMITS, 2)
    }

    fn start_guest(guest: &Guest) -> Result<Policy, Refusal> {
        start(&compiled(&guest.policy()))
    }

    fn fault_on_seven(then: &str) -> Fault {
        let policy = start(&on_seven(then)).unwrap();
        assert_eq!(policy.pick(0, &request(6), &[0, 1, 2]), Ok(Decision::Pick(0)));
        let fault = policy.pick(0, &request(7), &[0, 1, 2]).unwrap_err();
        assert_eq!(policy.pick(0, &request(6), &[0, 1, 2]), Err(Fault::Away), "the slot is empty after {fault}");
        assert_eq!(policy.pick(1, &request(6), &[0, 1, 2]), Ok(Decision::Pick(0)), "the other worker's is not");
        policy.rebuild(0).unwrap();
        assert_eq!(policy.pick(0, &request(6), &[0, 1, 2]), Ok(Decision::Pick(0)), "rebuilt after {fault}");
        let version = policy.version();
        let faults = version.counters.faults();
        assert_eq!(faults.iter().sum::<u64>(), 1);
        let at = Fault::REASONS.iter().position(|reason| *reason == fault.reason()).unwrap();
        assert_eq!((faults[at], version.counters.calls()), (1, 4), "being away is neither call nor fault");
        assert_eq!(version.last_error(), Some(fault.to_string()));
        fault
    }

    #[test]
    fn an_endless_pick_runs_out_of_fuel() {
        assert_eq!(fault_on_seven(LOOP), Fault::OutOfFuel);
    }

    #[test]
    fn a_trap_is_told_with_its_place_or_its_last_words() {
        let Fault::Trap(text) = fault_on_seven("(call $print (i32.const 1152) (i32.const 45)) unreachable") else {
            panic!()
        };
        assert!(text.ends_with("it said: thread panicked at guest.rs:7: out of cheese"), "{text}");
        let recursing = Guest {
            fields: "(func $deep (param i32) (result i32) (i32.add (i32.const 1) (call $deep (local.get 0))))",
            pick: "(if (i64.eq (local.get $sequence) (i64.const 7)) (then (drop (call $deep (i32.const 1))))) (global.get $ok)",
            ..Guest::default()
        };
        let policy = start_guest(&recursing).unwrap();
        let text = policy.pick(0, &request(7), &[0, 1, 2]).unwrap_err().to_string();
        assert!(text.contains("call stack exhausted") && text.contains(" in deep < deep < deep"), "{text}");
    }

    #[test]
    fn names_of_a_guest_forge_nothing_in_what_is_told_of_it() {
        let name = format!("a\\n\\1b[31mforged\\e2\\80\\ae{}", "x".repeat(90_000));
        let fields = format!("(func $odd (@name \"{name}\") unreachable)");
        let guest = Guest { fields: &fields, configure: "(call $odd) unreachable", ..Guest::default() };
        let refusal = start_guest(&guest).err().unwrap();
        assert!(refusal.reason.contains(r"a\n\u{1b}[31mforged\u{202e}xxx"), "{refusal}");
        assert!(refusal.reason.len() < 1_100, "{}", refusal.reason.len());
    }

    #[test]
    fn a_pick_refused_more_memory_that_then_gives_up_is_a_memory_fault() {
        let grow = "(loop $more (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) unreachable";
        assert_eq!(fault_on_seven(grow), Fault::Memory);
        let cope = on_seven("(drop (memory.grow (i32.const 100000)))");
        assert_eq!(
            start(&cope).unwrap().pick(0, &request(7), &[0, 1, 2]),
            Ok(Decision::Pick(0)),
            "one that copes is none"
        );
    }

    #[test]
    fn answers_are_checked() {
        let nonsense = |then: &str| match fault_on_seven(&format!("(return (call $answer {then}))")) {
            Fault::Nonsense(why) => why,
            fault => panic!("{fault:?}"),
        };
        assert_eq!(nonsense("(i32.const 0) (i32.const 3)"), "row 3 of 3");
        assert_eq!(nonsense("(i32.const 0) (i32.const -1)"), "row 4294967295 of 3");
        assert_eq!(nonsense("(i32.const 3) (i32.const 200)"), "status 200, which is none of 400 to 599");
        assert!(matches!(fault_on_seven("(return (call $answer (i32.const 9) (i32.const 0)))"), Fault::Trap(_)));
        assert!(matches!(fault_on_seven("(return (i32.const 0x7ffffff0))"), Fault::Trap(_)));
        for (answer, decision) in [
            ("(i32.const 0) (i32.const 2)", Decision::Pick(2)),
            ("(i32.const 1) (i32.const 0)", Decision::Abstain),
            ("(i32.const 2) (i32.const 0)", Decision::Hold),
            ("(i32.const 3) (i32.const 451)", Decision::Reject(451)),
        ] {
            let policy = start(&on_seven(&format!("(return (call $answer {answer}))"))).unwrap();
            assert_eq!(policy.pick(0, &request(7), &[0, 1, 2]), Ok(decision));
        }
    }

    #[test]
    fn what_fuel_does_not_stop_the_deadline_does() {
        let limits = PluginLimits { fuel: u64::MAX / 2, ..LIMITS };
        let policy = Policy::start(&on_seven(LOOP), &fleet(3), &Value::Null, &limits, 1).unwrap();
        let began = thread_time();
        assert_eq!(policy.pick(0, &request(7), &[0, 1, 2]), Err(Fault::Deadline));
        let took = thread_time() - began;
        assert!((Duration::from_secs(2)..Duration::from_millis(2_200)).contains(&took), "{took:?}");
    }

    #[test]
    fn a_pick_that_ends_too_late_is_no_pick_and_no_policy_at_the_trial() {
        let version = picking("(global.get $ok)");
        let policy = start(&version).unwrap();
        let no_time = Allowance { time: Duration::ZERO, ..allowance(&LIMITS, 3) };
        let pick = || {
            let call = |world: &World, store: &mut _| {
                world.vision_proxy_plugin_balance().call_pick(store, request(0), &[0, 1, 2])
            };
            policy.slots.call(0, no_time, call, |_| Ok(()))
        };
        assert_eq!(pick(), Err(Fault::Deadline), "the first call is a timed one");
        policy.rebuild(0).unwrap();
        for untimed in 1..64 {
            assert_eq!(pick(), Ok(Decision::Pick(0)), "call {untimed}");
        }
        assert_eq!(pick(), Err(Fault::Deadline));
        let instance = tried_instance(&policy.start, 0, &[], StartClock::begin()).unwrap();
        let refusal = instance.check_cost(no_time, "a pick", "nobody").unwrap_err();
        assert!(refusal.reason.contains("processor time"), "{refusal}");
    }

    #[test]
    fn a_start_has_one_clock_however_many_calls_it_takes() {
        let version = picking("(global.get $ok)");
        let start = Start::new(&version, &fleet(3), &Value::Null, LIMITS, 2);
        let refusal = new_instance(&start, 0, StartClock::ended()).err().unwrap();
        assert_eq!(refusal.stage, Stage::Instantiate);
        assert!(refusal.reason.contains("more than 5s of processor time"), "{refusal}");
    }

    #[test]
    fn what_the_host_does_costs_fuel() {
        let fields = "(global $left (mut i32) (i32.const 0))";
        let asking = |times: u32| {
            format!(
                "(global.set $left (i32.const {times}))
                (loop $more (call $ask)
                  (global.set $left (i32.sub (global.get $left) (i32.const 1))) (br_if $more (global.get $left)))"
            )
        };
        // Each of them far less than 200,000 fuel of the guest's own.
        for (ask, few, many) in [(RANDOM_BYTES, 1, 4), (TIME, 30, 300), (WAKING, 30, 300), (STREAM, 30, 300)] {
            let pick = |times| {
                let body = asking(times);
                format!("(if (i64.eq (local.get $sequence) (i64.const 7)) (then {body})) (global.get $ok)")
            };
            let policy = start_guest(&Guest { ask, fields, pick: &pick(few), ..Guest::default() }).unwrap();
            assert_eq!(policy.pick(0, &request(7), &[0, 1, 2]), Ok(Decision::Pick(0)), "{ask}");
            let policy = start_guest(&Guest { ask, fields, pick: &pick(many), ..Guest::default() }).unwrap();
            assert_eq!(policy.pick(0, &request(7), &[0, 1, 2]), Err(Fault::OutOfFuel), "{ask}");
            let always = format!("{} (global.get $ok)", asking(many));
            let refusal = start_guest(&Guest { ask, fields, pick: &always, ..Guest::default() }).err().unwrap();
            assert!(refusal.reason.contains("`plugins.limits.fuel` allows 200000"), "{refusal}");
        }
    }

    #[test]
    fn what_a_guest_keeps_of_the_host_is_bounded() {
        let fields = "(global $left (mut i32) (i32.const 0))";
        let keeping = |handles: u32| {
            let configure = format!(
                "(global.set $left (i32.const {handles}))
                (loop $more (call $ask)
                  (global.set $left (i32.sub (global.get $left) (i32.const 1))) (br_if $more (global.get $left)))
                (global.get $ok)"
            );
            start_guest(&Guest { ask: KEPT_WAKING, fields, configure: &configure, ..Guest::default() })
        };
        assert!(keeping(60).is_ok());
        assert_eq!(keeping(100).err().unwrap().stage, Stage::Configure);
    }

    #[test]
    fn names_that_no_request_could_carry_are_not_told() {
        // Of the first backend in the list at the fourth number: how many models it serves.
        let update = "(if (i32.ne (i32.load offset=40 (local.get 3)) (i32.const 1)) (then unreachable))";
        let version = compiled(&Guest { update, ..Guest::default() }.policy());
        let mut lying = fleet(3);
        lying.backends[0].serves.extend(["".to_owned(), "a\nb".to_owned(), "x".repeat(257)]);
        assert!(Policy::start(&version, &lying, &Value::Null, &LIMITS, 2).is_ok());
        lying.backends[0].serves.push("another".to_owned());
        assert_eq!(Policy::start(&version, &lying, &Value::Null, &LIMITS, 2).err().unwrap().stage, Stage::Update);
    }

    #[test]
    fn one_call_writes_a_bounded_amount() {
        let limits = PluginLimits { fuel: u64::MAX / 2, ..LIMITS };
        let version = on_seven("(loop $more (call $log (i32.const 1024) (i32.const 9)) (br $more))");
        let policy = Policy::start(&version, &fleet(3), &Value::Null, &limits, 1).unwrap();
        let fault = policy.pick(0, &request(7), &[0, 1, 2]).unwrap_err();
        assert!(fault.to_string().contains("more than 65536 bytes to the log"), "{fault}");
    }

    #[test]
    fn a_guest_may_print_and_panic_on_a_worker_thread() {
        let version = on_seven(
            "(call $print (i32.const 1152) (i32.const 45)) (call $log (i32.const 1024) (i32.const 9)) unreachable",
        );
        let policy = start(&version).unwrap();
        let worker = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        worker.block_on(async {
            assert_eq!(policy.pick(0, &request(6), &[0, 1, 2]), Ok(Decision::Pick(0)));
            let fault =
                tokio::spawn(async move { policy.pick(0, &request(7), &[0, 1, 2]) }).await.unwrap().unwrap_err();
            assert!(fault.to_string().contains("out of cheese in-flight"), "{fault}");
        });
    }

    #[test]
    fn the_columns_are_those_that_configure_asks_for() {
        // `ok` with a list of one text, which is 9 or 14 bytes long.
        let asking = |text: u32, bytes: u32| {
            format!(
                "(i32.store (i32.const 700) (i32.const {text})) (i32.store (i32.const 704) (i32.const {bytes}))
                (i32.store (i32.const 516) (i32.const 700)) (i32.store (i32.const 520) (i32.const 1)) (global.get $ok)"
            )
        };
        // The list is cleared again by `update`: the address of `ok` is where decisions are, too.
        let policy = start_guest(&Guest {
            configure: &asking(1024, 9),
            update: "(i64.store (i32.const 516) (i64.const 0))",
            ..Guest::default()
        })
        .unwrap();
        assert_eq!(policy.columns(), [Column::InFlight]);
        assert_eq!(policy.pick(0, &request(0), &[0, 5, 1, 6]), Ok(Decision::Pick(0)));
        let refusal = start_guest(&Guest { configure: &asking(1088, 14), ..Guest::default() }).err().unwrap();
        assert_eq!(refusal.stage, Stage::Configure);
        assert!(refusal.reason.contains("`no-such-column`; known are in-flight, slots, free"), "{refusal}");
        let names: Vec<_> = (0..17).map(|_| "slots".to_owned()).collect();
        assert!(Column::parse(&names).is_err() && Column::parse(&names[1..]).is_ok());
    }

    #[test]
    fn every_column_of_the_interface_is_known_and_no_other() {
        let wit = include_str!("../../../wit/vision-proxy.wit");
        let table = wit.lines().filter_map(|line| line.trim().strip_prefix("/// | `")?.split_once('`'));
        assert_eq!(table.map(|(name, _)| name).collect::<Vec<_>>(), Column::ALL.map(Column::name));
    }

    #[test]
    fn what_misbehaves_at_the_start_is_refused_there() {
        let refused = |guest: Guest| {
            let started = Instant::now();
            let refusal = start_guest(&guest).err().unwrap();
            assert!(started.elapsed() < Duration::from_secs(6));
            (refusal.stage, refusal.reason)
        };
        let text = "(i32.store (i32.const 512) (i32.const 1)) (i32.store (i32.const 516) (i32.const 1344))
            (i32.store (i32.const 520) (i32.const 10)) (global.get $ok)";
        assert_eq!(refused(Guest { configure: text, ..Guest::default() }), (Stage::Configure, "I will not".to_owned()));
        assert_eq!(
            refused(Guest { configure: &format!("{LOOP} unreachable"), ..Guest::default() }).0,
            Stage::Configure
        );
        assert_eq!(refused(Guest { update: "unreachable", ..Guest::default() }).0, Stage::Update);
        assert_eq!(refused(Guest { pick: "unreachable", ..Guest::default() }).0, Stage::Trial);
        assert_eq!(
            refused(Guest { fields: "(func $first unreachable) (start $first)", ..Guest::default() }).0,
            Stage::Instantiate
        );
        let row = Guest { pick: "(call $answer (i32.const 0) (i32.const 1))", ..Guest::default() };
        assert_eq!(refused(row), (Stage::Trial, "it answered nonsense: row 1 of 1".to_owned()));
    }

    #[test]
    fn a_guest_too_large_or_too_slow_is_told_which_setting_says_so() {
        let refusal = start_guest(&Guest { pages: 257, ..Guest::default() }).err().unwrap();
        assert_eq!(refusal.stage, Stage::Instantiate);
        assert!(refusal.reason.contains("plugins.limits.memory") && refusal.reason.contains("16777216"), "{refusal}");
        assert!(start_guest(&Guest { pages: 256, ..Guest::default() }).is_ok());
        let slow = picking(
            "(local.set $rows (i32.const 100000))
            (loop $on (br_if $on (local.tee $rows (i32.sub (local.get $rows) (i32.const 1))))) (global.get $ok)",
        );
        let refusal = start(&slow).err().unwrap();
        assert_eq!(refusal.stage, Stage::Trial);
        assert!(refusal.reason.contains("`plugins.limits.fuel` allows 200000"), "{refusal}");
    }

    #[test]
    fn a_component_as_large_as_a_script_has_limits_of_its_own() {
        let code = format!("(func {})", "(f64.const 1) drop ".repeat(60_000));
        let guest = |pages| Guest { fields: &code, pages, ..Guest::default() };
        assert!(start_guest(&guest(1024)).is_ok());
        assert!(start_guest(&guest(1025)).err().unwrap().reason.contains("67108864"));
        let ballast = format!("(data \"{}\")", "x".repeat(1 << 20));
        let large = Guest { fields: &ballast, pages: 257, ..Guest::default() };
        assert!(start_guest(&large).err().unwrap().reason.contains("16777216"), "what is no code makes no script");
    }

    #[test]
    fn an_empty_fleet_is_a_fleet() {
        let policy = Policy::start(&picking("(global.get $ok)"), &fleet(0), &Value::Null, &LIMITS, 1).unwrap();
        assert!(policy.columns().is_empty());
    }

    #[test]
    fn a_translator_is_no_policy() {
        let refusal = start(&compiled(&Guest::default().translator())).err().unwrap();
        assert_eq!((refusal.stage, refusal.reason.as_str()), (Stage::Kind, "`guest` is no policy, but a translator"));
    }

    #[test]
    fn one_call_in_sixty_four_is_timed() {
        let version = picking("(global.get $ok)");
        let policy = start(&version).unwrap();
        (0..65).for_each(|sequence| _ = policy.pick(0, &request(sequence), &[0, 1, 2]));
        let timing = version.counters.timing();
        assert_eq!((version.counters.calls(), timing.calls), (65, 2));
        assert!(timing.mean_ns() > 0 && timing.buckets.iter().sum::<u64>() == 2);
    }

    #[test]
    fn the_built_in_policies_are_plugins_like_others() {
        let built_ins = built_ins();
        let fleet = fleet(3);
        for version in built_ins.iter().filter(|version| version.kind == Kind::Policy) {
            let policy = Policy::start(version, &fleet, &Value::Null, &LIMITS, 1).unwrap();
            // Idle, alike, at rest in every column: each in turn.
            let rows = rows(0..3, policy.columns().len(), |_| 1);
            let picks: Vec<_> = (0..6).map(|sequence| policy.pick(0, &request(sequence), &rows)).collect();
            assert!(picks.iter().all(|pick| matches!(pick, Ok(Decision::Pick(0..3)))), "{}: {picks:?}", version.name);
        }
        let names: Vec<_> =
            built_ins.iter().map(|version| (version.name.as_str(), version.kind, version.source)).collect();
        let expected = [("round-robin", Kind::Policy), ("least-busy", Kind::Policy), ("model-map", Kind::Translator)];
        assert_eq!(names, expected.map(|(name, kind)| (name, kind, version::Source::BuiltIn)));
    }
}
