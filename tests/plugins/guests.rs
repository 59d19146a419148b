//! Plugins for these tests: the real ones that the build compiled, and small ones in the component text format
//! that do one thing, or one wrong.
//!
//! In a body `$answer` makes a decision of a tag and a payload, `$route` one route of a backend and a text's address
//! and length, `$column` asks for the column of that name; `$ok` is the address of an answer that is the first row,
//! no column, no route or no name, whichever the function returns.

pub const ROUND_ROBIN: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/builtin/round-robin.wasm"));
pub const LEAST_BUSY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/builtin/least-busy.wasm"));
pub const MODEL_MAP: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/builtin/model-map.wasm"));

/// What the translator of [`renaming`] calls every model.
pub const RENAMED: &str = "renamed";

pub const OK: &str = "(global.get $ok)";
pub const LAST_ROW: &str = "(call $answer (i32.const 0) (i32.sub (local.get $numbers) (i32.const 1)))";
pub const ABSTAIN: &str = "(call $answer (i32.const 1) (i32.const 0))";
pub const HOLD: &str = "(call $answer (i32.const 2) (i32.const 0))";
pub const TEAPOT: &str = "(call $answer (i32.const 3) (i32.const 418))";
pub const FOREVER: &str = "(loop $forever (br $forever))";

/// The bodies of a guest. Those not given do the least.
pub struct Guest<'a> {
    /// Of the interface it was built for.
    pub version: &'a str,
    /// Further imports of the component.
    pub imports: &'a str,
    pub configure: &'a str,
    pub pick: &'a str,
    pub resolve: &'a str,
}

impl Default for Guest<'_> {
    fn default() -> Self {
        Self { version: "0.1.0", imports: "", configure: OK, pick: OK, resolve: OK }
    }
}

impl Guest<'_> {
    pub fn policy(&self) -> Vec<u8> {
        self.build(POLICY)
    }

    pub fn translator(&self) -> Vec<u8> {
        self.build(TRANSLATOR)
    }

    fn build(&self, exports: &str) -> Vec<u8> {
        let text = COMPONENT
            .replace("EXPORTS", exports)
            .replace("VERSION", self.version)
            .replace("IMPORTS", self.imports)
            .replace("CONFIGURE", self.configure)
            .replace("PICK", self.pick)
            .replace("RESOLVE", self.resolve);
        wat::parse_str(text).expect("a component in text")
    }
}

/// A policy that picks so.
pub fn picking(pick: &str) -> Vec<u8> {
    Guest { pick, ..Guest::default() }.policy()
}

/// Sends everything to the last backend that can take it: nothing else in this suite does.
pub fn last_row() -> Vec<u8> {
    picking(LAST_ROW)
}

/// Takes only the first backend of the fleet, and rather waits than any other.
pub fn only_the_first_backend() -> Vec<u8> {
    picking(&format!("(if (i32.ne (i32.load (local.get $rows)) (i32.const 0)) (then (return {HOLD}))) {OK}"))
}

/// Takes the first row where it has nothing to do, and else waits.
pub fn only_who_is_idle() -> Vec<u8> {
    let configure = "(call $column (i32.const 1024) (i32.const 9))";
    let pick = format!("(if (i32.load offset=4 (local.get $rows)) (then (return {HOLD}))) {OK}");
    Guest { configure, pick: &pick, ..Guest::default() }.policy()
}

/// Does this at every pick but those it was tried with before the first request. That first one it answers well too.
pub fn wrong_at_work(then: &str) -> Vec<u8> {
    let is_at_work = "(i64.lt_u (i64.sub (local.get $sequence) (i64.const 1)) (i64.const 1000000))";
    picking(&format!("(if {is_at_work} (then {then})) {OK}"))
}

/// Sends every model to the second backend, as [`RENAMED`].
pub fn renaming() -> Vec<u8> {
    Guest { resolve: "(call $route (i32.const 1) (i32.const 1152) (i32.const 7))", ..Guest::default() }.translator()
}

/// Traps over names of seven bytes; nobody serves any other.
pub fn trapping_translator() -> Vec<u8> {
    let resolve = "(if (i32.eq (local.get $bytes) (i32.const 7)) (then unreachable)) (global.get $ok)";
    Guest { resolve, ..Guest::default() }.translator()
}

