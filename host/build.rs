//! Builds the built-in plugins for `wasm32-wasip2`, for the host to embed: `OUT_DIR/builtin/NAME.wasm`.
//!
//! - The inner cargo has folders of its own: it must never wait for a lock that the outer one holds.
//! - It builds the same bytes under `cargo build`, `clippy`, `doc` and `test`, whatever flags the host is built with.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

const TARGET: &str = "wasm32-wasip2";
const PLUGINS: [&str; 3] = ["round-robin", "least-busy", "model-map"];

/// How a WebAssembly component begins. A core module has `01 00 00 00` in the second half.
const COMPONENT: [u8; 8] = [0x00, 0x61, 0x73, 0x6d, 0x0d, 0x00, 0x01, 0x00];

/// What the outer cargo, or who called it, set for the host alone: clippy's driver, coverage, tuning for one machine.
const NOT_FOR_PLUGINS: [&str; 7] = [
    "RUSTFLAGS",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "CARGO_BUILD_RUSTC_WRAPPER",
    "CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER",
    "CARGO_BUILD_TARGET",
    "CLIPPY_ARGS",
];

fn main() {
    // Cargo fails the build for these lines and shows nothing besides; an exit code would make it show everything.
    for line in embed_plugins().err().iter().flat_map(|problem| problem.lines()) {
        println!("cargo::error={line}");
    }
}

fn embed_plugins() -> Result<(), String> {
    let root = folder("CARGO_MANIFEST_DIR")?.join("..");
    let out = folder("OUT_DIR")?;
    watch(&root);
    if !target_is_installed() {
        return Err(format!(
            "the plugins need Rust's {TARGET} target: run `rustup target add {TARGET}` or `make setup`"
        ));
    }
    let target_dir = out.join("plugins");
    compile(&root, &target_dir)?;
    let builtin = out.join("builtin");
    fs::create_dir_all(&builtin).map_err(|error| format!("{}: {error}", builtin.display()))?;
    for plugin in PLUGINS {
        let built = target_dir.join(TARGET).join("plugin").join(plugin.replace('-', "_")).with_extension("wasm");
        embed(&built, &builtin.join(plugin).with_extension("wasm"))
            .map_err(|error| format!("{}: {error}", built.display()))?;
    }
    Ok(())
}

/// Everything that the plugins are made of, and nothing else: each change here compiles the host again.
fn watch(root: &Path) {
    for plugin in PLUGINS.iter().chain(&["sdk"]) {
        let crate_dir = root.join("plugins").join(plugin);
        println!("cargo::rerun-if-changed={}", crate_dir.join("src").display());
        println!("cargo::rerun-if-changed={}", crate_dir.join("Cargo.toml").display());
    }
    for shared in ["wit", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", root.join(shared).display());
    }
}

fn target_is_installed() -> bool {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let Ok(asked) = Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]).output() else {
        return true; // cargo will say better what is wrong with this rustc
    };
    let libdir = PathBuf::from(String::from_utf8_lossy(&asked.stdout).trim_end());
    let is_std = |entry: io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("libstd-"))
    };
    fs::read_dir(libdir).is_ok_and(|mut entries| entries.any(is_std))
}

fn compile(root: &Path, target_dir: &Path) -> Result<(), String> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Locked: the outer cargo has just written the lock file. Not offline: for the host alone cargo fetches only
    // the host's crates, and with all of them fetched a locked build asks nobody. CARGO_NET_OFFLINE is passed on.
    cargo
        .args(["build", "--quiet", "--locked", "--profile", "plugin", "--target", TARGET])
        .arg("--target-dir")
        .arg(target_dir);
    cargo.args(PLUGINS.iter().flat_map(|plugin| ["--package", plugin]));
    cargo.current_dir(root).env("CARGO_BUILD_BUILD_DIR", target_dir);
    for variable in NOT_FOR_PLUGINS {
        cargo.env_remove(variable);
    }
    // Set, not removed: empty, it also stands above the flags of a `.cargo/config.toml`.
    cargo.env("CARGO_ENCODED_RUSTFLAGS", "");
    let built = cargo.output().map_err(|error| format!("cannot run cargo for the plugins: {error}"))?;
    if built.status.success() {
        return Ok(());
    }
    Err(format!("the built-in plugins do not build:\n{}", String::from_utf8_lossy(&built.stderr)))
}

fn embed(built: &Path, embedded: &Path) -> io::Result<()> {
    if !fs::read(built)?.starts_with(&COMPONENT) {
        return Err(io::Error::other("not a WebAssembly component"));
    }
    fs::copy(built, embedded).map(|_| ())
}

fn folder(variable: &str) -> Result<PathBuf, String> {
    env::var_os(variable).map(PathBuf::from).ok_or_else(|| format!("cargo did not set {variable}"))
}
