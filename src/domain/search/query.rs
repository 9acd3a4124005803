//! What somebody looks for: the language of the search box, read, and matched against a message.
//!
//! Words and `"phrases"` are all to be in a message; `word*` is any word that begins so; `-` in front of anything means that it is not
//! to be there. `from:`, `in:`, `before:`, `after:`, `on:`, `has:`, `is:` and `mentions:` say more about the message. Several `from:`, or
//! several `in:`, mean any of these.

use std::ops::Range;

use time::format_description::well_known::Rfc3339;
use time::{Date, Duration, Month, OffsetDateTime, Time, UtcOffset};

use super::analysis::{analyze, is_cjk, stem};
use super::document::{Forms, Mark};
use crate::clock::Timestamp;
use crate::domain::error::{Refusal, invalid};
use crate::domain::id::ChannelId;

/// The longest query, in bytes.
pub const QUERY_MAX: usize = 500;
/// How many words, phrases and filters a query may have.
pub const PARTS_MAX: usize = 32;
/// How many words a phrase may have.
const ROW_MAX: usize = 32;

/// A query, read. Whom and which channels it names is still to be found out.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Query {
    /// What is asked.
    pub parts: Vec<Part>,
}

/// One thing that is asked.
#[derive(Clone, PartialEq, Debug)]
pub struct Part {
    /// Whether it is not to be so.
    pub not: bool,
    /// What.
    pub what: What,
}

/// What can be asked.
#[derive(Clone, PartialEq, Debug)]
pub enum What {
    /// It is in the text.
    Text(Text),
    /// Somebody wrote it.
    From(Who),
    /// It is in a channel.
    In(Place),
    /// It mentions somebody.
    Mentions(Who),
    /// It was written in this time.
    Created(Range<Timestamp>),
    /// This is true of it.
    Mark(Mark),
    /// Who asks has saved it.
    Saved,
}

/// A user, as a query names them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Who {
    /// Who asks.
    Me,
    /// Who has this name.
    Named(String),
}

/// A channel, as a query names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// The one of this name.
    Named(String),
    /// This one.
    Id(ChannelId),
    /// The direct messages with somebody.
    With(Who),
}

/// Words that are to stand in a text, one behind the other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Text {
    /// The words.
    pub row: Vec<String>,
    /// Whether the last word may go on.
    pub is_prefix: bool,
    /// The spelling in one piece that is as good.
    pub joined: Option<String>,
    /// The stem that is as good.
    pub stem: Option<String>,
    /// In how many letters a word may differ.
    pub typos: u8,
}

impl Query {
    /// Reads a query. Days begin and end at `offset` from UTC.
    ///
    /// # Errors
    /// It is too long, or a filter is not one of those there are.
    pub fn parse(text: &str, now: Timestamp, offset: UtcOffset) -> Result<Query, Refusal> {
        if text.len() > QUERY_MAX {
            return Err(invalid(format!("q has {} bytes, at most {QUERY_MAX} are allowed", text.len())));
        }
        let mut parts = Vec::new();
        for chunk in chunks(text) {
            if let Some(what) = chunk.read(now, offset)? {
                parts.push(Part { not: chunk.not, what });
            }
        }
        if parts.len() > PARTS_MAX {
            return Err(invalid(format!("q asks for {} things, at most {PARTS_MAX} are allowed", parts.len())));
        }
        if parts.is_empty() {
            return Err(invalid("q has nothing to look for: no word, and no filter such as from: or in:"));
        }
        Ok(Query { parts })
    }

    /// Returns what is to stand in the text.
    pub fn texts(&self) -> impl Iterator<Item = &Text> {
        self.parts.iter().filter(|part| !part.not).filter_map(|part| match &part.what {
            What::Text(text) => Some(text),
            _ => None,
        })
    }

