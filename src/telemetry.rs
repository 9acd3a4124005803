//! Logs and metrics: what operators see.
//!
//! Logs go to standard error, as text on a terminal and as JSON elsewhere. Fields are named the same everywhere:
//! `stream.id`, `user.id`, `session.id`, `request.id`, `error`, `writes` (how many a failure touched). What a request logs on
//! its way stands under its span. Never tokens, addresses or texts.

use std::io::{self, IsTerminal as _, Write};
use std::sync::OnceLock;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// For people.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

/// Starts logging; does nothing if it was started before.
pub fn start_logging(filter: &str, format: Option<Format>) {
    let terminal = io::stderr().is_terminal();
    let format = format.unwrap_or(if terminal { Format::Text } else { Format::Json });
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Lines).with_ansi(terminal);
    let _ = match format {
        Format::Text => lines.try_init(),
        Format::Json => lines.json().flatten_event(true).try_init(),
    };
}

/// Standard error. What cannot be written, because the disk below it is full or nobody reads it any more, is lost, and that is
/// all: whoever logs goes on.
struct Lines;

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How often what was recorded is put into its buckets.
const UPKEEP: Duration = Duration::from_secs(5);

static METRICS: OnceLock<PrometheusHandle> = OnceLock::new();

/// Seconds from 50 µs to 10 s: latencies of commits and deliveries.
const SECONDS: &[f64] = &[
    0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.003, 0.005, 0.007_5, 0.01, 0.015, 0.02, 0.025, 0.035, 0.05,
    0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
const SIZES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1_024.0];

/// Who follows the log.
const CONSUMERS: &[&str] = &["relay", "search", "opensearch"];

/// Every counter: its name, its label, and the label's values.
const COUNTERS: &[(&str, &str, &[&str])] = &[
    ("colink_connections_refused_total", "", &[]),
    (
        "colink_connections_closed_total",
        "code",
        &[
            "1000", "1001", "1002", "1003", "1007", "1009", "1012", "4000", "4002", "4003", "4004", "4007", "4008",
            "4009", "4010", "4011", "4012", "4013", "4014",
        ],
    ),
    ("colink_deliveries_total", "", &[]),
    ("colink_resumes_total", "mode", &["buffer", "log", "invalid"]),
    ("colink_gap_repairs_total", "", &[]),
    ("colink_database_reads_total", "for", &["sessions", "sign_ins", "consumers", "search", "others"]),
    ("colink_session_lagged_total", "", &[]),
    ("colink_stalled_answers_total", "", &[]),
    ("colink_rate_limited_total", "", &[]),
    ("colink_channel_mailbox_full_total", "", &[]),
    ("colink_writes_refused_total", "", &[]),
    ("colink_writes_failed_total", "", &[]),
    ("colink_replica_reads_total", "outcome", &["used", "late", "failed"]),
    ("colink_pruned_rows_total", "what", &["keys", "tokens", "invites"]),
    ("colink_bus_published_total", "", &[]),
    ("colink_bus_received_total", "", &[]),
    ("colink_bus_dropped_total", "why", &["down", "full", "lost", "slow", "size", "foreign", "commits"]),
    ("colink_bus_reconnects_total", "", &[]),
    ("colink_bus_unread_total", "why", &["forged", "unknown", "malformed", "repeated", "late"]),
    ("colink_commands_forwarded_total", "", &[]),
    ("colink_commands_taken_back_total", "", &[]),
    ("colink_writes_beside_owner_total", "", &[]),
    ("colink_writes_fenced_total", "why", &["head", "epoch"]),
    ("colink_channels_taken_over_total", "", &[]),
    ("colink_sweep_repairs_total", "", &[]),
    ("colink_consumer_events_total", "consumer", CONSUMERS),
    ("colink_consumer_retries_total", "consumer", CONSUMERS),
    ("colink_consumer_missing_total", "consumer", CONSUMERS),
    ("colink_dead_letters_total", "consumer", CONSUMERS),
    ("colink_searches_total", "", &[]),
    ("colink_search_failures_total", "", &[]),
    ("colink_search_refused_total", "", &[]),
    ("colink_presence_told_total", "", &[]),
    ("colink_presence_asks_total", "", &[]),
    ("colink_channel_failures_total", "", &[]),
    ("colink_session_failures_total", "", &[]),
];

/// Begins every counter at 0. To Prometheus one that is first seen with 1 did not grow, so nobody would be told of it.
fn begin_counters() {
    for (name, label, values) in COUNTERS {
        if values.is_empty() {
            metrics::counter!(*name).increment(0);
        }
        for value in *values {
            metrics::counter!(*name, *label => *value).increment(0);
        }
    }
}

/// Starts counting; does nothing if it was started before.
pub fn start_metrics() {
    if METRICS.get().is_some() {
        return;
    }
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)
        .and_then(|b| b.set_buckets_for_metric(Matcher::Suffix("_writes".to_owned()), SIZES));
    if let Ok(handle) = builder.and_then(PrometheusBuilder::install_recorder) {
        keep_small(handle.clone());
        let _ = METRICS.set(handle);
        begin_counters();
    }
}

/// Puts what was recorded into its buckets now and then: until then every sample is kept, and nobody may ever ask for them.
fn keep_small(handle: PrometheusHandle) {
    let keep = move || {
        loop {
            std::thread::park_timeout(UPKEEP);
            handle.run_upkeep();
        }
    };
    if let Err(error) = std::thread::Builder::new().name("colink-metrics".to_owned()).spawn(keep) {
        tracing::error!(%error, "cannot keep the metrics small: ask for them now and then");
    }
}

/// Returns the metrics in Prometheus' text format; nothing if they were not started.
pub fn render_metrics() -> Option<String> {
    METRICS.get().map(|handle| {
        handle.run_upkeep();
        handle.render()
    })
}
