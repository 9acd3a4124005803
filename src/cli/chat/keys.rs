//! What keys do to the model.

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::app::App;
use super::input::Input;
use super::room::Loaded;
use super::slash::{self, Line};
use super::talk::{Post, Want};
use crate::clock::Timestamp;
use crate::domain::id::MessageId;

/// How often the others are told that the user is typing at most.
const TYPING_EVERY_S: i64 = 3;

impl App {
    /// Takes a key.
    pub(super) fn press(&mut self, key: KeyEvent, now: Timestamp) -> Vec<Want> {
        if key.kind == KeyEventKind::Release {
            return Vec::new();
        }
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        let alt = key.modifiers.contains(KeyModifiers::ALT);
        let page = self.page.max(2) - 1;
        match key.code {
            KeyCode::Char('c') if control => return vec![Want::Quit],
            KeyCode::Char('n') if control => return self.switch(1),
            KeyCode::Char('p') if control => return self.switch(-1),
            KeyCode::Tab => return self.switch(1),
            KeyCode::BackTab => return self.switch(-1),
            KeyCode::Enter if alt => return self.write("\n", now),
            KeyCode::Char('j') if control => return self.write("\n", now),
            KeyCode::Enter => return self.enter(now),
            KeyCode::Up => self.scroll_up(1),
            KeyCode::PageUp => self.scroll_up(page),
            KeyCode::Down => self.scroll_down(1),
            KeyCode::PageDown => self.scroll_down(page),
            KeyCode::Esc => self.panel.clear(),
            KeyCode::Left => self.input().left(),
            KeyCode::Right => self.input().right(),
            KeyCode::Home => self.input().home(),
            KeyCode::End => self.input().end(),
            KeyCode::Backspace if alt => self.input().delete_word(),
            KeyCode::Backspace => self.input().backspace(),
            KeyCode::Delete => self.input().delete(),
            KeyCode::Char('a') if control => self.input().home(),
            KeyCode::Char('e') if control => self.input().end(),
            KeyCode::Char('u') if control => self.input().delete_to_start(),
            KeyCode::Char('w') if control => self.input().delete_word(),
            KeyCode::Char(c) if !control && !alt => return self.write(c.encode_utf8(&mut [0; 4]), now),
            _ => {}
        }
        Vec::new()
    }

    /// Takes what was typed or pasted; tells the others, now and then.
    pub(super) fn write(&mut self, text: &str, now: Timestamp) -> Vec<Want> {
        let input = self.input();
        // Line ends of a paste come as carriage returns from some terminals.
        input.insert(&text.replace("\r\n", "\n").replace('\r', "\n"));
        let command = input.text().starts_with('/');
        match self.current {
            Some(channel) if !command && now >= self.told_typing.plus_seconds(TYPING_EVERY_S) => {
                self.told_typing = now;
                vec![Want::Typing(channel)]
            }
            _ => Vec::new(),
        }
    }

    /// Returns what is being written in the channel that is shown.
    fn input(&mut self) -> &mut Input {
        let current = self.current;
        let room = self.rooms.iter_mut().find(|room| Some(room.membership.channel.id) == current);
        room.map_or(&mut self.lobby, |room| &mut room.input)
    }

    fn scroll_up(&mut self, rows: usize) {
        let at_top = self.at_top;
        if let Some(room) = self.room_mut() {
            // At the very top there is nothing to show yet: the older messages are on their way, or there are none.
            if !(at_top && matches!(room.loaded, Loaded::All | Loaded::Asked)) {
                room.scroll += rows;
            }
        }
    }

    fn scroll_down(&mut self, rows: usize) {
        if let Some(room) = self.room_mut() {
            room.scroll = room.scroll.saturating_sub(rows);
        }
    }

    fn enter(&mut self, now: Timestamp) -> Vec<Want> {
        let text = self.input().take();
        self.panel.clear();
        if text.trim().is_empty() {
            return Vec::new();
        }
        match slash::parse(&text).and_then(|line| self.obey(line, now)) {
            Ok(wants) => wants,
            Err(why) => {
                self.panel.push(why);
                self.input().insert(&text);
                Vec::new()
            }
        }
    }

    fn obey(&mut self, line: Line, now: Timestamp) -> Result<Vec<Want>, String> {
        let none = || "open a channel first: /join NAME".to_owned();
        Ok(match line {
            Line::Quit => vec![Want::Quit],
            Line::Help => {
                self.panel = slash::HELP.iter().map(|line| (*line).to_owned()).collect();
                Vec::new()
            }
            Line::Join(name) => vec![Want::Join(name)],
            Line::Create(name) => vec![Want::Create(name)],
            Line::Dm(name) => match self.users.values().find(|user| user.name == name) {
                Some(user) => vec![Want::Direct(user.id)],
                None => return Err(format!("there is nobody called `{name}`")),
            },
            Line::Status(emoji, text) => vec![Want::Status { emoji, text }],
            Line::Leave => vec![Want::Leave(self.current.ok_or_else(none)?)],
            Line::Who => vec![Want::Members(self.current.ok_or_else(none)?)],
            Line::Topic(topic) => vec![Want::Topic { channel: self.current.ok_or_else(none)?, topic }],
            Line::Text(text) => vec![self.post(text, None, now).ok_or_else(none)?],
            Line::Reply(text) => {
                let last = self.last_message()?;
                vec![self.post(text, Some(last.1), now).ok_or_else(none)?]
            }
            Line::React(emoji) => {
                let (seq, _) = self.last_message()?;
                vec![Want::React { channel: self.current.ok_or_else(none)?, seq, emoji }]
            }
        })
    }

