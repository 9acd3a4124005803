//! A process that was started here, and is gone when this one is, whatever happens.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};

/// How often it is looked whether one has ended.
const AGAIN: Duration = Duration::from_millis(20);

/// Finds a program by the name that a shell would take.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let dirs = path.split(':').chain(["/usr/bin", "/usr/sbin", "/usr/local/bin"]);
    dirs.map(|dir| Path::new(dir).join(name)).find(|program| program.is_file())
}

/// Begins a command that the system kills when the thread that started it is no more. `setpriv` of util-linux asks for that;
/// without it, only an end in order leaves nothing behind.
pub(super) fn leashed(program: &Path) -> Command {
    let Some(setpriv) = find("setpriv") else { return Command::new(program) };
    let mut command = Command::new(setpriv);
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// A process, in a group of its own: a Ctrl-C on the terminal is not for it.
pub(super) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it; what it says goes to the end of `log`.
    pub(super) fn start(mut command: Command, log: &Path) -> Result<Process> {
        let file = File::options().create(true).append(true).open(log);
        let file = file.with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
        let program = command.get_program().to_owned();
        let child = command.spawn().with_context(|| format!("cannot start {}", Path::new(&program).display()))?;
        Ok(Process { child, log: log.to_owned() })
    }

    /// Returns whether it has ended.
    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Returns the last of what it said.
    pub(super) fn last_words(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    /// Asks it to stop.
    pub(super) fn signal(&self, signal: Signal) {
        // One that ended meanwhile takes none.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// Waits until it has ended, `patience` at most; it is killed then.
    pub(super) async fn end(mut self, patience: Duration) {
        let deadline = Instant::now() + patience;
        while !self.has_ended() && Instant::now() < deadline {
            tokio::time::sleep(AGAIN).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_said_last_is_kept_and_it_ends_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut echo = leashed(&find("sh").unwrap());
        echo.args(["-c", "for n in $(seq 20); do echo line $n; done; exec sleep 1000"]);
        let process = Process::start(echo, &log).unwrap();
        while !process.last_words().ends_with("line 20") {
            std::thread::yield_now();
        }
        assert!(process.last_words().starts_with("line 11"));
        let alive = PathBuf::from(format!("/proc/{}", process.child.id()));
        assert!(alive.exists());
        drop(process);
        assert!(!alive.exists());
        assert_eq!(find("no-such-program"), None);
    }
}
