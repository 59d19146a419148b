//! Guests that mean ill, dropped one after the other into a proxy at work. None of them costs a request, keeps one waiting
//! or lets the proxy grow, and each is told by its cause: in `/api/plugins`, in the metrics and in the log.
//!
//! A row is a guest, what becomes of it, and a word that its cause must hold.

mod components;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use self::components::*;
use super::bombs;
use super::guest::{KEPT_WAKING, RANDOM_BYTES, STREAM, TIME, WAKING};
use super::guests::*;
use super::*;

/// What becomes of a hostile guest.
#[derive(Clone, Copy)]
enum End {
    /// It is refused at this stage.
    Refused(&'static str),
    /// It runs, fails for this reason, and the version before comes back.
    RolledBack(&'static str),
    /// It runs and harms nobody.
    Runs,
}

use End::{Refused, RolledBack, Runs};

type Row = (&'static str, Vec<u8>, End, &'static str);

/// On a busy machine; what a guest could cost without a bound is for ever.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);
/// A proxy with two workers and a policy has some 60 MiB.
const MEMORY_MAX_BYTES: u64 = 300 << 20;

/// A chat that is answered well and soon.
async fn answered_soon(client: Client) {
    let asked = Instant::now();
    assert_eq!(client.chat().await.ok().json()["model"], MODEL);
    assert!(asked.elapsed() < ANSWERED_WITHIN, "answered after {:?}", asked.elapsed());
}

/// Puts each of these into a running proxy as this plugin, where `good` runs before and after it.
async fn meets(plugin: &str, good: &[u8], rows: Vec<Row>) {
    let (proxy, _backends) = match plugin {
        MY_POLICY => balanced_by(good).await,
        _ => proxied("workers = 2\n", ["a", "b", "c"]).await,
    };
    let good_sha256 = sha256(good);
    let load = Load::by(&proxy, 1, answered_soon);
    let mut unexplained = Vec::new();
    let mut refused_at: BTreeMap<&str, f64> = BTreeMap::new();
    for (name, content, end, word) in &rows {
        let before = active(&proxy, plugin).await;
        assert_eq!(before["sha256"], good_sha256, "before {name}");
        let refused = reloads(&proxy, plugin, "refused").await;
        proxy.write_plugin(plugin, content);
        let cause = match end {
            Refused(stage) => {
                let at_stage = *refused_at.entry(*stage).and_modify(|count| *count += 1.0).or_insert(1.0);
                let row = file_is(&proxy, plugin, content, "refused").await;
                let cause = row["last_error"].as_str().unwrap_or_default().to_owned();
                assert!(cause.starts_with(&format!("{stage}: ")), "{name}: {cause}");
                assert_eq!(reloads(&proxy, plugin, "refused").await, refused + 1.0, "{name}");
                assert_eq!(refusals(&proxy, plugin, stage).await, at_stage, "{name}");
                let now = active(&proxy, plugin).await;
                assert_eq!((&now["generation"], &now["faults"]), (&before["generation"], &before["faults"]), "{name}");
                cause
            }
            RolledBack(reason) => {
                let row = file_is(&proxy, plugin, content, "rolled-back").await;
                assert!(faults(&proxy, plugin, reason).await >= 1.0, "{name}");
                row["last_error"].as_str().unwrap_or_default().to_owned()
            }
            Runs => {
                runs(&proxy, plugin, content).await;
                load.answers_more(20).await;
                eventually(&format!("{name}: the log says {word:?}"), async || proxy.output().contains(word)).await;
                assert_eq!(active(&proxy, plugin).await["faults"], 0, "{name}");
                proxy.write_plugin(plugin, good);
                (*word).to_owned()
            }
        };
        if !cause.contains(word) {
            unexplained.push(format!("{name}: {word:?} is not in {cause:?}"));
        }
        let logged = as_json(&cause);
        eventually(&format!("{name}: the log says {cause:?}"), async || proxy.output().contains(&logged)).await;
        assert!(!cause.chars().any(char::is_control) && cause.len() < 1_100, "{name}: {cause:?}");
        runs(&proxy, plugin, good).await;
        load.answers_more(2).await;
    }
    load.ends_well().await;
    assert!(unexplained.is_empty(), "{unexplained:#?}");
    assert!(proxy.peak_memory_bytes() < MEMORY_MAX_BYTES, "it grew to {} bytes", proxy.peak_memory_bytes());
    proxy.falls_idle().await;
}

/// As it stands between the quotes of a line of the log.
fn as_json(text: &str) -> String {
    let quoted = serde_json::to_string(text).expect("JSON");
    quoted[1..quoted.len() - 1].to_owned()
}

#[tokio::test]
async fn what_the_bytes_tell_refuses_them() {
    let forbidden = |import: &str| importing(&format!(r#"(import "{import}" (instance))"#));
    let balance = |inside: &str| {
        text(&format!(
            r#"(component {inside} (export "vision-proxy:plugin/balance@0.1.0" (instance $i))
            )"#
        ))
    };
    let secrets = r#"(import "wasi:cli/environment@0.2.0" (instance (export "get-secrets" (func))))"#;
    let both = r#"(component (instance $i) (export "vision-proxy:plugin/balance@0.1.0" (instance $i))
        (export "vision-proxy:plugin/translate@0.1.0" (instance $i)))"#;
    let other_type = r#"(core module $m (func (export "f") (result i32) (i32.const 0)))
        (core instance $m (instantiate $m)) (func $f (result u32) (canon lift (core func $m "f")))
        (instance $i (export "configure" (func $f)) (export "update" (func $f)) (export "pick" (func $f)))"#;
    let newer = Guest { package_version: "0.2.0", ..Guest::default() };
    let rows: Vec<Row> = vec![
        ("text", b"(component)".to_vec(), Refused("format"), "text format"),
        ("text after a comment", b";; (component)".to_vec(), Refused("format"), "text format"),
        ("a script", b"#!/bin/sh\nexit 1\n".to_vec(), Refused("format"), "not WebAssembly"),
        ("a program", b"\x7fELF\x02\x01\x01\0\0\0\0\0".to_vec(), Refused("format"), "precompiled"),
        ("a core module", text("(module)"), Refused("format"), "core module"),
        ("of the future", b"\0asm\x0e\0\x01\0".to_vec(), Refused("format"), "unknown version"),
        ("an unknown section", b"\0asm\x0d\0\x01\0\x63\x02\xff\xff".to_vec(), Refused("compile"), "section"),
        ("nothing", text("(component)"), Refused("kind"), "exports neither"),
        ("both kinds", text(both), Refused("kind"), "at once"),
        ("the other kind", Guest::default().translator(), Refused("kind"), "translator"),
        ("hollow", balance("(instance $i)"), Refused("interface"), "configure"),
        ("other types", balance(other_type), Refused("instantiate"), "expected"),
        ("of the next interface", newer.policy(), Refused("interface"), "built for 0.2"),
        ("sockets", forbidden("wasi:sockets/tcp@0.2.0"), Refused("imports"), "wasi:sockets/tcp@0.2.0"),
        ("http", forbidden("wasi:http/outgoing-handler@0.2.0"), Refused("imports"), "wasi:http/outgoing-handler"),
        ("its own", forbidden("acme:keys/store"), Refused("imports"), "acme:keys/store"),
        ("an unknown function", importing(secrets), Refused("imports"), "get-secrets"),
        ("200 memories", with_fields(&"(memory 1)".repeat(200)), Refused("compile"), "memories"),
        ("64-bit memory", with_fields("(memory i64 1)"), Refused("compile"), "memory64"),
        ("shared memory", with_fields("(memory 1 1 shared)"), Refused("compile"), "threads"),
        ("tail calls", with_fields("(func $f (return_call $f))"), Refused("compile"), "tail call"),
        ("instances without number", bombs::instances(), Refused("compile"), "memory"),
        ("a knot of branches", bombs::branches(20_000), Refused("compile"), "memory"),
    ];
    meets(MY_POLICY, &last_row(), rows).await;
}

#[tokio::test]
async fn what_goes_wrong_at_the_start_refuses_the_guest() {
    let update = |update| policy(Guest { update, ..Guest::default() });
    let realloc = |realloc| policy(Guest { realloc, ..Guest::default() });
    let after = |after| policy(Guest { after, ..Guest::default() });
    let deep = "(func $deep (call $deep) (call $deep))";
    let deeply = policy(Guest { fields: deep, configure: "(call $deep) unreachable", ..Guest::default() });
    let table = "(table $t 1 funcref) (func $grow (loop $more
        (br_if $more (i32.ne (table.grow $t (ref.null func) (i32.const 50000)) (i32.const -1)))) unreachable)";
    let tables = policy(Guest { fields: table, configure: "(call $grow) unreachable", ..Guest::default() });
    let tag_9 = picking("(call $answer (i32.const 9) (i32.const 0))");
    let rows: Vec<Row> = vec![
        (
            "a start without end",
            with_fields(&format!("(func $go {FOREVER}) (start $go)")),
            Refused("instantiate"),
            "fuel",
        ),
        (
            "a start that traps",
            with_fields("(func $go unreachable) (start $go)"),
            Refused("instantiate"),
            "unreachable",
        ),
        ("4 GiB of memory", policy(Guest { pages: 65_536, ..Guest::default() }), Refused("instantiate"), "memory"),
        ("10 million functions", with_fields("(table 10000000 funcref)"), Refused("instantiate"), "memory"),
        ("a table that grows", tables, Refused("configure"), "memory"),
        ("a memory that grows", configured(&format!("{GROW} {TRAP}")), Refused("configure"), "memory"),
        ("depth", deeply, Refused("configure"), "stack"),
        ("a trap", configured(TRAP), Refused("configure"), "unreachable"),
        ("a configure without end", configured(&format!("{FOREVER} {TRAP}")), Refused("configure"), "fuel"),
        ("an answer out of bounds", configured("(i32.const 0x7ffffff0)"), Refused("configure"), "bounds"),
        ("an answer that is not aligned", configured("(i32.const 641)"), Refused("configure"), "align"),
        ("no", saying_no(1344, 10), Refused("configure"), "I will not"),
        ("forged lines", saying_no(1280, 12), Refused("configure"), "forged"),
        ("no in 4 MB", saying_no(0, 4_000_000), Refused("configure"), "fuel"),
        ("no from nowhere", saying_no(0xffff_fff0, 10), Refused("configure"), "bounds"),
        (
            "a column there is not",
            configured("(call $column (i32.const 1088) (i32.const 14))"),
            Refused("configure"),
            "no-such-column",
        ),
        ("17 columns", columns(17), Refused("configure"), "at most 16"),
        ("100,000 columns", columns(100_000), Refused("configure"), "fuel"),
        ("an update without end", update(FOREVER), Refused("update"), "fuel"),
        ("an update that traps", update(TRAP), Refused("update"), "unreachable"),
        ("memory without end", realloc(FOREVER), Refused("configure"), "fuel"),
        ("memory out of bounds", realloc("(return (i32.const 0x7ffffff0))"), Refused("configure"), "end of memory"),
        ("memory that is not aligned", realloc("(return (i32.const 4097))"), Refused("update"), "align"),
        ("an answer never given up", after(FOREVER), Refused("trial"), "fuel"),
        ("an answer given up badly", after(TRAP), Refused("trial"), "unreachable"),
        ("a pick that traps", picking(TRAP), Refused("trial"), "unreachable"),
        ("a pick without end", picking(&format!("{FOREVER} {TRAP}")), Refused("trial"), "fuel"),
        ("a slow pick", busy(200_000), Refused("trial"), "plugins.limits.fuel"),
        ("a row that is not there", picking("(call $answer (i32.const 0) (i32.const 8))"), Refused("trial"), "row 8"),
        (
            "the last row of all",
            picking("(call $answer (i32.const 0) (i32.const -1))"),
            Refused("trial"),
            "row 4294967295",
        ),
        (
            "a status that refuses nothing",
            picking("(call $answer (i32.const 3) (i32.const 200))"),
            Refused("trial"),
            "status 200",
        ),
        ("an unknown decision", tag_9, Refused("trial"), "discriminant"),
        ("lines without end", talkative(1_000_000), Refused("trial"), "to the log"),
    ];
    meets(MY_POLICY, &last_row(), rows).await;
}

