//! The index of OpenSearch, for all nodes of a cluster.
//!
//! It is given words that are cut already, so it needs no plugin and finds what the embedded one finds. Each document carries the number of its
//! channel's newest event when it was read as its external version: what comes late or again changes nothing. Searches go to an alias, behind
//! which another index can be put ([`Remote::publish`]).

use std::collections::HashSet;
use std::time::Duration;

use opensearch::OpenSearch;
use opensearch::auth::Credentials;
use opensearch::http::headers::{CONTENT_TYPE, HeaderMap, HeaderValue};
use opensearch::http::transport::{SingleNodeConnectionPool, TransportBuilder};
use opensearch::http::{Method, Url};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::index::{Found, IndexError};
use crate::clock::Timestamp;
use crate::domain::id::ChannelId;
use crate::domain::search::document::{Document, Forms};
use crate::domain::search::query::Text;
use crate::domain::search::wanted::{HALF_LIFE_DAYS, Is, Key, Rank, Search, Sort, low};

/// What the index is like. Another number is another index, made from the start.
const FORMAT: u64 = 1;
/// How many words a prefix, or a word that may be spelt differently, may stand for.
const EXPANSIONS: u32 = 1_000;
/// How much less than the word itself another form of it counts.
const OTHER_FORM: f64 = 0.8;
/// How long OpenSearch may take for what nobody waits for.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many messages are read at once to be compared.
const PAGE: u64 = 1_000;

/// The index.
pub struct Remote {
    client: OpenSearch,
    alias: String,
    /// How long a search may take.
    patience: Duration,
}

impl Remote {
    /// Addresses an OpenSearch. It is not asked anything yet.
    ///
    /// # Errors
    /// The address is none.
    pub fn new(url: &str, alias: &str, patience: Duration) -> Result<Remote, IndexError> {
        let away = |error: &dyn std::fmt::Display| IndexError::Away(error.to_string());
        let mut url = Url::parse(url).map_err(|error| away(&error))?;
        let plain = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let (name, password) = (plain(url.username()), plain(url.password().unwrap_or_default()));
        // What is in a URL gets into logs.
        let _ = (url.set_username(""), url.set_password(None));
        let mut builder = TransportBuilder::new(SingleNodeConnectionPool::new(url)).timeout(PATIENCE).disable_proxy();
        if !name.is_empty() {
            builder = builder.auth(Credentials::Basic(name, password));
        }
        let transport = builder.build().map_err(|error| away(&error))?;
        Ok(Remote { client: OpenSearch::new(transport), alias: alias.to_owned(), patience })
    }

    async fn send(&self, method: Method, path: &str, body: Option<String>) -> Result<Value, IndexError> {
        self.send_within(None, method, path, body).await
    }

