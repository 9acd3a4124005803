//! The configuration: one struct a section, with defaults that are sane in production.
//!
//! [`Config::load`] puts it together from the defaults, a file, the environment and the command line ([`load`] tells
//! the order). `config.toml` at the top of the repository shows every key; a test keeps the two equal.
//!
//! To add a key: write it in the `sections!` list with its unit, its default and its range, and in `config.toml` with
//! a line of why. A key that holds a secret is a [`Secret`] and is named in `load::SECRETS`.

use std::fmt::{Debug, Display, Formatter};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::domain::rate::Rate;

mod load;
mod network;

pub use load::{ConfigErrors, Sources};
pub use network::Network;

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_S: u64 = 24 * 60 * 60;
const MIB: usize = 1_024 * 1_024;
/// More than anybody needs of anything that is counted, and little enough for every queue to be made.
const MANY: usize = 10_000_000;

/// A text that is never shown: neither in logs nor in errors.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Returns the text itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Secret(text)
    }
}

impl Debug for Secret {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl Display for Secret {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// How log lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// A value that is not allowed, or two that do not go together.
struct Problem {
    /// The keys at fault, the likeliest first.
    keys: &'static [&'static str],
    /// One sentence that names them.
    text: String,
}

fn out_of_range<T: PartialOrd + Display + Default>(value: &T, off: bool, range: &RangeInclusive<T>) -> Option<String> {
    if range.contains(value) || (off && *value == T::default()) {
        return None;
    }
    let zero = if off { "0 or " } else { "" };
    Some(format!("must be {zero}from {} to {}, not {value}", range.start(), range.end()))
}

/// Makes each section's struct, its defaults and its range checks. Behind a default stands the range that is allowed,
/// with `0 or` in front of it where 0 switches a limit off.
macro_rules! sections {
    ($($(#[$sdoc:meta])* $section:ident: $name:ident {
        $($(#[$doc:meta])* $field:ident: $type:ty = $default:expr $(, $(0 $or:ident)? [$range:expr])?;)*
    })*) => {
        $(
            $(#[$sdoc])*
            #[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
            #[serde(default, deny_unknown_fields)]
            pub struct $name { $($(#[$doc])* pub $field: $type),* }

            impl Default for $name {
                fn default() -> Self {
                    $name { $($field: $default),* }
                }
            }
        )*

        /// All of it.
        #[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Config { $($(#[$sdoc])* pub $section: $name),* }

        impl Config {
            fn check_ranges(&self, problems: &mut Vec<Problem>) {
                $($($(
                    let off = !<[&str]>::is_empty(&[$(stringify!($or))?]);
                    if let Some(text) = out_of_range(&self.$section.$field, off, &$range) {
                        const KEY: &str = concat!(stringify!($section), ".", stringify!($field));
                        problems.push(Problem { keys: &[KEY], text: format!("`{KEY}` {text}") });
                    }
                )?)*)*
            }
        }
    };
}

sections! {
    /// The listener and what every HTTP request may cost.
    server: Server {
        /// The IP address and port to listen on; port 0 takes any that is free.
        listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 8080));
        /// What clients reach the hub by, such as `https://chat.example.com`; empty: `http://` and `listen`.
        public_url: String = String::new();
        /// The directory for everything that is stored, made if it is missing.
        data: PathBuf = PathBuf::from("data");
        /// Threads of the runtime; 0: one a core.
        threads: usize = 0, 0 or [1..=1_024];
        /// Seconds that clients are served on and get to move elsewhere before a shutdown closes them; 0: none.
        drain_s: u64 = 20, 0 or [1..=3_600];
        /// The most open connections; 0: no limit.
        max_connections: usize = 50_000, 0 or [1..=MANY];
        /// Milliseconds for the header of a request to arrive; 0: no limit.
        header_timeout_ms: u64 = 10_000, 0 or [100..=HOUR_MS];
        /// Milliseconds for a request, its body included, to be answered; 0: no limit.
        request_timeout_ms: u64 = 30_000, 0 or [100..=HOUR_MS];
        /// Milliseconds that the peer of an HTTP connection may take nothing of an answer; 0: no limit.
        write_stall_ms: u64 = 20_000, 0 or [100..=HOUR_MS];
        /// The longest body of a request, in bytes. There is no "off": a body is read into memory.
        max_body_bytes: usize = MIB, [1_024..=1_024 * MIB];
        /// The longest head of a request, its line and all headers, in bytes; the HTTP library needs 8,192.
        max_header_bytes: usize = 16_384, [8_192..=MIB];
        /// The longest query string, in bytes; 0: only the header's limit.
        max_query_bytes: usize = 4_096, 0 or [256..=MIB];
        /// Origins whose pages may use the cookie, besides the public URL's own.
        allowed_origins: Vec<String> = Vec::new();
        /// Proxies, by address or network, whose `X-Forwarded-For` is believed; without any, nobody's is.
        trusted_proxies: Vec<Network> = Vec::new();
    }

    /// What is logged, and how.
    log: Log {
        /// A filter of tracing, such as `info` or `info,colink::http=debug`.
        level: String = "info".to_owned();
        /// `auto` (text on a terminal, JSON elsewhere), `text` or `json`.
        format: LogFormat = LogFormat::Auto;
    }

    /// Where things are stored.
    database: Database {
        /// `sqlite://path` or `postgres://...`; empty: SQLite in the data directory.
        url: Secret = Secret::default();
        /// A streaming replica of that Postgres, for pages of history; empty: none.
        replica_url: Secret = Secret::default();
        /// Whether `url`, and `replica_url`, lead to a pooler in transaction mode, such as PgBouncer.
        pooled: bool = false;
        /// Connections for reading; writing has its own.
        connections: u32 = 8, [1..=1_000];
        /// Milliseconds that a request waits for the database in all. There is no "off": it would wait for ever.
        timeout_ms: u64 = 2_000, [100..=HOUR_MS];
        /// Milliseconds that one statement may take on Postgres; 0: no limit.
        statement_timeout_ms: u64 = 10_000, 0 or [100..=HOUR_MS];
        /// Milliseconds to wait for what another connection has locked. There is no "off".
        lock_timeout_ms: u64 = 5_000, [100..=HOUR_MS];
        /// The most writes in one commit.
        batch: usize = 1_024, [1..=65_536];
        /// The most writes waiting; one more is refused for the moment.
        queue: usize = 8_192, [1..=MANY];
    }

    /// Passwords and tokens.
    auth: Auth {
        /// Days that a sign-in with a password lasts behind its last use.
        session_days: u32 = 30, [1..=3_650];
        /// Memory to hash a password, in KiB.
        argon2_memory_kib: u32 = 19_456, [8..=4_194_304];
        /// Passes over that memory.
        argon2_iterations: u32 = 2, [1..=1_000];
        /// Lanes of that memory.
        argon2_parallelism: u32 = 1, [1..=255];
        /// Attempts to guess a password a minute, by account; ten times as many by address; 0: no limit.
        logins_per_minute: u32 = 10;
        /// Seconds that a looked-up token is believed without asking the database; 0: it is asked every time.
        cache_s: u64 = 5, 0 or [1..=3_600];
    }

    /// Realtime sessions.
    gateway: Gateway {
        /// Milliseconds between a client's heartbeats; two that are missed end the connection.
        heartbeat_interval_ms: u64 = 30_000, [1_000..=10 * MINUTE_MS];
        /// Milliseconds for a new connection to say who it is; 0: no limit.
        identify_timeout_ms: u64 = 5_000, 0 or [100..=HOUR_MS];
        /// Seconds that a session without a connection is kept to be resumed; 0: it ends with its connection.
        resume_window_s: u64 = 300, 0 or [1..=DAY_S];
        /// Events kept in memory a session, to be sent again when it is resumed; in bytes at most four times `queue_bytes`.
        ring_events: usize = 4_096, [256..=1_000_000];
        /// The most events that a resume reads from the log; 0: no limit.
        replay_events: usize = 10_000, 0 or [1..=MANY];
        /// The oldest events that a resume reads from the log, in days; 0: no limit.
        replay_days: u32 = 7, 0 or [1..=36_500];
        /// The longest message of a client in bytes, over all its fragments; 0: no limit.
        max_message_bytes: usize = 65_536, 0 or [1_024..=1_024 * MIB];
        /// The most fragments of one message; 0: no limit.
        max_fragments: u32 = 64;
        /// Milliseconds for a message that has begun to be complete; 0: no limit.
        message_timeout_ms: u64 = 10_000, 0 or [100..=HOUR_MS];
        /// Events that may wait for a slow connection; then it has to fetch them itself.
        queue_events: usize = 1_024, [16..=1_000_000];
        /// Bytes that may wait for a slow connection; then it has to fetch them itself.
        queue_bytes: usize = MIB, [65_536..=1_024 * MIB];
        /// Milliseconds that one write may stall before the connection is closed; 0: no limit.
        write_stall_ms: u64 = 10_000, 0 or [100..=HOUR_MS];
        /// Commands of one session that may be in work at once; the next ones wait.
        inflight: usize = 64, [1..=65_536];
        /// Commands a minute and session; 0: no limit.
        commands_per_minute: u32 = 120;
        /// Commands of a session that may come at once.
        commands_burst: u32 = 20, [1..=u32::MAX];
        /// Requests a minute that a session may send beyond its rate before its connection is closed; 0: any number.
        refusals_per_minute: u32 = 120;
        /// Attempts to identify or resume a minute, by sign-in and by connection; ten times as many unknown tokens by address;
        /// 0: no limit.
        identifies_per_minute: u32 = 10;
        /// The most sessions of one user; 0: no limit.
        sessions_per_user: usize = 50, 0 or [1..=MANY];
        /// The longest that events of a busy channel wait to share a write, in milliseconds; 0: they never wait.
        gather_ms: u64 = 10, 0 or [1..=1_000];
    }

    /// What one user may ask for.
    limits: Limits {
        /// Messages a minute, by user and channel; 0: no limit.
        messages_per_minute: u32 = 240;
        /// Messages of a user that may come at once in a channel.
        messages_burst: u32 = 12, [1..=u32::MAX];
        /// REST requests a minute and user; 0: no limit.
        requests_per_minute: u32 = 600;
        /// REST requests of a user that may come at once.
        requests_burst: u32 = 100, [1..=u32::MAX];
        /// Hours that a repeated command is recognised by its key.
        idempotency_hours: u32 = 24, [1..=8_760];
        /// The most entries on a page of a list.
        page_max: u32 = 200, [1..=1_000];
    }

    /// Who is there, and who is typing.
    presence: Presence {
        /// Seconds without activity until a user is shown as idle; 0: never.
        idle_after_s: u64 = 300, 0 or [10..=DAY_S];
        /// Seconds that a user still counts as online when their connection is lost; 0: they are offline at once.
        linger_s: u64 = 30, 0 or [1..=DAY_S];
        /// Milliseconds over which changes are merged into one event; 0: each is sent at once.
        merge_ms: u64 = 500, 0 or [1..=MINUTE_MS];
        /// The most users whose presence one session follows; 0: no limit.
        subscriptions: usize = 500, 0 or [1..=MANY];
        /// Milliseconds that a typing notice lasts; others are told at most twice in that time; 0: there are none.
        typing_ms: u64 = 5_000, 0 or [500..=MINUTE_MS];
    }

    /// The actors that order what happens in a channel.
    channels: Channels {
        /// Commands in work a channel; one more is refused for the moment.
        mailbox: usize = 1_024, [16..=1_000_000];
        /// Seconds without work after which a channel's actor stops; 0: never.
        idle_stop_s: u64 = 600, 0 or [1..=DAY_S];
        /// How often a channel that failed is started again within `restart_window_s`; 0: never.
        restarts: u32 = 5;
        /// Seconds over which restarts are counted.
        restart_window_s: u64 = 30, [1..=DAY_S];
        /// Seconds that a channel which fails all the time is left alone.
        quarantine_s: u64 = 60, [1..=DAY_S];
    }

    /// Several nodes on one database.
    cluster: Cluster {
        /// What the nodes reach each other by; empty: this node has the database for itself.
        redis: Secret = Secret::default();
        /// The name that the nodes of one hub share, and others on the same Redis do not.
        name: String = "colink".to_owned();
        /// This node's own name; empty: its host's name and its port.
        node: String = String::new();
        /// Commands sent to other nodes that may be in work at once; the next ones are carried out here.
        inflight: usize = 4_096, [1..=1_000_000];
        /// Messages that may wait to be sent to other nodes, and as many that came; the next ones are dropped.
        queue: usize = 8_192, [64..=1_000_000];
        /// Milliseconds between two looks for what other nodes committed and the bus did not bring.
        sweep_ms: u64 = 1_000, [50..=MINUTE_MS];
        /// The same while the bus, or another node, cannot be reached.
        sweep_degraded_ms: u64 = 250, [50..=MINUTE_MS];
    }

    /// Where events go on to, for others to follow.
    kafka: Kafka {
        /// Brokers of Apache Kafka or Redpanda to begin with, `host:port,host:port`; empty: events stay in the database.
        brokers: String = String::new();
        /// The topic of events, made if it is missing.
        topic: String = "colink.events".to_owned();
        /// Partitions that the topic is made with.
        partitions: i32 = 12, [1..=1_000];
        /// Brokers that each partition is kept on, if the topic is made.
        replication: i32 = 1, [1..=15];
        /// Megabytes of events that may wait to be sent.
        buffer_mb: u32 = 64, [1..=2_000];
    }

    /// What messages are found by.
    search: Search {
        /// Megabytes that the index may gather before it writes.
        memory_mb: usize = 32, [16..=2_000];
        /// An OpenSearch that has the index in place of every node, `https://user:password@host:9200`; empty: none.
        opensearch: Secret = Secret::default();
        /// What the index is called there.
        index: String = "colink-messages".to_owned();
    }

    /// What operators measure.
    metrics: Metrics {
        /// Whether `/metrics` is served.
        enabled: bool = true;
    }
}

impl Config {
    /// Puts the configuration together from the defaults and `sources`, or returns everything that is wrong with them.
    pub fn load(sources: &Sources) -> Result<Config, ConfigErrors> {
        load::load(sources)
    }

    /// Checks every value, and those that have to go together. To be called again after a change by hand.
    pub fn validate(&self) -> Result<(), ConfigErrors> {
        let errors: Vec<_> = self.problems().into_iter().map(|problem| problem.text).collect();
        if errors.is_empty() { Ok(()) } else { Err(ConfigErrors(errors)) }
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        self.check_ranges(&mut problems);
        let mut refuse = |wrong: bool, keys: &'static [&'static str], text: String| {
            if wrong {
                problems.push(Problem { keys, text: format!("`{}` {text}", keys[0]) });
            }
        };

        let Config { server, log, database, auth, gateway, cluster, .. } = self;
        let like = "must be like https://chat.example.com, in small letters and without a path";
        let public_url = &server.public_url;
        refuse(!public_url.is_empty() && !is_origin(public_url), &["server.public_url"], like.to_owned());
        for origin in &server.allowed_origins {
            refuse(!is_origin(origin), &["server.allowed_origins"], format!("{like}, not `{origin}`"));
        }
        refuse(server.data.as_os_str().is_empty(), &["server.data"], "must name a directory".to_owned());
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&log.level) {
            refuse(true, &["log.level"], format!("must be a filter such as info: {error}"));
        }
        let url = database.url.expose();
        let known = url.starts_with("sqlite://") || is_postgres(url);
        refuse(!url.is_empty() && !known, &["database.url"], "must begin with sqlite:// or postgres://".to_owned());
        let replica = database.replica_url.expose();
        let both = is_postgres(replica) && is_postgres(url);
        refuse(
            !replica.is_empty() && !both,
            &["database.replica_url", "database.url"],
            "must begin with postgres://, and so must database.url".to_owned(),
        );
        refuse(
            database.queue < database.batch,
            &["database.queue", "database.batch"],
            format!("must hold at least one batch ({}), not {}", database.batch, database.queue),
        );
        refuse(
            !cluster.redis.expose().is_empty() && !url.starts_with("postgres"),
            &["cluster.redis", "database.url"],
            "needs a database that several nodes can share: set database.url to postgres://...".to_owned(),
        );
        let plain =
            |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':'));
        let name_is_fine = plain(&cluster.name) && (1..=64).contains(&cluster.name.len());
        let like = "has up to 64 letters, digits and any of - _ . :";
        refuse(!name_is_fine, &["cluster.name"], like.to_owned());
        let topic = &self.kafka.topic;
        let is_legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let is_topic = (1..=249).contains(&topic.len()) && topic.chars().all(is_legal);
        refuse(!is_topic, &["kafka.topic"], "must be 1 to 249 of a-z, A-Z, 0-9, dot, dash, underscore".to_owned());
        let index = &self.search.index;
        let is_legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
        let is_index = (1..=100).contains(&index.len())
            && index.chars().all(is_legal)
            && index.starts_with(|c: char| c.is_ascii_lowercase());
        refuse(
            !is_index,
            &["search.index"],
            "must be 1 to 100 of a-z, 0-9, dash, underscore, and begin with a letter".to_owned(),
        );
        let opensearch = self.search.opensearch.expose();
        let is_http =
            opensearch.is_empty() || ["http://", "https://"].iter().any(|scheme| opensearch.starts_with(scheme));
        refuse(!is_http, &["search.opensearch"], "must be https://user:password@host:9200, or http://".to_owned());
        refuse(!plain(&cluster.node) || cluster.node.len() > 64, &["cluster.node"], like.to_owned());
        // Argon2 (RFC 9106, 3.1) needs eight blocks of 1 KiB a lane.
        refuse(
            auth.argon2_memory_kib < auth.argon2_parallelism.saturating_mul(8),
            &["auth.argon2_memory_kib", "auth.argon2_parallelism"],
            format!("must be at least 8 for each of the {} lanes", auth.argon2_parallelism),
        );
        refuse(
            gateway.queue_bytes < gateway.max_message_bytes,
            &["gateway.queue_bytes", "gateway.max_message_bytes"],
            format!("must hold the longest message ({}), not {}", gateway.max_message_bytes, gateway.queue_bytes),
        );
        problems
    }
}

fn is_postgres(url: &str) -> bool {
    ["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme))
}

/// Returns whether a text is an origin as a browser sends it (RFC 6454, 6.2): a scheme, a host, perhaps a port.
fn is_origin(text: &str) -> bool {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b':' | b'[' | b']');
    host.is_some_and(|host| !host.is_empty() && host.bytes().all(allowed))
}

impl Server {
    /// Returns the URL that clients reach the hub by, without a slash at its end.
    #[must_use]
    pub fn url(&self) -> String {
        if self.public_url.is_empty() { format!("http://{}", self.listen) } else { self.public_url.clone() }
    }

