//! `vision-proxy check`

use std::time::SystemTime;

use super::run::SourceArgs;
use crate::control::{Plugins, first_snapshot};
use crate::edge::Snapshot;
use crate::fleet::Queue;

/// Check the configuration and the plugins without serving.
///
/// Prints the fleet as it would run, without asking the backends anything. Exits with 1 and every problem named
/// where there is one. The same code checks a configuration that is reloaded.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    #[command(flatten)]
    source: SourceArgs,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let (config, source) = args.source.load(None, None)?;
    let plugins = Plugins::load(&config, || ())?;
    plugins.finish(&config.plugins, |_| true);
    let refused = plugins.refused();
    anyhow::ensure!(
        refused.is_empty(),
        "plugins in {} cannot be used\n{}",
        config.plugins.dir.display(),
        refused.join("\n")
    );
    let snapshot = first_snapshot(config, &plugins, &Queue::new(0, 0))
        .map_err(|mistakes| anyhow::anyhow!("the configuration cannot be used\n{mistakes}"))?;
    let from = source.path.map_or_else(|| "no file".to_owned(), |path| path.display().to_string());
    println!("configuration is good ({from})");
    for warning in snapshot.config.warnings(SystemTime::now()) {
        println!("warning: {warning}");
    }
    describe(&snapshot);
    Ok(())
}

/// The fleet as it would run.
fn describe(snapshot: &Snapshot) {
    let config = &snapshot.config;
    println!("listen {}  admin {}  workers {}", config.listen, config.admin, config.workers);
    for version in [snapshot.policy.version(), snapshot.translator.version()] {
        println!("{} {} ({}, sha256 {})", version.kind.name(), version.name, version.source.name(), version.sha256);
    }
    println!("{:<20} {:<36} {:<10} {:>6} {:>6}  models", "backend", "url", "engine", "slots", "weight");
    for member in &snapshot.fleet {
        let backend = &member.config;
        let engine = backend.engine.map_or("auto", |engine| engine.name());
        let slots = backend.slots.map_or_else(|| "auto".to_owned(), |slots| slots.to_string());
        let models: Vec<String> =
            backend.models.iter().map(|(public, native)| format!("{public} → {native}")).collect();
        let models = if models.is_empty() { "as it lists them".to_owned() } else { models.join(", ") };
        println!(
            "{:<20} {:<36} {engine:<10} {slots:>6} {:>6}  {models}",
            backend.name,
            backend.url.to_string(),
            backend.weight
        );
    }
}
