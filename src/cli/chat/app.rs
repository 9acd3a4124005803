//! The model: everything that the screen shows, changed by [`News`] here and by keys in [`super::keys`]. No I/O: what
//! is to be done comes back as [`Want`]s, and the time is a parameter.

use std::collections::HashMap;

use serde::Deserialize;

use super::input::Input;
use super::room::{Loaded, Room};
use super::talk::{News, Want};
use crate::client::Event;
use crate::clock::Timestamp;
use crate::domain::channel::{ChannelKind, Membership};
use crate::domain::id::{ChannelId, UserId};
use crate::domain::user::{Presence, User};

/// How often a channel is marked read at most.
const MARK_EVERY_S: i64 = 1;

/// The state of a chat.
pub(super) struct App {
    pub(super) me: User,
    pub(super) users: HashMap<UserId, User>,
    /// In the order shown: channels by name, then direct messages.
    pub(super) rooms: Vec<Room>,
    pub(super) current: Option<ChannelId>,
    pub(super) presence: HashMap<UserId, Presence>,
    pub(super) online: bool,
    /// What the program itself has to say, until the next line is entered.
    pub(super) panel: Vec<String>,
    /// What is written while no channel is open.
    pub(super) lobby: Input,
    /// Rows of messages on the screen, and whether the oldest known one is among them; set by the screen.
    pub(super) page: usize,
    pub(super) at_top: bool,
    /// A channel to open as soon as it is known.
    pub(super) expected: Option<ChannelId>,
    pub(super) told_typing: Timestamp,
    marked: Timestamp,
}

#[derive(Deserialize)]
struct OfChannel {
    channel_id: ChannelId,
    #[serde(default)]
    read_seq: i64,
    #[serde(default)]
    unread_count: i64,
    #[serde(default)]
    mention_count: i64,
}

#[derive(Deserialize)]
struct Seen {
    user_id: UserId,
    presence: Presence,
}

impl App {
    pub(super) fn new(me: User, users: Vec<User>, channels: Vec<Membership>) -> Self {
        let mut app = App {
            me,
            users: HashMap::new(),
            rooms: Vec::new(),
            current: None,
            presence: HashMap::new(),
            online: true,
            panel: Vec::new(),
            lobby: Input::default(),
            page: 0,
            at_top: false,
            expected: None,
            told_typing: Timestamp(0),
            marked: Timestamp(0),
        };
        app.set_state(users, channels);
        app
    }

    pub(super) fn room(&self) -> Option<&Room> {
        self.rooms.iter().find(|room| Some(room.membership.channel.id) == self.current)
    }

    pub(super) fn room_mut(&mut self) -> Option<&mut Room> {
        let current = self.current?;
        self.find(current)
    }

    pub(super) fn find(&mut self, channel: ChannelId) -> Option<&mut Room> {
        self.rooms.iter_mut().find(|room| room.membership.channel.id == channel)
    }

    /// Returns the handle of a user.
    pub(super) fn name(&self, user: UserId) -> &str {
        self.users.get(&user).map_or("somebody", |user| &user.name)
    }

    /// Returns what a channel is called: `#general`, or the others' names.
    pub(super) fn title(&self, room: &Room) -> String {
        let Membership { channel, with, .. } = &room.membership;
        match (channel.kind, &channel.name) {
            (ChannelKind::Public | ChannelKind::Private, Some(name)) => format!("#{name}"),
            _ if with.is_empty() => format!("{} (you)", self.me.name),
            _ => with.iter().map(|user| self.name(*user)).collect::<Vec<_>>().join(", "),
        }
    }

    /// Returns what is to be done first.
    pub(super) fn begin(&mut self, place: Option<ChannelId>) -> Vec<Want> {
        let general = |room: &&Room| room.membership.channel.name.as_deref() == Some("general");
        let first = self.rooms.iter().find(general).or(self.rooms.first()).map(|room| room.membership.channel.id);
        let mut wants = vec![self.watch()];
        if let Some(channel) = place.or(first) {
            wants.extend(self.open(channel));
        } else {
            self.panel.push("You are in no channel yet: /join NAME, /create NAME or /dm NAME.".to_owned());
        }
        wants
    }

    /// Shows a channel; waits for it if it is not known yet.
    pub(super) fn open(&mut self, channel: ChannelId) -> Vec<Want> {
        let Some(room) = self.find(channel) else {
            self.expected = Some(channel);
            return Vec::new();
        };
        let load = room.loaded == Loaded::Nothing;
        if load {
            room.loaded = Loaded::Asked;
        }
        (self.current, self.expected) = (Some(channel), None);
        self.panel.clear();
        if load { vec![Want::History { channel, before: None }] } else { Vec::new() }
    }

