//! What the hostile guests are made of.

use super::*;

pub(super) fn policy(guest: Guest) -> Vec<u8> {
    guest.policy()
}

pub(super) fn text(component: &str) -> Vec<u8> {
    wat::parse_str(component).expect("a component in text")
}

pub(super) fn importing(imports: &str) -> Vec<u8> {
    policy(Guest { imports, ..Guest::default() })
}

pub(super) fn with_fields(fields: &str) -> Vec<u8> {
    policy(Guest { fields, ..Guest::default() })
}

pub(super) fn configured(configure: &str) -> Vec<u8> {
    policy(Guest { configure, pages: 64, ..Guest::default() })
}

/// `configure` says no, in so many bytes at this address.
pub(super) fn saying_no(at: u32, bytes: u32) -> Vec<u8> {
    configured(&format!(
        "(i32.store (i32.const 640) (i32.const 1)) (i32.store (i32.const 644) (i32.const {at}))
        (i32.store (i32.const 648) (i32.const {bytes})) (i32.const 640)"
    ))
}

/// `configure` asks for one column by so many names, all of them the same text.
pub(super) fn columns(names: u32) -> Vec<u8> {
    let fields = "(global $left (mut i32) (i32.const 0))";
    let configure = format!(
        "(global.set $left (i32.const {names}))
        (loop $more
          (global.set $left (i32.sub (global.get $left) (i32.const 1)))
          (i32.store (i32.add (i32.const 65536) (i32.shl (global.get $left) (i32.const 3))) (i32.const 1024))
          (i32.store (i32.add (i32.const 65540) (i32.shl (global.get $left) (i32.const 3))) (i32.const 9))
          (br_if $more (global.get $left)))
        (i32.store (i32.const 644) (i32.const 65536)) (i32.store (i32.const 648) (i32.const {names})) (i32.const 640)"
    );
    policy(Guest { configure: &configure, fields, pages: 64, ..Guest::default() })
}

/// So many turns of a loop at each pick, with a few units of fuel each.
pub(super) fn busy(turns: u32) -> Vec<u8> {
    let fields = "(global $left (mut i32) (i32.const 0))";
    let pick = format!(
        "(global.set $left (i32.const {turns}))
        (loop $more
          (global.set $left (i32.sub (global.get $left) (i32.const 1))) (br_if $more (global.get $left)))
        {OK}"
    );
    policy(Guest { pick: &pick, fields, ..Guest::default() })
}

/// Two MiB larger than it was, and nothing else.
pub(super) fn padded(component: Vec<u8>) -> Vec<u8> {
    const CUSTOM: [u8; 6] = [0, 0x80, 0x80, 0x80, 1, 1];
    [component, CUSTOM.to_vec(), vec![b'x'; (2 << 20) - 1]].concat()
}

/// Traps in a function of such a name.
pub(super) fn with_forged_name() -> Vec<u8> {
    let fields = format!("(func $odd (@name \"a\\nforged\\1b[31m{}\") unreachable)", "x".repeat(90_000));
    policy(Guest { fields: &fields, configure: "(call $odd) unreachable", ..Guest::default() })
}

/// Logs a line so often at each pick.
pub(super) fn talkative(lines: u32) -> Vec<u8> {
    let fields = "(global $left (mut i32) (i32.const 0))";
    let pick = format!(
        "(global.set $left (i32.const {lines}))
        (loop $more
          (call $log (i32.const 1024) (i32.const 9))
          (global.set $left (i32.sub (global.get $left) (i32.const 1))) (br_if $more (global.get $left)))
        {OK}"
    );
    policy(Guest { pick: &pick, fields, ..Guest::default() })
}

pub(super) const AT_WORK: &str = "(i64.lt_u (i64.sub (local.get $sequence) (i64.const 1)) (i64.const 1000000))";
pub(super) const TRAP: &str = "unreachable";
pub(super) const GROW: &str = "(loop $more (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))";

/// After the first pick at work, the host's reading of an answer ends so.
pub(super) fn after_work(then: &str) -> Vec<u8> {
    let fields = "(global $works (mut i32) (i32.const 0))";
    let pick = format!("(if {AT_WORK} (then (global.set $works (i32.const 1)))) {OK}");
    let after = format!("(if (global.get $works) (then {then}))");
    policy(Guest { pick: &pick, after: &after, fields, ..Guest::default() })
}

/// At work, the host's asking for memory ends so.
pub(super) fn when_asked_for_memory(then: &str) -> Vec<u8> {
    let fields = "(global $works (mut i32) (i32.const 0))";
    let pick = format!("(if {AT_WORK} (then (global.set $works (i32.const 1)))) {OK}");
    let realloc = format!("(if (global.get $works) (then {then}))");
    policy(Guest { pick: &pick, realloc: &realloc, fields, ..Guest::default() })
}
