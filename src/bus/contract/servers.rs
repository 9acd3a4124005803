//! What the bus stands on, to be broken: the way from a node to its servers, which can be cut, and a Redis of the test's own.

use std::process::{Child, Command, Stdio};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::*;

/// What a wire lets through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cut {
    /// It is whole.
    Nothing,
    /// Connections are closed, and new ones as soon as they are made.
    Closed,
    /// Connections stay open, and new ones are made, but nothing comes by either way.
    Silent,
    /// Nothing comes from the node to the server.
    Mute,
    /// Nothing comes from the server to the node.
    Deaf,
}

/// A node's way to the servers, which can be cut.
pub(super) struct Wire(watch::Sender<Cut>);

impl Wire {
    /// Makes a way to the servers of a URL; returns the URL that goes by it, too.
    pub(super) async fn to(url: &str) -> (Wire, String) {
        let wire = Wire(watch::channel(Cut::Nothing).0);
        let hosts = hosts(url);
        // A sentinel's answer has to lead along the wire, too.
        let mut renamed = None;
        if url.starts_with("redis-sentinel:") {
            let master = master(url).await;
            let port = wire.carry(("127.0.0.1".to_owned(), master), None).await;
            renamed = Some((bulk(master), bulk(port)));
        }
        let mut ports = Vec::new();
        for host in &hosts {
            let (name, port) = host.rsplit_once(':').unwrap();
            let port = wire.carry((name.to_owned(), port.parse().unwrap()), renamed.clone()).await;
            ports.push(format!("127.0.0.1:{port}"));
        }
        // Nodes begin at different servers of a cluster.
        let turn = usize::try_from(getrandom::u32().unwrap()).unwrap() % ports.len();
        ports.rotate_left(turn);
        let by_wire = url.replace(&hosts.join(","), &ports.join(","));
        (wire, by_wire)
    }

    pub(super) fn cut(&self, how: Cut) {
        self.0.send_replace(how);
    }

    /// Listens on a port of its own, as long as the runtime lasts, and carries each connection to the server.
    pub(super) async fn carry(&self, server: (String, u16), renamed: Option<(String, String)>) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let cut = self.0.subscribe();
        tokio::spawn(async move {
            while let Ok((node, _)) = listener.accept().await {
                let (server, renamed, mut cut) = (server.clone(), renamed.clone(), cut.clone());
                tokio::spawn(async move {
                    if *cut.borrow() == Cut::Closed {
                        return;
                    }
                    let Ok(server) = TcpStream::connect(server).await else { return };
                    let ((from_node, to_node), (from_server, to_server)) = (node.into_split(), server.into_split());
                    let (out, back) = (cut.clone(), cut.clone());
                    tokio::select! {
                        () = pump(from_node, to_server, out, &[Cut::Silent, Cut::Mute], None) => {}
                        () = pump(from_server, to_node, back, &[Cut::Silent, Cut::Deaf], renamed) => {}
                        _ = cut.wait_for(|cut| *cut == Cut::Closed) => {}
                    }
                });
            }
        });
        port
    }
}

/// Carries bytes one way, and holds them back while the wire is cut like that.
async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut cut: watch::Receiver<Cut>,
    held_by: &[Cut],
    renamed: Option<(String, String)>,
) {
    let mut bytes = vec![0; 64 * 1_024];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        if cut.wait_for(|cut| !held_by.contains(cut)).await.is_err() {
            return;
        }
        let carried = match &renamed {
            Some((old, new)) => String::from_utf8_lossy(&bytes[..read]).replace(old, new).into_bytes(),
            None => bytes[..read].to_vec(),
        };
        if to.write_all(&carried).await.is_err() {
            return;
        }
    }
}

/// Returns each `host:port` of a URL.
pub(super) fn hosts(url: &str) -> Vec<String> {
    let (_, rest) = url.split_once("://").unwrap();
    let authority = rest.split('/').next().unwrap();
    authority.rsplit('@').next().unwrap().split(',').map(str::to_owned).collect()
}

/// Returns a port as a server writes it.
pub(super) fn bulk(port: u16) -> String {
    let port = port.to_string();
    format!("${}\r\n{port}\r\n", port.len())
}

/// Asks the first sentinel of a URL for the master's port.
pub(super) async fn master(url: &str) -> u16 {
    let sentinel = format!("redis://{}", hosts(url)[0]);
    let service = url.rsplit('/').next().unwrap();
    let (_, port): (String, u16) = ask(&sentinel, &["SENTINEL", "GET-MASTER-ADDR-BY-NAME", service]).await.unwrap();
    port
}

/// Asks a server by a connection of its own.
pub(super) async fn ask<T: ::redis::FromRedisValue>(url: &str, question: &[&str]) -> ::redis::RedisResult<T> {
    let mut connection = ::redis::Client::open(url)?.get_multiplexed_async_connection().await?;
    let mut command = ::redis::cmd(question[0]);
    command.arg(&question[1..]).query_async(&mut connection).await
}

/// A server of the test's own, which it may ill-treat.
pub(super) struct Server {
    child: Child,
    pub(super) port: u16,
    _dir: tempfile::TempDir,
}

impl Server {
    /// Starts `redis-server` or `redis-sentinel` with these settings.
    pub(super) async fn start(program: &str, settings: &[&str]) -> Option<Server> {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Server::start_at(port, program, settings).await
    }

    pub(super) async fn start_at(port: u16, program: &str, settings: &[&str]) -> Option<Server> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("conf");
        std::fs::write(&file, "").unwrap();
        let mut command = Command::new(program);
        command.arg(&file).args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--dir"]).arg(dir.path());
        if program == "redis-server" {
            command.args(["--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"]);
        }
        command.args(settings).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let Ok(child) = command.spawn() else {
            assert!(std::env::var("CI").is_err(), "CI runs every test: install {program}");
            eprintln!("skipped: {program} is not here");
            return None;
        };
        let server = Server { child, port, _dir: dir };
        // A server that asks for a password is there, too.
        eventually("the server to listen", || async move { TcpStream::connect(("127.0.0.1", port)).await.is_ok() })
            .await;
        Some(server)
    }

    pub(super) async fn redis() -> Option<Server> {
        Server::start("redis-server", &[]).await
    }

    /// Starts a server that may become one of a cluster; returns its port for the others, too.
    pub(super) async fn of_cluster() -> Option<(Server, u16)> {
        let bus_port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let settings = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-port"];
        let server = Server::start("redis-server", &[&settings[..], &[&bus_port.to_string()]].concat()).await?;
        Some((server, bus_port))
    }

    pub(super) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(super) async fn ask<T: ::redis::FromRedisValue>(&self, question: &[&str]) -> T {
        ask(&self.url(), question).await.unwrap()
    }

    pub(super) fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
