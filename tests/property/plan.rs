//! What can happen, as small values that shrink well and print readably: everything names the n-th of something.

use colink::domain::channel::{ChannelRole, Posting};
use colink::domain::command::{self as c, Command};
use colink::domain::id::ChannelId;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::model::{Message, Model};

/// How many people there are; see `case::PEOPLE`.
pub(crate) const PEOPLE: u8 = 5;
/// How many gateway clients there are: one each, and a second for the first.
pub(crate) const CLIENTS: u8 = 6;

/// One step of a case.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Somebody asks for something and waits for the answer.
    Does(Who, Door, Act),
    /// The n-th message that had a key is sent once more, with its own text or another.
    SendsAgain { nth: u8, door: Door, other_text: bool },
    /// Somebody sends, is cut off before the answer, and repeats the request until it is answered.
    CutWhileSending { client: u8, channel: u8, text: Text },
    /// Several people act in one channel at the same moment.
    Together(Vec<(Who, Door, Act)>),
    /// A client comes back at the very moment when others write.
    ReturnsAmid(u8, How, Vec<(Who, Door, Act)>),
    /// Somebody reads.
    Looks(u8, View),
    /// A client loses its connection, with whatever it has not read.
    Cut(u8),
    /// A client comes back, over a living connection too.
    Returns(u8, How),
    /// A client reads until it has heard all that it is owed.
    Hears(u8),
    /// The server stops and starts again; these clients come back at once.
    Restart(Vec<u8>),
}

/// Who does it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Who {
    /// Whether they may or not.
    Anyone(u8),
    /// The author of what is edited or deleted; otherwise the n-th member of the channel.
    Fitting(u8),
}

/// By which door.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Door {
    Rest,
    Gateway,
}

/// How a client comes back.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum How {
    /// By its session, if the server still has it.
    Session,
    /// By its cursors alone, as if it had been away for too long.
    Cursors,
    /// With a new session.
    Anew,
}

/// A command, its channel and messages by number.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    Create { name: u8, private: bool, with: Vec<u8> },
    Join(u8),
    Leave(u8),
    Invite(u8, u8),
    Remove(u8, u8),
    SetRole(u8, u8, ChannelRole),
    SetPosting(u8, Posting),
    Archive(u8),
    Unarchive(u8),
    Send { channel: u8, text: Text, key: Option<u8> },
    Reply { channel: u8, to: u8, text: Text, key: Option<u8>, also: bool },
    Edit(u8, u8, Text),
    Delete(u8, u8),
    React(u8, u8, Emoji),
    Unreact(u8, u8, Emoji),
    Pin(u8, u8),
    Unpin(u8, u8),
    MarkRead(u8, u8),
    MarkUnread(u8, u8),
    Follow(u8, u8),
    Unfollow(u8, u8),
    MarkThreadRead(u8, u8, u8),
    MarkThreadUnread(u8, u8, u8),
    Mute(u8, bool),
}

/// A message's text.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Text {
    Plain(u8),
    /// Names somebody, in the channel or not.
    Names(u8),
    /// Names somebody inside code, which mentions nobody.
    InCode(u8),
    Channel,
    /// `@here` and somebody.
    HereAnd(u8),
}

/// An emoji.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Emoji {
    Tada,
    PlusOne,
    Wave,
}

/// Something to read. History begins at an event's number.
#[derive(Clone, Debug)]
pub(crate) enum View {
    Channel(u8),
    Mine,
    Members(u8),
    Newest(u8, u8),
    Before(u8, u8, u8),
    After(u8, u8, u8),
    Around(u8, u8, u8),
    One(u8, u8),
    Replies(u8, u8, u8),
    Edits(u8, u8),
    Pins(u8),
    Events(u8, u8),
    Threads,
}

impl Who {
    /// Returns which of the people it is.
    pub(crate) fn find(self, model: &Model, act: &Act) -> u8 {
        let (Who::Anyone(n) | Who::Fitting(n)) = self;
        let fitting = || {
            let room = model.nth_channel(*act.clone().channel()?)?;
            let author = match act {
                Act::Edit(_, at, _) | Act::Delete(_, at) => nth(&room.messages, *at).map(|message| message.author),
                _ => None,
            };
            // Not in the order of their identifiers, which is another one each time.
            let mut members = model.people.iter().map(|who| who.id).filter(|id| room.members.contains_key(id));
            let mut member = || members.nth(usize::from(n).checked_rem(room.members.len())?);
            model.number_of(author.or_else(&mut member)?)
        };
        if matches!(self, Who::Fitting(_)) { fitting().unwrap_or(n) } else { n }
    }
}

