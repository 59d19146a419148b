//! Whether compiling a component stays within bounds, tried in a process that may die of it.
//!
//! A compiler can be kept busy for minutes, and made to take gigabytes, by a component of some kilobytes. So a component is
//! compiled by a child first, this same program, whose processor time and memory the kernel bounds. What it makes is thrown away
//! with it: only WebAssembly is ever loaded. What compiled there within bounds compiles here within the same.
//!
//! Invariants:
//! - The child decides nothing but whether it came to an end. Why a component is refused is said by the process that would
//!   run it.
//! - The child has a smaller stack for the compiler than this process has, ends with it, and is the first to go where the
//!   machine runs out of memory.

use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};

use tokio::time::Instant;

use super::{Refusal, Runtime, Stage, compile};

/// What this program's command line says to make it the child.
pub const ARGUMENTS: [&str; 2] = ["plugin", "judge"];

/// Which process started the child.
const PARENT: &str = "VISION_PROXY_PARENT";

/// The longest the child may take by the clock. Where others use up the machine it gets a fiftieth of a core, and
/// what is large needs a quarter of a minute.
const WALL_MAX: Duration = Duration::from_secs(20 * 60);
/// Between two looks at the child.
const LOOK_AGAIN: Duration = Duration::from_millis(3);
/// Of the thread that compiles in the child: the least that a thread of this program has.
const CHILD_STACK_BYTES: usize = 2 << 20;
/// Of the thread that compiles in this process.
pub(super) const STACK_BYTES: usize = 2 * CHILD_STACK_BYTES;
/// By which the child's allocator takes address space.
const ALLOCATOR_STEP_KIB: &str = "16384";
/// What the child says is a line.
const SAID_MAX_BYTES: u64 = 4 << 10;
const MIB: u64 = 1 << 20;

/// What compiling a component may take, by its size.
struct Bounds {
    cpu_seconds: u64,
    memory_bytes: u64,
}

impl Bounds {
    /// A Rust plugin of 60 KiB takes 0.1 s and 20 MiB; JavaScript of 12 MiB 14 s and 400 MiB; Python of 18 MiB 11 s and
    /// 380 MiB. This is several times as much, for slower machines.
    fn of(component_bytes: usize) -> Self {
        let bytes = component_bytes as u64;
        Self { cpu_seconds: 5 + 4 * bytes / MIB, memory_bytes: 192 * MIB + 64 * bytes }
    }
}

/// Starts children of this program.
#[derive(Debug, Clone)]
pub struct Judge {
    program: PathBuf,
}

impl Judge {
    /// The program that is running, also where its file was replaced meanwhile.
    pub fn this_program() -> io::Result<Self> {
        let program =
            if cfg!(target_os = "linux") { PathBuf::from("/proc/self/exe") } else { std::env::current_exe()? };
        Ok(Self { program })
    }

    /// Another program in its place.
    #[cfg(test)]
    pub fn by(program: &str) -> Self {
        Self { program: program.into() }
    }

    /// Blocks until the child has compiled it, or has died of it, with the priority of the thread that asks.
    ///
    /// # Errors
    /// How it went out of bounds; at `Stage::Process` where that is not the component's fault.
    pub fn try_compile(&self, bytes: &[u8]) -> Result<(), Refusal> {
        let not_run = |error: io::Error| Refusal::new(Stage::Process, format!("no process to compile it in: {error}"));
        let mut child = Command::new(&self.program)
            .args(ARGUMENTS)
            .env_clear()
            // The allocator sets address space aside in steps of a gigabyte otherwise, and that would count.
            .env(PARENT, std::process::id().to_string())
            .env("MIMALLOC_ARENA_RESERVE", ALLOCATOR_STEP_KIB)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(not_run)?;
        if let Some(mut input) = child.stdin.take() {
            // A child that died before it read all says more by how it died.
            let _ = input.write_all(bytes);
        }
        match ended(&mut child).map_err(not_run)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(died(status, &said(child), &Bounds::of(bytes.len()))),
            None => Err(Refusal::new(Stage::Compile, format!("compiling it takes longer than {WALL_MAX:?}"))),
        }
    }
}

/// How the child ended; `None` where it had to be stopped.
fn ended(child: &mut Child) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + WALL_MAX;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::park_timeout(LOOK_AGAIN);
    }
}

/// The first line of what the child had to say.
fn said(child: Child) -> String {
    let mut said = Vec::new();
    if let Some(errors) = child.stderr {
        let _ = errors.take(SAID_MAX_BYTES).read_to_end(&mut said);
    }
    let said = String::from_utf8_lossy(&said);
    said.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it said nothing").to_owned()
}

