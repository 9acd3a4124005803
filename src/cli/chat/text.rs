//! Text on a terminal: what may be shown, how wide it is, where it breaks.
//!
//! Others' text is theirs to choose: a control character in it would be an order to the terminal, so none gets through.

use ratatui::style::Style;
use ratatui::text::Span;

/// Returns the text without what would steer the terminal: control characters and changes of direction. Line ends stay.
pub(super) fn clean(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => shown.push('\n'),
            '\t' => shown.push_str("    "),
            '\r' => {}
            c if c.is_control() => shown.push('\u{fffd}'),
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {}
            c => shown.push(c),
        }
    }
    shown
}

/// Returns the text cleaned and on one line.
pub(super) fn one_line(text: &str) -> String {
    clean(text).replace('\n', " ")
}

/// Returns how many columns a text takes.
pub(super) fn width(text: &str) -> usize {
    Span::raw(text).width()
}

/// Returns where the last grapheme of a text starts.
pub(super) fn last_grapheme(text: &str) -> usize {
    let last = Span::raw(text).styled_graphemes(Style::default()).last().map_or(0, |grapheme| grapheme.symbol.len());
    let at = text.len() - last.max(1).min(text.len());
    (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// Returns where the first grapheme of a text ends.
pub(super) fn first_grapheme(text: &str) -> usize {
    let first = Span::raw(text).styled_graphemes(Style::default()).next().map_or(0, |grapheme| grapheme.symbol.len());
    (first.max(1)..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len())
}

/// Breaks a text into rows of at most `columns`, between words where that is possible and never inside a grapheme.
pub(super) fn wrap(text: &str, columns: usize) -> Vec<String> {
    let columns = columns.max(1);
    let mut rows = Vec::new();
    for paragraph in text.split('\n') {
        let (mut row, mut taken, mut word) = (String::new(), 0, None);
        for grapheme in Span::raw(paragraph).styled_graphemes(Style::default()) {
            let wide = width(grapheme.symbol);
            if taken + wide > columns {
                let rest = word.take().map_or_else(String::new, |at| row.split_off(at));
                end_row(&mut rows, &mut row);
                taken = width(&rest);
                row = rest;
                if taken + wide > columns {
                    end_row(&mut rows, &mut row);
                    taken = 0;
                }
            }
            row.push_str(grapheme.symbol);
            taken += wide;
            if grapheme.symbol == " " {
                word = Some(row.len());
            }
        }
        rows.push(row);
    }
    rows
}

fn end_row(rows: &mut Vec<String>, row: &mut String) {
    if !row.is_empty() {
        rows.push(std::mem::take(row).trim_end().to_owned());
    }
}

/// Cuts a text to at most `columns`, with an ellipsis if something is missing.
pub(super) fn cut(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let (mut shown, mut taken) = (String::new(), 1);
    for grapheme in Span::raw(text).styled_graphemes(Style::default()) {
        taken += width(grapheme.symbol);
        if taken > columns {
            break;
        }
        shown.push_str(grapheme.symbol);
    }
    shown.push('…');
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_break_between_words() {
        assert_eq!(wrap("the quick brown fox", 10), ["the quick", "brown fox"]);
        assert_eq!(wrap("a\n\nb", 10), ["a", "", "b"]);
        assert_eq!(wrap("abcdefghij", 4), ["abcd", "efgh", "ij"]);
    }

    #[test]
    fn wide_and_joined_characters_stay_whole() {
        assert_eq!(wrap("日本語です", 4), ["日本", "語で", "す"]);
        let family = "👨‍👩‍👧";
        for row in wrap(&format!("{family}{family} {family}"), 3) {
            assert!(row.replace(family, "").trim().is_empty(), "{row:?}");
        }
        assert_eq!(wrap("日", 1), ["日"], "too wide for its row, but not lost");
    }

    #[test]
    fn nothing_is_lost_and_nothing_is_too_wide() {
        let text = "mixed 日本 and 🎉🎉 words, averyveryverylongword e\u{301}nd";
        for columns in 2..30 {
            let rows = wrap(text, columns);
            assert!(rows.iter().all(|row| width(row) <= columns), "{rows:?}");
            let without_spaces = |text: &str| text.replace(' ', "");
            assert_eq!(without_spaces(&rows.concat()), without_spaces(text));
        }
    }

    #[test]
    fn what_steers_a_terminal_is_not_shown() {
        assert_eq!(clean("a\x1b[2Jb\u{202e}c\td\r\n"), "a\u{fffd}[2Jbc    d\n");
        assert_eq!(one_line("a\nb"), "a b");
    }

    #[test]
    fn a_cut_is_seen() {
        assert_eq!(cut("general", 10), "general");
        assert_eq!(cut("general", 5), "gene…");
        assert_eq!(cut("日本語", 4), "日…");
    }
}
