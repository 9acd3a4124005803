//! The binary as a process: run to its end, or served until the test is over.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;

use crate::world::LIMIT;

/// Runs the binary in a directory, away from the surroundings of the test.
pub(crate) fn bare(place: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_colink"));
    command.args(args).current_dir(place).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("COLINK_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs the binary on a data directory.
pub(crate) fn colink(data: &Path, args: &[&str]) -> Command {
    let mut command = bare(data, args);
    command.arg("--data").arg(data);
    command.args(["--set", "auth.argon2_memory_kib=8", "--set", "auth.argon2_iterations=1"]);
    command
}

#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

pub(crate) fn said(output: Output) -> Said {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
}

pub(crate) fn run(data: &Path, args: &[&str]) -> Said {
    said(colink(data, args).output().unwrap())
}

/// Runs the binary and returns what it prints with `--json`.
pub(crate) fn run_json(data: &Path, args: &[&str]) -> Value {
    let Said { code, out, err } = run(data, &[args, &["--json"]].concat());
    assert_eq!((code, err.as_str()), (0, ""), "{args:?} {out}");
    serde_json::from_str(&out).unwrap()
}

pub(crate) fn run_with_stdin(data: &Path, args: &[&str], text: &str) -> Said {
    let mut child =
        colink(data, args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    said(child.wait_with_output().unwrap())
}

/// Opens a terminal: what is read of it, and what a process writes to.
pub(crate) fn terminal() -> (File, OwnedFd) {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let screen = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
    (File::from(terminal), screen)
}

/// Returns the lines of what a process writes, as they come.
pub(crate) fn lines(out: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    let out = BufReader::new(out);
    std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    lines
}

/// Returns the next line that holds a text.
pub(crate) fn heard(lines: &mpsc::Receiver<String>, text: &str) -> String {
    let mut said = Vec::new();
    loop {
        match lines.recv_timeout(LIMIT) {
            Ok(line) if line.contains(text) => return line,
            Ok(line) => said.push(line),
            Err(_) => panic!("it does not say `{text}`: {said:#?}"),
        }
    }
}

/// A process that is ended with the test.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server of one's own, ended with the test.
pub(crate) struct Serving {
    pub(crate) child: Child,
    pub(crate) url: String,
    pub(crate) lines: mpsc::Receiver<String>,
}

impl Serving {
    pub(crate) fn start(data: &Path, more: &[&str]) -> Serving {
        Serving::spawn(&mut Serving::command(data, more))
    }

    /// Starts what [`Serving::command`] began.
    pub(crate) fn spawn(command: &mut Command) -> Serving {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let out = child.stdout.take().unwrap();
        Serving::of(child, out)
    }

    /// Starts a server that believes to be on a terminal.
    pub(crate) fn start_on_a_terminal(data: &Path, more: &[&str]) -> Serving {
        let (terminal, screen) = terminal();
        let child = Serving::command(data, more).stdout(screen).spawn().unwrap();
        Serving::of(child, terminal)
    }

    pub(crate) fn command(data: &Path, more: &[&str]) -> Command {
        let args = [&["serve", "--listen", "127.0.0.1:0", "--set", "server.drain_s=1"][..], more].concat();
        let mut command = colink(data, &args);
        command.stderr(Stdio::null());
        command
    }

    fn of(child: Child, out: impl Read + Send + 'static) -> Serving {
        let lines = lines(out);
        let url = loop {
            let line = lines.recv_timeout(LIMIT).expect("the server says where it listens");
            if let Some(at) = line.find("http://") {
                break line[at..].split_whitespace().next().unwrap().trim_end_matches("/v1/docs").to_owned();
            }
        };
        Serving { child, url, lines }
    }

    /// Returns the next line that holds a text.
    pub(crate) fn says(&self, text: &str) -> String {
        heard(&self.lines, text)
    }

    /// Returns the process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Sends a signal and returns the exit code.
    pub(crate) fn stop(mut self, signal: &str) -> Option<i32> {
        self.signal(signal);
        // Ends when the server closes its standard output.
        while self.lines.recv_timeout(LIMIT).is_ok() {}
        self.child.wait().unwrap().code()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
