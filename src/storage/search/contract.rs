//! What every index has to do: one suite, for the one that is built in and, if `COLINK_TEST_OPENSEARCH` says where, that of OpenSearch.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use time::UtcOffset;
use tokio::runtime::Runtime;
use uuid::Uuid;

use super::embedded::Embedded;
use super::index::{Found, Index, IndexError};
use super::opensearch::Remote;
use crate::clock::Timestamp;
use crate::domain::id::{ChannelId, UserId};
use crate::domain::search::document::{Document, Mark, has_link};
use crate::domain::search::query::{Part, Query, What};
use crate::domain::search::wanted::{Condition, Is, Key, Rank, Search, Sort};

const NOW: Timestamp = Timestamp(1_795_694_400_000_000);
const DAY: i64 = 86_400_000_000;

/// An index, made new.
struct Under {
    index: Index,
    _folder: Option<tempfile::TempDir>,
}

/// Which index.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Embedded,
    Remote,
}

fn kinds() -> Vec<Kind> {
    let remote = std::env::var_os("COLINK_TEST_OPENSEARCH").map(|_| Kind::Remote);
    [Kind::Embedded].into_iter().chain(remote).collect()
}

impl Under {
    async fn new(kind: Kind) -> Under {
        static NUMBER: AtomicI64 = AtomicI64::new(0);
        match kind {
            Kind::Embedded => {
                let folder = tempfile::tempdir().unwrap();
                let index = Index::Embedded(Arc::new(Embedded::open(folder.path(), 16).unwrap()));
                Under { index, _folder: Some(folder) }
            }
            Kind::Remote => {
                let _ = rustls::crypto::ring::default_provider().install_default();
                let url = std::env::var("COLINK_TEST_OPENSEARCH").unwrap();
                let number = NUMBER.fetch_add(1, Ordering::Relaxed);
                let alias = format!("contract-{}-{number}", std::process::id());
                let remote = Remote::new(&url, &alias, Duration::from_secs(10)).unwrap();
                let name = remote.make(Timestamp(number)).await.unwrap();
                remote.publish(&name).await.unwrap();
                Under { index: Index::Remote(Arc::new(remote)), _folder: None }
            }
        }
    }

    async fn put(&self, documents: &[Document], gone: &[(Key, i64)]) {
        match &self.index {
            Index::Embedded(index) => {
                // The last of several with one key is the one that counts, so each is put in by itself.
                documents.chunks(1).for_each(|one| index.put(one, &[]).unwrap());
                let gone: Vec<Key> = gone.iter().map(|(key, _)| *key).collect();
                index.put(&[], &gone).unwrap();
                index.commit(&[(channel(9), 5)], None).unwrap();
            }
            Index::Remote(index) => {
                index.put(None, documents, gone).await.unwrap();
                index.refresh().await.unwrap();
            }
        }
    }

    async fn find(&self, search: &Arc<Search>, known: &HashSet<Key>, after: Option<Rank>, most: usize) -> Found {
        match &self.index {
            Index::Embedded(index) => index.find(search, known, after, most).unwrap(),
            Index::Remote(index) => index.find(search, known, after, most).await.unwrap(),
        }
    }

    async fn digest(&self) -> (u64, u64) {
        match &self.index {
            Index::Embedded(index) => index.digest().unwrap(),
            Index::Remote(index) => index.digest().await.unwrap(),
        }
    }
}

fn channel(n: u8) -> ChannelId {
    ChannelId(Uuid::from_u128(u128::from(n) + 1))
}

fn user(n: u8) -> UserId {
    UserId(Uuid::from_u128(u128::from(n) + 1_000))
}

const WORDS: [&str; 23] = [
    "deploy",
    "deployed",
    "deploys",
    "the",
    "Käse",
    "kase",
    "getUserName",
    "getusername",
    "user_name",
    "username",
    "Wi-Fi",
    "wifi",
    "東京都",
    "京都",
    "都",
    "部署",
    "🎉",
    "tada",
    "example.com",
    "https://example.com/x",
    "12:30",
    "it's",
    "a",
];

fn words() -> impl Strategy<Value = String> {
    proptest::collection::vec(proptest::sample::select(WORDS.to_vec()), 1..6).prop_map(|words| words.join(" "))
}

