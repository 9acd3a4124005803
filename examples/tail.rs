//! Prints what is said, nothing twice and nothing missed: `COLINK_TOKEN=… cargo run --example tail -- http://127.0.0.1:8080`
#![expect(clippy::print_stdout, reason = "it prints what is said")]
use colink::client::{Client, Error, Event, Gateway, Options, Step};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:8080".to_owned());
    let token = std::env::var("COLINK_TOKEN").expect("COLINK_TOKEN holds a token");
    let client = Client::new(&url)?.with_token(&token);
    let mut gateway = Gateway::connect(&url, &token, Options::default()).await?;
    loop {
        let event = match gateway.next_event().await {
            Ok(event) => event,
            Err(error) if error.may_come_back() => {
                gateway.resume().await?;
                continue;
            }
            Err(error) => return Err(error),
        };
        match gateway.cursors.offer(&event) {
            Step::Apply => print(&event),
            Step::Drop => {}
            Step::Gap { stream, after } => {
                let missed = client.missed(stream, after).await?;
                missed.iter().filter(|event| gateway.cursors.offer(event) == Step::Apply).for_each(print);
            }
        }
    }
}

fn print(event: &Event) {
    if let Some(message) = event.message() {
        println!("{} {} {}: {}", message.created_at, message.channel_id, message.author_id, message.text);
    }
}
