//! All that is known under one name: its built-in, its versions from files, and the file that lies there now.
//!
//! Invariants:
//! - A file has one fate at a time, and it is decided once for a content: only what could not be read, or may still
//!   be growing, is read again.
//! - Nothing here waits for the compiler: a file is what it was until the next look finds it compiled. Meanwhile newer ones
//!   of the name are not looked at, so that one who writes faster than is compiled is heard now and then.
//! - A fate never touches a version that is loaded; only a good file, a deleted one, a pin and the two verdicts of
//!   those who run versions do (`refuse`, `roll_back`).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::compile::{check_format, sha256};
use super::compiler::{Compiler, Job};
use super::folder::{self, Stamp};
use super::signature;
use super::store::{Row, State, What};
use super::version::{Source, Version};
use super::{Kind, Refusal, Runtime, Stage};

/// How long a file that ends in the middle, or lacks its signature, may lie still before it is called broken.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of one name: the newest, what runs while that is being started, and the last one that ran well.
const VERSIONS_KEPT: usize = 3;

/// All that is known under one name.
#[derive(Default)]
pub(super) struct Shelf {
    built_in: Option<Arc<Version>>,
    /// From files, the newest last.
    versions: Vec<Arc<Version>>,
    /// The file that lies there now.
    file: Option<File>,
    /// The refusal that was told last of it.
    told: Option<(Option<String>, Refusal)>,
    /// Of what may run.
    in_force: Asked,
    /// Of the file, which may be one that waits for other rules.
    of_file: Asked,
    /// Which key signed a content, while there are trusted ones.
    signers: BTreeMap<String, String>,
    /// Contents that were rolled back, and why.
    quarantine: BTreeMap<String, String>,
}

/// What the configuration asks of a content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Asked {
    pub pin: Option<String>,
    pub trusted_keys: Vec<String>,
}

impl Asked {
    fn is_pinned(&self, sha256: &str) -> bool {
        self.pin.as_ref().is_none_or(|pin| pin == sha256)
    }
}

struct File {
    stamps: Stamps,
    fate: Fate,
}

/// Of the file, and of its signature where there is one.
type Stamps = (Stamp, Option<Stamp>);

/// What became of a file.
enum Fate {
    /// It is to be read by the next look, whatever came of the last.
    Unread,
    /// It moves, or has lain there since and lacks something, which may be on its way.
    Pending {
        since: Instant,
        lacks: Option<Refusal>,
    },
    /// It is being compiled.
    Ordered {
        sha256: String,
        size_bytes: usize,
        job: Job,
    },
    /// It is one of the versions.
    Taken {
        sha256: String,
    },
    Refused {
        sha256: Option<String>,
        refusal: Refusal,
    },
    RolledBack {
        sha256: String,
    },
}

impl Fate {
    fn sha256(&self) -> Option<&str> {
        match self {
            Self::Unread | Self::Pending { .. } => None,
            Self::Refused { sha256, .. } => sha256.as_deref(),
            Self::Ordered { sha256, .. } | Self::Taken { sha256 } | Self::RolledBack { sha256 } => Some(sha256),
        }
    }
}

impl Shelf {
    pub fn new(built_in: Option<Arc<Version>>) -> Self {
        Self { built_in, ..Self::default() }
    }

    /// What is to run: the newest that may.
    pub fn current(&self) -> Option<&Arc<Version>> {
        self.versions.iter().rev().chain(&self.built_in).find(|version| self.may_run(version))
    }

    fn may_run(&self, version: &Version) -> bool {
        let trusted_keys = &self.in_force.trusted_keys;
        let is_signed = || self.signers.get(&version.sha256).is_some_and(|key| trusted_keys.contains(key));
        let is_trusted = trusted_keys.is_empty() || version.source == Source::BuiltIn || is_signed();
        is_trusted && self.in_force.is_pinned(&version.sha256)
    }

    pub fn is_empty(&self) -> bool {
        self.built_in.is_none() && self.versions.is_empty() && self.file.is_none() && self.quarantine.is_empty()
    }

    /// Only what meets these runs from now on, and only what meets those is taken from the file: which is looked at again
    /// where they are others than before, for another answer may be due.
    pub fn bind(&mut self, in_force: Asked, of_file: Asked) {
        self.in_force = in_force;
        if self.of_file != of_file {
            self.of_file = of_file;
            self.file.iter_mut().for_each(|file| file.fate = Fate::Unread);
            self.told = None;
        }
    }

    /// There is no file of this name. What was ordered of it is of no use any more.
    pub fn lost(&mut self, runtime: &Runtime) -> Option<What> {
        self.told = None;
        self.file.take()?;
        if self.versions.is_empty() {
            return None;
        }
        let Some(built_in) = &mut self.built_in else { return Some(What::Kept) };
        *built_in = built_in.again(runtime);
        self.versions.clear();
        None
    }

