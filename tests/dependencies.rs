//! Licences, bans and sources of all dependencies, as `.ci/deny.toml` has them: what `make deny` checks more thoroughly is kept
//! where cargo-deny is not installed, too.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

const RULES: &str = include_str!("../.ci/deny.toml");

/// The crates that this machine compiles: others may not be on it.
fn dependencies() -> Vec<Value> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--locked", "--offline", "--format-version", "1", "--filter-platform", &platform]);
    let output = cargo.arg("--manifest-path").arg(manifest).output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    metadata["packages"].as_array().expect("packages").clone()
}

fn strings(values: &toml::Value) -> Vec<&str> {
    values.as_array().expect("a list").iter().map(|value| value.as_str().expect("a text")).collect()
}

/// Whether an SPDX expression can be met by these licences alone; a slash is the older way to write `OR`.
fn is_met(expression: &str, allowed: &[&str]) -> bool {
    let one_of =
        |list: &str| list.split(" OR ").any(|all| all.split(" AND ").all(|name| allowed.contains(&name.trim())));
    let mut expression = expression.replace('/', " OR ");
    // What stands in brackets becomes a licence that is allowed, or none.
    while let Some(end) = expression.find(')') {
        let begin = expression[..end].rfind('(').expect("a bracket for each");
        let met = if one_of(&expression[begin + 1..end]) { allowed[0] } else { "" };
        expression.replace_range(begin..=end, met);
    }
    one_of(&expression)
}

#[test]
fn licences_bans_and_sources_are_as_agreed() {
    let rules: toml::Table = RULES.parse().expect("rules");
    let licences = strings(&rules["licenses"]["allow"]);
    let sources = strings(&rules["sources"]["allow-registry"]);
    let banned = rules["bans"]["deny"].as_array().expect("a list").iter().map(|entry| entry["crate"].as_str());
    let banned: Vec<_> = banned.map(|name| name.expect("a name")).collect();
    let all = dependencies();
    assert!(all.len() > 100, "these are not all: {}", all.len());
    for found in all {
        let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
        let name = text("name");
        assert!(is_met(&text("license"), &licences), "{name} is licensed as {}", found["license"]);
        assert!(!banned.contains(&name.as_str()), "{name} is banned");
        let source = text("source");
        let is_ours = found["source"].is_null();
        assert!(is_ours || sources.iter().any(|from| source == format!("registry+{from}")), "{name} is from {source}");
    }
}

#[test]
fn expressions_of_licences_are_understood() {
    let allowed = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "Unicode-3.0"];
    for (expression, met) in [
        ("MIT", true),
        ("MIT/Apache-2.0", true),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0 AND MIT", false),
        ("Apache-2.0 WITH LLVM-exception OR GPL-3.0", true),
        ("(MIT OR GPL-3.0) AND Unicode-3.0", true),
        ("(GPL-2.0 OR GPL-3.0) AND Unicode-3.0", false),
        ("GPL-3.0 AND MIT OR (GPL-3.0)", false),
        ("", false),
    ] {
        assert_eq!(is_met(expression, &allowed), met, "{expression}");
    }
}