    /// Returns the last message's number, and that of the thread it belongs to or would start.
    fn last_message(&self) -> Result<(i64, i64), String> {
        let last = self.room().and_then(|room| room.last_message());
        last.map(|m| (m.seq, m.thread_seq.unwrap_or(m.seq))).ok_or_else(|| "there is no message here yet".to_owned())
    }

    fn post(&mut self, text: String, thread: Option<i64>, now: Timestamp) -> Option<Want> {
        // The next word after this is news again.
        self.told_typing = Timestamp(0);
        let room = self.room_mut()?;
        let key = MessageId::new(now).to_string();
        let post = Post { channel: room.membership.channel.id, text, thread, key };
        room.scroll = 0;
        room.unsent.push(post.clone());
        Some(Want::Post(post))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::chat::talk::News;
    use crate::cli::chat::world::World;

    fn types(world: &mut World, text: &str) -> Vec<Want> {
        let keys = text.chars().map(|c| if c == '\n' { KeyCode::Enter } else { KeyCode::Char(c) });
        keys.flat_map(|code| world.app.press(KeyEvent::new(code, KeyModifiers::NONE), world.now)).collect()
    }

    #[test]
    fn enter_sends_and_the_text_waits_below_until_it_is_back() {
        let mut world = World::in_general();
        let general = world.general;
        let wants = types(&mut world, "hi\n");
        let [Want::Typing(_), Want::Post(post)] = wants.as_slice() else { panic!("{wants:?}") };
        assert_eq!((post.text.as_str(), post.channel, post.thread), ("hi", general, None));
        assert_eq!(world.room(general).unsent.len(), 1);
        let mut d = crate::cli::chat::world::message(world.app.me.id, "hi", world.now);
        d["client_msg_id"] = post.key.as_str().into();
        world.happens(general, "message.created", &d);
        assert!(world.room(general).unsent.is_empty());
        assert_eq!(world.room(general).membership.unread_count, 0, "one's own message is no news");
    }

    #[test]
    fn what_is_refused_comes_back_into_the_line() {
        let mut world = World::in_general();
        let general = world.general;
        let Some(Want::Post(post)) = types(&mut world, "hi\n").pop() else { panic!("no post") };
        world.app.take(News::Unposted { post, why: "the channel is archived".into() }, world.now);
        assert_eq!(world.room(general).input.text(), "hi");
        assert!(world.app.panel[0].contains("archived"));
    }

    #[test]
    fn typing_is_told_at_most_every_three_seconds_and_not_of_commands() {
        let mut world = World::in_general();
        let told = |wants: Vec<Want>| wants.iter().filter(|want| matches!(want, Want::Typing(_))).count();
        assert_eq!(told(types(&mut world, "some words")), 1);
        world.passes(3);
        assert_eq!(told(types(&mut world, " and more")), 1);
        types(&mut world, "\n");
        assert_eq!(told(types(&mut world, "/help")), 0);
    }

    #[test]
    fn replies_and_reactions_go_to_the_last_message() {
        let mut world = World::in_general();
        let general = world.general;
        assert!(types(&mut world, "/react tada\n").is_empty());
        assert!(world.app.panel[0].contains("no message"));
        let parent = world.bob_says(general, "question");
        let reply = world.replies(general, parent, "answer");
        world.room(general).input.take();
        let react = Want::React { channel: general, seq: reply, emoji: "tada".into() };
        assert_eq!(types(&mut world, "/react tada\n"), [react]);
        let wants = types(&mut world, "/reply indeed\n");
        assert!(matches!(&wants[..], [Want::Post(post)] if post.thread == Some(parent)), "{wants:?}");
    }

    #[test]
    fn a_mistake_stays_in_the_line() {
        let mut world = World::in_general();
        assert!(types(&mut world, "/dm nobody\n").is_empty());
        assert_eq!(world.app.room().unwrap().input.text(), "/dm nobody");
        assert_eq!(world.app.panel, ["there is nobody called `nobody`"]);
        world.app.press(KeyEvent::new(KeyCode::Char('u'), KeyModifiers::CONTROL), world.now);
        assert_eq!(types(&mut world, "/dm bob\n"), [Want::Direct(world.bob)]);
    }

    #[test]
    fn control_c_and_quit_leave() {
        let mut world = World::new();
        let key = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(world.app.press(key, world.now), [Want::Quit]);
        assert_eq!(types(&mut world, "/quit\n"), [Want::Quit]);
    }
}