    /// There is a file of this name.
    pub fn look(&mut self, compiler: &Compiler, name: &str, path: &Path, now: Instant) -> Vec<What> {
        let was_ordered = self.ordered().is_some();
        let mut news = Vec::from_iter(self.collect(&compiler.runtime, name));
        if self.ordered().is_some() {
            return news;
        }
        let (Some(stamp), signature) = (Stamp::of(path), Stamp::of(&signature::beside(path))) else {
            news.extend(self.lost(&compiler.runtime));
            return news;
        };
        let since = match &self.file {
            // What failed just now for want of a process is not tried again at once.
            Some(File { stamps, .. }) if *stamps == (stamp, signature) && was_ordered => return news,
            Some(File { stamps, fate }) if *stamps == (stamp, signature) => match fate {
                Fate::Pending { since, .. } => *since,
                // It could not even be read: what stands against that need not show in the stamp.
                Fate::Unread | Fate::Refused { sha256: None, .. } => now,
                Fate::Ordered { .. } | Fate::Taken { .. } | Fate::Refused { .. } | Fate::RolledBack { .. } => {
                    return news;
                }
            },
            _ => now,
        };
        let fate = match folder::read(name, path, stamp) {
            Ok(Some(bytes)) => self.fate(compiler, path, bytes),
            Ok(None) => Fate::Pending { since, lacks: None },
            Err(refusal) => Fate::Refused { sha256: None, refusal },
        };
        let is_patient = now.duration_since(since) < PATIENCE;
        let fate = match fate {
            Fate::Refused { refusal, .. } if refusal.may_pass() && is_patient => {
                Fate::Pending { since, lacks: Some(refusal) }
            }
            fate => fate,
        };
        news.extend(self.news(&fate));
        self.file = Some(File { stamps: (stamp, signature), fate });
        // What was compiled before is there already.
        news.extend(self.collect(&compiler.runtime, name));
        news
    }

    /// What is being compiled of it.
    pub fn ordered(&self) -> Option<&Job> {
        match &self.file.as_ref()?.fate {
            Fate::Ordered { job, .. } => Some(job),
            _ => None,
        }
    }

    /// Takes what was ordered, if it is made. A good file is current when this returns.
    fn collect(&mut self, runtime: &Runtime, name: &str) -> Option<What> {
        let Fate::Ordered { sha256, size_bytes, job } = &self.file.as_ref()?.fate else { return None };
        let compiled = job.get()?;
        let version = |compiled: &_| Arc::new(Version::new(runtime, name, sha256.clone(), *size_bytes, compiled));
        let fitting = compiled.clone().and_then(|compiled| self.fitting(version(&compiled)));
        let fate = match fitting {
            Ok(version) => {
                let fate = Fate::Taken { sha256: version.sha256.clone() };
                self.versions.retain(|before| before.sha256 != version.sha256);
                self.versions.push(version);
                let superfluous = self.versions.len().saturating_sub(VERSIONS_KEPT);
                self.versions.drain(..superfluous);
                fate
            }
            // The process died, and not of this content.
            Err(refusal) if refusal.stage == Stage::Process => Fate::Refused { sha256: None, refusal },
            Err(refusal) => Fate::Refused { sha256: Some(sha256.clone()), refusal },
        };
        let what = self.news(&fate);
        self.file.as_mut()?.fate = fate;
        what
    }

    /// What is to be told of a file's new fate: a refusal, once for each time that it is another one.
    fn news(&mut self, fate: &Fate) -> Option<What> {
        match fate {
            Fate::Refused { sha256, refusal } => {
                let told = Some((sha256.clone(), refusal.clone()));
                let is_news = self.told != told;
                self.told = told;
                is_news.then(|| What::Refused(refusal.clone()))
            }
            Fate::Taken { .. } | Fate::RolledBack { .. } => {
                self.told = None;
                None
            }
            Fate::Unread | Fate::Pending { .. } | Fate::Ordered { .. } => None,
        }
    }

    /// What is to become of a file with these bytes.
    fn fate(&mut self, compiler: &Compiler, path: &Path, bytes: Vec<u8>) -> Fate {
        let sha256 = sha256(&bytes);
        if self.quarantine.contains_key(&sha256) {
            return Fate::RolledBack { sha256 };
        }
        if !self.of_file.is_pinned(&sha256) {
            let refusal = Refusal::new(Stage::Pin, format!("its SHA-256 is {sha256}, `plugins.pins` has another"));
            return Fate::Refused { sha256: Some(sha256), refusal };
        }
        if !self.of_file.trusted_keys.is_empty() {
            match signature::signer(path, &bytes, &self.of_file.trusted_keys) {
                Ok(key) => self.signed(&sha256, key),
                Err(refusal) => return Fate::Refused { sha256: Some(sha256), refusal },
            }
        }
        if self.current().is_some_and(|version| version.sha256 == sha256) {
            return Fate::Taken { sha256 };
        }
        if let Some((_, refusal)) = self.refused().filter(|(refused, _)| *refused == Some(&sha256)) {
            return Fate::Refused { refusal: refusal.clone(), sha256: Some(sha256) };
        }
        match check_format(&bytes) {
            Ok(()) => Fate::Ordered { sha256, size_bytes: bytes.len(), job: compiler.order(bytes) },
            Err(refusal) => Fate::Refused { sha256: Some(sha256), refusal },
        }
    }

