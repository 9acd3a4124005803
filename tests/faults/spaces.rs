//! A network, or a tree of mounts, that only those see who are put into it: a namespace of the kernel's, which is gone with
//! the process that holds it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::process::{Process, command, find};

/// How long one may take to be made.
const LIMIT: Duration = Duration::from_secs(5);

/// What it is that only those inside see.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Net,
    Mount,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Net => "net",
            Kind::Mount => "mnt",
        }
    }

    fn option(self) -> &'static str {
        match self {
            Kind::Net => "--net",
            Kind::Mount => "--mount",
        }
    }
}

/// One namespace.
pub(crate) struct Space {
    holder: Process,
    kind: Kind,
}

impl Space {
    /// Makes one, and runs a script of the shell in it. An error says why there is none: it takes root, and a kernel that
    /// has them.
    pub(crate) async fn new(kind: Kind, script: &str, log: &Path) -> Result<Space, String> {
        let unshare = find("unshare").filter(|_| find("nsenter").is_some()).ok_or("there is no unshare or nsenter")?;
        let mut hold = command(&unshare, None);
        hold.args([kind.option(), "--", "sh", "-ec"]).arg(format!("{script}\necho made; exec sleep infinity"));
        let _ = fs::remove_file(log);
        let (mut holder, deadline) = (Process::start(hold, log), Instant::now() + LIMIT);
        loop {
            let said = fs::read_to_string(log).unwrap_or_default();
            if said.ends_with("made\n") {
                return Ok(Space { holder, kind });
            }
            if holder.has_ended() || Instant::now() > deadline {
                return Err(said.trim().to_owned());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Returns the process that holds it.
    pub(crate) fn holder(&self) -> u32 {
        self.holder.id()
    }

    /// Has a command run inside.
    pub(crate) fn enter(&self, command: &Command) -> Command {
        let mut inside = Command::new(find("nsenter").expect("it was there a moment ago"));
        inside.arg(format!("{}=/proc/{}/ns/{}", self.kind.option(), self.holder(), self.kind.name())).arg("--");
        inside.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        if let Some(dir) = command.get_current_dir() {
            inside.current_dir(dir);
        }
        inside
    }
}

/// Runs a script of the shell to its end.
pub(crate) fn run(mut command: Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Returns a script of the shell as a command, which ends at the first line that fails.
pub(crate) fn script(text: &str) -> Command {
    let mut command = Command::new("sh");
    command.arg("-ec").arg(text);
    command
}