impl Emoji {
    fn text(self) -> String {
        match self {
            Emoji::Tada => "tada",
            Emoji::PlusOne => "+1",
            Emoji::Wave => "👋",
        }
        .to_owned()
    }
}

impl Text {
    /// Returns the text, with the names of this case's people.
    pub(crate) fn render(self, model: &Model) -> String {
        let name = |n: u8| &model.person(n).name;
        match self {
            Text::Plain(n) => format!("text {n}"),
            Text::Names(n) => format!("hi @{} there", name(n)),
            Text::InCode(n) => format!("run `@{}` now", name(n)),
            Text::Channel => "all of @channel".to_owned(),
            Text::HereAnd(n) => format!("who is @here besides @{}", name(n)),
        }
    }
}

impl Act {
    fn channel(&mut self) -> Option<&mut u8> {
        match self {
            Act::Create { .. } => None,
            Act::Send { channel, .. }
            | Act::Reply { channel, .. }
            | Act::Join(channel)
            | Act::Leave(channel)
            | Act::Invite(channel, ..)
            | Act::Remove(channel, ..)
            | Act::SetRole(channel, ..)
            | Act::SetPosting(channel, ..)
            | Act::Archive(channel)
            | Act::Unarchive(channel)
            | Act::Edit(channel, ..)
            | Act::Delete(channel, ..)
            | Act::React(channel, ..)
            | Act::Unreact(channel, ..)
            | Act::Pin(channel, ..)
            | Act::Unpin(channel, ..)
            | Act::MarkRead(channel, ..)
            | Act::MarkUnread(channel, ..)
            | Act::Follow(channel, ..)
            | Act::Unfollow(channel, ..)
            | Act::MarkThreadRead(channel, ..)
            | Act::MarkThreadUnread(channel, ..)
            | Act::Mute(channel, ..) => Some(channel),
        }
    }

    fn in_channel(mut self, channel: u8) -> Act {
        if let Some(place) = self.channel() {
            *place = channel;
        }
        self
    }

