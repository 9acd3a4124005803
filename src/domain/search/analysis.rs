//! Cuts text into what can be found: words, folded so that case and diacritics do not matter.
//!
//! * Words end where Unicode says (UAX 29), and inside of an identifier: `getUserName`, `user_name`, `app.conf` and `3.14` are
//!   words in a row. What is looked for in one piece, `username`, is found by the [joined](Analysis::joined) spelling.
//! * Chinese, Japanese and Korean have no spaces: each two characters that stand together are a word, and so is the last one of a run.
//! * An emoji is found by its name, however it was written.
//! * [Stems](stem) are English: `deployed` and `deploying` are found by `deploy`.

use std::ops::Range;

use emojis::Emoji;
use unicode_normalization::UnicodeNormalization as _;
use unicode_normalization::char::is_combining_mark;
use unicode_segmentation::UnicodeSegmentation as _;

/// The longest word, in bytes; what is longer is cut. Nobody looks for the rest of it.
const WORD_MAX: usize = 64;

/// A word of a text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Word {
    /// The word, folded.
    pub text: String,
    /// Where it stands in the text, in bytes.
    pub at: Range<usize>,
    /// Whether it is the last character of a run of Chinese, Japanese or Korean, which the word before has, too.
    pub is_tail: bool,
}

/// A text, cut.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Analysis {
    /// Its words, in order.
    pub words: Vec<Word>,
    /// The spelling in one piece of what is several words by a hyphen, an underscore, an apostrophe or a capital letter, and
    /// where that stands in the text.
    pub joined: Vec<(String, Range<usize>)>,
}

/// Cuts a text.
#[must_use]
pub fn analyze(text: &str) -> Analysis {
    let mut cutter = Cutter::default();
    for (at, segment) in text.split_word_bound_indices() {
        cutter.segment(at, segment);
    }
    cutter.end_run();
    cutter.end_compound();
    cutter.found
}

#[derive(Default)]
struct Cutter {
    found: Analysis,
    /// Characters of a run of Chinese, Japanese or Korean.
    run: Vec<(String, Range<usize>)>,
    /// Parts of what may be written in one piece.
    compound: Vec<(String, Range<usize>)>,
}

impl Cutter {
    fn segment(&mut self, at: usize, segment: &str) {
        if let Some(name) = emoji_name(segment) {
            self.end_run();
            self.end_compound();
            self.word(name, at..at + segment.len());
            return;
        }
        let mut part: Option<usize> = None;
        let mut before = None;
        let mut chars = segment.char_indices().peekable();
        while let Some((offset, c)) = chars.next() {
            let here = at + offset;
            if let (Some(mark), Some((last, at))) = (voicing(c), self.run.last_mut()) {
                *last = last.chars().chain([mark]).nfc().collect();
                at.end = here + c.len_utf8();
            } else if is_cjk(c) {
                self.end_part(segment, at, part.take(), offset);
                self.end_compound();
                self.run.push((fold(c.encode_utf8(&mut [0; 4])), here..here + c.len_utf8()));
            } else if c.is_alphanumeric() || is_combining_mark(c) {
                self.end_run();
                let next = chars.peek().map(|(_, next)| *next);
                if part.is_some() && begins_part(before, c, next) {
                    self.end_part(segment, at, part.take(), offset);
                }
                part.get_or_insert(offset);
            } else {
                self.end_part(segment, at, part.take(), offset);
                self.end_run();
                if !is_joint(c) {
                    self.end_compound();
                }
            }
            before = Some(c);
        }
        self.end_part(segment, at, part, segment.len());
    }

    /// Ends a part of a segment that began at `from`, if one did.
    fn end_part(&mut self, segment: &str, at: usize, from: Option<usize>, to: usize) {
        let Some(from) = from else { return };
        let text = fold(&segment[from..to]);
        if !text.is_empty() {
            self.compound.push((text.clone(), at + from..at + to));
            self.word(text, at + from..at + to);
        }
    }

    fn word(&mut self, text: String, at: Range<usize>) {
        self.push(text, at, false);
    }

    fn push(&mut self, mut text: String, at: Range<usize>, is_tail: bool) {
        cut(&mut text);
        self.found.words.push(Word { text, at, is_tail });
    }