    /// Returns the query that also takes words that are spelt a little differently; nothing, if that is the same.
    #[must_use]
    pub fn forgiving(&self) -> Option<Query> {
        let mut query = self.clone();
        for part in query.parts.iter_mut().filter(|part| !part.not) {
            if let What::Text(text) = &mut part.what {
                text.typos = text.may_differ_in();
            }
        }
        let forgives = query.texts().any(|text| text.typos > 0);
        forgives.then_some(query)
    }
}

/// A piece of a query as it was typed.
#[derive(Debug)]
struct Chunk<'a> {
    not: bool,
    /// What stands before a colon, if that is a filter's name.
    key: Option<&'a str>,
    text: &'a str,
    quoted: bool,
}

const KEYS: [&str; 9] = ["from", "in", "before", "after", "on", "during", "has", "is", "mentions"];

/// Returns what closes a quotation that this opens.
fn closing(open: char) -> Option<&'static [char]> {
    match open {
        '"' => Some(&['"']),
        '“' | '”' => Some(&['”', '“']),
        '„' => Some(&['“', '”']),
        '«' => Some(&['»']),
        _ => None,
    }
}

fn chunks(query: &str) -> Vec<Chunk<'_>> {
    let mut chunks = Vec::new();
    let mut rest = query.trim_start();
    while !rest.is_empty() {
        let negated =
            rest.strip_prefix('-').filter(|behind| behind.starts_with(|c: char| !c.is_whitespace() && c != '-'));
        let not = negated.is_some();
        rest = negated.unwrap_or(rest);
        let key = KEYS.iter().find_map(|key| {
            let behind = rest.get(key.len()..)?.strip_prefix(':')?;
            let is_it = rest[..key.len()].eq_ignore_ascii_case(key);
            (is_it && behind.starts_with(|c: char| !c.is_whitespace())).then_some((*key, behind))
        });
        let key = key.map(|(key, behind)| {
            rest = behind;
            key
        });
        let open = rest.chars().next().filter(|c| closing(*c).is_some());
        let (text, quoted, behind) = match open.and_then(closing) {
            Some(closing) => {
                let inner = &rest[open.map_or(0, char::len_utf8)..];
                match inner.find(closing) {
                    Some(end) => {
                        let close = inner[end..].chars().next().map_or(0, char::len_utf8);
                        (&inner[..end], true, &inner[end + close..])
                    }
                    None => (inner, true, ""),
                }
            }
            None => {
                let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
                (&rest[..end], false, &rest[end..])
            }
        };
        chunks.push(Chunk { not, key, text, quoted });
        rest = behind.trim_start();
    }
    chunks
}

impl Chunk<'_> {
    fn read(&self, now: Timestamp, offset: UtcOffset) -> Result<Option<What>, Refusal> {
        let Some(key) = self.key else { return Ok(Text::read(self.text, self.quoted).map(What::Text)) };
        let value = self.text;
        Ok(Some(match key {
            "from" => What::From(who(value)),
            "mentions" => What::Mentions(who(value)),
            "in" => What::In(place(value)),
            "has" => match value.to_ascii_lowercase().as_str() {
                "link" => What::Mark(Mark::Link),
                "reaction" => What::Mark(Mark::Reaction),
                _ => return Err(invalid(format!("has:{value} is not known: has:link and has:reaction are"))),
            },
            "is" => match value.to_ascii_lowercase().as_str() {
                "thread" => What::Mark(Mark::Thread),
                "pinned" => What::Mark(Mark::Pinned),
                "saved" => What::Saved,
                _ => return Err(invalid(format!("is:{value} is not known: is:thread, is:pinned and is:saved are"))),
            },
            _ => {
                let span = span(value, now, offset).ok_or_else(|| {
                    invalid(format!(
                        "{key}:{value} is no time: give a day such as 2026-01-31, a month, a year, today, yesterday, or a time \
                         such as 2026-01-31T09:30:00Z"
                    ))
                })?;
                What::Created(match key {
                    "before" => Timestamp(i64::MIN)..span.start,
                    "after" => span.end..Timestamp(i64::MAX),
                    _ => span,
                })
            }
        }))
    }
}

