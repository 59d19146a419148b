//! What `/proc` says about processes: their time, their memory, and how busy the cores are besides.

use std::fs;

/// A process and its children, such as nginx's worker.
pub fn family(pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    let mut at = 0;
    while at < family.len() {
        family.extend(children(family[at]));
        at += 1;
    }
    family
}

fn children(of: u32) -> Vec<u32> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| parent(*pid) == Some(of)).collect()
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// The time that all threads of these processes have run, user and system, from the scheduler's own clock: `utime` and
/// `stime` count in hundredths of a second. A thread that has ended is missing.
pub fn cpu_seconds(pids: &[u32]) -> f64 {
    let threads = pids.iter().flat_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten());
    let ran = threads.filter_map(|thread| {
        let line = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        line.split(' ').next()?.parse::<f64>().ok()
    });
    ran.sum::<f64>() / 1e9
}

/// Resident memory of these processes. What sockets hold in the kernel is not in it.
pub fn resident_kb(pids: &[u32]) -> f64 {
    let resident = pids.iter().filter_map(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().trim_end_matches(" kB").parse::<f64>().ok()
    });
    resident.sum()
}

/// Seconds that cores have been busy since the machine started, whoever with.
pub struct Busy {
    cores: Vec<(String, f64)>,
}

/// `/proc/stat` counts in these, on every Linux there is.
const TICKS_PER_SECOND: f64 = 100.0;

impl Busy {
    pub fn now() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let cores = stat.lines().filter(|line| line.starts_with("cpu")).filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let name = fields.next()?.to_owned();
            let ticks: Vec<f64> = fields.filter_map(|field| field.parse().ok()).collect();
            // user nice system (idle iowait) irq softirq steal: a guest's time is in user already.
            let busy = ticks.iter().take(8).sum::<f64>() - ticks.get(3)? - ticks.get(4)?;
            Some((name, busy / TICKS_PER_SECOND))
        });
        Self { cores: cores.collect() }
    }

    /// Of all cores together.
    pub fn all(&self) -> f64 {
        self.of("cpu")
    }

    pub fn cores(&self, cores: &[usize]) -> f64 {
        cores.iter().map(|core| self.of(&format!("cpu{core}"))).sum()
    }

    fn of(&self, name: &str) -> f64 {
        self.cores.iter().find(|(core, _)| core == name).map_or(0.0, |(_, busy)| *busy)
    }
}
