//! `vision-proxy plugin`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::Subcommand;

use crate::config::{self, Overrides};
use crate::plugin::{Judge, Kind, Runtime, Version, call_time, judge_standard_input};

/// Look at plugins: WebAssembly components that pick backends or translate model names.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what a component is: kind, interface version, imports, size, sha256. Exits with 1 and the reason where the
    /// proxy would refuse it.
    Inspect {
        /// The component, such as target/wasm32-wasip2/release/my_policy.wasm
        file: PathBuf,
    },
    /// Time a call over a made-up fleet: a policy's pick among so many backends, a translator's answer about a name.
    ///
    /// Prints nanoseconds of the host's whole way into the plugin and back, with its limits in force as they are under
    /// traffic: the fastest tenth of 100 batches, and the median. A request makes one such call.
    Bench {
        /// The component, or the name of a built-in plugin: round-robin, least-busy, model-map
        file: PathBuf,
        /// Backends in the fleet; repeat for more sizes
        #[arg(long, value_name = "N", default_values_t = [8, 64, 1000], value_parser = clap::value_parser!(u32).range(1..=10_000))]
        backends: Vec<u32>,
    },
    /// Compile the component on standard input within bounds: the proxy starts this for each new plugin.
    #[command(hide = true)]
    Judge,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Inspect { file } => inspect(file),
        Command::Bench { file, backends } => bench(file, backends),
        Command::Judge => judge_standard_input(),
    }
}

fn inspect(file: &Path) -> anyhow::Result<()> {
    let version = compiled(&Runtime::new()?, file)?;
    println!("name       {}", version.name);
    println!("kind       {}", version.kind.name());
    println!("interface  {}", version.interface);
    println!("size       {} bytes", version.size_bytes);
    println!("sha256     {}", version.sha256);
    for (at, import) in version.imports.iter().enumerate() {
        println!("{:<10} {import}", if at == 0 { "imports" } else { "" });
    }
    Ok(())
}

fn bench(file: &Path, backends: &[u32]) -> anyhow::Result<()> {
    let runtime = Runtime::new()?;
    let built_in = if file.exists() { None } else { built_in(&runtime, file) };
    let version = built_in.map_or_else(|| compiled(&runtime, file), Ok)?;
    let call = match version.kind {
        Kind::Policy => "pick",
        Kind::Translator => "resolve",
    };
    // The limits are those of a proxy without a configuration.
    let anywhere = Overrides { backends: vec!["http://127.0.0.1:1".to_owned()], ..Overrides::default() };
    let limits = config::load(None, &anywhere)?.plugins.limits;
    println!("{:<10} {:>9} {:>12} {:>12}", call, "backends", "fastest ns", "median ns");
    for count in backends {
        let time = call_time(&version, *count, &limits).map_err(|why| anyhow::anyhow!("{}: {why}", version.name))?;
        println!("{:<10} {count:>9} {:>12.0} {:>12.0}", "", time.fastest_ns, time.median_ns);
    }
    Ok(())
}

fn compiled(runtime: &Runtime, file: &Path) -> anyhow::Result<Arc<Version>> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let name = file.file_stem().unwrap_or_default().to_string_lossy();
    let version = Judge::this_program()?.try_compile(&bytes).and_then(|()| runtime.compile(&name, &bytes));
    version.map_err(|refusal| anyhow::anyhow!("{}: {refusal}", file.display()))
}

fn built_in(runtime: &Runtime, name: &Path) -> Option<Arc<Version>> {
    runtime.built_ins().into_iter().find(|version| Path::new(&version.name) == name)
}
