//! What a guest may have of the world: clocks, randomness, a place to print to, and our own `host` interface.
//!
//! Invariants:
//! - Nothing here waits. wasmtime-wasi's own synchronous streams and polls run a future to its end, which panics on
//!   a worker thread as soon as a guest prints; so `wasi:io` is ours, and everything in it is ready at once. A guest
//!   that sleeps goes on at once.
//! - There is no file, socket, variable or argument. `wasi:filesystem` is only there because many libraries import
//!   it: without a first directory none of its functions can be reached.
//! - An import that is not on the list refuses the component by name, before anything is linked.
//! - An instance has a context of its own.

use std::sync::Arc;

use wasmtime::component::{HasSelf, Linker, Resource, ResourceTable, ResourceType};
use wasmtime::{Engine, Store, StoreContextMut};
use wasmtime_wasi::cli::{WasiCli, WasiCliView as _};
use wasmtime_wasi::clocks::{WasiClocks, WasiClocksView as _};
use wasmtime_wasi::filesystem::{WasiFilesystem, WasiFilesystemView as _};
use wasmtime_wasi::p2::bindings::sync::io::{poll, streams};
use wasmtime_wasi::p2::bindings::{cli, clocks, filesystem, random};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, DynPollable, IoError, StreamError, StreamResult};
use wasmtime_wasi::random::{WasiRandom, WasiRandomView as _};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use super::bindings::host;
use super::console::Console;
use super::engine::{Allowance, Bounds};
use super::version::Version;

/// What may be imported, without the version. `*` stands for the rest of a name.
const ALLOWED: [&str; 11] = [
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/std*",
    "wasi:cli/terminal-*",
    "wasi:clocks/monotonic-clock",
    "wasi:clocks/wall-clock",
    "wasi:filesystem/preopens",
    "wasi:filesystem/types",
    "wasi:io/*",
    "wasi:random/*",
    "vision-proxy:plugin/*",
];
/// Random bytes in one call. Making them is work that fuel does not see; Python's 2,500 for a seed are the most that a
/// guest was seen to want.
const RANDOM_MAX_BYTES: u64 = 4 << 10;
/// Resources alive at once. Guests hold their three streams and now and then a pollable.
const HANDLES: usize = 64;
/// What one write may carry, as `check-write` announces it.
const WRITE_BYTES: u64 = 4 << 10;

/// Why an import is refused; `None` where it is not.
pub(super) fn forbidden(import: &str) -> Option<&'static str> {
    let (interface, version) = import.split_once('@').unwrap_or((import, ""));
    let is_allowed = ALLOWED.iter().any(|allowed| match allowed.strip_suffix('*') {
        Some(start) => interface.starts_with(start),
        None => interface == *allowed,
    });
    if !is_allowed {
        return Some("a plugin has no files, sockets or other services");
    }
    let is_wasi = interface.starts_with("wasi:");
    (is_wasi && !version.starts_with("0.2.")).then_some("this proxy offers WASI 0.2")
}

/// Links everything a guest may import.
pub(super) fn linker(engine: &Engine) -> wasmtime::Result<Linker<Guest>> {
    let mut linker = Linker::new(engine);
    let l = &mut linker;
    host::add_to_linker::<_, HasSelf<Guest>>(l, |guest| guest)?;
    super::bindings::types::add_to_linker::<_, HasSelf<Guest>>(l, |guest| guest)?;
    poll::add_to_linker::<_, HasSelf<Guest>>(l, |guest| guest)?;
    streams::add_to_linker::<_, HasSelf<Guest>>(l, |guest| guest)?;
    link_io_error(l)?;
    clocks::wall_clock::add_to_linker::<_, WasiClocks>(l, Guest::clocks)?;
    clocks::monotonic_clock::add_to_linker::<_, WasiClocks>(l, Guest::clocks)?;
    random::random::add_to_linker::<_, WasiRandom>(l, Guest::random)?;
    random::insecure::add_to_linker::<_, WasiRandom>(l, Guest::random)?;
    random::insecure_seed::add_to_linker::<_, WasiRandom>(l, Guest::random)?;
    cli::exit::add_to_linker::<_, WasiCli>(l, Guest::cli)?;
    cli::environment::add_to_linker::<_, WasiCli>(l, Guest::cli)?;
    cli::stdin::add_to_linker::<_, WasiCli>(l, Guest::cli)?;
    cli::stdout::add_to_linker::<_, WasiCli>(l, Guest::cli)?;
    cli::stderr::add_to_linker::<_, WasiCli>(l, Guest::cli)?;
    cli::terminal_input::add_to_linker::<_, WasiCli>(l, Guest::cli)?;
    cli::terminal_output::add_to_linker::<_, WasiCli>(l, Guest::cli)?;
    cli::terminal_stdin::add_to_linker::<_, WasiCli>(l, Guest::cli)?;
    cli::terminal_stdout::add_to_linker::<_, WasiCli>(l, Guest::cli)?;
    cli::terminal_stderr::add_to_linker::<_, WasiCli>(l, Guest::cli)?;
    filesystem::preopens::add_to_linker::<_, WasiFilesystem>(l, Guest::filesystem)?;
    wasmtime_wasi::p2::bindings::sync::filesystem::types::add_to_linker::<_, WasiFilesystem>(l, Guest::filesystem)?;
    Ok(linker)
}

