//! `vision-proxy key`

use std::fmt::Write as _;

use clap::Subcommand;
use sha2::{Digest, Sha256};

/// 192 bits: nobody guesses it, so a plain hash of it keeps it.
const KEY_BYTES: usize = 24;

/// Make keys for clients.
///
/// A key is for one client or team: it is sent with every request, and its limits and its turns in line are its own.
/// The configuration holds its SHA-256 alone.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a key, and print it with the table for the configuration.
    ///
    /// The key is printed once and kept nowhere. A running proxy takes it as soon as the table is in its file; taking
    /// the table out again revokes the key.
    New {
        /// Whose key it is: letters, digits and . _ : @ / -
        name: String,
    },
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let Command::New { name } = &args.command;
    let mut random = [0; KEY_BYTES];
    getrandom::fill(&mut random).map_err(|why| anyhow::anyhow!("the system has no random numbers: {why}"))?;
    let key = format!("sk-vp-{}", hex(&random));
    println!("# The key, to be given to its owner; it is shown only now:");
    println!("{key}");
    println!();
    println!("# For vision-proxy.toml:");
    println!("[[keys]]");
    println!("name = {}", toml::Value::from(name.as_str()));
    println!("sha256 = \"{}\"", hex(&Sha256::digest(&key)));
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
