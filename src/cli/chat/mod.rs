//! `chat`: talks in the terminal, on a full screen or line by line through pipes.
//!
//! | file | what it is |
//! |---|---|
//! | [`sign_in`] | from a token, a name and password, or an invitation to a session |
//! | [`talk`] | what the model asks of the network, and what it is told |
//! | [`link`], [`ask`] | the network: one gateway session that comes back by itself, and REST for the rest |
//! | [`app`], [`room`], [`keys`], [`slash`], [`input`] | the model: takes news and keys, returns what it wants; no I/O |
//! | [`screen`], [`rows`], [`text`] | how the model looks |
//! | [`ui`] | the terminal: keys in, screens out, restored on every way out |
//! | [`plain`] | line mode |
//!
//! A key press: `ui` hands it to `keys`, which returns [`talk::Want`]s; `ui` has `link` carry them out. What others do
//! comes out of `link` as [`talk::News`], in order and once; `app` applies it, and `screen` draws.

mod app;
mod ask;
mod input;
mod keys;
mod link;
mod plain;
mod room;
mod rows;
mod screen;
mod sign_in;
mod slash;
mod talk;
mod text;
mod ui;
#[cfg(test)]
mod world;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use crate::app::Running;
use crate::clock::Clock;
use crate::domain::channel::channel_name;
use app::App;
use link::Link;

#[derive(Args)]
#[command(after_help = "Examples:\n  colink chat --user ana\n  colink chat --sign-up\n  \
                        tail -f build.log | COLINK_TOKEN=clk_… colink chat --channel builds\n\n\
                        A password is asked for, or comes by COLINK_PASSWORD; a token by COLINK_TOKEN.")]
pub(super) struct ChatArgs {
    /// Where the hub is [default: the one that runs on --data, or http://127.0.0.1:8080]
    #[arg(long, value_name = "URL", env = "COLINK_URL")]
    url: Option<String>,
    /// Where a server of this machine keeps its data
    #[arg(long, value_name = "DIR", default_value = "data")]
    data: PathBuf,
    /// Who to sign in as; asked for, unless COLINK_TOKEN is set
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// The channel to open, or @NAME for a direct message
    #[arg(long, value_name = "NAME")]
    channel: Option<String>,
    /// Make an account with the code of an invitation
    #[arg(long, alias = "invite")]
    sign_up: bool,
    /// Line by line instead of a full screen, as when piped: sends each line of the input to --channel
    #[arg(long)]
    plain: bool,
    /// In line mode, go on listening when the input ends
    #[arg(long)]
    follow: bool,
}

/// What to open first.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Place {
    /// A public or private channel, by its name.
    Channel(String),
    /// The direct message with somebody, by their name.
    Direct(String),
}

impl Place {
    fn parse(text: &str) -> Result<Place> {
        if let Some(name) = text.strip_prefix('@') {
            return Ok(Place::Direct(name.to_lowercase()));
        }
        Ok(Place::Channel(channel_name(text)?))
    }
}

pub(super) async fn run(args: ChatArgs) -> Result<ExitCode> {
    let on_a_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let plain = args.plain || !on_a_terminal;
    let place = args.channel.as_deref().map(Place::parse).transpose()?;
    if plain && place.is_none() {
        bail!("line mode sends to one channel: name it with --channel");
    }
    let url = args.url.clone().unwrap_or_else(|| url_of(&args.data));
    let sign_in = sign_in::sign_in(&url, args.user.clone(), args.sign_up).await?;
    let mut link = Link::open(&url, &sign_in.token).await?;
    let ended = talk_over(&mut link, place, plain, args.follow).await;
    link.close(sign_in.made_here).await;
    ended
}

async fn talk_over(link: &mut Link, place: Option<Place>, plain: bool, follow: bool) -> Result<ExitCode> {
    let place = match place {
        Some(place) => Some(link.enter(place).await?),
        None => None,
    };
    let (me, users, channels) = link.first_state().await?;
    let app = App::new(me, users, channels);
    match (plain, place) {
        (true, Some(channel)) => plain::run(link, app, channel, follow).await,
        (_, place) => ui::run(link, app, place, &Clock::default()).await,
    }
}

fn url_of(data: &std::path::Path) -> String {
    Running::read(data).map_or_else(|| "http://127.0.0.1:8080".to_owned(), |running| running.url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_channel_or_a_person() {
        assert_eq!(Place::parse("#General").unwrap(), Place::Channel("general".into()));
        assert_eq!(Place::parse("@Bob").unwrap(), Place::Direct("bob".into()));
        assert!(Place::parse("not a name").is_err());
    }
}
