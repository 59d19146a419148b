//! Guests for tests, in the component text format: one body a function, around which everything else is the same.
//!
//! Invariants:
//! - No binary lies in the repository: what is not written here is one of the built-ins.
//!
//! In a body `$print` and `$log` take the address and length of a text, and `$ok` is the address of an answer
//! that is the first row, no column, or no route, whichever the function returns. `$answer` makes a decision
//! of a tag and a payload.

use std::sync::Arc;

use super::bindings::{Backend, Fleet, Request};
use super::{Runtime, Source, Version, trial};
use crate::config::PluginLimits;

pub const LIMITS: PluginLimits = PluginLimits { fuel: 200_000, memory_bytes: 16 << 20 };

/// The bodies of a guest. Those not given do the least.
pub struct Guest<'a> {
    pub package_version: &'a str,
    /// Further imports of the component.
    pub imports: &'a str,
    /// Further fields of the core module.
    pub fields: &'a str,
    /// Pages of the memory, at first.
    pub pages: u32,
    pub configure: &'a str,
    pub update: &'a str,
    pub pick: &'a str,
    pub resolve: &'a str,
    pub catalog: &'a str,
}

impl Default for Guest<'_> {
    fn default() -> Self {
        let ok = "(global.get $ok)";
        Self {
            package_version: "0.1.0",
            imports: "",
            fields: "",
            pages: 1,
            configure: ok,
            update: "",
            pick: ok,
            resolve: ok,
            catalog: ok,
        }
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
            .replace("PACKAGE_VERSION", self.package_version)
            .replace("IMPORTS", self.imports)
            .replace("FIELDS", self.fields)
            .replace("PAGES", &self.pages.to_string())
            .replace("CONFIGURE", self.configure)
            .replace("UPDATE", self.update)
            .replace("PICK", self.pick)
            .replace("RESOLVE", self.resolve)
            .replace("CATALOG", self.catalog);
        wat::parse_str(text).unwrap()
    }
}

pub fn runtime() -> Runtime {
    static RUNTIME: std::sync::OnceLock<Runtime> = std::sync::OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::new().unwrap()).clone()
}

/// What is embedded in the binary, compiled once for all tests.
pub fn built_ins() -> &'static [Arc<Version>] {
    static BUILT_INS: std::sync::OnceLock<Vec<Arc<Version>>> = std::sync::OnceLock::new();
    BUILT_INS.get_or_init(|| runtime().built_ins().unwrap())
}

/// A compiled policy that picks so.
pub fn picking(pick: &str) -> Arc<Version> {
    compiled(&Guest { pick, ..Guest::default() }.policy())
}

pub fn compiled(bytes: &[u8]) -> Arc<Version> {
    runtime().compile("guest", Source::File, bytes).unwrap()
}

pub fn fleet(backends: u32) -> Fleet {
    let backend = |at| Backend {
        name: format!("gpu-{at}"),
        hash: u64::from(at),
        engine: "vllm".to_owned(),
        weight: 1,
        labels: Vec::new(),
        serves: vec![format!("org/model-{at}")],
        names: vec![("model".to_owned(), format!("org/model-{at}"))],
    };
    Fleet { generation: 1, models: vec!["model".to_owned()], backends: (0..backends).map(backend).collect() }
}

pub fn request(sequence: u64) -> Request {
    Request { sequence, ..trial::PLAIN }
}

