//! A program that runs as long as its test: its output is kept and shown where the test failed.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use tokio::sync::oneshot;

use super::{eventually, soon};

/// Lines of output shown where a test failed.
const SHOWN_LINES: usize = 60;

pub struct Program {
    name: String,
    process: Child,
    first_line: Option<oneshot::Receiver<String>>,
    readers: Vec<JoinHandle<()>>,
    output: Arc<Mutex<String>>,
}

impl Program {
    /// Starts it with nothing on its standard input.
    pub fn start(name: &str, command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap_or_else(|why| panic!("{name} does not start: {why}: {command:?}"));
        let output = Arc::new(Mutex::new(String::new()));
        let (tell, first_line) = oneshot::channel();
        let stdout = reader(process.stdout.take().expect("a pipe"), &output, Some(tell));
        let stderr = reader(process.stderr.take().expect("a pipe"), &output, None);
        Self { name: name.to_owned(), process, first_line: Some(first_line), readers: vec![stdout, stderr], output }
    }

    /// The first line of its standard output, where it says that it is ready. To be asked for once.
    pub async fn first_line(&mut self) -> String {
        let line = self.first_line.take().expect("asked for once");
        soon(&format!("the first line of {}", self.name), line).await.expect("a first line, before it ended")
    }

    /// Everything it wrote so far.
    pub fn output(&self) -> String {
        self.output.lock().expect("no poison").clone()
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    pub fn has_ended(&mut self) -> bool {
        self.process.try_wait().expect("wait for a child").is_some()
    }

    /// Sends it a signal, such as `TERM`.
    pub fn signal(&self, name: &str) {
        signal(self.id(), name);
    }

    /// Returns when it ended by itself.
    pub async fn ends(&mut self) -> ExitStatus {
        eventually(&format!("{} ends", self.name), async || self.has_ended()).await;
        self.process.wait().expect("wait for a child")
    }

    /// Ends it without a word (SIGKILL); its output is complete then.
    pub fn kill(&mut self) {
        // An error means that it ended before.
        _ = self.process.kill();
        _ = self.process.wait();
        // Both pipes end with the process, so that everything it wrote is there to be read.
        for reader in self.readers.drain(..) {
            _ = reader.join();
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let output = self.output();
            let lines: Vec<_> = output.lines().collect();
            let last = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
            eprintln!("--- {} said last:\n{last}", self.name);
        }
    }
}

/// Sends a signal, such as `KILL`, to a process.
pub fn signal(id: u32, name: &str) {
    let status = Command::new("kill").args([format!("-{name}"), id.to_string()]).status().expect("spawn kill");
    assert!(status.success(), "kill -{name} {id}");
}

/// A file that the test set-up installed; fails where it is not there, with the `make` target that does so.
pub fn installed(path: &str, made_by: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache").join(path);
    assert!(path.exists(), "{} is missing: run `make {made_by}`, which installs it", path.display());
    path
}

/// Collects the lines of a pipe on a thread of its own; hands the first one over where somebody wants it.
fn reader(
    pipe: impl Read + Send + 'static,
    output: &Arc<Mutex<String>>,
    mut first: Option<oneshot::Sender<String>>,
) -> JoinHandle<()> {
    let output = Arc::clone(output);
    std::thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        // Not `lines()`: engines write what is not UTF-8, and must not stand still on a full pipe for it.
        while pipe.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            let mut output = output.lock().expect("no poison");
            output.push_str(&text);
            output.push('\n');
            if let Some(first) = first.take() {
                // Nobody listens where nobody asks for it.
                _ = first.send(text);
            }
        }
    })
}
