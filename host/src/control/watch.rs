//! When to look at files again. Events are only a hint, and some changes make none (a Kubernetes `..data` swap,
//! a network file system, a folder made anew), so there is a slow beat besides; what changed is found by
//! looking at the content.

use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// Several events of one change are waited for, up to this long in all.
const QUIET: Duration = Duration::from_millis(100);
const QUIET_AT_MOST: Duration = Duration::from_secs(1);
/// Looked anyway.
const BEAT: Duration = Duration::from_secs(2);

/// Says when it is time to look.
pub struct Watch {
    events: mpsc::UnboundedReceiver<()>,
    /// `None` where the system gives none: the beat remains.
    watcher: Option<RecommendedWatcher>,
    folders: Vec<PathBuf>,
    /// When to look although nothing was heard.
    beat: Instant,
    heard: Option<Heard>,
}

/// Events of one change, most likely: it is over when none has followed for a while.
#[derive(Clone, Copy)]
struct Heard {
    quiet: Instant,
    at_most: Instant,
}

impl Watch {
    /// Watches these folders; one that is not there yet is picked up when it comes.
    pub fn new(folders: Vec<PathBuf>) -> Self {
        let (tell, events) = mpsc::unbounded_channel();
        let heard = move |event: notify::Result<notify::Event>| {
            if event.map_or(true, |event| is_change(event.kind)) {
                // The receiver lives as long as the watcher.
                let _ = tell.send(());
            }
        };
        let watcher = notify::recommended_watcher(heard)
            .inspect_err(|error| tracing::warn!("files are only looked at now and then: {error}"))
            .ok();
        let mut watch = Self { events, watcher, folders, beat: Instant::now() + BEAT, heard: None };
        watch.arm();
        watch
    }

    /// Watches other folders from now on.
    pub fn follow(&mut self, folders: Vec<PathBuf>) {
        if folders != self.folders {
            *self = Self::new(folders);
        }
    }

    /// Until something may have changed. May be dropped and called again: what it has heard it keeps.
    pub async fn changed(&mut self) {
        loop {
            let at = self.heard.map_or(self.beat, |heard| heard.quiet.min(heard.at_most)).min(self.beat);
            tokio::select! {
                Some(()) = self.events.recv() => {
                    let now = Instant::now();
                    let at_most = self.heard.map_or(now + QUIET_AT_MOST, |heard| heard.at_most);
                    self.heard = Some(Heard { quiet: now + QUIET, at_most });
                }
                () = sleep_until(at) => break,
            }
        }
        self.heard = None;
        if self.beat <= Instant::now() {
            self.beat = Instant::now() + BEAT;
            self.arm();
        }
    }

    /// Watches each folder (again): a folder that was deleted and made anew is another one.
    fn arm(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        for folder in &self.folders {
            // A folder that is not there, or is watched already, is no error.
            let _ = watcher.watch(folder, RecursiveMode::NonRecursive);
        }
    }
}

/// Reading a file makes events too; only what may have changed one counts.
fn is_change(kind: EventKind) -> bool {
    !matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write))
}

/// The folder of a file.
pub fn folder_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}