    /// Shows the channel that stands `step` places further down the list, around its end.
    pub(super) fn switch(&mut self, step: isize) -> Vec<Want> {
        let count = self.rooms.len() as isize;
        if count == 0 {
            return Vec::new();
        }
        let at = self.rooms.iter().position(|room| Some(room.membership.channel.id) == self.current);
        let next = at.map_or(0, |at| (at as isize + step).rem_euclid(count)) as usize;
        self.open(self.rooms[next].membership.channel.id)
    }

    /// Takes what happened.
    pub(super) fn take(&mut self, news: News, now: Timestamp) -> Vec<Want> {
        match news {
            News::Down => self.online = false,
            News::Up { anew } => {
                self.online = true;
                if anew {
                    self.rooms.iter_mut().for_each(Room::forget);
                    return self.current.map_or_else(Vec::new, |channel| self.open(channel));
                }
            }
            News::Over(why) => {
                self.online = false;
                self.panel.push(why);
            }
            News::State { users, channels } => {
                self.set_state(users, channels);
                return self.after_state();
            }
            News::Event(event) => return self.apply(&event, now),
            News::History { channel, page } => {
                if let Some(room) = self.find(channel) {
                    room.fill(page);
                }
            }
            News::Posted { channel, key, seq } => {
                // Otherwise it goes when its event comes, so that the text does not flicker.
                if let Some(room) = self.find(channel).filter(|room| room.entries.contains_key(&seq)) {
                    room.unsent.retain(|post| post.key != key);
                }
            }
            News::Unposted { post, why } => {
                if let Some(room) = self.find(post.channel) {
                    room.unsent.retain(|other| other.key != post.key);
                    if room.input.is_empty() {
                        room.input.insert(&post.text);
                    }
                }
                self.panel.push(format!("not sent: {why}"));
            }
            News::Refused(why) => self.panel.push(why),
            News::Opened(channel) => return self.open(channel),
            News::Members { channel, members } => self.show_members(channel, members),
        }
        Vec::new()
    }

    /// Does what time brings: forgets who stopped typing, marks what is shown as read, reads what lies above.
    pub(super) fn tick(&mut self, now: Timestamp) -> Vec<Want> {
        for room in &mut self.rooms {
            room.expire_typing(now);
        }
        let (at_top, online) = (self.at_top, self.online);
        let may_mark = now >= self.marked.plus_seconds(MARK_EVERY_S);
        let Some(room) = self.room_mut() else { return Vec::new() };
        let channel = room.membership.channel.id;
        let mut wants = Vec::new();
        let here = matches!(room.loaded, Loaded::Part | Loaded::All);
        if let (Some(seq), true) = (room.unmarked(), here && room.scroll == 0 && may_mark && online) {
            room.mark(seq);
            wants.push(Want::Read { channel, seq });
        }
        if at_top && room.loaded == Loaded::Part && online {
            room.loaded = Loaded::Asked;
            wants.push(Want::History { channel, before: room.oldest() });
        }
        if wants.iter().any(|want| matches!(want, Want::Read { .. })) {
            self.marked = now;
        }
        wants
    }

    fn set_state(&mut self, users: Vec<User>, channels: Vec<Membership>) {
        if !users.is_empty() {
            self.users = users.into_iter().map(|user| (user.id, user)).collect();
        }
        let mut before = std::mem::take(&mut self.rooms);
        for membership in channels {
            let known = before.iter().position(|room| room.membership.channel.id == membership.channel.id);
            self.rooms.push(match known {
                Some(at) => {
                    let mut room = before.swap_remove(at);
                    room.update(membership);
                    room
                }
                None => Room::new(membership),
            });
        }
        let key = |app: &App, room: &Room| (room.membership.channel.kind.is_direct(), app.title(room));
        let mut rooms = std::mem::take(&mut self.rooms);
        rooms.sort_by_cached_key(|room| key(self, room));
        self.rooms = rooms;
    }

    fn after_state(&mut self) -> Vec<Want> {
        let mut wants = vec![self.watch()];
        if let Some(expected) = self.expected {
            wants.extend(self.open(expected));
        }
        if self.room().is_none() {
            self.current = None;
            wants.extend(self.switch(0));
        }
        wants
    }

