//! Where the configuration comes from, read and checked the same way at the start and at every reload.

use std::path::PathBuf;

use tokio::task::spawn_blocking;

use super::plugins::mistake;
use crate::config::{self, Config, Mistakes, Overrides};

/// Where the configuration comes from.
#[derive(Debug, Clone)]
pub struct ConfigSource {
    pub path: Option<PathBuf>,
    pub overrides: Overrides,
}

impl ConfigSource {
    /// Reads and checks it, off this thread: it reads secrets and certificates from files too.
    pub async fn load(&self) -> Result<Config, Mistakes> {
        let source = self.clone();
        let loaded = spawn_blocking(move || config::load(source.path.as_deref(), &source.overrides)).await;
        loaded.unwrap_or_else(|panic| Err(Mistakes { path: None, all: vec![mistake("", panic.to_string())] }))
    }

    /// The file and those that it names, be it good or bad: a change of any is one of the configuration.
    pub fn files(&self) -> Vec<PathBuf> {
        let named = self.path.as_deref().map(config::files).unwrap_or_default();
        self.path.iter().cloned().chain(named).collect()
    }
}