fn documents() -> impl Strategy<Value = Vec<Document>> {
    let one = (0u8..4, 1i64..12, 0u8..3, 0i64..20, words(), proptest::collection::vec(0usize..4, 0..3));
    proptest::collection::vec(one, 1..25).prop_map(|all| {
        let made = all.into_iter().zip(1..).map(|((c, seq, author, day, text, marks), version)| {
            let mut marks: Vec<Mark> = marks.into_iter().map(|at| Mark::ALL[at]).collect();
            marks.dedup();
            let created_at = Timestamp(NOW.0 - day * DAY);
            let mentions = (seq % 2 == 0).then(|| user(author)).into_iter().collect();
            Document { channel: channel(c), seq, author: user(author), created_at, mentions, marks, text, version }
        });
        made.collect()
    })
}

fn conditions() -> impl Strategy<Value = Vec<Condition>> {
    let forms = proptest::sample::select(vec!["{}", "\"{}\"", "{}*"]);
    let text = (words(), forms, any::<bool>()).prop_map(|(words, form, forgives)| {
        let query = Query::parse(&form.replace("{}", &words), NOW, UtcOffset::UTC);
        let query = query.map(|query| if forgives { query.forgiving().unwrap_or(query) } else { query });
        let parts = query.map(|query| query.parts).unwrap_or_default();
        let is = parts.into_iter().find_map(|part| if let What::Text(text) = part.what { Some(text) } else { None });
        is.map_or(Is::By(vec![user(0)]), Is::Text)
    });
    let users = || proptest::collection::vec(0u8..3, 1..3).prop_map(|users| users.into_iter().map(user).collect());
    let days = (0i64..20, 0i64..20);
    let is = prop_oneof![
        5 => text,
        1 => users().prop_map(Is::By),
        1 => users().prop_map(Is::Mentions),
        1 => days.prop_map(|(a, b)| Is::Created(Timestamp(NOW.0 - a.max(b) * DAY)..Timestamp(NOW.0 - a.min(b) * DAY))),
        1 => (0usize..4).prop_map(|at| Is::Mark(Mark::ALL[at])),
        1 => proptest::collection::hash_set((0u8..4, 1i64..12), 0..5)
            .prop_map(|keys| Is::OneOf(keys.into_iter().map(|(c, seq)| (channel(c), seq)).collect())),
    ];
    proptest::collection::vec((is, proptest::bool::weighted(0.2)).prop_map(|(is, not)| Condition { not, is }), 1..4)
}

type Asked = (Vec<Condition>, u8, bool, usize);

async fn finds_what_fits(
    kind: Kind,
    documents: Vec<Document>,
    (first, gone): (usize, HashSet<(u8, i64)>),
    searches: Vec<Asked>,
) -> Result<(), TestCaseError> {
    let under = Under::new(kind).await;
    let mut there: HashMap<Key, Document> = HashMap::new();
    let (before, after) = documents.split_at(first.min(documents.len()));
    let gone: Vec<(Key, i64)> = gone.into_iter().map(|(c, seq)| ((channel(c), seq), 1_000)).collect();
    for (some, gone) in [(before, &[][..]), (after, &gone[..])] {
        under.put(some, gone).await;
        there.extend(some.iter().map(|document| ((document.channel, document.seq), document.clone())));
        gone.iter().for_each(|(key, _)| drop(there.remove(key)));
    }
    for (conditions, channels, is_narrow, sort) in searches {
        let sort = [Sort::Relevance, Sort::Newest, Sort::Oldest][sort];
        let channels = (0..4).filter(|n| channels & (1 << n) != 0).map(channel).collect();
        let search = Arc::new(Search { conditions, channels, is_narrow, sort, now: NOW });
        let fitting = there.values().filter(|document| search.matches(document, &document.forms()));
        let mut fits: Vec<Key> = fitting.map(|document| (document.channel, document.seq)).collect();
        fits.sort_unstable();
        let all = under.find(&search, &HashSet::new(), None, 100).await;
        let mut found: Vec<Key> = all.hits.iter().map(|(_, key)| *key).collect();
        prop_assert!(all.hits.is_sorted_by(|one, other| one.0 >= other.0), "{:?}", all.hits);
        found.sort_unstable();
        prop_assert_eq!((&found, all.total), (&fits, fits.len() as u64), "{:?}", search);
        // Page by page it is the same.
        if sort != Sort::Relevance {
            let (mut pages, mut at) = (Vec::new(), None);
            loop {
                let page = under.find(&search, &HashSet::new(), at, 2).await;
                at = page.hits.last().map(|(rank, _)| *rank);
                if page.hits.is_empty() {
                    break;
                }
                pages.extend(page.hits);
            }
            prop_assert_eq!(&pages, &all.hits);
        }
        // What is known is left out, and not counted.
        let known: HashSet<Key> = fits.iter().take(2).copied().collect();
        let rest = under.find(&search, &known, None, 100).await;
        prop_assert_eq!(rest.total, (fits.len() - known.len()) as u64);
        prop_assert!(rest.hits.iter().all(|(_, key)| !known.contains(key)));
    }
    let expected = there.values().fold(0u64, |sum, document| sum.wrapping_add(document.digest()));
    prop_assert_eq!(under.digest().await, (expected, there.len() as u64));
    Ok(())
}

