//! What a guest may have of the world: clocks, randomness, a place to print to, and our own `host` interface.
//!
//! Invariants:
//! - Nothing here waits. wasmtime-wasi's own synchronous streams and polls run a future to its end, which panics on
//!   a worker thread as soon as a guest prints; so `wasi:io` is ours, and everything in it is ready at once. A guest
//!   that sleeps goes on at once.
//! - There is no file, socket, variable or argument. `wasi:filesystem` is only there because many libraries import
//!   it: without a first directory none of its functions can be reached.
//! - What the host does for a guest costs it fuel, about as much as the guest could have had for the same time.
//! - An import that is not on the list refuses the component by name, before anything is linked.
//! - An instance has a context of its own.

use std::sync::Arc;
use std::time::Duration;

use wasmtime::component::{HasSelf, Linker, Resource, ResourceTable, ResourceType};
use wasmtime::{Engine, Store, StoreContextMut, Trap, UpdateDeadline};
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
use crate::clock::thread_time;

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
/// Of fuel a guest gets six units of work a nanosecond. What a function of the host costs at least: the way there and back …
const CALL_FUEL: u64 = 500;
/// … with something made that has to be kept and dropped; clocks make some, too …
const RESOURCE_FUEL: u64 = 1_500;
/// … for a random byte …
const RANDOM_BYTE_FUEL: u64 = 20;
/// … a byte for the log …
const LOG_BYTE_FUEL: u64 = 10;
/// … and something that is polled.
const POLLED_FUEL: u64 = 250;
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
    clocks::wall_clock::add_to_linker::<_, WasiClocks>(l, |guest| guest.paid(RESOURCE_FUEL).clocks())?;
    clocks::monotonic_clock::add_to_linker::<_, WasiClocks>(l, |guest| guest.paid(RESOURCE_FUEL).clocks())?;
    random::random::add_to_linker::<_, HasSelf<Guest>>(l, |guest| guest)?;
    random::insecure::add_to_linker::<_, HasSelf<Guest>>(l, |guest| guest)?;
    random::insecure_seed::add_to_linker::<_, WasiRandom>(l, |guest| guest.paid(CALL_FUEL).random())?;
    cli::exit::add_to_linker::<_, WasiCli>(l, |guest| guest.paid(CALL_FUEL).cli())?;
    cli::environment::add_to_linker::<_, WasiCli>(l, |guest| guest.paid(CALL_FUEL).cli())?;
    cli::stdin::add_to_linker::<_, WasiCli>(l, |guest| guest.paid(RESOURCE_FUEL).cli())?;
    cli::stdout::add_to_linker::<_, WasiCli>(l, |guest| guest.paid(RESOURCE_FUEL).cli())?;
    cli::stderr::add_to_linker::<_, WasiCli>(l, |guest| guest.paid(RESOURCE_FUEL).cli())?;
    cli::terminal_input::add_to_linker::<_, WasiCli>(l, |guest| guest.paid(CALL_FUEL).cli())?;
    cli::terminal_output::add_to_linker::<_, WasiCli>(l, |guest| guest.paid(CALL_FUEL).cli())?;
    cli::terminal_stdin::add_to_linker::<_, WasiCli>(l, |guest| guest.paid(CALL_FUEL).cli())?;
    cli::terminal_stdout::add_to_linker::<_, WasiCli>(l, |guest| guest.paid(CALL_FUEL).cli())?;
    cli::terminal_stderr::add_to_linker::<_, WasiCli>(l, |guest| guest.paid(CALL_FUEL).cli())?;
    filesystem::preopens::add_to_linker::<_, WasiFilesystem>(l, |guest| guest.paid(CALL_FUEL).filesystem())?;
    wasmtime_wasi::p2::bindings::sync::filesystem::types::add_to_linker::<_, WasiFilesystem>(l, |guest| {
        guest.paid(CALL_FUEL).filesystem()
    })?;
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
    /// Fuel that is left for what the host does in this call; `None` where it was not enough.
    pub purse: Option<u64>,
    clock: CallClock,
}

/// The deadline of a call.
#[derive(Default)]
struct CallClock {
    allowed: Duration,
    /// Processor time of the thread when the call was first looked at.
    first: Option<Duration>,
}

