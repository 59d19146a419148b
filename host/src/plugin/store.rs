//! The plugin folder: what lies in it, what of that may run, and what ran before.
//!
//! Invariants:
//! - The scan is the truth; events only say when to scan. Content is what counts: a file touched, moved or written
//!   again with the same bytes changes nothing.
//! - No bad file takes the place of a version that is loaded: there is always the one before, or the built-in.
//! - A content that was refused is not compiled again until it, its pin or the configuration changes; one that was
//!   rolled back never, in this process.
//! - Blocks while it reads files: not on a worker. What is to be compiled is ordered, and found by a later scan.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::time::Instant;

use super::compiler::{Compiler, Job};
use super::folder;
use super::shelf::{Asked, Shelf};
use super::version::Version;
use super::{Refusal, Runtime};
use crate::config;

/// Names that are looked after, the built-in ones included. Labels of metrics are bounded by it.
const NAMES_MAX: usize = 32;

/// All plugins by name.
pub struct Store {
    dir: PathBuf,
    shelves: BTreeMap<String, Shelf>,
    /// The rules to come, which wait for what is being compiled: files are judged by them, and what runs by those in force.
    wanted: Option<config::Plugins>,
    /// Files beyond `NAMES_MAX` in the last scan.
    left_out: usize,
}

/// Something that a scan found.
#[derive(Debug)]
pub struct Change {
    /// Of the plugin.
    pub name: String,
    /// What became of it.
    pub what: What,
}

/// What became of a name.
#[derive(Debug)]
pub enum What {
    /// This is what `current` answers from now on.
    Loaded(Arc<Version>),
    /// Nothing may run under this name any more: what there was is not what it is pinned to.
    Gone,
    /// The file was deleted and there is no built-in of this name: what was loaded stays.
    Kept,
    /// The file is not taken, and changes nothing.
    Refused(Refusal),
}

/// One line for `/api/plugins`: a version, or a file that is none.
#[derive(Debug)]
pub struct Row {
    /// Of the plugin; a version and a file that is none can share it.
    pub name: String,
    /// How it is doing.
    pub state: State,
    /// Of the content, where it could be read.
    pub sha256: Option<String>,
    /// What went wrong last: a fault, or why the file is not taken.
    pub last_error: Option<String>,
    /// `None` for a file that did not become one.
    pub version: Option<Arc<Version>>,
}

/// How a version, or a file, is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It answers requests.
    Running,
    /// It could.
    Loaded,
    /// It is a file that is not taken.
    Refused,
    /// It ran, and faulted too often.
    RolledBack,
    /// It is being compiled, or perhaps still being written.
    Pending,
}

impl State {
    /// Its name in the admin API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Loaded => "loaded",
            Self::Refused => "refused",
            Self::RolledBack => "rolled-back",
            Self::Pending => "pending",
        }
    }
}

impl Store {
    /// A store over this folder, which need not exist. Nothing is read before the first scan.
    pub fn new(dir: impl Into<PathBuf>, built_ins: Vec<Arc<Version>>) -> Self {
        let shelf = |built_in: Arc<Version>| (built_in.name.clone(), Shelf::new(Some(built_in)));
        Self { dir: dir.into(), shelves: built_ins.into_iter().map(shelf).collect(), wanted: None, left_out: 0 }
    }

    /// Sets these rules against those in force: what is in the folder is judged by them from the next scan on, and they are to
    /// come into force when what they set to work is compiled.
    pub fn want(&mut self, rules: Option<config::Plugins>) {
        self.wanted = rules;
    }

    /// The rules that wait for what is being compiled.
    pub fn wanted(&self) -> Option<&config::Plugins> {
        self.wanted.as_ref()
    }

    /// Reads the folder, takes what was compiled and orders what is new, by the rules in force and those that are wanted.
    pub fn scan(&mut self, compiler: &Compiler, rules: &config::Plugins, now: Instant) -> Vec<Change> {
        let files = match folder::files(&self.dir) {
            Ok(files) => files,
            Err(error) => {
                tracing::warn!(dir = %self.dir.display(), %error, "the plugin folder cannot be read");
                return Vec::new();
            }
        };
        self.make_room(files.keys());
        let mut changes = Vec::new();
        for (name, shelf) in &mut self.shelves {
            let before = shelf.current().map(|version| version.generation);
            let asked = |rules: &config::Plugins| Asked {
                pin: rules.pins.get(name).cloned(),
                trusted_keys: rules.trusted_keys.clone(),
            };
            let wanted = self.wanted.as_ref().unwrap_or(rules);
            shelf.bind(asked(rules), asked(wanted));
            let what = match files.get(name) {
                Some(path) => shelf.look(compiler, name, path, now),
                None => Vec::from_iter(shelf.lost(&compiler.runtime)),
            };
            if let Some(job) = shelf.ordered().filter(|_| rules.is_active(name) || wanted.is_active(name)) {
                compiler.hurry(job);
            }
            let current = shelf.current();
            let loaded = (current.map(|version| version.generation) != before)
                .then(|| current.map_or(What::Gone, |version| What::Loaded(Arc::clone(version))));
            changes.extend(what.into_iter().chain(loaded).map(|what| Change { name: name.clone(), what }));
        }
        self.shelves.retain(|_, shelf| !shelf.is_empty());
        changes
    }