fn who(value: &str) -> Who {
    match value.trim_start_matches('@').to_lowercase() {
        name if name == "me" => Who::Me,
        name => Who::Named(name),
    }
}

fn place(value: &str) -> Place {
    if value.starts_with('@') {
        return Place::With(who(value));
    }
    match value.parse() {
        Ok(id) => Place::Id(id),
        Err(_) => Place::Named(value.trim_start_matches('#').to_lowercase()),
    }
}

/// Reads a time: a day, a month or a year, or a moment.
fn span(value: &str, now: Timestamp, offset: UtcOffset) -> Option<Range<Timestamp>> {
    let stamp = |at: OffsetDateTime| i64::try_from(at.unix_timestamp_nanos() / 1_000).ok().map(Timestamp);
    if value.contains(['T', 't']) && value.contains(':') {
        let at = stamp(OffsetDateTime::parse(&value.to_uppercase(), &Rfc3339).ok()?)?;
        return Some(at..Timestamp(at.0 + 1));
    }
    let today = OffsetDateTime::from_unix_timestamp_nanos(i128::from(now.0) * 1_000).ok()?.to_offset(offset).date();
    let days = |first: Date, end: Option<Date>| {
        let begins = |date: Date| stamp(date.with_time(Time::MIDNIGHT).assume_offset(offset));
        Some(begins(first)?..begins(end?)?)
    };
    match value.to_ascii_lowercase().as_str() {
        "today" => return days(today, today.checked_add(Duration::DAY)),
        "yesterday" => return days(today.checked_sub(Duration::DAY)?, Some(today)),
        _ => {}
    }
    let is_number = |text: &&str| !text.is_empty() && text.len() <= 4 && text.bytes().all(|b| b.is_ascii_digit());
    let numbers: Vec<u16> = value.split('-').filter(is_number).filter_map(|text| text.parse().ok()).collect();
    if numbers.len() != value.split('-').count() {
        return None;
    }
    let (year, month, day) = match numbers[..] {
        [year] => (year, None, None),
        [year, month] => (year, Some(month), None),
        [year, month, day] => (year, Some(month), Some(day)),
        _ => return None,
    };
    // A year of two digits would mean one long ago.
    let year = Some(i32::from(year)).filter(|year| (1_000..=9_999).contains(year))?;
    let date = |year, month: u16, day: u16| {
        let month = Month::try_from(u8::try_from(month).ok()?).ok()?;
        Date::from_calendar_date(year, month, u8::try_from(day).ok()?).ok()
    };
    match (month, day) {
        (Some(month), Some(day)) => {
            let first = date(year, month, day)?;
            days(first, first.checked_add(Duration::DAY))
        }
        (Some(12), None) => days(date(year, 12, 1)?, date(year + 1, 1, 1)),
        (Some(month), None) => days(date(year, month, 1)?, date(year, month + 1, 1)),
        (None, _) => days(date(year, 1, 1)?, date(year + 1, 1, 1)),
    }
}

impl Text {
    /// Reads words; nothing, if there is none in it.
    fn read(text: &str, quoted: bool) -> Option<Text> {
        let starred = text.strip_suffix('*').filter(|_| !quoted);
        let found = analyze(starred.unwrap_or(text));
        let mut words = &found.words[..found.words.len().min(ROW_MAX)];
        // In a text, a run of characters may go on where it ends here.
        if let Some((last, before)) = words.split_last().filter(|(last, _)| last.is_tail) {
            debug_assert!(!before.is_empty(), "{last:?} is behind the word that has it, too");
            words = before;
        }
        let (first, last) = (words.first()?, words.last()?);
        let row: Vec<String> = words.iter().map(|word| word.text.clone()).collect();
        // One character alone is a word of its own only at the end of a run.
        let is_single = last.text.chars().count() == 1 && last.text.chars().all(is_cjk);
        let is_prefix = starred.is_some() || is_single;
        let whole = first.at.start..last.at.end;
        let joined = match (&row[..], &found.joined[..]) {
            ([word], _) => Some(word.clone()),
            (_, [(joined, at)]) if *at == whole => Some(joined.clone()),
            _ => None,
        };
        let joined = joined.filter(|_| !quoted && !is_prefix);
        let stem = match &row[..] {
            [word] if !quoted && !is_prefix => Some(stem(word).unwrap_or_else(|| word.clone())),
            _ => None,
        };
        Some(Text { row, is_prefix, joined, stem, typos: 0 })
    }