impl CallClock {
    /// The epoch has moved on while the guest was running.
    fn is_over(&mut self) -> bool {
        let now = thread_time();
        now.saturating_sub(*self.first.get_or_insert(now)) > self.allowed
    }
}

impl Guest {
    /// An empty store.
    pub fn store(engine: &Engine, version: &Version, memory_bytes: usize) -> Store<Self> {
        let guest = Self {
            table: ResourceTable::new(),
            // Its default streams are closed or swallow what they get; printing never comes so far.
            wasi: WasiCtx::builder().max_random_size(RANDOM_MAX_BYTES).build(),
            bounds: Bounds::new(memory_bytes),
            console: Console::new(Arc::clone(&version.log)),
            purse: None,
            clock: CallClock::default(),
        };
        let mut store = Store::new(engine, guest);
        store.limiter(|guest| &mut guest.bounds);
        store.set_max_component_handles(HANDLES);
        store.epoch_deadline_callback(|mut store| {
            let guest = store.data_mut();
            let is_over = guest.purse.is_none() || guest.clock.is_over();
            Ok(if is_over { UpdateDeadline::Interrupt } else { UpdateDeadline::Continue(1) })
        });
        store
    }

    /// Pays for what the host does. Fails where the fuel for that is used up.
    fn pay(&mut self, fuel: u64) -> wasmtime::Result<()> {
        self.paid(fuel).purse.map(drop).ok_or_else(|| Trap::OutOfFuel.into())
    }

    /// The same for functions that are not ours. Where the fuel is used up the call ends a little later.
    fn paid(&mut self, fuel: u64) -> &mut Self {
        self.purse = self.purse.and_then(|purse| purse.checked_sub(fuel));
        self
    }
}