/// An index finds what the plain matcher says that fits, and nothing else; in pages as in one.
#[test]
fn an_index_finds_what_fits() {
    let runtime = Runtime::new().unwrap();
    for kind in kinds() {
        let mut runner = TestRunner::new(Config { cases: 60, ..Config::default() });
        let changes = (0usize..25, proptest::collection::hash_set((0u8..4, 1i64..12), 0..4));
        let searches = proptest::collection::vec((conditions(), 1u8..16, any::<bool>(), 0usize..3), 1..12);
        let done = runner.run(&(documents(), changes, searches), |(documents, changes, searches)| {
            runtime.block_on(Box::pin(finds_what_fits(kind, documents, changes, searches)))
        });
        done.unwrap_or_else(|error| panic!("{kind:?}: {error}"));
    }
}

fn said(seq: i64, days_ago: i64, text: &str) -> Document {
    let marks = if has_link(text) { vec![Mark::Link] } else { Vec::new() };
    let created_at = Timestamp(NOW.0 - days_ago * DAY);
    let (channel, author, text) = (channel(0), user(0), text.to_owned());
    Document { channel, seq, author, created_at, mentions: Vec::new(), marks, text, version: seq }
}

/// What people look for, and what they want to see first.
#[tokio::test]
async fn what_is_meant_comes_first() {
    let texts = [
        (1, 400, "The deploy of the billing service failed with a timeout"),
        (2, 2, "deploy"),
        (
            3,
            3,
            "I wrote a long text in which somewhere, among many other words about lunch and weather, deploy is said once, and so on",
        ),
        (4, 1, "Deployments are frozen until Monday"),
        (5, 300, "billing service runbook: https://wiki.example.com/billing-service"),
        (6, 10, "getUserName returns null in user_service.rs when the token is expired"),
        (7, 5, "das Käsebrötchen ist für dich, schöne Grüße aus Zürich"),
        (8, 5, "crème brûlée at the café, s'il vous plaît"),
        (9, 5, "東京都庁で会議があります"),
        (10, 5, "회의는 내일 오전입니다"),
        (11, 5, "明天下午三点开会"),
        (12, 5, "kubernetes upgrade to v1.31.2 went fine 🎉"),
        (13, 5, "the quick brown fox"),
        (14, 200, "the brown quick fox"),
        (15, 5, "error E0505: cannot move out of `x` because it is borrowed"),
        (16, 5, "ping 10.0.0.12:8080 or http://status.example.com/health?x=1"),
    ];
    for kind in kinds() {
        let under = Under::new(kind).await;
        let documents: Vec<Document> = texts.iter().map(|(seq, days, text)| said(*seq, *days, text)).collect();
        under.put(&documents, &[]).await;
        for (asked, first) in [
            ("deploy", &[2][..]),
            ("deployment", &[2, 4][..]),
            ("billing service", &[1, 5][..]),
            ("\"service failed\"", &[1][..]),
            ("getusername", &[6][..]),
            ("user_service", &[6][..]),
            ("user service", &[6][..]),
            ("kasebrotchen", &[7][..]),
            ("grusse zurich", &[7][..]),
            ("CREME BRULEE", &[8][..]),
            ("東京都", &[9][..]),
            ("会議", &[9][..]),
            ("회의", &[10][..]),
            ("开会", &[11][..]),
            ("三点", &[11][..]),
            ("v1.31", &[12][..]),
            (":tada:", &[12][..]),
            ("kubernets", &[12][..]),
            ("kuberentes", &[12][..]),
            ("\"quick brown\"", &[13][..]),
            ("quick brown fox", &[13, 14][..]),
            ("E0505", &[15][..]),
            ("borrow", &[15][..]),
            ("10.0.0.12", &[16][..]),
            ("status.example.com", &[16][..]),
            ("wiki.example.com/billing", &[5][..]),
            ("example -wiki", &[16][..]),
        ] {
            let query = Query::parse(asked, NOW, UtcOffset::UTC).unwrap();
            let search = |query: &Query| {
                let condition = |part: &Part| match &part.what {
                    What::Text(text) => Condition { not: part.not, is: Is::Text(text.clone()) },
                    what => panic!("{what:?}"),
                };
                let conditions = query.parts.iter().map(condition).collect();
                let channels = HashSet::from([channel(0)]);
                Arc::new(Search { conditions, channels, is_narrow: false, sort: Sort::Relevance, now: NOW })
            };
            let mut found = under.find(&search(&query), &HashSet::new(), None, 10).await;
            if found.total == 0
                && let Some(forgiving) = query.forgiving()
            {
                found = under.find(&search(&forgiving), &HashSet::new(), None, 10).await;
            }
            let seqs: Vec<i64> = found.hits.iter().map(|(_, (_, seq))| *seq).collect();
            let (mut expected, mut top) = (first.to_vec(), seqs.iter().copied().take(first.len()).collect::<Vec<_>>());
            expected.sort_unstable();
            top.sort_unstable();
            assert_eq!(top, expected, "{kind:?}: {asked} finds {seqs:?}");
        }
    }
}