    /// Fills in identifiers and numbers; nothing if there is no channel to do it in.
    pub(crate) fn command(&self, model: &Model) -> Option<Command> {
        if let Act::Create { name, private, with } = self {
            let members = with.iter().map(|n| model.person(*n).id).collect();
            let (name, topic, purpose) = (model.channel_name(*name), String::new(), String::new());
            return Some(c::CreateChannel { name, private: *private, topic, purpose, members }.into());
        }
        let at = |channel: u8| model.nth_channel(channel).map(|room| room.id);
        let on = |channel: u8, message: u8| Some((at(channel)?, model.nth_message(channel, message)));
        let whom = |n: u8| model.person(n).id;
        Some(match *self {
            Act::Create { .. } => return None,
            Act::Join(channel) => c::JoinChannel { channel_id: at(channel)? }.into(),
            Act::Leave(channel) => c::LeaveChannel { channel_id: at(channel)? }.into(),
            Act::Invite(channel, n) => c::InviteMember { channel_id: at(channel)?, user_id: whom(n) }.into(),
            Act::Remove(channel, n) => c::RemoveMember { channel_id: at(channel)?, user_id: whom(n) }.into(),
            Act::SetRole(channel, n, role) => {
                c::SetChannelRole { channel_id: at(channel)?, user_id: whom(n), role }.into()
            }
            Act::SetPosting(channel, posting) => {
                let (name, topic, purpose) = (None, None, None);
                c::UpdateChannel { channel_id: at(channel)?, name, topic, purpose, posting: Some(posting) }.into()
            }
            Act::Archive(channel) => c::ArchiveChannel { channel_id: at(channel)? }.into(),
            Act::Unarchive(channel) => c::UnarchiveChannel { channel_id: at(channel)? }.into(),
            Act::Send { channel, text, key } => message(at(channel)?, text.render(model), key, None, false).into(),
            Act::Reply { channel, to, text, key, also } => {
                let (channel_id, root) = on(channel, to)?;
                message(channel_id, text.render(model), key, Some(root), also).into()
            }
            Act::Edit(channel, nth, text) => {
                let (channel_id, seq) = on(channel, nth)?;
                c::EditMessage { channel_id, seq, text: text.render(model) }.into()
            }
            Act::Delete(channel, nth) => {
                let (channel_id, seq) = on(channel, nth)?;
                c::DeleteMessage { channel_id, seq }.into()
            }
            Act::React(channel, nth, emoji) => {
                let (channel_id, seq) = on(channel, nth)?;
                c::AddReaction { channel_id, seq, emoji: emoji.text() }.into()
            }
            Act::Unreact(channel, nth, emoji) => {
                let (channel_id, seq) = on(channel, nth)?;
                c::RemoveReaction { channel_id, seq, emoji: emoji.text() }.into()
            }
            Act::Pin(channel, nth) => {
                let (channel_id, seq) = on(channel, nth)?;
                c::AddPin { channel_id, seq }.into()
            }
            Act::Unpin(channel, nth) => {
                let (channel_id, seq) = on(channel, nth)?;
                c::RemovePin { channel_id, seq }.into()
            }
            Act::MarkRead(channel, at_most) => {
                let room = model.nth_channel(channel)?;
                c::MarkRead { channel_id: room.id, seq: i64::from(at_most) % (model.head_of(room) + 2) }.into()
            }
            Act::MarkUnread(channel, nth) => {
                let (channel_id, seq) = on(channel, nth)?;
                c::MarkUnread { channel_id, seq }.into()
            }
            Act::Follow(channel, nth) => {
                let (channel_id, thread_seq) = on(channel, nth)?;
                c::FollowThread { channel_id, thread_seq }.into()
            }
            Act::Unfollow(channel, nth) => {
                let (channel_id, thread_seq) = on(channel, nth)?;
                c::UnfollowThread { channel_id, thread_seq }.into()
            }
            Act::MarkThreadRead(channel, nth, reply) => {
                let (channel_id, thread_seq) = on(channel, nth)?;
                let seq = model.nth_message(channel, reply);
                c::MarkThreadRead { channel_id, thread_seq, seq }.into()
            }
            Act::MarkThreadUnread(channel, nth, reply) => {
                let (channel_id, thread_seq) = on(channel, nth)?;
                let seq = model.nth_message(channel, reply);
                c::MarkThreadUnread { channel_id, thread_seq, seq }.into()
            }
            Act::Mute(channel, muted) => {
                c::SetChannelPreferences { channel_id: at(channel)?, muted: Some(muted), notify: None }.into()
            }
        })
    }
}

fn message(
    channel_id: ChannelId,
    text: String,
    key: Option<u8>,
    thread_seq: Option<i64>,
    also_in_channel: bool,
) -> c::SendMessage {
    let client_msg_id = key.map(|n| format!("key-{n}"));
    c::SendMessage { channel_id, client_msg_id, text, thread_seq, also_in_channel }
}

impl View {
    /// Returns where it is read.
    pub(crate) fn path(&self, model: &Model) -> Option<String> {
        let at = |channel: u8| Some(format!("/v1/channels/{}", model.nth_channel(channel)?.id));
        let on = |channel, nth| Some(format!("{}/messages/{}", at(channel)?, model.nth_message(channel, nth)));
        Some(match *self {
            View::Channel(channel) => at(channel)?,
            View::Mine => "/v1/channels?limit=200".to_owned(),
            View::Members(channel) => format!("{}/members", at(channel)?),
            View::Newest(channel, limit) => format!("{}/messages?limit={limit}", at(channel)?),
            View::Before(channel, seq, limit) => format!("{}/messages?limit={limit}&before_seq={seq}", at(channel)?),
            View::After(channel, seq, limit) => format!("{}/messages?limit={limit}&after_seq={seq}", at(channel)?),
            View::Around(channel, seq, limit) => format!("{}/messages?limit={limit}&around_seq={seq}", at(channel)?),
            View::One(channel, nth) => on(channel, nth)?,
            View::Replies(channel, nth, limit) => format!("{}/replies?limit={limit}", on(channel, nth)?),
            View::Edits(channel, nth) => format!("{}/edits", on(channel, nth)?),
            View::Pins(channel) => format!("{}/pins", at(channel)?),
            View::Events(channel, after) => format!("{}/events?limit=1000&after_seq={after}", at(channel)?),
            View::Threads => "/v1/threads?limit=200".to_owned(),
        })
    }
}