    /// Returns in how many letters a word of this length may differ and still be meant.
    fn may_differ_in(&self) -> u8 {
        let [word] = &self.row[..] else { return 0 };
        // Only where a spelling is one of letters; and nobody mistypes what they put in quotes.
        if self.joined.is_none() || word.chars().any(|c| is_cjk(c) || c.is_numeric()) {
            return 0;
        }
        match word.chars().count() {
            0..4 => 0,
            4..8 => 1,
            _ => 2,
        }
    }

    /// Returns where it stands in a text, in bytes; several times perhaps.
    #[must_use]
    pub fn find(&self, forms: &Forms) -> Vec<Range<usize>> {
        let words = &forms.analysis.words;
        let mut found: Vec<Range<usize>> = Vec::new();
        for (start, first) in words.iter().enumerate() {
            let mut last = first;
            let is_row = self.row.iter().enumerate().all(|(nth, wanted)| {
                let Some(word) = words.get(start + nth) else { return false };
                last = word;
                let is_last = nth + 1 == self.row.len();
                if is_last && self.is_prefix {
                    word.text.starts_with(wanted.as_str())
                } else {
                    self.is(&word.text, wanted)
                }
            });
            let is_one_piece = self.joined.as_ref() == Some(&first.text) || self.stem.as_ref() == Some(&first.text);
            if is_row {
                found.push(first.at.start..last.at.end);
            } else if is_one_piece {
                found.push(first.at.clone());
            }
        }
        let joined = forms.analysis.joined.iter().filter(|(joined, _)| self.joined.as_ref() == Some(joined));
        found.extend(joined.map(|(_, at)| at.clone()));
        let stems = forms.stems.iter().filter(|(stem, _)| self.stem.as_ref() == Some(stem));
        found.extend(stems.map(|(_, word)| words[*word].at.clone()));
        found.sort_unstable_by_key(|at| (at.start, at.end));
        found.dedup();
        found
    }

    fn is(&self, word: &str, wanted: &str) -> bool {
        let typos = usize::from(self.typos);
        word == wanted
            || (typos > 0 && word.len().abs_diff(wanted.len()) <= 4 * typos && distance(word, wanted) <= typos)
    }
}