    /// What is being compiled under the names that are asked for.
    pub fn ordered(&self, is_asked: impl Fn(&str) -> bool) -> Vec<Job> {
        let asked = self.shelves.iter().filter(|(name, _)| is_asked(name));
        asked.filter_map(|(_, shelf)| shelf.ordered().cloned()).collect()
    }

    /// What is to run under this name.
    pub fn current(&self, name: &str) -> Option<Arc<Version>> {
        self.shelves.get(name)?.current().cloned()
    }

    /// A version that compiled could not be started: what ran before is current again, as it was. False where
    /// that changes nothing, for a built-in has nothing before it: then there is nothing else to start.
    #[must_use = "starting `current` again where nothing changed would never end"]
    pub fn refuse(&mut self, name: &str, sha256: &str, refusal: Refusal) -> bool {
        let Some(shelf) = self.shelves.get_mut(name) else { return false };
        let before = shelf.current().map(|version| version.generation);
        shelf.refuse(sha256, refusal);
        shelf.current().map(|version| version.generation) != before
    }

    /// The next scan tries refused files again: the configuration they were started with has changed.
    pub fn reconsider(&mut self) {
        self.shelves.values_mut().for_each(Shelf::reconsider);
    }

    /// A version faulted too often: its content does not run under this name again. Answers what is to run in its
    /// place: what ran well before, else the built-in (which comes back itself, having nothing before it), else
    /// nothing.
    pub fn roll_back(&mut self, runtime: &Runtime, name: &str, sha256: &str, why: &str) -> Option<Arc<Version>> {
        let shelf = self.shelves.get_mut(name)?;
        shelf.roll_back(runtime, sha256, why);
        shelf.current().cloned()
    }

    /// Every version that could run and every file that cannot. `running` are the generations in use.
    pub fn status(&self, running: &[u64]) -> Vec<Row> {
        self.shelves.iter().flat_map(|(name, shelf)| shelf.rows(name, running)).collect()
    }

