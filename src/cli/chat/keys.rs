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
