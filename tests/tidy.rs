//! The house rules that a machine can check: which room imports which, how files begin, how long they grow.

use std::fs;
use std::path::{Path, PathBuf};

/// What each room may import besides itself, from the ground up.
const ROOMS: [(&str, &[&str]); 10] = [
    ("clock", &[]),
    ("config", &[]),
    ("error", &[]),
    ("metrics", &[]),
    ("fleet", &["clock", "config"]),
    ("plugin", &["clock", "config"]),
    ("edge", &["clock", "config", "error", "fleet", "metrics", "plugin"]),
    ("control", &["clock", "config", "edge", "fleet", "metrics", "plugin"]),
    ("cli", &["clock", "config", "control", "edge", "fleet", "metrics", "plugin"]),
    ("fuzzing", &["config", "edge", "fleet", "plugin"]),
];
/// Lines before the tests of a file.
const LONGEST_FILE: usize = 400;

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder of sources").map(|entry| entry.expect("an entry").path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let rust = files.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    rust.chain(folders.iter().flat_map(|folder| sources(folder))).collect()
}

fn host() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).expect("a source file")
}

/// The first part of a path inside the crate: the room.
fn room(path: &Path) -> String {
    let inside = path.strip_prefix(host()).expect("a file of the host").iter().next().expect("a name");
    inside.to_string_lossy().trim_end_matches(".rs").to_owned()
}

#[test]
fn rooms_import_only_what_stands_before_them() {
    for path in sources(&host()) {
        let room = room(&path);
        let Some((_, allowed)) = ROOMS.iter().find(|(name, _)| *name == room) else {
            assert!(["lib", "main"].contains(&room.as_str()), "{} is in no room", path.display());
            continue;
        };
        let text = text(&path);
        let named = text.split("crate::").skip(1);
        let rooms = named.map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default());
        for other in rooms.filter(|other| ROOMS.iter().any(|(name, _)| name == other)) {
            assert!(other == room || allowed.contains(&other), "{} imports {other}", path.display());
        }
    }
}

#[test]
fn every_file_says_first_what_lives_there() {
    for path in sources(&host()) {
        assert!(text(&path).starts_with("//! "), "{}", path.display());
    }
}

#[test]
fn no_file_outgrows_one_idea() {
    for path in sources(&host()) {
        let text = text(&path);
        let lines = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).count();
        assert!(lines <= LONGEST_FILE, "{}: {lines} lines before its tests", path.display());
    }
}

/// Where the wall clock is read: to print a date, or to understand one. It may jump, so nothing waits by it.
const DATES: [&str; 18] = [
    "cli/check.rs",
    "cli/logging.rs",
    "cli/simulate_backend",
    "clock.rs",
    "config/tls",
    "config/warnings.rs",
    "control/admin/api.rs",
    "control/admin/decisions.rs",
    "control/admin/events.rs",
    "control/admin/metrics",
    "control/reload.rs",
    "control/status.rs",
    "edge/attempt.rs",
    "edge/retry.rs",
    "fleet/backend/told.rs",
    "fleet/known.rs",
    "plugin/compile.rs",
    "plugin/version.rs",
];

#[test]
fn the_wall_clock_is_read_for_dates_alone() {
    for path in sources(&host()).into_iter().filter(|path| text(path).contains("SystemTime")) {
        let inside = path.strip_prefix(host()).expect("a file of the host");
        assert!(
            DATES.iter().any(|known| inside.to_string_lossy().starts_with(known)),
            "{}: take tokio::time::Instant",
            path.display()
        );
    }
}