/// No stream of ours fails, so nobody ever holds one of these; but libraries import it.
fn link_io_error(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    let mut error = linker.instance("wasi:io/error@0.2.0")?;
    error.resource("error", ResourceType::host::<IoError>(), |_, _| Ok(()))?;
    let describe =
        |_: StoreContextMut<Guest>, _: (Resource<IoError>,)| -> wasmtime::Result<(String,)> { Ok((String::new(),)) };
    error.func_wrap("[method]error.to-debug-string", describe)
}

/// What the host keeps beside one instance.
pub(super) struct Guest {
    table: ResourceTable,
    wasi: WasiCtx,
    pub bounds: Bounds,
    pub console: Console,
}

impl Guest {
    /// An empty store, armed for starting an instance in it.
    pub fn store(engine: &Engine, version: &Version, memory_bytes: usize) -> Store<Self> {
        let guest = Self {
            table: ResourceTable::new(),
            // Its default streams are closed or swallow what they get; printing never comes so far.
            wasi: WasiCtx::builder().max_random_size(RANDOM_MAX_BYTES).build(),
            bounds: Bounds::new(memory_bytes),
            console: Console::new(Arc::clone(&version.log)),
        };
        let mut store = Store::new(engine, guest);
        store.limiter(|guest| &mut guest.bounds);
        store.set_max_component_handles(HANDLES);
        arm(&mut store, Allowance::START);
        store
    }
}

