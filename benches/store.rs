//! What storing costs on SQLite: messages that wait together commit together.

use std::sync::Arc;
use std::time::Duration;

use colink::clock::Clock;
use colink::domain::channel::Channel;
use colink::domain::command::{Command, CreateChannel, Principal, SendMessage};
use colink::domain::id::{ChannelId, NodeId, TokenId};
use colink::domain::user::{Role, User};
use colink::storage::accounts::{Account, SYSTEM};
use colink::storage::writer::{Limits, Work, Writer};
use colink::storage::{Options, Store};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio_util::sync::CancellationToken;

async fn open(dir: &std::path::Path) -> (Writer, Principal, ChannelId) {
    let url = format!("sqlite://{}", dir.join("bench.db").display());
    let options = Options::new(url);
    let store = Store::open(&options).await.expect("the database opens");
    store.migrate().await.expect("the schema is made");
    let limits = Limits { queue: 8_192, batch: 1_024, patience: Duration::from_secs(5), statement: Duration::ZERO };
    let (writer, _) = Writer::start(
        store,
        Clock::default(),
        NodeId::new(Clock::default().now()),
        limits,
        Arc::new(|_| ()),
        CancellationToken::new(),
    )
    .expect("a thread can be started");
    let add =
        Account::Add { name: "ana".into(), display_name: None, role: Role::Member, password_hash: None, first: true };
    let reply = writer.write(SYSTEM, Work::Account(add), None).await.expect("the account is made");
    let user: User = serde_json::from_str(&reply.json).expect("a user comes back");
    let ana = Principal { user_id: user.id, role: user.role, token_id: TokenId(user.id.0) };
    let create = CreateChannel {
        name: "room".into(),
        private: false,
        topic: String::new(),
        purpose: String::new(),
        members: Vec::new(),
    };
    let reply = writer.write(ana, Work::Command(create.into()), None).await.expect("the channel is made");
    let channel: Channel = serde_json::from_str(&reply.json).expect("a channel comes back");
    (writer, ana, channel.id)
}

fn store(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let (writer, ana, channel_id) = runtime.block_on(open(dir.path()));
    let mut group = criterion.benchmark_group("store");
    for waiting in [1, 64, 512] {
        group.throughput(Throughput::Elements(waiting));
        group.bench_function(format!("{waiting} messages that wait together"), |bencher| {
            bencher.to_async(&runtime).iter(|| {
                let sends = (0..waiting).map(|_| {
                    let text = "x".repeat(200);
                    let send =
                        SendMessage { channel_id, client_msg_id: None, text, thread_seq: None, also_in_channel: false };
                    let writer = writer.clone();
                    async move { writer.write(ana, Work::Command(Command::from(send)), None).await }
                });
                futures_util::future::join_all(sends)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, store);
criterion_main!(benches);