    /// Returns where clients open the gateway's WebSocket.
    #[must_use]
    pub fn gateway_url(&self) -> String {
        format!("{}/v1/ws", self.url().replacen("http", "ws", 1))
    }
}

impl Auth {
    /// Returns when a sign-in ends that was last used at `now`.
    #[must_use]
    pub fn session_until(&self, now: Timestamp) -> Timestamp {
        now.plus_seconds(i64::from(self.session_days) * DAY_S as i64)
    }
}

impl Gateway {
    /// Returns how fast a session may send commands.
    #[must_use]
    pub fn command_rate(&self) -> Rate {
        Rate { per_minute: self.commands_per_minute, burst: self.commands_burst }
    }
}

impl Limits {
    /// Returns how fast a user may post in a channel.
    #[must_use]
    pub fn message_rate(&self) -> Rate {
        Rate { per_minute: self.messages_per_minute, burst: self.messages_burst }
    }

    /// Returns how fast a user may send REST requests.
    #[must_use]
    pub fn request_rate(&self) -> Rate {
        Rate { per_minute: self.requests_per_minute, burst: self.requests_burst }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = include_str!("../config.toml");

    #[test]
    fn the_file_in_the_repository_shows_every_default() {
        assert_eq!(toml::from_str::<Config>(FILE).unwrap(), Config::default());
        let shown: toml::Table = FILE.parse().unwrap();
        assert_eq!(shown, toml::Table::try_from(Config::default()).unwrap(), "a key is missing in config.toml");
    }

    #[test]
    fn the_file_in_the_repository_says_why_of_every_key() {
        let lines: Vec<_> = FILE.lines().collect();
        for pair in lines.windows(2) {
            let bare = pair[1].contains(" = ") && !pair[1].starts_with('#') && !pair[0].starts_with("# ");
            assert!(!bare, "no line of why above: {}", pair[1]);
        }
    }

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(Config::default().validate(), Ok(()));
    }