    async fn send_within(
        &self,
        patience: Option<Duration>,
        method: Method,
        path: &str,
        body: Option<String>,
    ) -> Result<Value, IndexError> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let sent = self.client.send(method, path, headers, None::<&()>, body, patience);
        let answer = Box::pin(sent).await.map_err(|error| IndexError::Away(error.to_string()))?;
        let status = answer.status_code().as_u16();
        let text = answer.text().await.map_err(|error| IndexError::Away(error.to_string()))?;
        if status == 404 && text.contains("index_not_found_exception") {
            return Err(IndexError::Unbuilt);
        }
        if !(200..300).contains(&status) {
            let why = text.chars().take(500).collect();
            return Err(IndexError::Refused { status, why });
        }
        serde_json::from_str(&text).map_err(|error| IndexError::Away(error.to_string()))
    }

    async fn ask(&self, method: Method, path: &str, body: Value) -> Result<Value, IndexError> {
        self.send(method, path, Some(body.to_string())).await
    }

    /// Returns the index behind the alias, if there is one that is like this release's.
    ///
    /// # Errors
    /// OpenSearch does not answer.
    pub async fn published(&self) -> Result<Option<String>, IndexError> {
        let found = match self.send(Method::Get, &format!("/{}/_mapping", self.alias), None).await {
            Err(IndexError::Unbuilt | IndexError::Refused { status: 404, .. }) => return Ok(None),
            found => found?,
        };
        let is_like =
            |(name, index): (&String, &Value)| (index["mappings"]["_meta"]["format"] == FORMAT).then(|| name.clone());
        Ok(found.as_object().and_then(|found| found.iter().find_map(is_like)))
    }

    /// Makes an index that nobody searches yet, and returns its name.
    ///
    /// # Errors
    /// OpenSearch does not answer, or refuses.
    pub async fn make(&self, now: Timestamp) -> Result<String, IndexError> {
        let name = format!("{}-{FORMAT}-{}", self.alias, now.0);
        let keyword = || json!({"type": "keyword"});
        let index = json!({
            // Whoever writes says when that is to be seen.
            "settings": {"refresh_interval": "-1", "max_result_window": 20_000},
            "mappings": {
                "dynamic": "strict",
                "_meta": {"format": FORMAT},
                "_source": {"includes": ["channel", "seq", "created", "digest"]},
                "properties": {
                    "key": keyword(), "channel": keyword(), "tie": keyword(), "seq": {"type": "long"},
                    "created": {"type": "long"}, "at": {"type": "date", "format": "epoch_millis"},
                    "author": keyword(), "mentions": keyword(), "marks": keyword(), "digest": keyword(),
                    "text": {"type": "text", "analyzer": "whitespace"}, "joined": keyword(), "stems": keyword()
                }
            }
        });
        self.ask(Method::Put, &format!("/{name}"), index).await?;
        Ok(name)
    }

    /// Removes an index that nobody searches.
    ///
    /// # Errors
    /// OpenSearch does not answer, or refuses.
    pub async fn remove(&self, name: &str) -> Result<(), IndexError> {
        self.send(Method::Delete, &format!("/{name}"), None).await.map(drop)
    }

    /// Has an index searched from now on, and removes the one before.
    ///
    /// # Errors
    /// OpenSearch does not answer, or refuses.
    pub async fn publish(&self, name: &str) -> Result<(), IndexError> {
        self.send(Method::Post, &format!("/{name}/_refresh"), None).await?;
        let before = match self.send(Method::Get, &format!("/_alias/{}", self.alias), None).await {
            Err(IndexError::Unbuilt | IndexError::Refused { status: 404, .. }) => json!({}),
            before => before?,
        };
        let before = before.as_object().into_iter().flat_map(|found| found.keys()).filter(|before| *before != name);
        let remove = before.map(|before| json!({"remove_index": {"index": before}}));
        let add = json!({"add": {"index": name, "alias": self.alias}});
        let actions: Vec<Value> = [add].into_iter().chain(remove).collect();
        self.ask(Method::Post, "/_aliases", json!({"actions": actions})).await?;
        Ok(())
    }

    /// Puts messages into an index, the one that is searched if none is named, in place of what it has of these, and takes others out,
    /// each with its version. Nothing older than what is there changes anything. It is seen after [`Remote::refresh`].
    ///
    /// # Errors
    /// OpenSearch does not answer, has too much to do, or there is no index.
    pub async fn put(&self, name: Option<&str>, documents: &[Document], gone: &[(Key, i64)]) -> Result<(), IndexError> {
        let mut body = String::new();
        let action = |what: &str, key: Key, version: i64| {
            json!({what: {"_id": id(key), "version": version, "version_type": "external_gte"}}).to_string() + "\n"
        };
        for document in documents {
            body += &action("index", (document.channel, document.seq), document.version);
            body += &source(document, &document.forms()).to_string();
            body.push('\n');
        }
        for (key, version) in gone {
            body += &action("delete", *key, *version);
        }
        if body.is_empty() {
            return Ok(());
        }
        // Without an alias, an index would be made that is like none of ours.
        let path = match name {
            Some(name) => format!("/{name}/_bulk"),
            None => format!("/{}/_bulk?require_alias=true", self.alias),
        };
        let answer = self.send(Method::Post, &path, Some(body)).await?;
        let items = answer["items"].as_array().into_iter().flatten().filter_map(Value::as_object).flatten();
        for (action, item) in items {
            let status = item["status"].as_u64().and_then(|status| u16::try_from(status).ok()).unwrap_or(0);
            match status {
                // What is there is newer, or there was nothing to take out.
                200..300 | 409 => {}
                404 if action == "delete" => {}
                404 => return Err(IndexError::Unbuilt),
                400 => {
                    tracing::error!(id = %item["_id"], why = %item["error"]["reason"], "OpenSearch does not take a message");
                    metrics::counter!("colink_search_refused_total").increment(1);
                }
                _ => return Err(IndexError::Refused { status, why: item["error"].to_string() }),
            }
        }
        Ok(())
    }

    /// Has searches see what was put into the index that they use.
    ///
    /// # Errors
    /// OpenSearch does not answer.
    pub async fn refresh(&self) -> Result<(), IndexError> {
        self.send(Method::Post, &format!("/{}/_refresh", self.alias), None).await.map(drop)
    }

    /// Returns how many messages searches see.
    ///
    /// # Errors
    /// OpenSearch does not answer.
    pub async fn count(&self) -> Result<u64, IndexError> {
        let answer = self.send(Method::Get, &format!("/{}/_count", self.alias), None).await?;
        Ok(answer["count"].as_u64().unwrap_or(0))
    }

    /// Finds messages, but none of `known`: so many, from the one behind `after` on if that is given.
    ///
    /// # Errors
    /// OpenSearch does not answer.
    pub async fn find(
        &self,
        search: &Search,
        known: &HashSet<Key>,
        after: Option<Rank>,
        most: usize,
    ) -> Result<Found, IndexError> {
        let mut body = json!({
            "size": most, "track_total_hits": true, "_source": ["channel", "seq", "created"], "query": query(search, known)
        });
        if search.sort == Sort::Relevance {
            body["sort"] = json!([{"_score": "desc"}, {"created": "desc"}, {"tie": "desc"}, {"seq": "desc"}]);
        } else {
            let order = if search.sort == Sort::Newest { "desc" } else { "asc" };
            // Of one time, channels come in one order whichever way it goes.
            body["sort"] = json!([{"created": order}, {"tie": "desc"}, {"seq": order}]);
            if let Some(Rank { at, tie, seq, .. }) = after {
                let sign = if search.sort == Sort::Newest { 1 } else { -1 };
                body["search_after"] = json!([at * sign, hex(tie), seq * sign]);
            }
        }
        let path = format!("/{}/_search?allow_partial_search_results=false", self.alias);
        let answer = self.send_within(Some(self.patience), Method::Post, &path, Some(body.to_string())).await?;
        let total = answer["hits"]["total"]["value"].as_u64().unwrap_or(0);
        let hit = |hit: &Value| {
            let source = &hit["_source"];
            let channel: ChannelId = source["channel"].as_str()?.parse().ok()?;
            let key = (channel, source["seq"].as_i64()?);
            let mut rank = search.rank(0.0, Timestamp(source["created"].as_i64()?), key);
            if search.sort == Sort::Relevance {
                // How new it is was counted there.
                rank.score = hit["_score"].as_f64().or_else(|| hit["sort"][0].as_f64())? as f32;
            }
            Some((rank, key))
        };
        let hits: Option<Vec<_>> = answer["hits"]["hits"].as_array().into_iter().flatten().map(hit).collect();
        let malformed = || IndexError::Away("its answer is malformed".to_owned());
        Ok(Found { hits: hits.ok_or_else(malformed)?, total })
    }

    /// Returns a number that two indexes have in common if they hold the same messages, and how many these are.
    ///
    /// # Errors
    /// OpenSearch does not answer.
    pub async fn digest(&self) -> Result<(u64, u64), IndexError> {
        let (mut digest, mut count, mut after) = (0u64, 0, None::<Value>);
        loop {
            let mut body =
                json!({"size": PAGE, "_source": ["digest"], "query": {"match_all": {}}, "sort": [{"key": "asc"}]});
            if let Some(after) = after {
                body["search_after"] = after;
            }
            let answer = self.ask(Method::Post, &format!("/{}/_search", self.alias), body).await?;
            let hits = answer["hits"]["hits"].as_array().cloned().unwrap_or_default();
            let Some(last) = hits.last() else { return Ok((digest, count)) };
            after = Some(last["sort"].clone());
            for hit in &hits {
                let one = hit["_source"]["digest"].as_str().and_then(|text| u64::from_str_radix(text, 16).ok());
                digest = digest.wrapping_add(one.unwrap_or_default());
                count += 1;
            }
        }
    }
}

