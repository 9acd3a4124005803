//! What the bus logs when a password is wrong: that, and not the password.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::servers::{Server, ask};
use super::*;

/// What is logged on this thread.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl Logged {
    fn here() -> (Logged, tracing::subscriber::DefaultGuard) {
        let logged = Logged::default();
        let writer = logged.clone();
        let lines = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::TRACE)
            .with_writer(move || writer.clone())
            .finish();
        (logged, tracing::subscriber::set_default(lines))
    }

    fn lines_with(&self, word: &str) -> usize {
        self.text().lines().filter(|line| line.contains(word)).count()
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl std::io::Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_wrong_password_is_logged_once_and_never_shown() {
    let Some(server) = Server::start("redis-server", &["--requirepass", "right"]).await else { return };
    let right = format!("redis://:right@127.0.0.1:{}", server.port);
    let (logged, _guard) = Logged::here();
    let url = format!("redis://:hunter2@127.0.0.1:{}", server.port);
    let settings = redis::Settings { url, name: "wrong".to_owned(), node: NodeId(unique()), queue: 16 };
    let (bus, _incoming) = redis::join(settings).unwrap();
    let tries = || async {
        let stats: String = ask(&right, &["INFO", "stats"]).await.unwrap();
        let line = stats.lines().find_map(|line| line.strip_prefix("total_error_replies:")).unwrap();
        line.trim().parse::<u64>().unwrap()
    };
    eventually("some tries", || async { tries().await >= 8 }).await;
    let text = logged.text();
    assert_eq!(logged.lines_with("the bus is down"), 1, "{text}");
    assert_eq!(logged.lines_with("WRONGPASS") + logged.lines_with("AuthenticationFailed"), 1, "{text}");
    assert!(!text.contains("hunter2"), "{text}");
    // It becomes the right one.
    ask::<()>(&right, &["CONFIG", "SET", "requirepass", "hunter2"]).await.unwrap();
    within("the bus", bus.up().wait_for(|up| *up)).await.unwrap();
    assert_eq!(logged.lines_with("the bus is up"), 1);
    assert!(!logged.text().contains("hunter2"));
}

#[tokio::test]
async fn a_server_that_repeats_the_password_does_not_bring_it_into_the_log() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://:hunter2@{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut node, _)) = listener.accept().await {
            let _ = node.read(&mut [0; 1_024]).await;
            let answer = b"-ERR unknown command `AUTH`, with args beginning with: `hunter2`, \r\n";
            let _ = node.write_all(answer).await;
        }
    });
    let (logged, _guard) = Logged::here();
    let settings = redis::Settings { url, name: "loud".to_owned(), node: NodeId(unique()), queue: 16 };
    let (bus, _incoming) = redis::join(settings).unwrap();
    eventually("a line", || async { logged.lines_with("the bus is down") > 0 }).await;
    bus.close().await;
    assert!(!logged.text().contains("hunter2"), "{}", logged.text());
}
