//! The index that is built in (tantivy): in a folder of the node's own, which the node can make anew from the database.
//!
//! It is given words that are cut already ([`analysis`](crate::domain::search::analysis)), and it says which messages fit, not what
//! they are. With the messages of a commit it keeps how far it is in each channel, so the two cannot disagree, whenever the
//! process dies.

use std::collections::{BinaryHeap, HashMap, HashSet};
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tantivy::collector::{Collector, DocSetCollector, SegmentCollector};
use tantivy::columnar::ColumnValues;
use tantivy::query::{
    AllQuery, BooleanQuery, BoostQuery, ConstScoreQuery, DisjunctionMaxQuery, EmptyQuery, FuzzyTermQuery, Occur,
    PhrasePrefixQuery, PhraseQuery, Query, RangeQuery, TermQuery, TermSetQuery,
};
use tantivy::schema::{
    BytesOptions, Field, IndexRecordOption, NumericOptions, STORED, Schema, TextFieldIndexing, TextOptions, Value as _,
};
use tantivy::tokenizer::{PreTokenizedString, Token};
use tantivy::{
    DocId, IndexReader, IndexSettings, IndexWriter, ReloadPolicy, Score, SegmentOrdinal, SegmentReader,
    TantivyDocument, TantivyError, Term,
};

use super::index::{Found, IndexError, NOTHING};
use super::steady::Steady;
use crate::clock::Timestamp;
use crate::domain::id::ChannelId;
use crate::domain::search::document::{Document, Forms};
use crate::domain::search::query::Text;
use crate::domain::search::wanted::{Is, Key, Rank, Search, Sort, low};

/// What the index is like. Another number is another index, made from the start.
const FORMAT: u32 = 1;
/// How many words a prefix may stand for at the end of a phrase.
const EXPANSIONS: u32 = 1_000;
/// How much less than the word itself another form of it counts.
const OTHER_FORM: f32 = 0.8;

/// The index.
pub struct Embedded {
    fields: Fields,
    index: tantivy::Index,
    reader: IndexReader,
    /// There is none until something is to be written, and after a failure.
    writer: Mutex<Option<IndexWriter>>,
    memory: usize,
    state: RwLock<State>,
    /// How many messages were put in since it began to be built.
    put: AtomicU64,
    /// Whether it is to be made anew.
    rebuild: AtomicBool,
}

/// How far it is.
#[derive(Clone, Default)]
struct State {
    places: Arc<HashMap<ChannelId, i64>>,
    /// Up to which message it was built, while it is being built.
    building: Option<Key>,
    is_new: bool,
}

#[derive(Clone, Copy)]
struct Fields {
    key: Field,
    channel: Field,
    seq: Field,
    created: Field,
    digest: Field,
    author: Field,
    mentions: Field,
    marks: Field,
    text: Field,
    joined: Field,
    stems: Field,
    place: Field,
}

/// Stands for the channel of what is in none: no identifier ends so (RFC 9562, 4.1).
const NOWHERE: u64 = 0;
/// Marks what is no message but says how far the index is in a channel.
const PLACE: &str = "place";

fn schema() -> (Schema, Fields) {
    let mut schema = Schema::builder();
    let words = |option, norms| {
        let indexing = TextFieldIndexing::default().set_tokenizer("raw").set_index_option(option).set_fieldnorms(norms);
        TextOptions::default().set_indexing_options(indexing)
    };
    let bytes = || BytesOptions::default().set_indexed();
    let column = || NumericOptions::default().set_fast();
    let fields = Fields {
        key: schema.add_bytes_field("key", bytes()),
        channel: schema.add_u64_field("channel", column().set_indexed()),
        seq: schema.add_i64_field("seq", column()),
        created: schema.add_i64_field("created", column()),
        digest: schema.add_u64_field("digest", column()),
        author: schema.add_bytes_field("author", bytes()),
        mentions: schema.add_bytes_field("mentions", bytes()),
        marks: schema.add_text_field("marks", words(IndexRecordOption::Basic, false)),
        text: schema.add_text_field("text", words(IndexRecordOption::WithFreqsAndPositions, true)),
        joined: schema.add_text_field("joined", words(IndexRecordOption::Basic, false)),
        stems: schema.add_text_field("stems", words(IndexRecordOption::Basic, false)),
        place: schema.add_bytes_field("place", STORED),
    };
    (schema.build(), fields)
}