#[tokio::test]
async fn what_goes_wrong_at_work_is_rolled_back() {
    let deep = "(func $deep (call $deep) (call $deep))";
    let deeply = format!("(if {AT_WORK} (then (call $deep))) {OK}");
    let sometimes = "(i64.eq (i64.rem_u (local.get $sequence) (i64.const 3)) (i64.const 2))";
    let sometimes = picking(&format!("(if (i32.and {AT_WORK} {sometimes}) (then unreachable)) {OK}"));
    let answer = |tag: i32, number: i32| format!("(return (call $answer (i32.const {tag}) (i32.const {number})))");
    let rows: Vec<Row> = vec![
        ("traps", wrong_at_work(TRAP), RolledBack("trap"), "unreachable"),
        ("traps now and then", sometimes, RolledBack("trap"), "unreachable"),
        ("never ends", wrong_at_work(FOREVER), RolledBack("fuel"), "fuel"),
        ("goes deep", policy(Guest { fields: deep, pick: &deeply, ..Guest::default() }), RolledBack("trap"), "stack"),
        ("a row that is not there", wrong_at_work(&answer(0, 3)), RolledBack("nonsense"), "row 3"),
        ("a status that refuses nothing", wrong_at_work(&answer(3, 200)), RolledBack("nonsense"), "status 200"),
        ("an unknown decision", wrong_at_work(&answer(9, 0)), RolledBack("trap"), "discriminant"),
        ("an answer out of bounds", wrong_at_work("(return (i32.const 0x7ffffff0))"), RolledBack("trap"), "bounds"),
        ("wants all memory", wrong_at_work(&format!("{GROW} {TRAP}")), RolledBack("memory"), "memory"),
        ("gives an answer up badly", after_work(TRAP), RolledBack("trap"), "unreachable"),
        ("never gives an answer up", after_work(FOREVER), RolledBack("fuel"), "fuel"),
        ("has no memory to give", when_asked_for_memory(TRAP), RolledBack("trap"), "unreachable"),
        ("never gives memory", when_asked_for_memory(FOREVER), RolledBack("fuel"), "fuel"),
        (
            "gives memory that is not there",
            when_asked_for_memory("(return (i32.const -64))"),
            RolledBack("trap"),
            "end of memory",
        ),
        ("as slow as it may be", busy(20_000), Runs, ""),
        ("as large as it may be", picking(&format!("{GROW} {OK}")), Runs, ""),
        ("talks", talkative(50), Runs, "lines of this plugin were dropped"),
    ];
    meets(MY_POLICY, &last_row(), rows).await;
}

