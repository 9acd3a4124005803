//! What a message's text may be, and whom it mentions.

use emojis::{Emoji, SkinTone};

use super::error::{Refusal, invalid};

/// The longest message, in bytes of UTF-8.
pub const TEXT_MAX: usize = 40_000;
/// The most `@name` mentions that are looked up in one message.
pub const MENTIONS_MAX: usize = 100;

/// The mentions that stand in a text, by name.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Mentioned {
    /// Names behind `@`, in lower case, each once.
    pub names: Vec<String>,
    /// Whether `@channel` (or `@everyone`, `@all`) stands in it.
    pub channel: bool,
    /// Whether `@here` stands in it.
    pub here: bool,
}

/// Checks a message's text: not blank, at most [`TEXT_MAX`] bytes, and no control characters but tabs and ends of lines.
/// Postgres cannot store a NUL, a terminal obeys the others, and as JSON each would be six times as long.
pub fn check(text: &str) -> Result<(), Refusal> {
    if text.trim().is_empty() {
        return Err(invalid("text is empty"));
    }
    if text.len() > TEXT_MAX {
        return Err(invalid(format!("text is {} bytes, at most {TEXT_MAX} are allowed", text.len())));
    }
    let strange = |c: &char| c.is_control() && !matches!(c, '\n' | '\r' | '\t');
    match text.chars().find(strange) {
        Some(c) => Err(invalid(format!("text has the control character U+{:04X}", u32::from(c)))),
        None => Ok(()),
    }
}

/// Returns what an emoji is kept as, however it was written: `thumbsup`, `:+1:` and `👍` are all `+1`.
///
/// One that has no name, or a skin tone, is kept as it is drawn. A name that means no known emoji is kept as it is.
pub fn emoji(text: &str) -> Result<&str, Refusal> {
    let text = text.trim_matches(':');
    if let Some(known) = drawn(text).or_else(|| emojis::get_by_shortcode(text)) {
        let plain = matches!(known.skin_tone(), None | Some(SkinTone::Default));
        return Ok(known.shortcode().filter(|_| plain).unwrap_or(known.as_str()));
    }
    let is_name =
        (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-+".contains(&b));
    if is_name { Ok(text) } else { Err(invalid("emoji is a name such as tada, or one emoji")) }
}

/// Returns the emoji that a text draws, with or without the U+FE0F that asks for colour.
fn drawn(text: &str) -> Option<&'static Emoji> {
    let bare = |text: &str| text.replace('\u{fe0f}', "");
    let text_bare = bare(text);
    let found = emojis::get(text).or_else(|| emojis::get(&text_bare))?;
    // Without U+FE0F, the crate takes a couple of one skin tone for one of two.
    found.skin_tones().into_iter().flatten().find(|toned| bare(toned.as_str()) == text_bare).or(Some(found))
}

/// Finds the mentions in a Markdown text. Code, inline or fenced, mentions nobody; neither does an address.
#[must_use]
pub fn mentions(text: &str) -> Mentioned {
    let mut found = Mentioned::default();
    if !text.contains('@') {
        return found;
    }
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'`' => at = after_code(bytes, at),
            b'@' if at == 0 || !is_word(bytes[at - 1]) => {
                let end = name_end(bytes, at + 1);
                note(&mut found, &text[at + 1..end]);
                at = end.max(at + 1);
            }
            _ => at += 1,
        }
    }
    found
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// Skips a code span: a run of backticks up to the next run of the same length, or just the run if there is none.
fn after_code(bytes: &[u8], start: usize) -> usize {
    let run = bytes[start..].iter().take_while(|b| **b == b'`').count();
    let mut at = start + run;
    while at < bytes.len() {
        let ticks = bytes[at..].iter().take_while(|b| **b == b'`').count();
        if ticks == run {
            return at + run;
        }
        at += ticks.max(1);
    }
    start + run
}

