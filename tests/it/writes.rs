//! What goes out together: a connection does not write frame by frame.

use serde_json::{Value, json};

use crate::world::World;

const WAITING: usize = 50;

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_goes_out_in_one_write() {
    let world = World::start().await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let general = world.channel("general", &[&ana, &bob]).await;
    let mut witness = ana.connects().await;
    let cut = bob.connects().await;
    let resume = json!({"token": bob.token, "session_id": cut.session, "s": cut.s});
    drop(cut);
    for n in 0..WAITING {
        ana.says(general, &n.to_string()).await;
    }
    // The channel tells of one message after another: when this one is told, those before have been, to everybody.
    ana.says(general, "last").await;
    while witness.until("message.created").await["d"]["text"] != "last" {}

    // On the loopback a write of some kilobytes arrives in one piece, so whoever reads all the time reads it at once.
    let mut socket = bob.opens().await;
    socket.asks("resume", resume).await;
    let mut came = socket.read_once().await;
    assert_eq!(came.remove(0)["type"], "resumed");
    if came.is_empty() {
        came = socket.read_once().await;
    }
    let texts: Vec<&Value> = came.iter().map(|event| &event["d"]["text"]).take(WAITING).collect();
    let all: Vec<String> = (0..WAITING).map(|n| n.to_string()).collect();
    assert_eq!(texts, all.iter().collect::<Vec<_>>());
}