impl From<TantivyError> for IndexError {
    fn from(error: TantivyError) -> Self {
        match error {
            TantivyError::ErrorInThread(_) => IndexError::Thread,
            error => IndexError::Index(error),
        }
    }
}

impl Embedded {
    /// Opens the index in a folder, or makes one there. One that cannot be read, or is of another release, is thrown away.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn open(folder: &Path, memory_mb: usize) -> Result<Embedded, IndexError> {
        fs::create_dir_all(folder)?;
        let path = folder.join(format!("messages-{FORMAT}"));
        for entry in fs::read_dir(folder)? {
            let other = entry?.path();
            if other != path {
                forget(&other)?;
            }
        }
        let (schema, fields) = schema();
        let open = || {
            fs::create_dir_all(&path)?;
            let directory = tantivy::directory::MmapDirectory::open(&path).map_err(TantivyError::from)?;
            let settings = IndexSettings { docstore_compress_dedicated_thread: false, ..IndexSettings::default() };
            let builder = tantivy::Index::builder().schema(schema.clone()).settings(settings);
            let index = builder.open_or_create(directory)?;
            let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into()?;
            let memory = memory_mb * 1_024 * 1_024;
            let state = RwLock::new(State::default());
            let (writer, put, rebuild) = (Mutex::new(None), AtomicU64::new(0), AtomicBool::new(false));
            let index = Embedded { fields, index, reader, writer, memory, state, put, rebuild };
            index.read_state()?;
            Ok::<_, IndexError>(index)
        };
        match open() {
            Ok(index) => Ok(index),
            Err(error) => {
                tracing::warn!(%error, "the search index cannot be read and is made anew");
                forget(&path)?;
                open()
            }
        }
    }

    /// Reads how far it is.
    fn read_state(&self) -> Result<(), IndexError> {
        let searcher = self.reader.searcher();
        let is_place = TermQuery::new(Term::from_field_text(self.fields.marks, PLACE), IndexRecordOption::Basic);
        let mut places = HashMap::new();
        for address in searcher.search(&is_place, &DocSetCollector)? {
            let document: TantivyDocument = searcher.doc(address)?;
            let bytes = document.get_first(self.fields.place).and_then(|value| value.as_bytes());
            let (id, seq) = bytes.and_then(place_of).ok_or_else(|| broken("a place in the index is malformed"))?;
            places.insert(id, seq);
        }
        let payload = self.index.load_metas()?.payload;
        let is_new = payload.is_none();
        let building = match payload.as_deref() {
            None | Some("") => None,
            Some(text) => {
                Some(serde_json::from_str(text).map_err(|_| broken("how far the index was built is malformed"))?)
            }
        };
        *self.state.write().unwrap_or_else(PoisonError::into_inner) =
            State { places: Arc::new(places), building, is_new };
        Ok(())
    }

    fn state(&self) -> State {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns how far it is in each channel.
    #[must_use]
    pub fn places(&self) -> Arc<HashMap<ChannelId, i64>> {
        self.state().places
    }

    /// Returns behind which message it is still to be built; nothing, if it has all.
    #[must_use]
    pub fn unbuilt(&self) -> Option<Key> {
        let state = self.state();
        if state.is_new { Some(NOTHING) } else { state.building }
    }

    /// Asks for it to be made anew: whoever follows the log for it does that.
    pub fn ask_for_rebuild(&self) {
        self.put.store(0, Ordering::Relaxed);
        self.rebuild.store(true, Ordering::Release);
    }

    /// Returns whether it is to be made anew.
    #[must_use]
    pub fn is_to_be_rebuilt(&self) -> bool {
        self.rebuild.load(Ordering::Acquire)
    }

    /// Returns how many messages were put in since it began to be built.
    #[must_use]
    pub fn built(&self) -> u64 {
        self.put.load(Ordering::Relaxed)
    }

    /// Takes everything out.
    ///
    /// # Errors
    /// As [`Embedded::put`].
    pub fn clear(&self) -> Result<(), IndexError> {
        // What was put in and not committed goes, too.
        drop(self.writer.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.with_writer(|writer| {
            writer.delete_all_documents()?;
            let mut prepared = writer.prepare_commit()?;
            prepared.set_payload(&payload(Some(NOTHING)));
            prepared.commit()?;
            self.reader.reload()
        })?;
        let state = State { building: Some(NOTHING), ..State::default() };
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = state;
        self.put.store(0, Ordering::Relaxed);
        self.rebuild.store(false, Ordering::Release);
        Ok(())
    }

    /// Returns how many messages are in it.
    #[must_use]
    pub fn len(&self) -> u64 {
        let places = self.places().len() as u64;
        self.reader.searcher().num_docs().saturating_sub(places)
    }

    /// Returns whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn with_writer<T>(&self, write: impl FnOnce(&mut IndexWriter) -> Result<T, TantivyError>) -> Result<T, IndexError> {
        let mut slot = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut writer = match slot.take() {
            Some(writer) => writer,
            None => self.index.writer_with_num_threads(1, self.memory)?,
        };
        // After a failure it is not put back: the next one begins at the last commit.
        let done = write(&mut writer)?;
        *slot = Some(writer);
        Ok(done)
    }

    /// Puts messages into it, in place of what it has of these, and takes others out. None of that is seen or sure to last before
    /// [`Embedded::commit`].
    ///
    /// # Errors
    /// It cannot be written. What was put in since the last commit is lost.
    pub fn put(&self, documents: &[Document], gone: &[Key]) -> Result<(), IndexError> {
        self.with_writer(|writer| {
            let keys = documents.iter().map(|document| (document.channel, document.seq));
            for key in keys.chain(gone.iter().copied()) {
                writer.delete_term(Term::from_field_bytes(self.fields.key, &key_bytes(key)));
            }
            for document in documents {
                // One after the other: the words of a text take many times its size.
                writer.add_document(self.fields.document(document, &document.forms()))?;
            }
            Ok(())
        })?;
        self.put.fetch_add(documents.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Makes what was put in last, together with how far that is, and shows it to searches. `building` says behind which message
    /// it is still to be built.
    ///
    /// # Errors
    /// As [`Embedded::put`].
    pub fn commit(&self, places: &[(ChannelId, i64)], building: Option<Key>) -> Result<(), IndexError> {
        self.with_writer(|writer| {
            for (channel, seq) in places {
                let id = place_key(*channel);
                writer.delete_term(Term::from_field_bytes(self.fields.key, &id));
                let mut document = TantivyDocument::default();
                document.add_bytes(self.fields.key, &id);
                document.add_pre_tokenized_text(self.fields.marks, tokens([PLACE]));
                document.add_bytes(self.fields.place, &key_bytes_whole(*channel, *seq));
                // In no channel: a column that every document has is read faster.
                document.add_u64(self.fields.channel, NOWHERE);
                document.add_i64(self.fields.seq, 0);
                document.add_i64(self.fields.created, 0);
                writer.add_document(document)?;
            }
            let mut prepared = writer.prepare_commit()?;
            prepared.set_payload(&payload(building));
            prepared.commit()?;
            self.reader.reload()
        })?;
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let known = Arc::make_mut(&mut state.places);
        known.extend(places.iter().copied());
        (state.building, state.is_new) = (building, false);
        Ok(())
    }

    /// Finds messages: from the one behind `after` on, or the `skip`th; but none of `known`.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn find(
        &self,
        search: &Arc<Search>,
        known: &HashSet<Key>,
        after: Option<Rank>,
        most: usize,
    ) -> Result<Found, IndexError> {
        let known = Arc::new(known.clone());
        let searcher = self.reader.searcher();
        let query = self.fields.query(search);
        let channels = search.channels.iter().map(|channel| (low(*channel), *channel)).collect();
        let hits = Hits { search: search.clone(), channels: Arc::new(channels), known, after, most };
        Ok(searcher.search(&query, &hits)?)
    }

    /// Returns a number that two indexes have in common if they hold the same messages, and how many these are.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn digest(&self) -> Result<(u64, u64), IndexError> {
        let (mut digest, mut count) = (0u64, 0);
        for segment in self.reader.searcher().segment_readers() {
            let columns = segment.fast_fields();
            let (channel, of) = (columns.u64("channel")?, columns.u64("digest")?);
            for doc in segment.doc_ids_alive().filter(|doc| channel.first(*doc) != Some(NOWHERE)) {
                digest = digest.wrapping_add(of.first(doc).unwrap_or_default());
                count += 1;
            }
        }
        Ok((digest, count))
    }
}

