//! The topic of events as somebody else reads it, held to what is stored.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Headers as _, Message as _};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::Value;
use uuid::Uuid;

/// How long the last events may take to get there.
const LIMIT: Duration = Duration::from_secs(30);

/// What the database has of an event: its stream, number, identifier, kind and payload.
pub(crate) type Row = (Uuid, i64, Uuid, String, String);

/// Asks a database for them.
pub(crate) const STORED: &str = "SELECT stream_id, seq, event_id, kind, payload FROM events";

/// Returns a name that nobody else has.
pub(crate) fn unique(name: &str) -> String {
    format!("{name}-{:016x}", getrandom::u64().unwrap())
}

/// A record as it is on the topic.
struct Record {
    partition: i32,
    key: String,
    value: Value,
    headers: HashMap<String, String>,
}

/// Reads a topic from its beginning until each of these events is among what was read, or time is up.
fn read(brokers: &str, topic: &str, wanted: &HashSet<String>) -> Vec<Record> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", unique("reader"))
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let end = Instant::now() + LIMIT;
    let mut partitions = TopicPartitionList::new();
    // The topic is made when the broker is there.
    while partitions.count() == 0 && Instant::now() < end {
        let Ok(metadata) = consumer.fetch_metadata(Some(topic), Duration::from_secs(1)) else { continue };
        for partition in metadata.topics()[0].partitions() {
            partitions.add_partition_offset(topic, partition.id(), Offset::Beginning).unwrap();
        }
    }
    consumer.assign(&partitions).unwrap();
    let (mut records, mut missing) = (Vec::new(), wanted.clone());
    while !missing.is_empty() && Instant::now() < end {
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else { continue };
        let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap().to_vec()).unwrap();
        let headers = message.headers().unwrap().iter().map(|header| (header.key.to_owned(), text(header.value)));
        let record = Record {
            partition: message.partition(),
            key: text(message.key()),
            value: serde_json::from_slice(message.payload().unwrap()).unwrap(),
            headers: headers.collect(),
        };
        missing.remove(record.value["id"].as_str().unwrap());
        records.push(record);
    }
    records
}

/// Waits until the topic has everything that is stored, and checks that it has nothing else, and each stream's events in order.
/// Returns how many came more than once.
pub(crate) async fn has_everything(stored: Vec<Row>, brokers: &str, topic: &str) -> usize {
    let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
    tokio::task::spawn_blocking(move || check(&stored, &brokers, &topic)).await.unwrap()
}

fn check(stored: &[Row], brokers: &str, topic: &str) -> usize {
    let stored: HashMap<String, &Row> = stored.iter().map(|row| (row.2.to_string(), row)).collect();
    let records = read(brokers, topic, &stored.keys().cloned().collect());
    let mut last: HashMap<&str, (i64, i32)> = HashMap::new();
    let mut there = HashSet::new();
    let schema: Value = serde_json::from_str(include_str!("../../docs/event.schema.json")).unwrap();
    let keys = |object: &Value| object.as_object().unwrap().keys().cloned().collect::<HashSet<_>>();
    let fields = keys(&schema["properties"]);
    for Record { partition, key, value, headers } in &records {
        let id = value["id"].as_str().unwrap();
        there.insert(id);
        assert_eq!(keys(value), fields, "the record is as its schema says");
        let (stream, seq, _, kind, payload) = stored.get(id).unwrap_or_else(|| panic!("{value} is not stored"));
        assert_eq!((&value["stream_id"], &value["seq"]), (&Value::from(stream.to_string()), &Value::from(*seq)));
        assert_eq!((&value["kind"], &value["version"]), (&Value::from(kind.clone()), &Value::from(1)));
        let (mut told, stored) = (value["payload"].clone(), serde_json::from_str::<Value>(payload).unwrap());
        // What was deleted since is forgotten in the database.
        if stored["text"] == ""
            && let Some(told) = told.as_object_mut()
        {
            told.insert("text".to_owned(), "".into());
            told.retain(|field, _| stored.get(field).is_some());
        }
        assert_eq!(told, stored);

        let (last, of) = last.entry(key).or_insert((0, *partition));
        assert!(*seq <= *last + 1, "{key} jumps from {last} to {seq}");
        assert_eq!(partition, of, "a stream is in one partition");
        *last = (*last).max(*seq);

        assert_eq!((&value["stream_id"], &headers["ce_subject"]), (&Value::from(key.clone()), key));
        assert_eq!((id, &value["at"]), (&*headers["ce_id"], &Value::from(headers["ce_time"].clone())));
        assert_eq!(headers["ce_type"], format!("colink.{kind}.v1"));
        assert_eq!((&*headers["ce_specversion"], &*headers["content-type"]), ("1.0", "application/json"));
    }
    let missing: Vec<_> = stored.iter().filter(|(id, _)| !there.contains(id.as_str())).map(|(_, row)| row).collect();
    assert!(
        missing.is_empty(),
        "{} of {} events are not on the topic, such as {:?}",
        missing.len(),
        stored.len(),
        missing[0]
    );
    records.len() - stored.len()
}