/// Why a child that died this way did not compile the component.
fn died(status: ExitStatus, said: &str, bounds: &Bounds) -> Refusal {
    use std::os::unix::process::ExitStatusExt as _;
    let Bounds { cpu_seconds, memory_bytes } = bounds;
    let is = |signal: Signal| status.signal() == Some(signal.as_raw());
    if is(Signal::XCPU) {
        let reason =
            format!("compiling it takes more than {cpu_seconds} s, which is all that a component of its size is given");
        return Refusal::new(Stage::Compile, reason);
    }
    if is(Signal::ABORT) || is(Signal::SEGV) || is(Signal::KILL) || is(Signal::BUS) {
        let mib = memory_bytes / MIB;
        let reason =
            format!("the compiler died of it ({status}: {said}); a component of its size is given {mib} MiB of memory");
        return Refusal::new(Stage::Compile, reason);
    }
    Refusal::new(Stage::Process, format!("the process to compile it in ended early ({status}: {said})"))
}

/// The child: compiles the component that comes by standard input, within bounds, and ends well if that comes to an end.
///
/// # Errors
/// Where it could not even begin.
pub fn judge_standard_input() -> anyhow::Result<()> {
    #[cfg(target_os = "linux")]
    end_with_parent()?;
    let mut bytes = Vec::new();
    io::stdin().lock().take(compile::COMPONENT_MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    let runtime = Runtime::new()?;
    bind(&Bounds::of(bytes.len()))?;
    let compiling = move || drop(compile::compile(&runtime, &bytes));
    let thread = std::thread::Builder::new().stack_size(CHILD_STACK_BYTES).spawn(compiling)?;
    // The compiler's panics end inside `compile`.
    let _ = thread.join();
    Ok(())
}

/// From here on this process ends with the one that started it, as it does where that is gone already.
#[cfg(target_os = "linux")]
fn end_with_parent() -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let Ok(started_by) = std::env::var(PARENT) else { return Ok(()) };
    let parent = rustix::process::getppid().map(|parent| parent.as_raw_nonzero().to_string());
    anyhow::ensure!(parent == Some(started_by), "who asked is gone");
    Ok(())
}

/// Bounds this process from here on.
fn bind(bounds: &Bounds) -> io::Result<()> {
    lower(Resource::Core, 0, 0)?;
    // One second more before the kernel kills: what ends it must be the signal that says why.
    lower(Resource::Cpu, bounds.cpu_seconds, bounds.cpu_seconds + 1)?;
    #[cfg(target_os = "linux")]
    {
        let most = mapped_bytes() + bounds.memory_bytes;
        lower(Resource::As, most, most)?;
        // Not allowed everywhere, and only a wish.
        let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    }
    Ok(())
}

/// Sets a limit that is not above the one in force.
fn lower(resource: Resource, current: u64, maximum: u64) -> io::Result<()> {
    let in_force = getrlimit(resource).maximum.unwrap_or(u64::MAX);
    let [current, maximum] = [current, maximum].map(|most| Some(most.min(in_force)));
    Ok(setrlimit(resource, Rlimit { current, maximum })?)
}

/// Address space that this process has now, which costs nothing until it is used.
#[cfg(target_os = "linux")]
fn mapped_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")?.trim().strip_suffix(" kB")?.parse().ok());
    size.map_or(0, |kib: u64| kib << 10)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// What is said of a component of 100 bytes whose child does this.
    fn said_of(script: &str) -> String {
        let path = std::env::temp_dir().join(format!("vision-proxy-judge-{}", std::process::id()));
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        let judged = Judge::by(path.to_str().unwrap()).try_compile(&[0; 100]);
        std::fs::remove_file(&path).unwrap();
        judged.map_or_else(|refusal| refusal.to_string(), |()| "compiled".to_owned())
    }

    #[test]
    fn how_the_child_died_says_why() {
        assert_eq!(said_of("cat > /dev/null"), "compiled");
        let long = said_of("kill -XCPU $$");
        assert_eq!(
            long,
            "compile: compiling it takes more than 5 s, which is all that a component of its size is given"
        );
        let large = said_of("echo >&2; echo memory allocation of 7 bytes failed >&2; echo more >&2; kill -ABRT $$");
        assert!(large.starts_with("compile: ") && large.contains("allocation of 7 bytes failed)"), "{large}");
        assert!(large.ends_with("192 MiB of memory"), "{large}");
        for script in ["kill -TERM $$", "exit 1"] {
            assert!(said_of(script).starts_with("process: "), "no fault of the component: {}", said_of(script));
        }
    }
}
