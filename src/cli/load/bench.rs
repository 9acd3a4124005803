//! What every scenario works with: the server, its users with their tokens, and rooms for them.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};

use super::args::LoadArgs;
use super::dial::{Dial, Joined, Person, connect_all};
use super::frames::{Template, Ticks};
use super::server::Server;
use crate::client::Client;
use crate::domain::command::CreateChannel;
use crate::domain::id::ChannelId;
use crate::domain::user::Role;

/// Requests on their way while users and rooms are made.
const PREPARING: usize = 64;
/// Connections that are being opened at a time.
const CONNECTING: usize = 64;

/// A prepared server.
pub(super) struct Bench {
    pub(super) args: LoadArgs,
    pub(super) server: Server,
    pub(super) people: Vec<Person>,
    pub(super) ticks: Ticks,
    /// Sets this run's names and keys apart from those of other runs on the same server.
    pub(super) run: String,
    rooms: AtomicUsize,
}

impl Bench {
    pub(super) async fn open(args: LoadArgs) -> Result<Bench> {
        let run = format!("{:08x}", getrandom::u32().context("no random numbers")?);
        let server = Server::open(&args).await?;
        let people = make_people(&server, args.people(), &run).await?;
        Ok(Bench { args, server, people, ticks: Ticks::start(), run, rooms: AtomicUsize::new(0) })
    }

    /// Returns what somebody is called.
    pub(super) fn name(&self, person: usize) -> String {
        format!("load-{}-{person}", self.run)
    }

    /// Makes a room of these people. Its maker is one of them, so that nobody else listens.
    pub(super) async fn room(&self, members: std::ops::Range<usize>) -> Result<ChannelId> {
        let number = self.rooms.fetch_add(1, Ordering::Relaxed);
        let people = &self.people[members];
        let (maker, others) = people.split_first().context("a room needs somebody")?;
        let wanted = CreateChannel {
            name: format!("load-{}-{number}", self.run),
            private: true,
            topic: String::new(),
            purpose: String::new(),
            members: others.iter().map(|person| person.id).collect(),
        };
        let channel = Client::new(&self.server.url)?.with_token(&maker.token).create_channel(&wanted).await;
        Ok(channel.context("cannot make a room")?.id)
    }

    /// Makes many rooms of `size`, one after another through the people.
    pub(super) async fn rooms(&self, count: usize, size: usize) -> Result<Vec<ChannelId>> {
        stream::iter(0..count).map(|n| self.room(n * size..(n + 1) * size)).buffered(PREPARING).try_collect().await
    }

    pub(super) fn dial(&self, person: usize, channel: ChannelId) -> Dial {
        let hub = self.server.node(person);
        Dial { person, hub, token: self.people[person].token.clone(), channel, from: None }
    }

    /// Connects people, with a bar if there are many.
    pub(super) async fn connect(&self, dials: Vec<Dial>) -> Result<Vec<Joined>> {
        let bar = bar("connecting", dials.len());
        let joined = connect_all(dials, CONNECTING, || bar.inc(1)).await;
        bar.finish_and_clear();
        joined
    }

    /// Returns the messages that go into a room.
    pub(super) fn template(&self, channel: ChannelId) -> Template {
        Template::new(channel, self.args.text_bytes, (!self.args.no_keys).then_some(self.run.as_str()))
    }
}

async fn make_people(server: &Server, count: usize, run: &str) -> Result<Vec<Person>> {
    let admin = server.admin()?;
    let bar = &bar("making users", count);
    let make = |n: usize| {
        let admin = &admin;
        async move {
            let user = admin.create_user(&format!("load-{run}-{n}"), Role::Member).await?;
            let token = admin.create_token(user.id).await?;
            bar.inc(1);
            Ok::<_, crate::client::Error>(Person { id: user.id, token })
        }
    };
    let people = stream::iter(0..count).map(make).buffered(PREPARING).try_collect().await;
    bar.finish_and_clear();
    people.context("cannot make users: is this an administrator's token, and are the limits off?")
}

/// Returns a progress bar that shows only on a terminal, and only for what takes a while.
pub(super) fn bar(what: &'static str, count: usize) -> ProgressBar {
    if count < 500 {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}").expect("the template is valid");
    ProgressBar::new(count as u64).with_message(what).with_style(style)
}