    fn end_run(&mut self) {
        let run = std::mem::take(&mut self.run);
        for pair in run.windows(2) {
            self.word(format!("{}{}", pair[0].0, pair[1].0), pair[0].1.start..pair[1].1.end);
        }
        if let Some((last, at)) = run.last() {
            self.push(last.clone(), at.clone(), run.len() > 1);
        }
    }

    fn end_compound(&mut self) {
        let parts = std::mem::take(&mut self.compound);
        let [(_, first), .., (_, last)] = parts.as_slice() else { return };
        let text: String = parts.iter().map(|(text, _)| text.as_str()).collect();
        if text.len() <= WORD_MAX {
            self.found.joined.push((text, first.start..last.end));
        }
    }
}

/// Returns whether a new part of an identifier begins at `c`: with a capital letter behind a small one, or with the last one of
/// several that a small one follows, as in `HTTPServer`.
fn begins_part(before: Option<char>, c: char, next: Option<char>) -> bool {
    let Some(before) = before else { return false };
    c.is_uppercase() && (before.is_lowercase() || (before.is_uppercase() && next.is_some_and(char::is_lowercase)))
}

/// Returns whether what stands on both sides may be written in one piece.
fn is_joint(c: char) -> bool {
    matches!(c, '-' | '_' | '\'' | '’' | '\u{2010}' | '\u{2011}' | '\u{ad}')
}

/// Returns whether a character belongs to a script that is written without spaces, or is cut into pairs like these.
#[must_use]
pub fn is_cjk(c: char) -> bool {
    matches!(u32::from(c),
        0x1100..=0x11ff | 0x2e80..=0x2fdf | 0x3005..=0x3007 | 0x3021..=0x3029 | 0x3031..=0x3035 | 0x3041..=0x3096
        | 0x309d..=0x309f | 0x30a1..=0x30fa | 0x30fc..=0x31ff | 0x3400..=0x4dbf | 0x4e00..=0x9fff | 0xa960..=0xa97f
        | 0xac00..=0xd7ff | 0xf900..=0xfaff | 0xff66..=0xff9f | 0x1b000..=0x1b16f | 0x20000..=0x323af)
}

/// Returns the combining form of a mark that voices the Japanese character before it, where it stands alone.
fn voicing(c: char) -> Option<char> {
    match c {
        '\u{3099}' | 'ﾞ' => Some('\u{3099}'),
        '\u{309a}' | 'ﾟ' => Some('\u{309a}'),
        _ => None,
    }
}

/// Folds a word: compatible forms (NFKC), small letters, without diacritics.
#[must_use]
pub fn fold(text: &str) -> String {
    if text.is_ascii() {
        return text.to_ascii_lowercase();
    }
    // Some ligatures are several words.
    let bare = text.nfkd().filter(|c| !is_diacritic(*c) && !c.is_whitespace()).nfc();
    let mut folded = String::with_capacity(text.len());
    for c in bare.flat_map(char::to_lowercase) {
        match c {
            'ß' => folded.push_str("ss"),
            'æ' => folded.push_str("ae"),
            'œ' => folded.push_str("oe"),
            'þ' => folded.push_str("th"),
            'ø' => folded.push('o'),
            'ł' => folded.push('l'),
            'đ' | 'ð' => folded.push('d'),
            'ħ' => folded.push('h'),
            'ı' => folded.push('i'),
            'ς' => folded.push('σ'),
            // What a capital letter with a dot leaves behind in small.
            c if is_diacritic(c) => {}
            c => folded.push(c),
        }
    }
    folded
}

/// Returns whether a character only marks the letter before it, in a script where people leave that out.
fn is_diacritic(c: char) -> bool {
    matches!(u32::from(c), 0x0300..=0x036f | 0x0591..=0x05c7 | 0x0610..=0x061a | 0x064b..=0x065f | 0x1ab0..=0x1aff
        | 0x1dc0..=0x1dff | 0x20d0..=0x20ff)
}

/// Returns the name of a segment that is an emoji, without its skin tone.
fn emoji_name(segment: &str) -> Option<String> {
    if segment.is_ascii() {
        return None;
    }
    let known = emojis::get(segment).or_else(|| emojis::get(&segment.replace('\u{fe0f}', "")))?;
    let plain: &Emoji = known.with_skin_tone(emojis::SkinTone::Default).unwrap_or(known);
    Some(plain.shortcode().map_or_else(|| plain.as_str().to_owned(), |name| name.replace(['_', '-', '+'], "")))
}