/// Returns what a commit says of how far the index is built.
fn payload(building: Option<Key>) -> String {
    building.map(|key| serde_json::to_string(&key).expect("a pair has no keys")).unwrap_or_default()
}

fn broken(why: &str) -> TantivyError {
    TantivyError::SchemaError(why.to_owned())
}

fn forget(path: &PathBuf) -> Result<(), std::io::Error> {
    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

fn key_bytes((channel, seq): Key) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&low(channel).to_be_bytes());
    bytes[8..].copy_from_slice(&seq.to_be_bytes());
    bytes
}

/// What a place is found by: shorter than any message's key.
fn place_key(channel: ChannelId) -> [u8; 8] {
    low(channel).to_be_bytes()
}

fn key_bytes_whole(channel: ChannelId, seq: i64) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..16].copy_from_slice(channel.0.as_bytes());
    bytes[16..].copy_from_slice(&seq.to_be_bytes());
    bytes
}

fn place_of(bytes: &[u8]) -> Option<(ChannelId, i64)> {
    let (id, seq) = bytes.split_first_chunk::<16>()?;
    Some((ChannelId(uuid::Uuid::from_bytes(*id)), i64::from_be_bytes(seq.try_into().ok()?)))
}

/// Makes what the index takes of words that are cut already.
fn tokens<'a>(words: impl IntoIterator<Item = &'a str>) -> PreTokenizedString {
    let token = |(position, text): (usize, &str)| Token { position, text: text.to_owned(), ..Token::default() };
    PreTokenizedString { text: String::new(), tokens: words.into_iter().enumerate().map(token).collect() }
}

