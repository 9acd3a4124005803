//! What the server cost, from `/proc`: processor time and resident memory.

use std::fs;

use anyhow::{Context, Result};

/// Clock ticks a second in `/proc/PID/stat`: 100 on every Linux that Rust runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// The processes that do a server's work.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    /// The server's nodes; none if it runs elsewhere.
    pub(super) pids: Vec<u32>,
    /// Whether to count the machine's Postgres processes too.
    pub(super) postgres: bool,
    /// Whether to count the machine's Redis processes too.
    pub(super) redis: bool,
}

impl Watched {
    /// Returns the processor seconds used so far, user and system, ended children included; `None` without a process.
    pub(super) fn cpu_seconds(&self) -> Result<Option<f64>> {
        if self.pids.is_empty() {
            return Ok(None);
        }
        let mut ticks = self.pids.iter().map(|pid| read_ticks(*pid)).sum::<Result<u64>>()?;
        for (name, _) in [("postgres", self.postgres), ("redis-server", self.redis)].iter().filter(|(_, count)| *count)
        {
            ticks += named(name).into_iter().filter_map(|pid| read_ticks(pid).ok()).sum::<u64>();
        }
        Ok(Some(ticks as f64 / TICKS_PER_SECOND))
    }

    /// Returns the resident memory of all nodes in KiB.
    pub(super) fn rss_kib(&self) -> Result<Option<u64>> {
        let mut sum = None;
        for pid in &self.pids {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))
                .with_context(|| format!("cannot read the memory of process {pid}"))?;
            sum = Some(sum.unwrap_or(0) + resident(&status).context("cannot understand the memory of a process")?);
        }
        Ok(sum)
    }
}

fn read_ticks(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("cannot read the processor time of process {pid}: has the server ended?"))?;
    ticks(&stat).with_context(|| format!("cannot understand /proc/{pid}/stat"))
}

/// Adds up utime, stime, cutime and cstime (fields 14 to 17 of proc(5)).
fn ticks(stat: &str) -> Option<u64> {
    // The name in parentheses may hold spaces and parentheses.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    fields.get(11..15)?.iter().map(|field| field.parse::<u64>().ok()).sum()
}

fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Returns the processes whose command has this name.
fn named(name: &str) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name))
        .collect()
}

/// Returns the processor seconds of the calling thread, to the nanosecond.
pub(super) fn thread_cpu_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").context("cannot read this thread's processor time")?;
    let nanos = stat.split_whitespace().next().and_then(|field| field.parse::<f64>().ok());
    nanos.map(|nanos| nanos / 1e9).context("cannot understand /proc/thread-self/schedstat")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_do_not_shift_the_fields() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 1 2 3 4 100 20 3 4 20 0 8 0 12345 1 2";
        assert_eq!(ticks(stat), Some(127));
        assert_eq!(ticks("42 (short) S 1"), None);
    }

    #[test]
    fn memory_is_read_in_kib() {
        assert_eq!(resident("Name:\tcolink\nVmRSS:\t   12345 kB\nThreads:\t4\n"), Some(12_345));
    }

    #[test]
    fn this_process_has_used_something() {
        let watched = Watched { pids: vec![std::process::id()], postgres: false, redis: false };
        assert!(watched.rss_kib().unwrap().unwrap() > 100);
        assert!(watched.cpu_seconds().unwrap().is_some());
        thread_cpu_seconds().unwrap();
    }
}