fn cut(text: &mut String) {
    let mut end = text.len().min(WORD_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}

/// Returns the English stem of a folded word, if it is another word.
#[must_use]
pub fn stem(word: &str) -> Option<String> {
    thread_local! {
        static ENGLISH: frostem::Stemmer = frostem::Stemmer::new(frostem::Algorithm::English);
    }
    if word.len() < 3 || !word.bytes().all(|b| b.is_ascii_lowercase()) {
        return None;
    }
    let stemmed = ENGLISH.with(|english| english.stem(word).into_owned());
    (stemmed != word).then_some(stemmed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        analyze(text).words.into_iter().map(|word| word.text).collect()
    }

    fn joined(text: &str) -> Vec<String> {
        analyze(text).joined.into_iter().map(|(text, _)| text).collect()
    }

    #[test]
    fn case_and_diacritics_do_not_matter() {
        assert_eq!(
            words("Über den STRASSEN: naïve Café, Ångström, Żółć"),
            ["uber", "den", "strassen", "naive", "cafe", "angstrom", "zolc"]
        );
        assert_eq!(
            words("Straße Œuvre İstanbul ΟΔΟΣ Ёлка ﬁne ２０２６"),
            ["strasse", "oeuvre", "istanbul", "οδοσ", "елка", "fine", "2026"]
        );
        assert!(words("ﷺ ﷻ").iter().all(|word| !word.contains(' ')));
        // Decomposed is the same.
        assert_eq!(words("cafe\u{301}"), ["cafe"]);
    }

    #[test]
    fn identifiers_are_words_in_a_row_and_one_piece() {
        assert_eq!(
            words("getUserName HTTPServer user_name app.conf 3.14"),
            ["get", "user", "name", "http", "server", "user", "name", "app", "conf", "3", "14"]
        );
        assert_eq!(
            joined("getUserName HTTPServer user_name Wi-Fi app.conf it's plain"),
            ["getusername", "httpserver", "username", "wifi", "its"]
        );
        assert_eq!(
            words("https://example.com/a-b?c=d#e ana@example.com"),
            ["https", "example", "com", "a", "b", "c", "d", "e", "ana", "example", "com"]
        );
        assert_eq!(
            words("std::vec::Vec<u8> v2.0-rc1 C++ #general"),
            ["std", "vec", "vec", "u8", "v2", "0", "rc1", "c", "general"]
        );
    }

    #[test]
    fn what_has_no_spaces_is_cut_into_pairs() {
        assert_eq!(words("東京都に行く"), ["東京", "京都", "都に", "に行", "行く", "く"]);
        assert_eq!(words("部署 deploy 完了"), ["部署", "署", "deploy", "完了", "了"]);
        assert_eq!(words("안녕하세요 LG전자"), ["안녕", "녕하", "하세", "세요", "요", "lg", "전자", "자"]);
        assert_eq!(words("ｶﾞｲﾄﾞ か\u{3099}"), ["ガイ", "イド", "ド", "が"]);
        assert_eq!(words("猫"), ["猫"]);
    }

    #[test]
    fn an_emoji_is_found_by_its_name() {
        assert_eq!(words("shipped 🎉👍🏽 :tada: ❤️"), ["shipped", "tada", "1", "tada", "heart"]);
    }

    #[test]
    fn every_word_says_where_it_stands() {
        let text = "Grüße an getUser, 東京!";
        let found = analyze(text);
        let at: Vec<&str> = found.words.iter().map(|word| &text[word.at.clone()]).collect();
        assert_eq!(at, ["Grüße", "an", "get", "User", "東京", "京"]);
        assert_eq!(&text[found.joined[0].1.clone()], "getUser");
    }

    #[test]
    fn stems_are_english() {
        assert_eq!(stem("deployed").as_deref(), Some("deploy"));
        assert_eq!(stem("deployments").as_deref(), Some("deploy"));
        assert_eq!((stem("deploy"), stem("as"), stem("über")), (None, None, None));
    }

    proptest::proptest! {
        #[test]
        fn any_text_can_be_cut(text in ".{0,200}") {
            let found = analyze(&text);
            for word in &found.words {
                proptest::prop_assert!(!word.text.is_empty() && word.text.len() <= WORD_MAX);
                proptest::prop_assert!(text.get(word.at.clone()).is_some());
            }
        }
    }
}
