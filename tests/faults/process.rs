//! A process that the harness started: its signals, and that it is gone when the harness is, whatever happens.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// Whether this runs as root, as which Postgres does not.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Finds a program.
pub(crate) fn find(name: &str) -> Option<String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut dirs = path.split(':').chain(["/usr/bin", "/usr/sbin", "/usr/local/bin"]);
    dirs.find_map(|dir| Path::new(dir).join(name).exists().then(|| format!("{dir}/{name}")))
}

/// Begins a command that ends with the thread that starts it; for root, one that is run by another user.
pub(crate) fn command(program: &str, user: Option<&str>) -> Command {
    let Some(setpriv) = find("setpriv") else { return Command::new(program) };
    let mut command = Command::new(setpriv);
    command.args(["--pdeathsig", "KILL"]);
    if let Some(user) = user.filter(|_| is_root()) {
        command.args(["--reuid", user, "--regid", user, "--clear-groups"]);
    }
    command.args(["--", program]);
    command
}

/// A running process, in a group of its own.
pub(crate) struct Process {
    child: Child,
    pid: Pid,
}

impl Process {
    /// Starts it; what it says goes to the end of a file.
    pub(crate) fn start(mut command: Command, log: &Path) -> Process {
        let log = fs::File::options().create(true).append(true).open(log).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        let child = command.spawn().unwrap();
        let pid = Pid::from_child(&child);
        Process { child, pid }
    }

    /// Returns whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // One that ended meanwhile takes none.
        let _ = kill_process(self.pid, signal);
    }

    /// Returns its resident memory, in bytes.
    pub(crate) fn size(&self) -> usize {
        let statm = fs::read_to_string(format!("/proc/{}/statm", self.pid.as_raw_nonzero())).unwrap_or_default();
        statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4_096
    }

    /// Kills it and all that it started, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        let children = children_of(self.pid);
        let _ = kill_process_group(self.pid, Signal::KILL);
        for child in children {
            let _ = kill_process(child, Signal::KILL);
        }
        self.child.wait().unwrap();
    }
}

/// Processes that stand still in the middle of what they did, whose parent is gone. They are killed when this is dropped.
pub(crate) struct Silent(Vec<Pid>);

impl Drop for Silent {
    fn drop(&mut self) {
        for process in &self.0 {
            let _ = kill_process(*process, Signal::KILL);
        }
    }
}

impl Process {
    /// Kills it alone, and stops what it started: to whoever is connected to that it says nothing any more, as if its machine
    /// were gone.
    pub(crate) fn fall_silent(mut self) -> Silent {
        let children = children_of(self.pid);
        for child in &children {
            let _ = kill_process(*child, Signal::STOP);
        }
        self.signal(Signal::KILL);
        self.child.wait().unwrap();
        Silent(children)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Returns the processes that one started: Postgres gives each of its own a group.
fn children_of(parent: Pid) -> Vec<Pid> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else {
            continue;
        };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // Behind the name, which is in parentheses: the state, then the parent.
        let above = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)).and_then(|pid| pid.parse().ok());
        if above == Some(parent.as_raw_nonzero().get()) {
            children.push(pid);
        }
    }
    children
}
