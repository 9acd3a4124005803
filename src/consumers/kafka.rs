//! The relay: the consumer that takes every event on to a topic of Apache Kafka or Redpanda.
//!
//! A record's key is its stream's identifier, so a stream's events are in one partition, in their order. All of a batch are sent without
//! waiting for one another, and it is done when the broker has all of them on as many replicas as the topic asks for
//! (`acks=all`); the producer is idempotent, so its own tries do not double or reorder anything. A batch that failed is sent
//! again as a whole: who reads the topic may see an event twice, and knows it by its `id`, or by its `seq`.

use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};

use super::{Consumer, Trouble, record};
use crate::domain::event::Event;

/// How long a broker may take to answer what is asked of it at the start.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the producer tries to get a record to its broker, in milliseconds.
const MESSAGE_TIMEOUT_MS: u32 = 30_000;

/// What librdkafka has to say goes among the details: it repeats itself many times a second while no broker is there, and what
/// matters comes back as an error.
#[derive(Clone, Copy)]
struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, message, "librdkafka");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
    }
}

/// Where the topic is.
#[derive(Clone, Debug)]
pub struct Topic {
    /// Brokers to begin with.
    pub brokers: String,
    /// Its name.
    pub name: String,
    /// Partitions, if it is made.
    pub partitions: i32,
    /// Replicas of each, if it is made.
    pub replication: i32,
    /// Megabytes of records that may wait.
    pub buffer_mb: u32,
}

/// The consumer.
pub struct Relay {
    topic: Topic,
    config: ClientConfig,
    producer: FutureProducer<Quiet>,
    is_there: bool,
}

impl Relay {
    /// Makes the relay. It reaches for no broker yet.
    ///
    /// # Errors
    /// The brokers are written in a way that cannot be read.
    pub fn new(topic: Topic) -> Result<Relay, KafkaError> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &topic.brokers)
            .set("client.id", "colink-relay")
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("compression.type", "none")
            .set("linger.ms", "5")
            .set("message.timeout.ms", MESSAGE_TIMEOUT_MS.to_string())
            .set("message.max.bytes", "8000000")
            .set("queue.buffering.max.kbytes", (topic.buffer_mb * 1_024).to_string());
        let producer = config.create_with_context(Quiet)?;
        Ok(Relay { topic, config, producer, is_there: false })
    }

    /// Makes the topic, unless it is there.
    async fn make_topic(&mut self) -> Result<(), Trouble> {
        let down = |error: KafkaError| Trouble::Down(format!("no Kafka at {}: {error}", self.topic.brokers));
        let admin: AdminClient<Quiet> = self.config.create_with_context(Quiet).map_err(down)?;
        let Topic { name, partitions, replication, .. } = &self.topic;
        let topic = NewTopic::new(name, *partitions, TopicReplication::Fixed(*replication));
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE)).request_timeout(Some(PATIENCE));
        let made = admin.create_topics([&topic], &options).await.map_err(down)?;
        for made in made {
            match made {
                Ok(_) => tracing::info!(topic = name, partitions, replication, "made the topic of events"),
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((_, code)) => return Err(Trouble::Down(format!("cannot make the topic {name}: {code}"))),
            }
        }
        self.is_there = true;
        Ok(())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // What is still on its way is given again by the next one.
        self.producer.purge(rdkafka::producer::PurgeConfig::default().queue().inflight());
    }
}

impl Consumer for Relay {
    const NAME: &'static str = "relay";

    async fn consume(&mut self, events: &[Event]) -> Result<(), Trouble> {
        if !self.is_there {
            self.make_topic().await?;
        }
        let done = self.send(events).await;
        if done.is_err() {
            // Whatever it was, the topic may not be there any more.
            self.is_there = false;
            self.mend()?;
        }
        done
    }
}

impl Relay {
    /// Makes the producer anew if it gave itself up: an idempotent one does, when a broker has lost what it acknowledged.
    fn mend(&mut self) -> Result<(), Trouble> {
        if let Some((code, why)) = self.producer.client().fatal_error() {
            tracing::warn!(%code, why, "the producer gave itself up and is made anew");
            let again = self.config.create_with_context(Quiet);
            self.producer = again.map_err(|error| Trouble::Down(error.to_string()))?;
        }
        Ok(())
    }

    /// Sends all of them, and waits until the brokers have them.
    async fn send(&self, events: &[Event]) -> Result<(), Trouble> {
        let mut on_their_way = Vec::with_capacity(events.len());
        for (at, event) in events.iter().enumerate() {
            let value = record::value(event).map_err(|error| Trouble::Event { at, why: error.to_string() })?;
            let key = event.stream.to_string();
            let headers = record::headers(event)
                .into_iter()
                .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(&value) }));
            let record = FutureRecord::to(&self.topic.name)
                .key(&key)
                .payload(&value)
                .headers(headers)
                .timestamp(event.at.0 / 1_000);
            match self.producer.send_result(record) {
                Ok(delivery) => on_their_way.push((at, delivery)),
                Err((error, _)) => return Err(trouble(at, &error)),
            }
        }
        for (at, delivery) in on_their_way {
            match delivery.await {
                Ok(Ok(_)) => {}
                Ok(Err((error, _))) => return Err(trouble(at, &error)),
                Err(_) => return Err(Trouble::Down("the producer is gone".to_owned())),
            }
        }
        Ok(())
    }
}

/// Tells what is one record's own fault from what is not.
fn trouble(at: usize, error: &KafkaError) -> Trouble {
    let its_own =
        [RDKafkaErrorCode::MessageSizeTooLarge, RDKafkaErrorCode::InvalidMessageSize, RDKafkaErrorCode::InvalidRecord];
    match error.rdkafka_error_code() {
        Some(code) if its_own.contains(&code) => Trouble::Event { at, why: error.to_string() },
        _ => Trouble::Down(format!("Kafka does not take events: {error}")),
    }
}