impl Fields {
    fn document(&self, document: &Document, forms: &Forms) -> TantivyDocument {
        let mut made = TantivyDocument::default();
        made.add_bytes(self.key, &key_bytes((document.channel, document.seq)));
        made.add_u64(self.channel, low(document.channel));
        made.add_i64(self.seq, document.seq);
        made.add_i64(self.created, document.created_at.0);
        made.add_u64(self.digest, document.digest());
        made.add_bytes(self.author, document.author.0.as_bytes());
        for user in &document.mentions {
            made.add_bytes(self.mentions, user.0.as_bytes());
        }
        let marks = document.marks.iter().map(|mark| mark.as_str());
        made.add_pre_tokenized_text(self.marks, tokens(marks));
        let words = forms.analysis.words.iter().map(|word| word.text.as_str());
        made.add_pre_tokenized_text(self.text, tokens(words));
        let joined = forms.analysis.joined.iter().map(|(text, _)| text.as_str());
        made.add_pre_tokenized_text(self.joined, tokens(joined));
        let stems = forms.stems.iter().map(|(stem, _)| stem.as_str());
        made.add_pre_tokenized_text(self.stems, tokens(stems));
        made
    }

    /// Returns what the index is to look for. Which channels are meant is seen to by [`Hits`], too.
    fn query(&self, search: &Search) -> BooleanQuery {
        let mut clauses: Vec<(Occur, Box<dyn Query>)> = Vec::new();
        if search.is_narrow {
            let channels = search.channels.iter().map(|channel| Term::from_field_u64(self.channel, low(*channel)));
            clauses.push((Occur::Must, Box::new(ConstScoreQuery::new(Box::new(TermSetQuery::new(channels)), 0.0))));
        }
        for condition in &search.conditions {
            let (is_scored, query): (bool, Box<dyn Query>) = match &condition.is {
                Is::Text(text) => (true, self.text(text)),
                Is::By(users) => {
                    let terms = users.iter().map(|user| Term::from_field_bytes(self.author, user.0.as_bytes()));
                    (false, Box::new(TermSetQuery::new(terms)))
                }
                Is::Mentions(users) => {
                    let terms = users.iter().map(|user| Term::from_field_bytes(self.mentions, user.0.as_bytes()));
                    (false, Box::new(TermSetQuery::new(terms)))
                }
                Is::Created(span) => {
                    let at = |at: Timestamp| Term::from_field_i64(self.created, at.0);
                    (false, Box::new(RangeQuery::new(Bound::Included(at(span.start)), Bound::Excluded(at(span.end)))))
                }
                Is::Mark(mark) => (false, self.term(self.marks, mark.as_str())),
                Is::OneOf(keys) => {
                    let terms = keys.iter().map(|key| Term::from_field_bytes(self.key, &key_bytes(*key)));
                    (false, Box::new(TermSetQuery::new(terms)))
                }
            };
            clauses.push(match (condition.not, is_scored) {
                (true, _) => (Occur::MustNot, Box::new(Steady(query))),
                (false, true) => (Occur::Must, query),
                (false, false) => (Occur::Must, Box::new(ConstScoreQuery::new(query, 0.0))),
            });
        }
        if clauses.iter().all(|(occur, _)| *occur == Occur::MustNot) {
            clauses.push((Occur::Must, Box::new(ConstScoreQuery::new(Box::new(AllQuery), 0.0))));
        }
        BooleanQuery::new(clauses)
    }