fn id((channel, seq): Key) -> String {
    format!("{channel}:{seq}")
}

/// Writes a number so that texts sort as numbers do.
fn hex(number: u64) -> String {
    format!("{number:016x}")
}

fn source(document: &Document, forms: &Forms) -> Value {
    let words: Vec<&str> = forms.analysis.words.iter().map(|word| word.text.as_str()).collect();
    json!({
        "key": id((document.channel, document.seq)),
        "channel": document.channel,
        "tie": hex(low(document.channel)),
        "seq": document.seq,
        "created": document.created_at.0,
        "at": document.created_at.0 / 1_000,
        "author": document.author,
        "mentions": document.mentions,
        "marks": document.marks.iter().map(|mark| mark.as_str()).collect::<Vec<_>>(),
        "digest": hex(document.digest()),
        "text": words.join(" "),
        "joined": forms.analysis.joined.iter().map(|(text, _)| text).collect::<Vec<_>>(),
        "stems": forms.stems.iter().map(|(stem, _)| stem).collect::<Vec<_>>(),
    })
}

fn query(search: &Search, known: &HashSet<Key>) -> Value {
    let (mut must, mut filter, mut must_not) =
        (Vec::new(), vec![json!({"terms": {"channel": search.channels}})], Vec::new());
    for condition in &search.conditions {
        let (is_scored, query) = match &condition.is {
            Is::Text(wanted) => (true, text(wanted)),
            Is::By(users) => (false, json!({"terms": {"author": users}})),
            Is::Mentions(users) => (false, json!({"terms": {"mentions": users}})),
            Is::Created(span) => (false, json!({"range": {"created": {"gte": span.start.0, "lt": span.end.0}}})),
            Is::Mark(mark) => (false, json!({"term": {"marks": mark.as_str()}})),
            Is::OneOf(keys) => (false, json!({"terms": {"key": keys.iter().copied().map(id).collect::<Vec<_>>()}})),
        };
        match (condition.not, is_scored) {
            (true, _) => must_not.push(query),
            (false, true) => must.push(query),
            (false, false) => filter.push(query),
        }
    }
    if !known.is_empty() {
        must_not.push(json!({"terms": {"key": known.iter().copied().map(id).collect::<Vec<_>>()}}));
    }
    let found = json!({"bool": {"must": must, "filter": filter, "must_not": must_not}});
    if search.sort != Sort::Relevance {
        return found;
    }
    let scale = format!("{HALF_LIFE_DAYS}d");
    json!({"function_score": {
        "query": found,
        "functions": [{"exp": {"at": {"origin": search.now.0 / 1_000, "scale": scale, "decay": 0.5}}}, {"weight": 1}],
        "score_mode": "sum",
        "boost_mode": "multiply"
    }})
}

/// Returns what finds words, or a form of them that is as good.
fn text(text: &Text) -> Value {
    let row = text.row.join(" ");
    let mut forms = vec![match &text.row[..] {
        [word] if text.is_prefix => json!({"prefix": {"text": {"value": word}}}),
        [word] => json!({"term": {"text": {"value": word}}}),
        _ if text.is_prefix => json!({"match_phrase_prefix": {"text": {"query": row, "max_expansions": EXPANSIONS}}}),
        _ => json!({"match_phrase": {"text": {"query": row}}}),
    }];
    if let ([word], 1..) = (&text.row[..], text.typos) {
        forms.push(json!({"fuzzy": {"text": {
            "value": word, "fuzziness": text.typos, "transpositions": true, "max_expansions": EXPANSIONS
        }}}));
    }
    let mut other = |field: &str, form: &String| {
        forms.push(json!({"term": {field: {"value": form, "boost": OTHER_FORM}}}));
    };
    for form in [&text.joined, &text.stem].into_iter().flatten() {
        other("text", form);
    }
    text.joined.iter().for_each(|joined| other("joined", joined));
    text.stem.iter().for_each(|stem| other("stems", stem));
    json!({"dis_max": {"queries": forms}})
}
