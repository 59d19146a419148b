//! The binary as a command that ends, and folders for its files.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tempfile::TempDir;
use tokio::process::Command;

use super::soon;

/// A folder that goes with its test.
pub struct Folder(TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::Builder::new().prefix("vision-proxy-test-").tempdir().expect("a temporary folder"))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Puts a file there as a whole: no reader ever sees half of it.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        let draft = path.with_extension("draft");
        std::fs::write(&draft, content).expect("write a file");
        std::fs::rename(&draft, &path).expect("rename a file");
        path
    }
}

/// What a command left behind.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Both outputs, for what may be said on either.
    pub fn said(&self) -> String {
        format!("{}\n{}", self.stdout, self.stderr)
    }
}

/// Runs `vision-proxy` in this folder to its end.
pub async fn vision_proxy(args: &[&str], folder: &Folder) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vision-proxy"));
    command.args(args).current_dir(folder.path()).stdin(Stdio::null()).kill_on_drop(true);
    let output =
        soon(&format!("the end of vision-proxy {args:?}"), command.output()).await.expect("spawn vision-proxy");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output in UTF-8");
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    assert!(!stderr.contains("panicked"), "vision-proxy {args:?} panicked:\n{stderr}");
    let code = output.status.code().unwrap_or_else(|| panic!("vision-proxy {args:?} was killed:\n{stderr}"));
    Ended { code, stdout, stderr }
}
