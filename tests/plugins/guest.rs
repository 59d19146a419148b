//! A guest in the component text format, for unit tests and black-box tests: one body a function, around which
//! everything else is the same.
//!
//! In a body `$print` and `$log` take the address and length of a text, `$answer` makes a decision of a tag and a payload, or
//! a list of an address and a length; `$column` asks for the column of that name, and `$route` makes one route of a backend
//! and a text's address and length. `$ok` is the address of an answer that is the first row, no column, no route or no name,
//! whichever the function returns. `$ask` makes one call of the host, whichever [`Guest::ask`] says.

/// The bodies of a guest. Those not given do the least.
pub struct Guest<'a> {
    /// Of the interface it was built for.
    pub package_version: &'a str,
    /// Further imports of the component.
    pub imports: &'a str,
    /// What `$ask` does: one of the texts below.
    pub ask: &'a str,
    /// Further fields of the core module.
    pub fields: &'a str,
    /// Pages of the memory, at first.
    pub pages: u32,
    /// What is done first whenever the host wants memory for an argument.
    pub realloc: &'a str,
    pub configure: &'a str,
    pub update: &'a str,
    pub pick: &'a str,
    pub resolve: &'a str,
    pub catalog: &'a str,
    /// What is done when the host has read the answer of `pick` or `resolve`.
    pub after: &'a str,
}

impl Default for Guest<'_> {
    fn default() -> Self {
        let ok = "(global.get $ok)";
        Self {
            package_version: "0.1.0",
            imports: "",
            ask: NOTHING,
            fields: "",
            pages: 1,
            realloc: "",
            configure: ok,
            update: "",
            pick: ok,
            resolve: ok,
            catalog: ok,
            after: "",
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
            .replace("ASK", self.ask)
            .replace("FIELDS", self.fields)
            .replace("PAGES", &self.pages.to_string())
            .replace("REALLOC", self.realloc)
            .replace("CONFIGURE", self.configure)
            .replace("UPDATE", self.update)
            .replace("PICK", self.pick)
            .replace("RESOLVE", self.resolve)
            .replace("CATALOG", self.catalog)
            .replace("AFTER", self.after);
        wat::parse_str(&text).unwrap_or_else(|error| panic!("{error}"))
    }
}

const NOTHING: &str = r#"(core module $Ask (func (export "ask"))) (core instance $asking (instantiate $Ask))"#;

/// The most random bytes that one call gives.
pub const RANDOM_BYTES: &str = r#"
  (import "wasi:random/random@0.2.0" (instance $random
    (export "get-random-bytes" (func (param "len" u64) (result (list u8))))))
  (core module $Room (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 8192)))
  (core instance $room (instantiate $Room))
  (core func $bytes (canon lower (func $random "get-random-bytes") (memory $shared)
    (realloc (core func $room "realloc"))))
  (core module $Ask (import "host" "bytes" (func $bytes (param i64 i32)))
    (func (export "ask") (call $bytes (i64.const 4096) (i32.const 3000))))
  (core instance $asking (instantiate $Ask (with "host" (instance (export "bytes" (func $bytes))))))"#;

/// What time it is.
pub const TIME: &str = r#"
  (import "wasi:clocks/monotonic-clock@0.2.0" (instance $clock (export "now" (func (result u64)))))
  (core func $now (canon lower (func $clock "now")))
  (core module $Ask (import "host" "now" (func $now (result i64))) (func (export "ask") (drop (call $now))))
  (core instance $asking (instantiate $Ask (with "host" (instance (export "now" (func $now))))))"#;

/// The clock that wakes whoever subscribes to it.
macro_rules! subscribing {
    () => {
        r#"
  (import "wasi:io/poll@0.2.0" (instance $poll (export "pollable" (type (sub resource)))))
  (alias export $poll "pollable" (type $pollable))
  (import "wasi:clocks/monotonic-clock@0.2.0" (instance $clock
    (alias outer 1 $pollable (type $p))
    (export "subscribe-duration" (func (param "when" u64) (result (own $p))))))
  (core func $subscribe (canon lower (func $clock "subscribe-duration")))"#
    };
}

