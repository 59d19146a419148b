//! The command line: one file a command.

mod check;
mod demo;
mod key;
mod logging;
mod plugin;
mod run;
mod simulate_backend;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// One OpenAI-compatible endpoint before a fleet of GPU inference servers.
///
/// Applications talk to one address. Vision Proxy knows which of your vLLM, SGLang, llama.cpp, Ollama and other
/// servers have room, never over-fills one, translates model names for each of them and back, and moves work
/// to another when one dies.
///
/// Try it without any server:      vision-proxy demo
/// Put it before two servers:      vision-proxy run --backend http://10.0.0.11:8000 --backend http://10.0.0.12:11434
#[derive(Debug, Parser)]
#[command(version, verbatim_doc_comment, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    Demo(demo::Args),
    Check(check::Args),
    SimulateBackend(simulate_backend::Args),
    Plugin(plugin::Args),
    Key(key::Args),
}

/// Parses the command line and runs the command. 0: done; 1: it could not be done, and standard error says why;
/// 2: the command line makes no sense.
pub fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Check(args) => check::run(&args),
        Command::SimulateBackend(args) => simulate_backend::run(args),
        Command::Plugin(args) => plugin::run(&args),
        Command::Key(args) => key::run(&args),
    };
    logging::finish();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