    #[test]
    fn values_out_of_range_and_values_that_disagree_are_named() {
        let mut config = Config::default();
        config.gateway.queue_events = 15;
        config.gateway.heartbeat_interval_ms = 0;
        config.gateway.max_message_bytes = 2 * MIB;
        config.server.public_url = "https://chat.example.com/".to_owned();
        config.server.allowed_origins = vec!["https://a.example:8443".to_owned(), "*".to_owned()];
        config.log.level = "colink=loud".to_owned();
        config.auth.argon2_parallelism = 4;
        config.auth.argon2_memory_kib = 31;
        config.database.batch = 10_000;
        let ConfigErrors(errors) = config.validate().unwrap_err();
        let starts = [
            "`gateway.heartbeat_interval_ms` must be from 1000 to 600000, not 0",
            "`gateway.queue_events` must be from 16 to 1000000, not 15",
            "`server.public_url` must be like https://chat.example.com",
            "`server.allowed_origins` must be like https://chat.example.com, in small letters and without a path, not `*`",
            "`log.level` must be a filter such as info: ",
            "`database.queue` must hold at least one batch (10000), not 8192",
            "`auth.argon2_memory_kib` must be at least 8 for each of the 4 lanes",
            "`gateway.queue_bytes` must hold the longest message (2097152), not 1048576",
        ];
        assert_eq!(errors.len(), starts.len(), "{errors:#?}");
        for (error, start) in errors.iter().zip(starts) {
            assert!(error.starts_with(start), "{error}");
        }
    }