/// To be woken, and then no more.
pub const WAKING: &str = concat!(
    subscribing!(),
    r#"
  (core func $drop (canon resource.drop $pollable))
  (core module $Ask
    (import "host" "subscribe" (func $subscribe (param i64) (result i32))) (import "host" "drop" (func $drop (param i32)))
    (func (export "ask") (call $drop (call $subscribe (i64.const 1)))))
  (core instance $asking (instantiate $Ask (with "host" (instance
    (export "subscribe" (func $subscribe)) (export "drop" (func $drop))))))"#
);

/// To be woken, without end.
pub const KEPT_WAKING: &str = concat!(
    subscribing!(),
    r#"
  (core module $Ask
    (import "host" "subscribe" (func $subscribe (param i64) (result i32)))
    (func (export "ask") (drop (call $subscribe (i64.const 1)))))
  (core instance $asking (instantiate $Ask (with "host" (instance (export "subscribe" (func $subscribe))))))"#
);

/// A stream, and nothing of it.
pub const STREAM: &str = r#"
  (core module $Ask
    (import "host" "stderr" (func $stderr (result i32))) (import "host" "close" (func $close (param i32)))
    (func (export "ask") (call $close (call $stderr))))
  (core instance $asking (instantiate $Ask (with "host" (instance
    (export "stderr" (func $stderr)) (export "close" (func $close))))))"#;

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

  ASK
  (alias core export $asking "ask" (core func $ask))

  (core module $Guest
    (import "host" "memory" (memory 1))
    (import "host" "ask" (func $ask))
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
    (data (i32.const 1408) "renamed")
    (global $ok i32 (i32.const 512))
    (global $heap (mut i32) (i32.const 4096))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) REALLOC
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
    (func $column (param i32 i32) (result i32)
      (i32.store (i32.const 644) (i32.const 660)) (i32.store (i32.const 648) (i32.const 1))
      (i32.store (i32.const 660) (local.get 0)) (i32.store (i32.const 664) (local.get 1)) (i32.const 640))
    (func $route (param i32 i32 i32) (result i32)
      (i32.store (i32.const 700) (i32.const 720)) (i32.store (i32.const 704) (i32.const 1))
      (i32.store (i32.const 720) (local.get 0)) (i32.store (i32.const 724) (local.get 1))
      (i32.store (i32.const 728) (local.get 2)) (i32.const 700))
    FIELDS
    (func $free (global.set $heap (i32.const 4096)))
    (func (export "configure") (param i32 i32 i32 i32 i32 i32) (result i32) CONFIGURE)
    (func (export "update") (param i64 i32 i32 i32 i32) UPDATE (call $free))
    (func (export "pick") (param $sequence i64) (param i64 i64 i64 i64 i32 i32 i32 i32 i32) (param $rows i32) (param $numbers i32)
      (result i32) (call $free) PICK)
    (func (export "resolve") (param $model i32) (param $bytes i32) (result i32) (call $free) RESOLVE)
    (func (export "catalog") (result i32) (call $free) CATALOG)
    (func (export "after") (param $answer i32) AFTER))
  (core instance $guest (instantiate $Guest (with "host" (instance
    (export "memory" (memory $shared)) (export "log" (func $log)) (export "stderr" (func $stderr))
    (export "write" (func $write)) (export "close" (func $close)) (export "ask" (func $ask))))))

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
    (canon lift (core func $guest "pick") (memory $shared) (realloc (core func $guest "realloc"))
      (post-return (core func $guest "after"))))
  (instance $balance (export "configure" (func $configure)) (export "update" (func $update)) (export "pick" (func $pick)))
  (export "vision-proxy:plugin/balance@PACKAGE_VERSION" (instance $balance))"#;

const TRANSLATOR: &str = r#"
  (type $route-type (record (field "backend" u32) (field "native" string)))
  (export $route "route" (type $route-type))
  (func $configure (param "setup" $setup) (result (result (error string)))
    (canon lift (core func $guest "configure") (memory $shared) (realloc (core func $guest "realloc"))))
  (func $resolve (param "model" string) (result (list $route))
    (canon lift (core func $guest "resolve") (memory $shared) (realloc (core func $guest "realloc"))
      (post-return (core func $guest "after"))))
  (func $catalog (result (list string))
    (canon lift (core func $guest "catalog") (memory $shared) (realloc (core func $guest "realloc"))))
  (instance $translate (export "configure" (func $configure)) (export "update" (func $update))
    (export "resolve" (func $resolve)) (export "catalog" (func $catalog)))
  (export "vision-proxy:plugin/translate@PACKAGE_VERSION" (instance $translate))"#;
