//! The line being written, and where in it the cursor stands.

use super::text::{first_grapheme, last_grapheme};

/// A text and a cursor in it, always between two graphemes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Input {
    text: String,
    cursor: usize,
}

impl Input {
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// Returns the text before the cursor.
    pub(super) fn before(&self) -> &str {
        &self.text[..self.cursor]
    }

    /// Takes the whole text out.
    pub(super) fn take(&mut self) -> String {
        self.cursor = 0;
        std::mem::take(&mut self.text)
    }

    pub(super) fn insert(&mut self, text: &str) {
        self.text.insert_str(self.cursor, text);
        self.cursor += text.len();
    }

    pub(super) fn left(&mut self) {
        self.cursor = last_grapheme(self.before());
    }

    pub(super) fn right(&mut self) {
        if self.cursor < self.text.len() {
            self.cursor += first_grapheme(&self.text[self.cursor..]);
        }
    }

    pub(super) fn home(&mut self) {
        self.cursor = 0;
    }

    pub(super) fn end(&mut self) {
        self.cursor = self.text.len();
    }

    /// Removes what stands before the cursor: one grapheme.
    pub(super) fn backspace(&mut self) {
        let end = self.cursor;
        self.left();
        self.text.drain(self.cursor..end);
    }

    /// Removes what stands behind the cursor: one grapheme.
    pub(super) fn delete(&mut self) {
        let start = self.cursor;
        self.right();
        self.text.drain(start..self.cursor);
        self.cursor = start;
    }

    /// Removes the word before the cursor.
    pub(super) fn delete_word(&mut self) {
        let words = self.before().trim_end();
        let start = words.rfind(char::is_whitespace).map_or(0, |at| at + 1);
        let start = (start..=self.cursor).find(|at| self.text.is_char_boundary(*at)).unwrap_or(self.cursor);
        self.text.drain(start..self.cursor);
        self.cursor = start;
    }

    /// Removes everything before the cursor.
    pub(super) fn delete_to_start(&mut self) {
        self.text.drain(..self.cursor);
        self.cursor = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn graphemes_go_whole() {
        let mut input = Input::default();
        input.insert("a👨‍👩‍👧e\u{301}");
        input.left();
        assert_eq!(input.before(), "a👨‍👩‍👧");
        input.backspace();
        assert_eq!((input.text(), input.before()), ("ae\u{301}", "a"));
        input.delete();
        assert_eq!(input.text(), "a");
        input.left();
        input.left();
        input.right();
        assert_eq!(input.before(), "a");
    }

    #[test]
    fn words_and_starts_are_removed() {
        let mut input = Input::default();
        input.insert("one two\u{3000}three ");
        input.delete_word();
        assert_eq!(input.text(), "one two\u{3000}");
        input.home();
        input.right();
        input.delete_to_start();
        assert_eq!(input.take(), "ne two\u{3000}");
        assert!(input.is_empty());
        input.backspace();
        input.delete();
        input.delete_word();
    }
}