    /// Remembers who signed a content, for as long as it may come to run.
    fn signed(&mut self, sha256: &str, key: String) {
        let versions = &self.versions;
        self.signers.retain(|signed, _| versions.iter().any(|version| version.sha256 == *signed));
        self.signers.insert(sha256.to_owned(), key);
    }

    /// A name keeps its kind for as long as anything is loaded under it.
    fn fitting(&self, version: Arc<Version>) -> Result<Arc<Version>, Refusal> {
        let kind = self.versions.last().or(self.built_in.as_ref()).map_or(version.kind, |version| version.kind);
        if kind == version.kind {
            return Ok(version);
        }
        let [is, wants] = [version.kind, kind].map(Kind::name);
        Err(Refusal::new(Stage::Kind, format!("it is a {is}, what runs under this name is a {wants}")))
    }

    /// The refusal of the file that lies there, and its content where that could be read.
    fn refused(&self) -> Option<(Option<&str>, &Refusal)> {
        match &self.file.as_ref()?.fate {
            Fate::Refused { sha256, refusal } => Some((sha256.as_deref(), refusal)),
            _ => None,
        }
    }

    /// Forgets a refusal: the next look is as the first.
    pub fn reconsider(&mut self) {
        if let Some(File { fate: fate @ Fate::Refused { .. }, .. }) = &mut self.file {
            *fate = Fate::Unread;
            self.told = None;
        }
    }

    /// A version of this content could not be started, which whoever tried tells.
    pub fn refuse(&mut self, sha256: &str, refusal: Refusal) {
        self.versions.retain(|version| version.sha256 != sha256);
        self.told = Some((Some(sha256.to_owned()), refusal.clone()));
        self.judge(sha256, || Fate::Refused { sha256: Some(sha256.to_owned()), refusal });
    }

    /// A version of this content is not to run again. What ran before it comes back as a new version.
    pub fn roll_back(&mut self, runtime: &Runtime, sha256: &str, why: &str) {
        let was_current = self.current().is_some_and(|version| version.sha256 == sha256);
        if self.built_in.as_ref().is_none_or(|built_in| built_in.sha256 != sha256) {
            self.quarantine.insert(sha256.to_owned(), why.to_owned());
            self.judge(sha256, || Fate::RolledBack { sha256: sha256.to_owned() });
        }
        self.versions.retain(|version| version.sha256 != sha256);
        if was_current && let Some(back) = self.versions.last_mut().or(self.built_in.as_mut()) {
            *back = back.again(runtime);
        }
    }

    /// Changes the fate of the file if it is this content.
    fn judge(&mut self, sha256: &str, fate: impl FnOnce() -> Fate) {
        if let Some(file) = self.file.as_mut().filter(|file| file.fate.sha256() == Some(sha256)) {
            file.fate = fate();
        }
    }

    pub fn rows(&self, name: &str, running: &[u64]) -> impl Iterator<Item = Row> {
        let file = self.file.as_ref().and_then(|file| self.file_row(name, &file.fate));
        let trouble = file.as_ref().and_then(|row| row.last_error.clone());
        let version = self.current().map(|version| Row {
            name: name.to_owned(),
            state: if running.contains(&version.generation) { State::Running } else { State::Loaded },
            sha256: Some(version.sha256.clone()),
            last_error: version
                .last_error()
                .or(trouble)
                .or_else(|| self.is_kept().then(|| "its file was deleted".to_owned())),
            version: Some(Arc::clone(version)),
        });
        version.into_iter().chain(file)
    }

    fn is_kept(&self) -> bool {
        self.file.is_none() && !self.versions.is_empty()
    }

    fn file_row(&self, name: &str, fate: &Fate) -> Option<Row> {
        let (state, last_error) = match fate {
            Fate::Unread | Fate::Taken { .. } => return None,
            Fate::Pending { lacks, .. } => (State::Pending, lacks.as_ref().map(Refusal::to_string)),
            Fate::Ordered { .. } => (State::Pending, None),
            Fate::Refused { refusal, .. } => (State::Refused, Some(refusal.to_string())),
            Fate::RolledBack { sha256 } => (State::RolledBack, self.quarantine.get(sha256).cloned()),
        };
        let sha256 = fate.sha256().map(str::to_owned);
        Some(Row { name: name.to_owned(), state, sha256, last_error, version: None })
    }
}