fn name_end(bytes: &[u8], start: usize) -> usize {
    let len = bytes[start..].iter().take_while(|b| b.is_ascii_alphanumeric() || b"._-".contains(b)).count();
    let mut end = start + len;
    while end > start && b"._-".contains(&bytes[end - 1]) {
        end -= 1;
    }
    end
}

fn note(found: &mut Mentioned, name: &str) {
    let name = name.to_ascii_lowercase();
    match name.as_str() {
        "channel" | "everyone" | "all" => found.channel = true,
        "here" => found.here = true,
        "" => {}
        _ if found.names.len() < MENTIONS_MAX && !found.names.contains(&name) => found.names.push(name),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        mentions(text).names
    }

    #[test]
    fn names_are_found_once_and_folded() {
        assert_eq!(names("@Ana and @bob-2, (@ana) @c.d."), ["ana", "bob-2", "c.d"]);
    }

    #[test]
    fn addresses_and_code_mention_nobody() {
        assert_eq!(names("mail ana@example.com or `@bob` or ```\n@eve\n``` but @zoe"), ["zoe"]);
        assert_eq!(names("an open ` tick @ana"), ["ana"]);
    }

    #[test]
    fn groups_are_told_apart() {
        let found = mentions("@channel @here");
        assert!(found.channel && found.here && found.names.is_empty());
    }

    #[test]
    fn blank_and_long_texts_and_control_characters_are_refused() {
        assert!(check(" \n").is_err());
        check("a line\r\n\tand another").unwrap();
        for (bad, named) in [("a\0b", "U+0000"), ("\x1b[2J", "U+001B"), ("a\u{85}b", "U+0085")] {
            let refusal = check(bad).unwrap_err().to_string();
            assert!(refusal.ends_with(named), "{refusal}");
        }
        assert!(check(&"x".repeat(TEXT_MAX + 1)).is_err());
        check(&"x".repeat(TEXT_MAX)).unwrap();
    }

    #[test]
    fn an_emoji_is_kept_under_one_name_however_it_is_written() {
        for (written, kept) in [
            (":+1:", "+1"),
            ("thumbsup", "+1"),
            ("👍", "+1"),
            ("👍\u{fe0f}", "+1"),
            ("❤\u{fe0f}", "heart"),
            ("❤", "heart"),
            ("1\u{fe0f}\u{20e3}", "one"),
            ("#\u{20e3}", "hash"),
            ("👍🏽", "👍🏽"),
            ("👩🏽‍❤️‍💋‍👨🏽", "👩🏽‍❤️‍💋‍👨🏽"),
            ("👩🏽‍❤‍💋‍👨🏽", "👩🏽‍❤️‍💋‍👨🏽"),
            (":party_parrot:", "party_parrot"),
            ("1", "1"),
        ] {
            assert_eq!(emoji(written).unwrap(), kept, "{written}");
        }
    }

    #[test]
    fn every_emoji_is_taken_and_means_the_same_by_each_of_its_names() {
        for known in emojis::iter() {
            let kept = emoji(known.as_str()).unwrap();
            assert_eq!(emoji(kept).unwrap(), kept);
            for name in known.shortcodes() {
                assert_eq!(emoji(name).unwrap(), kept, "{name}");
            }
            for toned in known.skin_tones().into_iter().flatten().skip(1).map(Emoji::as_str) {
                assert_eq!(emoji(toned).unwrap(), toned);
                assert_eq!(emoji(&toned.replace('\u{fe0f}', "")).unwrap(), toned);
            }
        }
    }

    #[test]
    fn what_is_neither_an_emoji_nor_a_name_is_refused() {
        for bad in
            ["", "::", "two words", "a\nb", "<script>", "#", "日本語", "ééééé", "\u{200b}\u{200b}", "👍👍", "\u{fe0f}"]
        {
            assert!(emoji(bad).is_err(), "{bad:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_taken_apart_without_a_panic(text in ".*") {
            let found = mentions(&text);
            proptest::prop_assert!(found.names.len() <= MENTIONS_MAX);
        }
    }
}
