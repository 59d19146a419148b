//! Where a run took place: processor, cores, versions.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::peers::found;

pub fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

pub fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").map(|release| release.trim().to_owned()).unwrap_or_default()
}

pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// What each program says of its own version.
pub fn versions(proxy: &Path) -> impl Iterator<Item = (String, String)> {
    let others = [("nginx", "-v"), ("haproxy", "-v")];
    let others = others.into_iter().filter_map(|(name, ask)| Some((name.to_owned(), said(found(name)?, ask)?)));
    let ours = said(proxy, "--version").map(|version| ("vision-proxy".to_owned(), version));
    others.chain(ours)
}

fn said(program: impl AsRef<std::ffi::OsStr>, ask: &str) -> Option<String> {
    let output = Command::new(program).arg(ask).output().ok()?;
    // nginx says it on standard error.
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).lines().next().map(|line| line.trim().to_owned())
}
