//! `vision-proxy plugin`

use std::path::PathBuf;

use anyhow::Context;
use clap::Subcommand;

use crate::plugin::{Runtime, Source};

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
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let Command::Inspect { file } = &args.command;
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let name = file.file_stem().unwrap_or_default().to_string_lossy();
    let version = Runtime::new()?
        .compile(&name, Source::File, &bytes)
        .map_err(|refusal| anyhow::anyhow!("{}: {refusal}", file.display()))?;
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