/// Returns the place of a message among those of its channel.
pub(crate) fn nth(messages: &[Message], n: u8) -> Option<&Message> {
    messages.get(usize::from(n).checked_rem(messages.len())?)
}

/// Returns whose client it is.
pub(crate) fn owner_of(client: u8) -> u8 {
    client % PEOPLE
}

/// Makes cases of up to `most` steps.
pub(crate) fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    vec(step(), 1..=most)
}

/// Those who are in most channels do most.
fn person() -> impl Strategy<Value = u8> {
    prop_oneof![3 => 0..2u8, 2 => 0..PEOPLE]
}

fn who() -> impl Strategy<Value = Who> {
    prop_oneof![2 => (0..PEOPLE).prop_map(Who::Fitting), 1 => person().prop_map(Who::Anyone)]
}

fn channel() -> impl Strategy<Value = u8> {
    0..3u8
}

/// The first messages are asked for more often, so that much happens to a few.
fn message_nth() -> impl Strategy<Value = u8> {
    prop_oneof![2 => 0..4u8, 1 => 0..24u8]
}

fn door() -> impl Strategy<Value = Door> {
    select(vec![Door::Rest, Door::Gateway])
}

fn text() -> impl Strategy<Value = Text> {
    prop_oneof![
        3 => (0..8u8).prop_map(Text::Plain),
        3 => (0..PEOPLE).prop_map(Text::Names),
        1 => (0..PEOPLE).prop_map(Text::InCode),
        2 => Just(Text::Channel),
        1 => (0..PEOPLE).prop_map(Text::HereAnd),
    ]
}

fn emoji() -> impl Strategy<Value = Emoji> {
    select(vec![Emoji::Tada, Emoji::PlusOne, Emoji::Wave])
}

fn key() -> impl Strategy<Value = Option<u8>> {
    prop::option::of(0..12u8)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        56 => (who(), door(), act()).prop_map(|(who, door, act)| Step::Does(who, door, act)),
        5 => (0..8u8, door(), prop::bool::weighted(0.3))
            .prop_map(|(nth, door, other_text)| Step::SendsAgain { nth, door, other_text }),
        3 => (0..CLIENTS, channel(), text())
            .prop_map(|(client, channel, text)| Step::CutWhileSending { client, channel, text }),
        6 => at_once(prop_oneof![4 => message_act(), 3 => people_act()]).prop_map(Step::Together),
        4 => (0..CLIENTS, how(), at_once(message_act()))
            .prop_map(|(client, how, acts)| Step::ReturnsAmid(client, how, acts)),
        12 => (person(), view()).prop_map(|(who, view)| Step::Looks(who, view)),
        6 => (0..CLIENTS).prop_map(Step::Cut),
        8 => (0..CLIENTS, how()).prop_map(|(client, how)| Step::Returns(client, how)),
        4 => (0..CLIENTS).prop_map(Step::Hears),
        1 => prop::sample::subsequence((0..CLIENTS).collect::<Vec<_>>(), 0..=usize::from(CLIENTS))
            .prop_map(Step::Restart),
    ]
}

fn how() -> impl Strategy<Value = How> {
    select(vec![How::Session, How::Session, How::Cursors, How::Anew])
}

/// In a channel.
fn on() -> impl Strategy<Value = (u8, u8)> {
    (channel(), message_nth())
}

/// What changes who is in a channel, and what they may do there.
fn people_act() -> impl Strategy<Value = Act> {
    let whom = || (channel(), 0..PEOPLE);
    let posting = select(vec![Posting::Everyone, Posting::Moderators, Posting::Owners]);
    let role = select(vec![ChannelRole::Member, ChannelRole::Moderator, ChannelRole::Owner]);
    prop_oneof![
        5 => channel().prop_map(Act::Join),
        3 => channel().prop_map(Act::Leave),
        6 => whom().prop_map(|(channel, n)| Act::Invite(channel, n)),
        2 => whom().prop_map(|(channel, n)| Act::Remove(channel, n)),
        2 => (whom(), role).prop_map(|((channel, n), role)| Act::SetRole(channel, n, role)),
        1 => (channel(), posting).prop_map(|(channel, posting)| Act::SetPosting(channel, posting)),
        1 => channel().prop_map(Act::Archive),
        4 => channel().prop_map(Act::Unarchive),
    ]
}