/// Answers lie below 1024, texts from there on, the heap above them.
const COMPONENT: &str = r#"(component
  IMPORTS
  (core module $Guest
    (memory (export "memory") 1)
    (data (i32.const 1024) "in-flight")
    (data (i32.const 1088) "no-such-column")
    (data (i32.const 1152) "renamed")
    (global $ok i32 (i32.const 512))
    (global $heap (mut i32) (i32.const 4096))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (global.set $heap (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
      (global.get $heap)
      (global.set $heap (i32.add (global.get $heap) (local.get 3))))
    (func $free (global.set $heap (i32.const 4096)))
    (func $answer (param i32 i32) (result i32)
      (i32.store (i32.const 600) (local.get 0)) (i32.store (i32.const 604) (local.get 1)) (i32.const 600))
    (func $column (param i32 i32) (result i32)
      (i32.store (i32.const 644) (i32.const 660)) (i32.store (i32.const 648) (i32.const 1))
      (i32.store (i32.const 660) (local.get 0)) (i32.store (i32.const 664) (local.get 1)) (i32.const 640))
    (func $route (param i32 i32 i32) (result i32)
      (i32.store (i32.const 700) (i32.const 720)) (i32.store (i32.const 704) (i32.const 1))
      (i32.store (i32.const 720) (local.get 0)) (i32.store (i32.const 724) (local.get 1))
      (i32.store (i32.const 728) (local.get 2)) (i32.const 700))
    (func (export "configure") (param i32 i32 i32 i32 i32 i32) (result i32) CONFIGURE)
    (func (export "update") (param i64 i32 i32 i32 i32) (call $free))
    (func (export "pick") (param $sequence i64) (param i64 i64 i64 i64 i32 i32 i32 i32 i32)
      (param $rows i32) (param $numbers i32) (result i32) (call $free) PICK)
    (func (export "resolve") (param $model i32) (param $bytes i32) (result i32) (call $free) RESOLVE)
    (func (export "catalog") (result i32) (global.get $ok)))
  (core instance $guest (instantiate $Guest))
  (alias core export $guest "memory" (core memory $memory))
  (alias core export $guest "realloc" (core func $realloc))

  (type $pair (tuple string string))
  (type $backend-type (record (field "name" string) (field "hash" u64) (field "engine" string) (field "weight" u32)
    (field "labels" (list $pair)) (field "serves" (list string)) (field "names" (list $pair))))
  (export $backend "backend" (type $backend-type))
  (type $fleet-type (record (field "generation" u64) (field "models" (list string)) (field "backends" (list $backend))))
  (export $fleet "fleet" (type $fleet-type))
  (type $setup-type (record (field "name" string) (field "settings" string) (field "shard" u32) (field "shards" u32)))
  (export $setup "setup" (type $setup-type))
  (func $update (param "fleet" $fleet)
    (canon lift (core func $guest "update") (memory $memory) (realloc $realloc)))
  EXPORTS)"#;

const POLICY: &str = r#"
  (type $traits-type (flags "streaming" "vision" "embedding" "audio" "retry"))
  (export $traits "traits" (type $traits-type))
  (type $request-type (record (field "sequence" u64) (field "random" u64) (field "affinity" u64) (field "prefix" u64)
    (field "now-ms" u64) (field "model" u32) (field "body-kib" u32) (field "images" u32) (field "attempt" u32)
    (field "traits" $traits)))
  (export $request "request" (type $request-type))
  (type $decision-type (variant (case "pick" u32) (case "abstain") (case "hold") (case "reject" u16)))
  (export $decision "decision" (type $decision-type))
  (func $configure (param "setup" $setup) (result (result (list string) (error string)))
    (canon lift (core func $guest "configure") (memory $memory) (realloc $realloc)))
  (func $pick (param "request" $request) (param "rows" (list u32)) (result $decision)
    (canon lift (core func $guest "pick") (memory $memory) (realloc $realloc)))
  (instance $balance (export "configure" (func $configure)) (export "update" (func $update)) (export "pick" (func $pick)))
  (export "vision-proxy:plugin/balance@VERSION" (instance $balance))"#;

const TRANSLATOR: &str = r#"
  (type $route-type (record (field "backend" u32) (field "native" string)))
  (export $route "route" (type $route-type))
  (func $configure (param "setup" $setup) (result (result (error string)))
    (canon lift (core func $guest "configure") (memory $memory) (realloc $realloc)))
  (func $resolve (param "model" string) (result (list $route))
    (canon lift (core func $guest "resolve") (memory $memory) (realloc $realloc)))
  (func $catalog (result (list string))
    (canon lift (core func $guest "catalog") (memory $memory) (realloc $realloc)))
  (instance $translate (export "configure" (func $configure)) (export "update" (func $update))
    (export "resolve" (func $resolve)) (export "catalog" (func $catalog)))
  (export "vision-proxy:plugin/translate@VERSION" (instance $translate))"#;