    #[test]
    fn zero_switches_a_limit_off_where_that_makes_sense() {
        let mut config = Config::default();
        config.gateway.max_message_bytes = 0;
        config.gateway.write_stall_ms = 0;
        config.server.max_connections = 0;
        config.limits.messages_per_minute = 0;
        assert_eq!(config.validate(), Ok(()));
        config.gateway.write_stall_ms = 5;
        let errors = config.validate().unwrap_err();
        assert_eq!(errors.to_string(), "`gateway.write_stall_ms` must be 0 or from 100 to 3600000, not 5");
    }

    #[test]
    fn a_wait_without_an_end_is_refused() {
        let mut config = Config::default();
        config.database.timeout_ms = 0;
        config.database.lock_timeout_ms = 0;
        config.database.statement_timeout_ms = 0;
        let ConfigErrors(errors) = config.validate().unwrap_err();
        let expected = [
            "`database.timeout_ms` must be from 100 to 3600000, not 0",
            "`database.lock_timeout_ms` must be from 100 to 3600000, not 0",
        ];
        assert_eq!(errors, expected);
    }

    #[test]
    fn a_secret_is_not_shown() {
        let mut config = Config::default();
        config.database.url = Secret("postgres://hub:hunter2@db/colink".to_owned());
        assert!(!format!("{config:?} {config:#?} {}", config.database.url).contains("hunter2"));
        config.database.url = Secret("mysql://hub:hunter2@db/colink".to_owned());
        let errors = config.validate().unwrap_err();
        assert_eq!(errors.to_string(), "`database.url` must begin with sqlite:// or postgres://");
    }

    #[test]
    fn the_public_url_comes_from_the_listener_unless_it_is_given() {
        let mut server = Server::default();
        assert_eq!(server.url(), "http://127.0.0.1:8080");
        server.public_url = "https://chat.example.com".to_owned();
        assert_eq!(server.url(), "https://chat.example.com");
    }
}