/// Gives the next call its limits, all of them anew.
pub(super) fn arm(store: &mut Store<Guest>, allowance: Allowance) {
    // Fails only in an engine that counts no fuel; then the epoch still stops what should be stopped.
    let counts_fuel = store.set_fuel(allowance.fuel).is_ok();
    debug_assert!(counts_fuel);
    store.set_epoch_deadline(allowance.ticks);
    store.set_hostcall_fuel(allowance.answer_bytes);
    let guest = store.data_mut();
    guest.bounds.denied = false;
    guest.console.begin();
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl host::Host for Guest {
    fn log(&mut self, level: host::Level, message: String) -> wasmtime::Result<()> {
        self.console.log(level, &message)
    }
}

impl super::bindings::types::Host for Guest {}

/// Everything is ready, always.
impl poll::Host for Guest {
    fn poll(&mut self, pollables: Vec<Resource<DynPollable>>) -> wasmtime::Result<Vec<u32>> {
        wasmtime::ensure!(!pollables.is_empty(), "it polled nothing");
        Ok((0..).take(pollables.len()).collect())
    }
}

impl poll::HostPollable for Guest {
    fn ready(&mut self, _: Resource<DynPollable>) -> wasmtime::Result<bool> {
        Ok(true)
    }

    fn block(&mut self, _: Resource<DynPollable>) -> wasmtime::Result<()> {
        Ok(())
    }

    fn drop(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<()> {
        poll::HostPollable::drop(&mut self.table, pollable)
    }
}

impl streams::Host for Guest {
    fn convert_stream_error(&mut self, error: StreamError) -> wasmtime::Result<streams::StreamError> {
        streams::Host::convert_stream_error(&mut self.table, error)
    }
}

/// The only input is stdin, and it is at its end.
impl streams::HostInputStream for Guest {
    fn read(&mut self, _: Resource<DynInputStream>, _: u64) -> StreamResult<Vec<u8>> {
        Err(StreamError::Closed)
    }

    fn blocking_read(&mut self, _: Resource<DynInputStream>, _: u64) -> StreamResult<Vec<u8>> {
        Err(StreamError::Closed)
    }

    fn skip(&mut self, _: Resource<DynInputStream>, _: u64) -> StreamResult<u64> {
        Err(StreamError::Closed)
    }

    fn blocking_skip(&mut self, _: Resource<DynInputStream>, _: u64) -> StreamResult<u64> {
        Err(StreamError::Closed)
    }

    fn subscribe(&mut self, stream: Resource<DynInputStream>) -> wasmtime::Result<Resource<DynPollable>> {
        streams::HostInputStream::subscribe(&mut self.table, stream)
    }

    fn drop(&mut self, stream: Resource<DynInputStream>) -> wasmtime::Result<()> {
        self.table.delete(stream)?;
        Ok(())
    }
}

/// The only outputs are stdout and stderr, and both are the console.
impl streams::HostOutputStream for Guest {
    fn check_write(&mut self, _: Resource<DynOutputStream>) -> StreamResult<u64> {
        Ok(WRITE_BYTES)
    }

    fn write(&mut self, _: Resource<DynOutputStream>, bytes: Vec<u8>) -> StreamResult<()> {
        self.console.print(&bytes).map_err(StreamError::Trap)
    }

    fn blocking_write_and_flush(&mut self, stream: Resource<DynOutputStream>, bytes: Vec<u8>) -> StreamResult<()> {
        self.write(stream, bytes)
    }

    fn flush(&mut self, _: Resource<DynOutputStream>) -> StreamResult<()> {
        Ok(())
    }

    fn blocking_flush(&mut self, _: Resource<DynOutputStream>) -> StreamResult<()> {
        Ok(())
    }

    fn subscribe(&mut self, stream: Resource<DynOutputStream>) -> wasmtime::Result<Resource<DynPollable>> {
        streams::HostOutputStream::subscribe(&mut self.table, stream)
    }

    fn write_zeroes(&mut self, _: Resource<DynOutputStream>, _: u64) -> StreamResult<()> {
        Ok(())
    }

    fn blocking_write_zeroes_and_flush(&mut self, _: Resource<DynOutputStream>, _: u64) -> StreamResult<()> {
        Ok(())
    }

    fn splice(&mut self, _: Resource<DynOutputStream>, _: Resource<DynInputStream>, _: u64) -> StreamResult<u64> {
        Err(StreamError::Closed)
    }

    fn blocking_splice(
        &mut self,
        _: Resource<DynOutputStream>,
        _: Resource<DynInputStream>,
        _: u64,
    ) -> StreamResult<u64> {
        Err(StreamError::Closed)
    }

    fn drop(&mut self, stream: Resource<DynOutputStream>) -> wasmtime::Result<()> {
        self.table.delete(stream)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Mutex, PoisonError};

    use super::super::guests::{LIMITS, fleet, picking, request};
    use super::super::{Decision, Policy};
    use super::*;

    #[test]
    fn only_what_is_listed_may_be_imported() {
        for allowed in [
            "wasi:cli/environment@0.2.6",
            "wasi:cli/stderr@0.2.0",
            "wasi:cli/terminal-stdout@0.2.6",
            "wasi:io/poll@0.2.12",
            "wasi:random/insecure-seed@0.2.6",
            "wasi:filesystem/types@0.2.6",
            "vision-proxy:plugin/host@0.1.0",
        ] {
            assert_eq!(forbidden(allowed), None, "{allowed}");
        }
        for forbidden_one in [
            "wasi:sockets/tcp@0.2.6",
            "wasi:http/types@0.2.6",
            "wasi:cli/run@0.2.6",
            "wasi:cli/stdout@0.3.0",
            "wasi:cli/stdout",
            "wasi:filesystem/typesetting@0.2.6",
            "env",
        ] {
            assert!(forbidden(forbidden_one).is_some(), "{forbidden_one}");
        }
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_a_guest_prints_is_logged_under_its_name() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let version = picking(
            "(call $print (i32.const 1152) (i32.const 40)) (call $log (i32.const 1024) (i32.const 9)) (global.get $ok)",
        );
        tracing::subscriber::with_default(subscriber, || {
            let policy = Policy::start(&version, &fleet(2), &serde_json::Value::Null, &LIMITS, 1).unwrap();
            assert_eq!(policy.pick(0, &request(0), &[0, 1]), Ok(Decision::Pick(0)));
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let has = |words: &[&str]| text.lines().any(|line| words.iter().all(|word| line.contains(word)));
        assert!(has(&["INFO", "thread panicked at guest.rs:7:", "plugin=\"guest\""]), "{text}");
        assert!(has(&["INFO", "out of ch", "plugin=\"guest\""]), "what has no newline ends with the call: {text}");
        assert!(has(&["WARN", "in-flight", "plugin=\"guest\""]), "{text}");
    }
}