/// Gives the next call its limits, all of them anew.
pub(super) fn arm(store: &mut Store<Guest>, allowance: Allowance) {
    // Fails only in an engine that counts no fuel; then the epoch still stops what should be stopped.
    let counts_fuel = store.set_fuel(allowance.fuel).is_ok();
    debug_assert!(counts_fuel);
    store.set_epoch_deadline(1);
    store.set_hostcall_fuel(allowance.answer_bytes);
    let guest = store.data_mut();
    guest.bounds.denied = false;
    guest.purse = Some(allowance.fuel);
    guest.clock = CallClock { allowed: allowance.time, first: None };
    guest.console.begin();
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl host::Host for Guest {
    fn log(&mut self, level: host::Level, message: String) -> wasmtime::Result<()> {
        self.pay(CALL_FUEL + LOG_BYTE_FUEL * message.len() as u64)?;
        self.console.log(level, &message)
    }
}

impl super::bindings::types::Host for Guest {}

impl random::random::Host for Guest {
    fn get_random_bytes(&mut self, length: u64) -> wasmtime::Result<Vec<u8>> {
        self.pay(CALL_FUEL + RANDOM_BYTE_FUEL.saturating_mul(length))?;
        random::random::Host::get_random_bytes(self.random(), length)
    }

    fn get_random_u64(&mut self) -> wasmtime::Result<u64> {
        self.pay(CALL_FUEL)?;
        random::random::Host::get_random_u64(self.random())
    }
}

impl random::insecure::Host for Guest {
    fn get_insecure_random_bytes(&mut self, length: u64) -> wasmtime::Result<Vec<u8>> {
        self.pay(CALL_FUEL + RANDOM_BYTE_FUEL.saturating_mul(length))?;
        random::insecure::Host::get_insecure_random_bytes(self.random(), length)
    }

    fn get_insecure_random_u64(&mut self) -> wasmtime::Result<u64> {
        self.pay(CALL_FUEL)?;
        random::insecure::Host::get_insecure_random_u64(self.random())
    }
}

/// Everything is ready, always.
impl poll::Host for Guest {
    fn poll(&mut self, pollables: Vec<Resource<DynPollable>>) -> wasmtime::Result<Vec<u32>> {
        self.pay(CALL_FUEL + POLLED_FUEL * pollables.len() as u64)?;
        wasmtime::ensure!(!pollables.is_empty(), "it polled nothing");
        Ok((0..).take(pollables.len()).collect())
    }
}

impl poll::HostPollable for Guest {
    fn ready(&mut self, _: Resource<DynPollable>) -> wasmtime::Result<bool> {
        self.pay(CALL_FUEL)?;
        Ok(true)
    }

    fn block(&mut self, _: Resource<DynPollable>) -> wasmtime::Result<()> {
        self.pay(CALL_FUEL)
    }

    fn drop(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<()> {
        self.pay(CALL_FUEL)?;
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
        self.pay(CALL_FUEL).map_err(StreamError::Trap)?;
        Err(StreamError::Closed)
    }

    fn blocking_read(&mut self, _: Resource<DynInputStream>, _: u64) -> StreamResult<Vec<u8>> {
        self.pay(CALL_FUEL).map_err(StreamError::Trap)?;
        Err(StreamError::Closed)
    }

    fn skip(&mut self, _: Resource<DynInputStream>, _: u64) -> StreamResult<u64> {
        self.pay(CALL_FUEL).map_err(StreamError::Trap)?;
        Err(StreamError::Closed)
    }

    fn blocking_skip(&mut self, _: Resource<DynInputStream>, _: u64) -> StreamResult<u64> {
        self.pay(CALL_FUEL).map_err(StreamError::Trap)?;
        Err(StreamError::Closed)
    }

    fn subscribe(&mut self, stream: Resource<DynInputStream>) -> wasmtime::Result<Resource<DynPollable>> {
        self.pay(RESOURCE_FUEL)?;
        streams::HostInputStream::subscribe(&mut self.table, stream)
    }

    fn drop(&mut self, stream: Resource<DynInputStream>) -> wasmtime::Result<()> {
        self.pay(CALL_FUEL)?;
        self.table.delete(stream)?;
        Ok(())
    }
}

/// The only outputs are stdout and stderr, and both are the console.
impl streams::HostOutputStream for Guest {
    fn check_write(&mut self, _: Resource<DynOutputStream>) -> StreamResult<u64> {
        self.pay(CALL_FUEL).map_err(StreamError::Trap)?;
        Ok(WRITE_BYTES)
    }

    fn write(&mut self, _: Resource<DynOutputStream>, bytes: Vec<u8>) -> StreamResult<()> {
        self.pay(CALL_FUEL + LOG_BYTE_FUEL * bytes.len() as u64).map_err(StreamError::Trap)?;
        self.console.print(&bytes).map_err(StreamError::Trap)
    }

    fn blocking_write_and_flush(&mut self, stream: Resource<DynOutputStream>, bytes: Vec<u8>) -> StreamResult<()> {
        self.write(stream, bytes)
    }

    fn flush(&mut self, _: Resource<DynOutputStream>) -> StreamResult<()> {
        self.pay(CALL_FUEL).map_err(StreamError::Trap)
    }

    fn blocking_flush(&mut self, _: Resource<DynOutputStream>) -> StreamResult<()> {
        self.pay(CALL_FUEL).map_err(StreamError::Trap)
    }

    fn subscribe(&mut self, stream: Resource<DynOutputStream>) -> wasmtime::Result<Resource<DynPollable>> {
        self.pay(RESOURCE_FUEL)?;
        streams::HostOutputStream::subscribe(&mut self.table, stream)
    }

    fn write_zeroes(&mut self, _: Resource<DynOutputStream>, _: u64) -> StreamResult<()> {
        self.pay(CALL_FUEL).map_err(StreamError::Trap)
    }

    fn blocking_write_zeroes_and_flush(&mut self, _: Resource<DynOutputStream>, _: u64) -> StreamResult<()> {
        self.pay(CALL_FUEL).map_err(StreamError::Trap)
    }

    fn splice(&mut self, _: Resource<DynOutputStream>, _: Resource<DynInputStream>, _: u64) -> StreamResult<u64> {
        self.pay(CALL_FUEL).map_err(StreamError::Trap)?;
        Err(StreamError::Closed)
    }

    fn blocking_splice(
        &mut self,
        _: Resource<DynOutputStream>,
        _: Resource<DynInputStream>,
        _: u64,
    ) -> StreamResult<u64> {
        self.pay(CALL_FUEL).map_err(StreamError::Trap)?;
        Err(StreamError::Closed)
    }

    fn drop(&mut self, stream: Resource<DynOutputStream>) -> wasmtime::Result<()> {
        self.pay(CALL_FUEL)?;
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