/// Returns by how many letters two words differ: put in, left out, replaced, or swapped with the next one.
fn distance(one: &str, other: &str) -> usize {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    let mut rows = [vec![0; other.len() + 1], (0..=other.len()).collect::<Vec<_>>(), vec![0; other.len() + 1]];
    for (i, a) in one.iter().enumerate() {
        let [before, last, next] = &mut rows;
        next[0] = i + 1;
        for (j, b) in other.iter().enumerate() {
            next[j + 1] = (last[j] + usize::from(a != b)).min(last[j + 1] + 1).min(next[j] + 1);
            if i > 0 && j > 0 && *a == other[j - 1] && one[i - 1] == *b {
                next[j + 1] = next[j + 1].min(before[j - 1] + 1);
            }
        }
        rows.rotate_left(1);
    }
    rows[1][other.len()]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOON: Timestamp = Timestamp(1_795_694_400_000_000);

    fn parse(text: &str) -> Vec<Part> {
        Query::parse(text, NOON, UtcOffset::UTC).unwrap().parts
    }

    fn refused(text: &str) -> String {
        Query::parse(text, NOON, UtcOffset::UTC).unwrap_err().message.to_string()
    }

    fn finds(query: &str, text: &str) -> bool {
        let query = Query::parse(query, NOON, UtcOffset::UTC).unwrap();
        let forms = Forms::of(text);
        query.parts.iter().all(|part| match &part.what {
            What::Text(text) => text.find(&forms).is_empty() == part.not,
            _ => true,
        })
    }

    #[test]
    fn filters_are_told_from_words() {
        let named = |name: &str| Who::Named(name.to_owned());
        let is = |what| Part { not: false, what };
        assert_eq!(
            parse("from:@Ana -from:me mentions:me in:#general in:@bob has:link -is:saved"),
            [
                is(What::From(named("ana"))),
                Part { not: true, what: What::From(Who::Me) },
                is(What::Mentions(Who::Me)),
                is(What::In(Place::Named("general".to_owned()))),
                is(What::In(Place::With(named("bob")))),
                is(What::Mark(Mark::Link)),
                Part { not: true, what: What::Saved },
            ]
        );
        // What only looks like a filter is text.
        for text in ["https://example.com", "12:30", "std::vec", "from: ana", "note:this"] {
            assert!(parse(text).iter().all(|part| matches!(part.what, What::Text(_))), "{text}");
        }
    }

    #[test]
    fn days_months_years_and_moments() {
        assert_eq!(NOON.to_string(), "2026-11-26T12:00:00Z");
        let span = |query: &str, offset: i8| {
            let offset = UtcOffset::from_hms(offset, 0, 0).unwrap();
            match Query::parse(query, NOON, offset).unwrap().parts.remove(0).what {
                What::Created(span) => (span.start.to_string(), span.end.to_string()),
                what => panic!("{what:?}"),
            }
        };
        let day = |from: &str, until: &str| (format!("{from}Z"), format!("{until}Z"));
        assert_eq!(span("on:2026-02-28", 0), day("2026-02-28T00:00:00", "2026-03-01T00:00:00"));
        assert_eq!(span("on:2026-02", 2), day("2026-01-31T22:00:00", "2026-02-28T22:00:00"));
        assert_eq!(span("during:2025", 0), day("2025-01-01T00:00:00", "2026-01-01T00:00:00"));
        assert_eq!(span("on:2025-12", 0), day("2025-12-01T00:00:00", "2026-01-01T00:00:00"));
        assert_eq!(span("on:today", 13), day("2026-11-26T11:00:00", "2026-11-27T11:00:00"));
        assert_eq!(span("on:yesterday", 0), day("2026-11-25T00:00:00", "2026-11-26T00:00:00"));
        let ends = |query: &str| match parse(query).remove(0).what {
            What::Created(span) => span,
            what => panic!("{what:?}"),
        };
        let noon = "2026-11-26T12:00:00Z";
        assert_eq!(ends(&format!("before:{noon}")), Timestamp(i64::MIN)..NOON);
        assert_eq!(ends(&format!("after:{noon}")), Timestamp(NOON.0 + 1)..Timestamp(i64::MAX));
        assert_eq!(ends("before:2026-11-26").end, ends("on:2026-11-26").start);
        assert_eq!(ends("after:2026-11-26").start, ends("on:2026-11-26").end);
        for bad in
            ["on:2026-13", "on:2026-02-30", "on:26-02-01", "before:soon", "after:2026-1-1-1", "on:-1", "on:2026--1"]
        {
            assert!(refused(bad).contains("is no time"), "{bad}");
        }
    }

    #[test]
    fn bad_queries_are_refused_with_what_is_wrong() {
        assert!(refused("has:money").contains("has:money is not known"));
        assert!(refused("is:late").contains("is:late is not known"));
        assert!(refused("  ").contains("nothing to look for"));
        assert!(refused("!!! ***").contains("nothing to look for"));
        assert!(refused(&"x".repeat(501)).contains("501 bytes"));
        assert!(refused(&"a ".repeat(33)).contains("33 things"));
    }

    #[test]
    fn words_phrases_prefixes_and_what_is_not_to_be_there() {
        let text = "We deployed the Käsebrot service to eu-west-1, see getUserName in 東京都 🎉";
        for query in [
            "deploy",
            "DEPLOYING kasebrot",
            "\"kasebrot service\"",
            "serv*",
            "getusername",
            "getUserName",
            "username -moon",
            "user",
            "eu-west-1",
            "euwest*",
            "京都",
            "都",
            "東京都",
            "tada",
            ":tada:",
            "🎉",
            "“the käsebrot”",
        ] {
            let is_found = finds(query, text);
            assert_eq!(is_found, !matches!(query, "username -moon" | "euwest*"), "{query}");
        }
        for query in ["\"service kasebrot\"", "\"deploy\"", "-deploy", "ser", "京東", "deploy moon", "-\"service to\""]
        {
            assert!(!finds(query, text), "{query}");
        }
        assert!(finds("wifi", "The Wi-Fi") && finds("wi-fi", "the wifi") && finds("Wi-Fi", "wi fi"));
        assert!(finds("\"部署 deploy\"", "部署 deploy") && !finds("\"署部\"", "部署"));
    }

    #[test]
    fn a_forgiving_query_takes_what_was_mistyped() {
        let forgiving = |query: &str, text: &str| {
            let query = Query::parse(query, NOON, UtcOffset::UTC).unwrap().forgiving();
            query.is_some_and(|query| query.texts().all(|wanted| !wanted.find(&Forms::of(text)).is_empty()))
        };
        assert!(
            forgiving("deplyo", "a deploy") && forgiving("kubernets", "Kubernetes") && forgiving("recieve", "receive")
        );
        assert!(!forgiving("cat", "car") && !forgiving("\"deplyo\"", "a deploy") && !forgiving("deplxyz", "a deploy"));
        assert_eq!((distance("abcd", "abdc"), distance("", "ab"), distance("kitten", "sitting")), (1, 2, 3));
    }

    #[test]
    fn what_was_found_is_where_it_stands() {
        let text = "Deploying: the deploy was deployed by getUserName";
        let query = Query::parse("deploy getusername", NOON, UtcOffset::UTC).unwrap();
        let forms = Forms::of(text);
        let mut found: Vec<&str> = query.texts().flat_map(|wanted| wanted.find(&forms)).map(|at| &text[at]).collect();
        found.sort_unstable();
        assert_eq!(found, ["Deploying", "deploy", "deployed", "getUserName"]);
    }

    proptest! {
        #[test]
        fn any_query_is_read_or_refused(text in ".{0,120}", keys in "((from|in|on|has|is|-|\"|“|:|\\*| |a){0,30})") {
            for text in [&text, &keys] {
                if let Ok(query) = Query::parse(text, NOON, UtcOffset::UTC) {
                    let forms = Forms::of("what a day 東京 getUserName");
                    for wanted in query.forgiving().unwrap_or(query).texts() {
                        let _ = wanted.find(&forms);
                    }
                }
            }
        }

        /// Whatever stands in a text is found by asking for it, alone or in quotes.
        #[test]
        fn a_word_of_a_text_finds_it(text in "[a-zA-Zäöüß0-9東京都에서_.' -]{1,60}", at in 0usize..60) {
            let chunks: Vec<&str> = text.split_whitespace().filter(|c| !analyze(c).words.is_empty()).collect();
            prop_assume!(!chunks.is_empty());
            let chunk = chunks[at % chunks.len()].trim_start_matches('-');
            for query in [chunk.to_owned(), format!("\"{chunk}\"")] {
                prop_assert!(finds(&query, &text), "{} in {}", query, text);
            }
        }
    }
}