    /// Asks for the presence of those one talks to alone.
    fn watch(&self) -> Want {
        let mut users: Vec<UserId> = self.rooms.iter().flat_map(|room| room.membership.with.clone()).collect();
        users.sort_unstable();
        users.dedup();
        Want::Watch(users)
    }

    fn apply(&mut self, event: &Event, now: Timestamp) -> Vec<Want> {
        let me = self.me.id;
        if let Some(channel) = event.channel_id {
            if let Some(room) = self.find(channel) {
                room.apply(event, me, now);
            }
            return Vec::new();
        }
        match event.kind.as_str() {
            "presence" => {
                if let Ok(Seen { user_id, presence }) = event.data() {
                    self.presence.insert(user_id, presence);
                }
            }
            "user.created" | "user.updated" => {
                if let Ok(user) = event.data::<User>() {
                    if user.id == me {
                        self.me = user.clone();
                    }
                    self.users.insert(user.id, user);
                }
            }
            "user.channel_added" | "user.channel_removed" => return vec![Want::Refresh],
            "user.read" => {
                if let Ok(OfChannel { channel_id, read_seq, unread_count, mention_count }) = event.data()
                    && let Some(room) = self.find(channel_id)
                {
                    let m = &mut room.membership;
                    (m.read_seq, m.unread_count, m.mention_count) = (read_seq, unread_count, mention_count);
                }
            }
            _ => {}
        }
        Vec::new()
    }