    /// Looks after new names as long as there is room.
    fn make_room<'a>(&mut self, names: impl Iterator<Item = &'a String>) {
        let mut left_out = 0;
        for name in names {
            if self.shelves.contains_key(name) {
                continue;
            }
            if self.shelves.len() < NAMES_MAX {
                self.shelves.insert(name.clone(), Shelf::new(None));
            } else {
                left_out += 1;
            }
        }
        if left_out > self.left_out {
            tracing::warn!(dir = %self.dir.display(), left_out, "more plugins than {NAMES_MAX}: the others are not looked at");
        }
        self.left_out = left_out;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::super::guests::{Guest, runtime};
    use super::super::judge::Judge;
    use super::super::version::Source;
    use super::super::{Kind, Stage};
    use super::*;

    /// A folder that is deleted in the end, and a store over it with one built-in policy named `steady`.
    struct Bench {
        dir: PathBuf,
        store: Store,
        compiler: Compiler,
        rules: config::Plugins,
        now: Instant,
    }

    impl Bench {
        fn new() -> Self {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let dir = std::env::temp_dir().join(format!("vision-proxy-store-{}-{number}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            let steady = Version::built_in(&runtime(), "steady", Kind::Policy, policy(0).leak());
            let compiler = Compiler::start(runtime(), None, || ()).unwrap();
            let somewhere = config::Overrides { backends: vec!["http://127.0.0.1:1".into()], ..Default::default() };
            let rules = config::load(None, &somewhere).unwrap().plugins;
            Self { store: Store::new(&dir, vec![Arc::new(steady)]), dir, compiler, rules, now: Instant::now() }
        }

        fn put(&self, name: &str, bytes: &[u8]) {
            // A file of the same size, written within the clock's grain, is told by its inode.
            let new = self.dir.join(".new");
            fs::write(&new, bytes).unwrap();
            fs::rename(new, self.path(name)).unwrap();
        }

        fn delete(&self, name: &str) {
            fs::remove_file(self.path(name)).unwrap();
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.join(format!("{name}.wasm"))
        }

        /// What a scan finds, and those after it until all is compiled, in words.
        fn scan(&mut self) -> Vec<String> {
            let mut changes = self.store.scan(&self.compiler, &self.rules, self.now);
            while let Some(job) = self.store.ordered(|_| true).first() {
                job.wait();
                changes.extend(self.store.scan(&self.compiler, &self.rules, self.now));
            }
            changes.into_iter().map(|Change { name, what }| format!("{name} {}", words(&what))).collect()
        }

        fn scan_later(&mut self, seconds: u64) -> Vec<String> {
            self.now += Duration::from_secs(seconds);
            self.scan()
        }

        fn sha256(&self, name: &str) -> Option<String> {
            self.store.current(name).map(|version| version.sha256.clone())
        }

        fn rows(&self) -> Vec<String> {
            let word = |row: Row| format!("{} {}: {}", row.name, row.state.name(), row.last_error.unwrap_or_default());
            self.store.status(&[]).into_iter().map(word).collect()
        }
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }

    fn words(what: &What) -> String {
        match what {
            What::Loaded(version) => format!("loaded from {}", version.source.name()),
            What::Gone => "gone".to_owned(),
            What::Kept => "kept".to_owned(),
            What::Refused(refusal) => format!("refused: {}", refusal.stage.name()),
        }
    }

    /// Policies that differ in content.
    fn policy(number: u32) -> Vec<u8> {
        Guest { fields: &format!("(global i32 (i32.const {number}))"), ..Guest::default() }.policy()
    }

    fn sha256(bytes: &[u8]) -> String {
        super::super::compile::sha256(bytes)
    }

    #[test]
    fn a_new_file_is_loaded_once() {
        let mut bench = Bench::new();
        assert!(bench.scan().is_empty());
        bench.put("mine", &policy(1));
        assert_eq!(bench.scan(), ["mine loaded from file"]);
        assert_eq!(bench.sha256("mine"), Some(sha256(&policy(1))));
        assert!(bench.scan().is_empty(), "reading it is no change");
        bench.put("mine", &policy(1));
        assert!(bench.scan().is_empty(), "nor is the same content again");
        bench.put("mine", &policy(2));
        assert_eq!(bench.scan(), ["mine loaded from file"]);
        assert_eq!(bench.sha256("mine"), Some(sha256(&policy(2))));
    }

    #[test]
    fn a_folder_that_is_not_there_is_empty() {
        let mut bench = Bench::new();
        bench.store.dir.push("absent");
        assert!(bench.scan().is_empty());
        fs::create_dir(bench.dir.join("absent")).unwrap();
        bench.put("absent/late", &policy(1));
        assert_eq!(bench.scan(), ["late loaded from file"]);
    }

    #[test]
    fn a_bad_file_is_refused_once_and_what_ran_keeps_running() {
        let mut bench = Bench::new();
        bench.put("mine", &policy(1));
        bench.scan();
        bench.put("mine", b"(component)");
        assert_eq!(bench.scan(), ["mine refused: format"]);
        assert!(bench.scan().is_empty());
        bench.put("mine", b"(component)");
        assert!(bench.scan().is_empty(), "the same content is not told twice");
        assert_eq!(bench.sha256("mine"), Some(sha256(&policy(1))));
        let reason = "format: it is in the text format: run `wasm-tools parse` first";
        assert_eq!(bench.rows()[..2], [format!("mine loaded: {reason}"), format!("mine refused: {reason}")]);
        bench.put("mine", &policy(1));
        assert!(bench.scan().is_empty(), "back to what is loaded");
        assert_eq!(bench.rows()[0], "mine loaded: ");
        bench.put("steady", &Guest::default().translator());
        assert_eq!(bench.scan(), ["steady refused: kind"]);
    }

    #[test]
    fn where_no_child_can_judge_nothing_new_runs_and_it_is_tried_again() {
        let mut bench = Bench::new();
        let judged_by = |program: &str| Compiler::start(runtime(), Some(Judge::by(program)), || ()).unwrap();
        bench.compiler = judged_by("/no/such/program");
        bench.put("mine", &policy(1));
        assert_eq!(bench.scan(), ["mine refused: process"]);
        assert!(bench.scan().is_empty(), "it is told once");
        bench.compiler = judged_by("/bin/false");
        assert_eq!(bench.scan(), ["mine refused: process"], "now it is another reason");
        bench.compiler = judged_by("/bin/true");
        assert_eq!(bench.scan(), ["mine loaded from file"]);
    }

    #[test]
    fn what_was_compiled_lately_is_not_compiled_again() {
        let mut bench = Bench::new();
        bench.put("mine", &policy(1));
        bench.scan();
        bench.put("mine", &policy(2));
        bench.scan();
        bench.put("mine", &policy(1));
        let changes = bench.store.scan(&bench.compiler, &bench.rules, bench.now);
        assert!(matches!(changes[..], [Change { what: What::Loaded(_), .. }]), "{changes:?}");
        let refused = [policy(3), b"\x63\x02\xff\xff".to_vec()].concat();
        bench.put("mine", &refused);
        assert_eq!(bench.scan(), ["mine refused: compile"]);
        bench.put("other", &refused);
        let changes = bench.store.scan(&bench.compiler, &bench.rules, bench.now);
        assert!(matches!(changes[..], [Change { what: What::Refused(_), .. }]), "{changes:?}");
    }

    #[test]
    fn a_file_that_breaks_off_is_waited_for() {
        let mut bench = Bench::new();
        let whole = policy(1);
        bench.put("slow", &whole[..100]);
        assert!(bench.scan().is_empty());
        assert_eq!(bench.rows()[0], "slow pending: truncated: it ends in the middle of a section, after 100 bytes");
        bench.put("slow", &whole[..200]);
        assert!(bench.scan_later(9).is_empty());
        assert!(bench.scan_later(9).is_empty(), "it grew, so the wait began anew");
        assert_eq!(bench.scan_later(1), ["slow refused: truncated"]);
        assert!(bench.scan_later(60).is_empty());
        bench.put("slow", &whole);
        assert_eq!(bench.scan(), ["slow loaded from file"]);
    }

    #[test]
    fn deleting_a_file_returns_to_the_built_in_or_keeps_what_is_loaded() {
        let mut bench = Bench::new();
        let first = bench.store.current("steady").unwrap();
        bench.put("steady", &policy(1));
        bench.put("mine", &policy(2));
        assert_eq!(bench.scan(), ["mine loaded from file", "steady loaded from file"]);
        bench.delete("steady");
        bench.delete("mine");
        assert_eq!(bench.scan(), ["mine kept", "steady loaded from built-in"]);
        assert!(bench.store.current("steady").unwrap().generation > first.generation, "it comes back as a new version");
        assert_eq!(bench.sha256("mine"), Some(sha256(&policy(2))));
        assert_eq!(bench.rows()[0], "mine loaded: its file was deleted");
        assert!(bench.scan().is_empty());
        bench.put("mine", &policy(2));
        assert!(bench.scan().is_empty());
        assert_eq!(bench.rows()[0], "mine loaded: ");
    }

    #[test]
    fn a_version_that_cannot_be_started_gives_way_to_what_ran() {
        let mut bench = Bench::new();
        bench.put("mine", &policy(1));
        bench.scan();
        let ran = bench.store.current("mine").unwrap();
        bench.put("mine", &policy(2));
        bench.scan();
        let no = || Refusal::new(Stage::Configure, "no");
        assert!(bench.store.refuse("mine", &sha256(&policy(2)), no()));
        assert!(!bench.store.refuse("steady", &sha256(&policy(0)), no()), "a built-in stays");
        assert!(Arc::ptr_eq(&bench.store.current("mine").unwrap(), &ran));
        assert_eq!(bench.rows()[..2], ["mine loaded: configure: no", "mine refused: configure: no"]);
        bench.put("mine", &policy(2));
        assert!(bench.scan().is_empty(), "it is not compiled again");
        bench.store.reconsider();
        assert_eq!(bench.scan(), ["mine loaded from file"], "but with another configuration it is");
    }

    #[test]
    fn a_rolled_back_content_stays_out() {
        let mut bench = Bench::new();
        for number in 1..=2 {
            bench.put("mine", &policy(number));
            bench.scan();
        }
        let bad = sha256(&policy(2));
        let back = bench.store.roll_back(&runtime(), "mine", &bad, "five faults").unwrap();
        assert_eq!((&back.sha256, back.counters.calls()), (&sha256(&policy(1)), 0));
        assert_eq!(bench.rows()[..2], ["mine loaded: five faults", "mine rolled-back: five faults"]);
        let again = bench.store.roll_back(&runtime(), "mine", &bad, "late").unwrap();
        assert_eq!(again.generation, back.generation, "a report that comes late moves nothing");
        bench.put("mine", &policy(2));
        bench.store.reconsider();
        assert!(bench.scan().is_empty());
        assert!(bench.store.roll_back(&runtime(), "mine", &sha256(&policy(1)), "too").is_none());
        bench.put("mine", &policy(3));
        assert_eq!(bench.scan(), ["mine loaded from file"]);
    }

    #[test]
    fn the_built_in_is_the_last_resort_and_its_own() {
        let mut bench = Bench::new();
        bench.put("steady", &policy(1));
        bench.scan();
        let back = bench.store.roll_back(&runtime(), "steady", &sha256(&policy(1)), "faults").unwrap();
        assert_eq!(back.source, Source::BuiltIn);
        let again = bench.store.roll_back(&runtime(), "steady", &sha256(&policy(0)), "faults").unwrap();
        assert!(again.source == Source::BuiltIn && again.generation > back.generation);
    }

    #[test]
    fn a_pin_lets_one_content_run_and_no_other() {
        let mut bench = Bench::new();
        bench.put("mine", &policy(1));
        bench.rules.pins.insert("mine".to_owned(), sha256(&policy(2)));
        assert_eq!(bench.scan(), ["mine refused: pin"]);
        assert!(bench.scan().is_empty() && bench.store.current("mine").is_none());
        bench.put("mine", &policy(2));
        assert_eq!(bench.scan(), ["mine loaded from file"]);
        bench.rules.pins.insert("mine".to_owned(), sha256(&policy(1)));
        assert_eq!(bench.scan(), ["mine refused: pin", "mine gone"], "what is loaded is bound by a new pin");
        bench.rules.pins.clear();
        assert_eq!(bench.scan(), ["mine loaded from file"]);
        bench.rules.pins.insert("steady".to_owned(), sha256(&policy(9)));
        assert_eq!(bench.scan(), ["steady gone"], "and so is a built-in");
    }

    #[test]
    fn links_are_followed_and_what_is_no_file_is_not_there() {
        let mut bench = Bench::new();
        bench.put("..first", &policy(1));
        bench.put("..second", &policy(2));
        let link = |bench: &Bench, to: &str| {
            let _ = fs::remove_file(bench.path("linked"));
            std::os::unix::fs::symlink(Path::new(to), bench.path("linked")).unwrap();
        };
        link(&bench, "..first.wasm");
        std::os::unix::fs::symlink("loop.wasm", bench.path("loop")).unwrap();
        fs::create_dir(bench.path("folder")).unwrap();
        assert_eq!(bench.scan(), ["linked loaded from file"]);
        link(&bench, "..second.wasm");
        assert_eq!(bench.scan(), ["linked loaded from file"]);
        assert_eq!(bench.sha256("linked"), Some(sha256(&policy(2))));
    }

    #[test]
    fn what_is_no_regular_file_is_neither_waited_for_nor_read() {
        let mut bench = Bench::new();
        let pipe = |path: &Path| assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
        let refused = |path: &Path| folder::open(path).unwrap_err().to_string();
        pipe(&bench.path("pipe"));
        std::os::unix::fs::symlink("/dev/zero", bench.path("zeros")).unwrap();
        fs::create_dir(bench.path("folder")).unwrap();
        for name in ["pipe", "zeros", "folder"] {
            assert_eq!(refused(&bench.path(name)), "it is no regular file");
        }
        bench.put("mine", &policy(1));
        pipe(&super::super::signature::beside(&bench.path("mine")));
        assert_eq!(bench.scan(), ["mine loaded from file"]);
        bench.rules.trusted_keys = vec!["no key".to_owned()];
        assert_eq!(bench.scan(), ["mine gone"]);
        assert!(
            bench.rows()[0].contains("mine.wasm.minisig cannot be read: it is no regular file"),
            "{:?}",
            bench.rows()
        );
    }

    #[test]
    fn names_are_bounded_in_form_and_number() {
        let mut bench = Bench::new();
        bench.put("my policy", &policy(1));
        assert_eq!(bench.scan(), ["my?policy refused: file"]);
        assert!(bench.scan().is_empty());
        bench.delete("my policy");
        bench.put("mine", &policy(1));
        bench.scan();
        for number in 0..100 {
            bench.put(&format!("junk-{number:03}"), b"junk!!!!");
        }
        assert_eq!(bench.scan().len(), NAMES_MAX - 2, "all there is room for beside the two that are known");
        assert!(bench.store.current("mine").is_some());
        assert!(bench.scan().is_empty());
    }

    #[test]
    fn a_file_that_cannot_be_taken_for_its_size_is_not_read() {
        let mut bench = Bench::new();
        fs::File::create(bench.path("huge")).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(bench.scan(), ["huge refused: format"]);
        assert!(bench.scan().is_empty());
    }
}