/// The texts start here, one every 64 bytes; the heap after them.
const COMPONENT: &str = r#"(component
  IMPORTS
  (import "vision-proxy:plugin/host@0.1.0" (instance $host
    (type $level (enum "debug" "info" "warn" "error"))
    (export "level" (type $level-name (eq $level)))
    (export "log" (func (param "level" $level-name) (param "message" string)))))
  (import "wasi:io/error@0.2.0" (instance $error (export "error" (type (sub resource)))))
  (alias export $error "error" (type $io-error))
  (import "wasi:io/streams@0.2.0" (instance $streams
    (export "output-stream" (type $output (sub resource)))
    (alias outer 1 $io-error (type $io-error-here))
    (type $failed (variant (case "last-operation-failed" (own $io-error-here)) (case "closed")))
    (export "stream-error" (type $failed-name (eq $failed)))
    (export "[method]output-stream.blocking-write-and-flush"
      (func (param "self" (borrow $output)) (param "contents" (list u8)) (result (result (error $failed-name)))))))
  (alias export $streams "output-stream" (type $output-stream))
  (import "wasi:cli/stderr@0.2.0" (instance $stderr
    (alias outer 1 $output-stream (type $output))
    (export "get-stderr" (func (result (own $output))))))

  (core module $Memory (memory (export "memory") PAGES))
  (core instance $memory (instantiate $Memory))
  (alias core export $memory "memory" (core memory $shared))
  (core func $log (canon lower (func $host "log") (memory $shared) string-encoding=utf8))
  (core func $stderr (canon lower (func $stderr "get-stderr")))
  (core func $write (canon lower (func $streams "[method]output-stream.blocking-write-and-flush") (memory $shared)))
  (core func $close (canon resource.drop $output-stream))

  (core module $Guest
    (import "host" "memory" (memory 1))
    (import "host" "log" (func $host-log (param i32 i32 i32)))
    (import "host" "stderr" (func $stderr (result i32)))
    (import "host" "write" (func $write (param i32 i32 i32 i32)))
    (import "host" "close" (func $close (param i32)))
    (data (i32.const 1024) "in-flight")
    (data (i32.const 1088) "no-such-column")
    (data (i32.const 1152) "thread panicked at guest.rs:7:\nout of cheese\n")
    (data (i32.const 1216) "native")
    (data (i32.const 1280) "forged\0d\0aname")
    (data (i32.const 1344) "I will not")
    (global $ok i32 (i32.const 512))
    (global $heap (mut i32) (i32.const 4096))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (global.set $heap (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
      (global.get $heap)
      (global.set $heap (i32.add (global.get $heap) (local.get 3))))
    (func $log (param i32 i32) (call $host-log (i32.const 2) (local.get 0) (local.get 1)))
    (func $print (param i32 i32) (local $stream i32)
      (local.set $stream (call $stderr))
      (call $write (local.get $stream) (local.get 0) (local.get 1) (i32.const 256))
      (call $close (local.get $stream)))
    (func $answer (param i32 i32) (result i32)
      (i32.store (i32.const 600) (local.get 0)) (i32.store (i32.const 604) (local.get 1)) (i32.const 600))
    FIELDS
    (func $free (global.set $heap (i32.const 4096)))
    (func (export "configure") (param i32 i32 i32 i32 i32 i32) (result i32) CONFIGURE)
    (func (export "update") (param i64 i32 i32 i32 i32) UPDATE (call $free))
    (func (export "pick") (param $sequence i64) (param i64 i64 i64 i64 i32 i32 i32 i32 i32) (param $rows i32) (param $numbers i32)
      (result i32) (call $free) PICK)
    (func (export "resolve") (param $model i32) (param $bytes i32) (result i32) (call $free) RESOLVE)
    (func (export "catalog") (result i32) (call $free) CATALOG))
  (core instance $guest (instantiate $Guest (with "host" (instance
    (export "memory" (memory $shared)) (export "log" (func $log)) (export "stderr" (func $stderr))
    (export "write" (func $write)) (export "close" (func $close))))))

  (type $pair (tuple string string))
  (type $backend-type (record (field "name" string) (field "hash" u64) (field "engine" string) (field "weight" u32)
    (field "labels" (list $pair)) (field "serves" (list string)) (field "names" (list $pair))))
  (export $backend "backend" (type $backend-type))
  (type $fleet-type (record (field "generation" u64) (field "models" (list string)) (field "backends" (list $backend))))
  (export $fleet "fleet" (type $fleet-type))
  (type $setup-type (record (field "name" string) (field "settings" string) (field "shard" u32) (field "shards" u32)))
  (export $setup "setup" (type $setup-type))
  (func $update (param "fleet" $fleet)
    (canon lift (core func $guest "update") (memory $shared) (realloc (core func $guest "realloc"))))
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
    (canon lift (core func $guest "configure") (memory $shared) (realloc (core func $guest "realloc"))))
  (func $pick (param "request" $request) (param "rows" (list u32)) (result $decision)
    (canon lift (core func $guest "pick") (memory $shared) (realloc (core func $guest "realloc"))))
  (instance $balance (export "configure" (func $configure)) (export "update" (func $update)) (export "pick" (func $pick)))
  (export "vision-proxy:plugin/balance@PACKAGE_VERSION" (instance $balance))"#;

const TRANSLATOR: &str = r#"
  (type $route-type (record (field "backend" u32) (field "native" string)))
  (export $route "route" (type $route-type))
  (func $configure (param "setup" $setup) (result (result (error string)))
    (canon lift (core func $guest "configure") (memory $shared) (realloc (core func $guest "realloc"))))
  (func $resolve (param "model" string) (result (list $route))
    (canon lift (core func $guest "resolve") (memory $shared) (realloc (core func $guest "realloc"))))
  (func $catalog (result (list string))
    (canon lift (core func $guest "catalog") (memory $shared) (realloc (core func $guest "realloc"))))
  (instance $translate (export "configure" (func $configure)) (export "update" (func $update))
    (export "resolve" (func $resolve)) (export "catalog" (func $catalog)))
  (export "vision-proxy:plugin/translate@PACKAGE_VERSION" (instance $translate))"#;

#[test]
fn the_least_guest_runs() {
    let version = picking("(global.get $ok)");
    let policy = super::Policy::start(&version, &fleet(2), &serde_json::Value::Null, &LIMITS, 1).unwrap();
    assert_eq!(policy.pick(0, &request(0), &[0, 1]), Ok(super::Decision::Pick(0)));
    let version = compiled(&Guest::default().translator());
    let translator = super::Translator::start(&version, &fleet(2), &serde_json::Value::Null, &LIMITS, 1).unwrap();
    assert_eq!(translator.resolve(0, "model"), Ok(Vec::new()));
}
