//! Repeats whatever is said to it: `COLINK_TOKEN=… cargo run --example echo_bot -- http://127.0.0.1:8080`
use colink::client::{Error, Event, Gateway, Options};
use colink::domain::command::SendMessage;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:8080".to_owned());
    let token = std::env::var("COLINK_TOKEN").expect("COLINK_TOKEN holds the bot's token");
    let mut gateway = Gateway::connect(&url, &token, Options::default()).await?;
    let me = gateway.ready.as_ref().expect("a new session says who it belongs to").user.id;
    loop {
        match gateway.next_event().await {
            Ok(event) if event.actor_id != Some(me) => answer(&gateway, &event).await?,
            Ok(_) => {}
            Err(error) if error.may_come_back() => gateway.resume().await?,
            Err(error) => return Err(error),
        }
    }
}

async fn answer(gateway: &Gateway, event: &Event) -> Result<(), Error> {
    let Some(said) = event.message() else { return Ok(()) };
    let echo = SendMessage {
        channel_id: said.channel_id,
        // The same key for the same message: an echo that is sent twice is stored once.
        client_msg_id: Some(format!("echo-{}", said.id)),
        text: format!("> {}", said.text),
        thread_seq: said.thread_seq,
        also_in_channel: false,
    };
    gateway.call(echo).await.map(drop)
}