#[tokio::test]
async fn what_the_host_does_for_a_guest_or_takes_it_for_is_bounded() {
    let fields = "(global $left (mut i32) (i32.const 0))";
    let asking = |times: u32| {
        format!(
            "(global.set $left (i32.const {times}))
            (loop $more (call $ask)
              (global.set $left (i32.sub (global.get $left) (i32.const 1))) (br_if $more (global.get $left)))"
        )
    };
    let without_end = asking(1_000_000);
    let [configure, pick] = [format!("{without_end} {OK}"), format!("{} {OK}", asking(5_000))];
    let at_work = format!("(if {AT_WORK} (then {})) {OK}", asking(5_000));
    let mut rows: Vec<Row> = vec![
        ("a forged name", with_forged_name(), Refused("configure"), "forged"),
        ("as large as a script, but not code", padded(busy(200_000)), Refused("trial"), "plugins.limits.fuel"),
    ];
    let configure_keeping = format!("{} {OK}", asking(100));
    let keeping = Guest { ask: KEPT_WAKING, fields, configure: &configure_keeping, ..Guest::default() };
    rows.push(("keeps what it is given", policy(keeping), Refused("configure"), ""));
    for ask in [RANDOM_BYTES, TIME, WAKING, STREAM] {
        let guest = || Guest { ask, fields, ..Guest::default() };
        rows.push(("at configure", policy(Guest { configure: &configure, ..guest() }), Refused("configure"), "fuel"));
        rows.push(("at update", policy(Guest { update: &without_end, ..guest() }), Refused("update"), "fuel"));
        rows.push(("at the trial", policy(Guest { pick: &pick, ..guest() }), Refused("trial"), "fuel"));
        rows.push(("at work", policy(Guest { pick: &at_work, ..guest() }), RolledBack("fuel"), "fuel"));
    }
    meets(MY_POLICY, &last_row(), rows).await;
}

