//! A wall clock of the proxy's own that jumps when a test says so; it and the name server are put before it the same way.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;

use super::{Folder, Proxy};

const LIBRARY: &str = include_str!("wall_clock.c");

pub struct WallClock(File);

impl WallClock {
    /// Runs a proxy with this configuration, whose clock is right at first.
    pub async fn proxy(config: &str) -> (Proxy, Self) {
        let folder = Folder::new();
        let (source, library) = (folder.write("wall_clock.c", LIBRARY), folder.path().join("wall_clock.so"));
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source);
        assert!(cc.status().is_ok_and(|status| status.success()), "{cc:?}");
        let path = folder.write("wall_clock", [0; 8]);
        let clock = Self(File::options().write(true).open(&path).expect("a file of one's own"));
        let proxy = Proxy::start_with(config, folder, |command| {
            command.env("LD_PRELOAD", library).env("WALL_CLOCK", path);
        });
        (proxy.await, clock)
    }

    /// From now on it is ahead of the system's by so many nanoseconds, or behind.
    pub fn is_ahead_by(&self, nanos: i64) {
        self.0.write_all_at(&nanos.to_ne_bytes(), 0).expect("room in the file");
    }
}