    fn term(&self, field: Field, text: &str) -> Box<dyn Query> {
        let option = if field == self.text { IndexRecordOption::WithFreqs } else { IndexRecordOption::Basic };
        Box::new(TermQuery::new(Term::from_field_text(field, text), option))
    }

    /// Returns what finds words, or a form of them that is as good.
    fn text(&self, text: &Text) -> Box<dyn Query> {
        let word = |word: &String| Term::from_field_text(self.text, word);
        let row: Vec<Term> = text.row.iter().map(word).collect();
        let mut forms: Vec<Box<dyn Query>> = Vec::new();
        forms.push(match &row[..] {
            [] => Box::new(EmptyQuery),
            [term] if text.is_prefix => Box::new(FuzzyTermQuery::new_prefix(term.clone(), 0, true)),
            [term] => Box::new(TermQuery::new(term.clone(), IndexRecordOption::WithFreqs)),
            _ if text.is_prefix => {
                let mut query = PhrasePrefixQuery::new(row.clone());
                query.set_max_expansions(EXPANSIONS);
                Box::new(query)
            }
            _ => Box::new(PhraseQuery::new(row.clone())),
        });
        if let ([term], 1..) = (&row[..], text.typos) {
            forms.push(Box::new(FuzzyTermQuery::new(term.clone(), text.typos, true)));
        }
        let mut other = |field, form: &String| {
            let is_word_itself = field == self.text && matches!(&text.row[..], [word] if word == form);
            if !is_word_itself {
                forms.push(Box::new(BoostQuery::new(self.term(field, form), OTHER_FORM)));
            }
        };
        if let Some(joined) = &text.joined {
            other(self.text, joined);
            other(self.joined, joined);
        }
        if let Some(stem) = text.stem.as_ref() {
            if text.joined.as_ref() != Some(stem) {
                other(self.text, stem);
            }
            other(self.stems, stem);
        }
        match forms.len() {
            1 => forms.remove(0),
            _ => Box::new(DisjunctionMaxQuery::new(forms)),
        }
    }
}

/// Hashes what is random already.
#[derive(Clone, Copy, Default)]
struct Spread;

#[derive(Default)]
struct AsItIs(u64);