#[tokio::test]
async fn a_translator_that_means_ill_costs_no_request() {
    const ROUTE: &str = "(call $route (i32.const 0) (i32.const 1408) (i32.const 7))";
    let listing = |catalog: &str| {
        let fields = r#"(data (i32.const 1500) "caf\e9")"#;
        Guest { catalog, resolve: ROUTE, fields, pages: 64, ..Guest::default() }.translator()
    };
    let one = |at: u32, bytes: u32| {
        listing(&format!(
            "(i32.store (i32.const 800) (i32.const {at})) (i32.store (i32.const 804) (i32.const {bytes}))
            (call $answer (i32.const 800) (i32.const 1))"
        ))
    };
    let many = listing("(call $answer (i32.const 4096) (i32.const 400000))");
    let resolving = |resolve: &str| Guest { resolve, ..Guest::default() }.translator();
    let route = |backend: u32, at: u32, bytes: u32| {
        resolving(&format!("(call $route (i32.const {backend}) (i32.const {at}) (i32.const {bytes}))"))
    };
    let not_listed = "names of the catalog are double, too many or no names";
    let asking = "(loop $more (call $ask) (br $more))";
    let asks = |resolve| Guest { ask: RANDOM_BYTES, resolve, ..Guest::default() }.translator();
    let rows: Vec<Row> = vec![
        ("random bytes without end", asks(&format!("{asking} {TRAP}")), Refused("trial"), "fuel"),
        ("a catalog without end", listing(&format!("{FOREVER} {TRAP}")), Refused("trial"), "fuel"),
        ("a catalog of no text", one(1500, 4), Refused("trial"), "utf-8"),
        ("a catalog from nowhere", one(0xffff_fff0, 9), Refused("trial"), "bounds"),
        ("a catalog of 400,000 names", many, Refused("trial"), "fuel"),
        ("a catalog of a forged name", one(1280, 12), Runs, not_listed),
        ("a catalog of a name too long", one(30_000, 300), Runs, not_listed),
        ("a resolve without end", resolving(&format!("{FOREVER} {TRAP}")), Refused("trial"), "fuel"),
        ("a resolve that traps", resolving(TRAP), Refused("trial"), "unreachable"),
        ("a backend that is not there", route(99, 1408, 7), Refused("trial"), "backend 99 of"),
        ("a forged native name", route(0, 1280, 12), Refused("trial"), "a native name of 12 bytes"),
        ("a native name too long", route(0, 30_000, 300), Refused("trial"), "a native name of 300 bytes"),
        ("no native name", route(0, 1408, 0), Refused("trial"), "a native name of 0 bytes"),
        ("the other kind", last_row(), Refused("kind"), "policy"),
    ];
    meets("model-map", MODEL_MAP, rows).await;
}

#[tokio::test]
async fn a_file_cut_off_anywhere_is_never_taken() {
    let (proxy, _backends) = balanced_by(&last_row()).await;
    let load = Load::by(&proxy, 1, answered_soon);
    let cuts = [0, 1, 7, 9, 100, 1_000, 10_000, ROUND_ROBIN.len() / 2, ROUND_ROBIN.len() - 1];
    let name = |cut: usize| format!("cut-{cut}");
    cuts.iter().for_each(|&cut| proxy.write_plugin(&name(cut), &ROUND_ROBIN[..cut]));
    for cut in cuts {
        file_is(&proxy, &name(cut), &ROUND_ROBIN[..cut], "pending").await;
    }
    for cut in cuts {
        let row = file_is(&proxy, &name(cut), &ROUND_ROBIN[..cut], "refused").await;
        assert!(row["last_error"].as_str().is_some_and(|cause| cause.starts_with("truncated: ")), "{row}");
    }
    all_go_to(&proxy, "c").await;
    load.ends_well().await;
}
