//! `docs/reliability.md` names tests that there are: what it says is kept by a test is.

use std::path::{Path, PathBuf};

/// Fewer names than this were read: then the document is not read as it is written.
const FEWEST: usize = 100;

/// Where the tests of a module may stand: black-box ones before unit tests.
fn files(module: &str) -> impl Iterator<Item = PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = module.replace("::", "/");
    let folders = [root.join("../tests"), root.join("src")];
    folders.into_iter().flat_map(move |folder| [".rs", "/mod.rs"].map(|end| folder.join(format!("{path}{end}"))))
}

/// Whether the text holds a test of this name: a function with a test's attribute, or a line of the table of faults.
fn has(text: &str, test: &str) -> bool {
    let is_test = |(at, _): (usize, &str)| {
        let above = text[..at].rfind('\n').map_or("", |end| &text[..end]);
        let mut attributes = above.lines().rev().map(str::trim).take_while(|line| line.starts_with("#["));
        attributes.any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"))
    };
    text.match_indices(&format!("fn {test}(")).any(is_test) || text.contains(&format!("\n    {test}: \""))
}

fn exists(name: &str) -> bool {
    let (module, test) = name.rsplit_once("::").unwrap_or_default();
    files(module).filter_map(|path| std::fs::read_to_string(path).ok()).any(|text| has(&text, test))
}

/// What stands between backticks and is a path of Rust.
fn names(document: &str) -> Vec<&str> {
    let is_path = |word: &&str| {
        word.contains("::") && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_:".contains(c))
    };
    document.lines().flat_map(|line| line.split('`').skip(1).step_by(2)).filter(is_path).collect()
}

#[test]
fn every_test_that_the_document_names_is_there() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reliability.md");
    let document = std::fs::read_to_string(document).expect("the document");
    let names: Vec<_> = names(&document).into_iter().filter(|name| *name != "limits::some_test").collect();
    assert!(names.len() >= FEWEST, "only {names:?}");
    let missing: Vec<_> = names.iter().filter(|name| !exists(name)).collect();
    assert!(missing.is_empty(), "no such tests: {missing:#?}");
}

#[test]
fn a_test_that_is_not_there_is_missed() {
    for no_test in [
        "tidy::every_file_says_first_what_lives_here",
        "tidy::sources",
        "nowhere::every_test_that_the_document_names_is_there",
        "faults::switch::endures",
        "limits::endless",
    ] {
        assert!(!exists(no_test), "{no_test}");
    }
    for test in [
        "faults::switch::resetting",
        "fleet::queue::a_full_line_refuses",
        "fleet::drain::what_runs_finishes_and_a_reload_changes_nothing_about_it",
    ] {
        assert!(exists(test), "{test}");
    }
}