    fn show_members(&mut self, channel: ChannelId, members: Vec<(UserId, Presence)>) {
        let title = self.rooms.iter().find(|room| room.membership.channel.id == channel).map(|room| self.title(room));
        let mut names: Vec<String> = members
            .iter()
            .map(|(user, presence)| {
                let status = self.users.get(user).and_then(|user| user.status.as_ref());
                let status = status.map(|s| format!(" ({} {})", s.emoji, s.text).replace("( ", "(").replace(" )", ")"));
                format!("{} {presence}{}", self.name(*user), status.unwrap_or_default())
            })
            .collect();
        names.sort_unstable();
        self.panel.clear();
        self.panel.push(format!("{} in {}: {}", names.len(), title.unwrap_or_default(), names.join(", ")));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::chat::world::{World, message};

    #[test]
    fn channels_come_by_name_and_direct_messages_last() {
        let world = World::new();
        let titles: Vec<String> = world.app.rooms.iter().map(|room| world.app.title(room)).collect();
        assert_eq!(titles, ["#general", "#random", "bob"]);
    }

    #[test]
    fn messages_stand_in_order_whatever_comes_first() {
        let mut world = World::in_general();
        let general = world.general;
        let [one, two] = ["one", "two"].map(|text| {
            let d = message(world.bob, text, world.now);
            world.event(general, "message.created", world.bob, &d)
        });
        for event in [two, one] {
            world.app.take(News::Event(Box::new(event)), world.now);
        }
        assert_eq!(world.texts(general), ["one", "two"]);
    }

    #[test]
    fn edits_deletions_and_reactions_change_their_message() {
        let mut world = World::in_general();
        let (general, bob) = (world.general, world.bob);
        let [first, second] = ["tpyo", "secret"].map(|text| world.bob_says(general, text));
        world.happens(
            general,
            "message.updated",
            &json!({"message_seq": first, "text": "typo", "edited_at": world.now}),
        );
        world.happens(general, "message.deleted", &json!({"message_seq": second, "deleted_by": bob}));
        let react = json!({"message_seq": first, "user_id": bob, "emoji": "tada"});
        world.happens(general, "reaction.added", &react);
        world.happens(general, "reaction.added", &react);
        assert_eq!(world.texts(general), ["typo", ""]);
        let room = world.room(general);
        assert_eq!(room.last_message().unwrap().reactions[0].users, [bob]);
        assert_eq!(room.last_message().unwrap().seq, first, "the deleted one is not answered");
        world.happens(general, "reaction.removed", &react);
        assert!(world.room(general).last_message().unwrap().reactions.is_empty());
    }

    #[test]
    fn a_reply_counts_once_on_its_parent_and_not_as_unread() {
        let mut world = World::in_general();
        let random = world.random;
        let parent = world.bob_says(random, "question");
        world.replies(random, parent, "answer");
        let room = world.room(random);
        assert_eq!(room.messages().next().unwrap().reply_count, 1);
        assert_eq!(room.membership.unread_count, 1);
    }

    #[test]
    fn what_is_not_open_becomes_unread_until_it_is_shown() {
        let mut world = World::in_general();
        let random = world.random;
        let mut d = message(world.bob, "@ana look", world.now);
        d["mentions"] = json!({"users": [world.app.me.id]});
        world.happens(random, "message.created", &d);
        let seq = world.bob_says(random, "and this");
        let m = &world.room(random).membership;
        assert_eq!((m.unread_count, m.mention_count), (2, 1));

        assert_eq!(world.app.open(random), [Want::History { channel: random, before: None }]);
        assert!(world.app.tick(world.now).is_empty(), "not before it is on the screen");
        world.loads(random);
        assert_eq!(world.app.tick(world.now), [Want::Read { channel: random, seq }]);
        assert_eq!(world.room(random).membership.unread_count, 0);
    }

    #[test]
    fn a_channel_is_marked_at_most_once_a_second_and_not_while_scrolled_up() {
        let mut world = World::in_general();
        let general = world.general;
        world.bob_says(general, "one");
        assert_eq!(world.app.tick(world.now).len(), 1);
        let seq = world.bob_says(general, "two");
        assert!(world.app.tick(world.now).is_empty());
        world.passes(1);
        world.room(general).scroll = 5;
        assert!(world.app.tick(world.now).is_empty());
        world.room(general).scroll = 0;
        assert_eq!(world.app.tick(world.now), [Want::Read { channel: general, seq }]);
        world.passes(1);
        assert!(world.app.tick(world.now).is_empty());
    }

    #[test]
    fn what_the_first_state_counted_is_not_counted_again() {
        let mut world = World::in_general();
        let random = world.random;
        let d = message(world.bob, "counted already", world.now);
        let event = world.event(random, "message.created", world.bob, &d);
        let mut membership = world.room(random).membership.clone();
        (membership.channel.last_seq, membership.unread_count) = (1, 1);
        world.room(random).update(membership);
        world.app.take(News::Event(Box::new(event)), world.now);
        assert_eq!(world.room(random).membership.unread_count, 1);
    }

    #[test]
    fn switching_goes_around_and_keeps_what_is_written() {
        let mut world = World::in_general();
        let (general, random, direct) = (world.general, world.random, world.direct);
        world.app.write("half a", world.now);
        world.app.switch(1);
        assert_eq!(world.app.current, Some(random));
        assert!(world.app.room().unwrap().input.is_empty());
        world.app.switch(1);
        assert_eq!(world.app.current, Some(direct));
        world.app.switch(1);
        assert_eq!(world.app.current, Some(general));
        assert_eq!(world.app.room().unwrap().input.text(), "half a");
        world.app.switch(-1);
        assert_eq!(world.app.current, Some(direct));
    }

    #[test]
    fn typing_ends_with_the_message_or_after_a_while() {
        let mut world = World::in_general();
        let (general, bob) = (world.general, world.bob);
        let typing = format!(r#"{{"type":"typing","channel_id":"{general}","d":{{"user_id":"{bob}"}}}}"#);
        let typing: Event = serde_json::from_str(&typing).unwrap();
        world.app.take(News::Event(Box::new(typing.clone())), world.now);
        assert_eq!(world.room(general).typing(), [bob]);
        world.bob_says(general, "there");
        assert!(world.room(general).typing().is_empty());
        world.app.take(News::Event(Box::new(typing)), world.now);
        world.passes(10);
        world.app.tick(world.now);
        assert!(world.room(general).typing().is_empty());
    }

    #[test]
    fn a_session_that_is_new_reads_what_is_shown_again() {
        let mut world = World::in_general();
        let general = world.general;
        world.bob_says(general, "old");
        world.app.take(News::Down, world.now);
        assert!(!world.app.online);
        let wants = world.app.take(News::Up { anew: true }, world.now);
        assert_eq!(wants, [Want::History { channel: general, before: None }]);
        assert!(world.texts(general).is_empty());
    }

    #[test]
    fn a_channel_that_is_left_gives_way_to_another() {
        let mut world = World::in_general();
        let stays = world.room(world.random).membership.clone();
        world.app.take(News::State { users: Vec::new(), channels: vec![stays] }, world.now);
        assert_eq!(world.app.current, Some(world.random));
        world.app.take(News::State { users: Vec::new(), channels: Vec::new() }, world.now);
        assert_eq!(world.app.current, None);
        assert!(world.app.tick(world.now).is_empty());
    }
}