impl BuildHasher for Spread {
    type Hasher = AsItIs;

    fn build_hasher(&self) -> AsItIs {
        AsItIs::default()
    }
}

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, random: u64) {
        // The first bits of an identifier's half are the same in all.
        self.0 = random.rotate_left(32);
    }
}

/// Takes what the query finds if it is in a channel that is meant, counts it, and keeps what comes first.
struct Hits {
    search: Arc<Search>,
    channels: Arc<HashMap<u64, ChannelId, Spread>>,
    known: Arc<HashSet<Key>>,
    after: Option<Rank>,
    most: usize,
}

struct SegmentHits {
    search: Arc<Search>,
    channels: Arc<HashMap<u64, ChannelId, Spread>>,
    known: Arc<HashSet<Key>>,
    after: Option<Rank>,
    most: usize,
    channel: Arc<dyn ColumnValues<u64>>,
    seq: Arc<dyn ColumnValues<i64>>,
    created: Arc<dyn ColumnValues<i64>>,
    total: u64,
    /// The last of them is on top.
    first: BinaryHeap<std::cmp::Reverse<(Rank, Key)>>,
}

impl Collector for Hits {
    type Fruit = Found;
    type Child = SegmentHits;

    fn for_segment(&self, _: SegmentOrdinal, segment: &SegmentReader) -> tantivy::Result<SegmentHits> {
        let columns = segment.fast_fields();
        Ok(SegmentHits {
            search: self.search.clone(),
            channels: self.channels.clone(),
            known: self.known.clone(),
            after: self.after,
            most: self.most,
            channel: columns.column_first_or_default("channel")?,
            seq: columns.column_first_or_default("seq")?,
            created: columns.column_first_or_default("created")?,
            total: 0,
            first: BinaryHeap::new(),
        })
    }

    fn requires_scoring(&self) -> bool {
        self.search.sort == Sort::Relevance
    }

    fn merge_fruits(&self, found: Vec<Found>) -> tantivy::Result<Found> {
        let total = found.iter().map(|found| found.total).sum();
        let mut hits: Vec<(Rank, Key)> = found.into_iter().flat_map(|found| found.hits).collect();
        hits.sort_unstable_by(|one, other| other.cmp(one));
        hits.truncate(self.most);
        Ok(Found { hits, total })
    }
}

impl SegmentCollector for SegmentHits {
    type Fruit = Found;

    fn collect(&mut self, doc: DocId, score: Score) {
        // What is no message is in no channel.
        let Some(channel) = self.channels.get(&self.channel.get_val(doc)) else { return };
        let key = (*channel, self.seq.get_val(doc));
        if !self.known.is_empty() && self.known.contains(&key) {
            return;
        }
        self.total += 1;
        let rank = self.search.rank(score, Timestamp(self.created.get_val(doc)), key);
        if self.after.is_some_and(|after| rank >= after) {
            return;
        }
        let is_full = self.first.len() >= self.most;
        if is_full && self.first.peek().is_none_or(|last| rank <= last.0.0) {
            return;
        }
        if is_full {
            self.first.pop();
        }
        self.first.push(std::cmp::Reverse((rank, key)));
    }

    fn harvest(self) -> Found {
        Found { hits: self.first.into_iter().map(|hit| hit.0).collect(), total: self.total }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn it_says_how_far_it_was_built() {
        let channel = |n| ChannelId(Uuid::from_u128(n));
        let folder = tempfile::tempdir().unwrap();
        let open = || Embedded::open(folder.path(), 16).unwrap();
        let index = open();
        assert_eq!(index.unbuilt(), Some(NOTHING));
        index.commit(&[(channel(1), 3)], Some((channel(2), 7))).unwrap();
        drop(index);
        let index = open();
        assert_eq!(index.unbuilt(), Some((channel(2), 7)));
        index.commit(&[(channel(1), 4)], None).unwrap();
        drop(index);
        let index = open();
        assert_eq!((index.unbuilt(), index.len()), (None, 0));
        assert_eq!(*index.places(), HashMap::from([(channel(1), 4)]));
    }
}