/// What changes a channel's messages.
fn message_act() -> impl Strategy<Value = Act> {
    let send = (channel(), text(), key()).prop_map(|(channel, text, key)| Act::Send { channel, text, key });
    let reply = (channel(), message_nth(), text(), key(), any::<bool>())
        .prop_map(|(channel, to, text, key, also)| Act::Reply { channel, to, text, key, also });
    prop_oneof![
        12 => send,
        6 => reply,
        4 => (on(), text()).prop_map(|((channel, nth), text)| Act::Edit(channel, nth, text)),
        1 => on().prop_map(|(channel, nth)| Act::Delete(channel, nth)),
        3 => (on(), emoji()).prop_map(|((channel, nth), emoji)| Act::React(channel, nth, emoji)),
        2 => (on(), emoji()).prop_map(|((channel, nth), emoji)| Act::Unreact(channel, nth, emoji)),
        2 => on().prop_map(|(channel, nth)| Act::Pin(channel, nth)),
        1 => on().prop_map(|(channel, nth)| Act::Unpin(channel, nth)),
    ]
}

/// What one user keeps about a channel.
fn own_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (channel(), any::<u8>()).prop_map(|(channel, at)| Act::MarkRead(channel, at)),
        3 => on().prop_map(|(channel, nth)| Act::MarkUnread(channel, nth)),
        2 => on().prop_map(|(channel, nth)| Act::Follow(channel, nth)),
        1 => on().prop_map(|(channel, nth)| Act::Unfollow(channel, nth)),
        2 => (on(), message_nth()).prop_map(|((channel, nth), reply)| Act::MarkThreadRead(channel, nth, reply)),
        2 => (on(), message_nth()).prop_map(|((channel, nth), reply)| Act::MarkThreadUnread(channel, nth, reply)),
        1 => (channel(), any::<bool>()).prop_map(|(channel, muted)| Act::Mute(channel, muted)),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    let create = (0..6u8, any::<bool>(), vec(0..PEOPLE, 1..5)).prop_map(|(name, private, with)| Act::Create {
        name,
        private,
        with,
    });
    prop_oneof![1 => create, 8 => people_act(), 30 => message_act(), 10 => own_act()]
}

/// Several acts in one channel, whose events give them an order.
fn at_once(act: impl Strategy<Value = Act>) -> impl Strategy<Value = Vec<(Who, Door, Act)>> {
    (channel(), vec((who(), door(), act), 2..6)).prop_map(|(channel, acts)| {
        acts.into_iter().map(|(who, door, act)| (who, door, act.in_channel(channel))).collect()
    })
}

fn view() -> impl Strategy<Value = View> {
    let page = || (channel(), 0..40u8, 1..6u8);
    let on = || (channel(), message_nth());
    prop_oneof![
        2 => channel().prop_map(View::Channel),
        1 => Just(View::Mine),
        1 => channel().prop_map(View::Members),
        2 => (channel(), 1..6u8).prop_map(|(channel, limit)| View::Newest(channel, limit)),
        2 => page().prop_map(|(channel, seq, limit)| View::Before(channel, seq, limit)),
        2 => page().prop_map(|(channel, seq, limit)| View::After(channel, seq, limit)),
        2 => page().prop_map(|(channel, seq, limit)| View::Around(channel, seq, limit)),
        1 => on().prop_map(|(channel, nth)| View::One(channel, nth)),
        1 => (on(), 1..4u8).prop_map(|((channel, nth), limit)| View::Replies(channel, nth, limit)),
        1 => on().prop_map(|(channel, nth)| View::Edits(channel, nth)),
        1 => channel().prop_map(View::Pins),
        1 => (channel(), 0..40u8).prop_map(|(channel, after)| View::Events(channel, after)),
        1 => Just(View::Threads),
    ]
}