/// What is older than what is there changes nothing.
#[tokio::test]
async fn what_comes_late_changes_nothing() {
    let Some(Kind::Remote) = kinds().pop() else { return };
    let under = Under::new(Kind::Remote).await;
    let (new, old) = (Document { version: 9, ..said(1, 0, "new") }, Document { version: 8, ..said(1, 0, "old") });
    under.put(std::slice::from_ref(&new), &[]).await;
    under.put(std::slice::from_ref(&old), &[((channel(0), 1), 7)]).await;
    assert_eq!(under.digest().await, (new.digest(), 1));
    under.put(&[], &[((channel(0), 1), 10)]).await;
    under.put(std::slice::from_ref(&new), &[]).await;
    assert_eq!(under.digest().await, (0, 0));
}

/// Where there is no index, nothing is made that is like one.
#[tokio::test]
async fn nothing_is_put_where_no_index_is() {
    let Some(Kind::Remote) = kinds().pop() else { return };
    let url = std::env::var("COLINK_TEST_OPENSEARCH").unwrap();
    let remote = Remote::new(&url, &format!("nothing-{}", std::process::id()), Duration::from_secs(10)).unwrap();
    let one = said(1, 0, "one");
    let put = remote.put(None, std::slice::from_ref(&one), &[]).await;
    assert!(matches!(put, Err(IndexError::Unbuilt)), "{put:?}");
    assert_eq!(remote.published().await.unwrap(), None);
    assert!(matches!(remote.count().await, Err(IndexError::Unbuilt)));
}

/// Another index can be put behind the alias, and the one before is gone.
#[tokio::test]
async fn an_index_is_put_in_place_of_another() {
    let Some(Kind::Remote) = kinds().pop() else { return };
    let under = Under::new(Kind::Remote).await;
    let Index::Remote(remote) = &under.index else { unreachable!("it was asked for") };
    under.put(&[said(1, 0, "before")], &[]).await;
    let name = remote.make(NOW).await.unwrap();
    let after = said(1, 0, "after");
    remote.put(Some(&name), std::slice::from_ref(&after), &[]).await.unwrap();
    assert_eq!(under.digest().await, (said(1, 0, "before").digest(), 1));
    remote.publish(&name).await.unwrap();
    assert_eq!(under.digest().await, (after.digest(), 1));
    assert_eq!(remote.published().await.unwrap(), Some(name));
}
