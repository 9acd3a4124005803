//! What came out: rows, printed as a table, as JSON, or as a page with plots.

mod html;
mod table;

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::Result;
use serde::Serialize;

use super::bench::Bench;
use super::stats::Latency;

/// One measured load. What does not apply is absent.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Row {
    pub(super) scenario: String,
    pub(super) load: String,
    pub(super) messages_per_s: Option<f64>,
    pub(super) deliveries_per_s: Option<f64>,
    /// Intended send to receive.
    pub(super) receive: Option<Latency>,
    /// Intended send to acknowledgement.
    pub(super) ack: Option<Latency>,
    /// Whatever else is waited for: a page, or to have caught up.
    pub(super) reply: Option<Latency>,
    /// From COMMIT to the socket, by the server's own histogram.
    pub(super) commit_to_socket_p50_ms: Option<f64>,
    pub(super) commit_to_socket_p99_ms: Option<f64>,
    pub(super) commit_to_socket_p999_ms: Option<f64>,
    /// Processor seconds for 1,000 deliveries.
    pub(super) cpu_s_per_1000: Option<f64>,
    /// The same by plain writes, one for each delivery.
    pub(super) floor_cpu_s_per_1000: Option<f64>,
    pub(super) times_floor: Option<f64>,
    pub(super) cpu_ms_per_message: Option<f64>,
    pub(super) kib_per_connection: Option<f64>,
    /// The mean size of an event.
    pub(super) event_bytes: usize,
    pub(super) lost: u64,
    pub(super) duplicates: u64,
    pub(super) out_of_order: u64,
    pub(super) lagged: u64,
    /// Figures of one scenario alone.
    pub(super) figures: BTreeMap<&'static str, f64>,
    pub(super) note: String,
}

impl Row {
    pub(super) fn figure(&mut self, name: &'static str, value: f64) {
        self.figures.insert(name, value);
    }

    /// Returns the latency that this row is about.
    fn main_latency(&self) -> Option<(&'static str, &Latency)> {
        let named = [("receive", &self.receive), ("reply", &self.reply), ("ack", &self.ack)];
        named.into_iter().find_map(|(name, latency)| Some((name, latency.as_ref()?)))
    }

    /// Returns what was carried and how long it took, as every table shows it; `latency` is the one to show.
    fn carried(&self, latency: Option<&Latency>) -> [Option<f64>; 10] {
        [
            self.messages_per_s,
            self.deliveries_per_s,
            latency.map(|latency| latency.p50),
            latency.map(|latency| latency.p99),
            latency.map(|latency| latency.p999),
            latency.map(|latency| latency.max),
            self.ack.as_ref().map(|ack| ack.p50),
            self.ack.as_ref().map(|ack| ack.p99),
            self.commit_to_socket_p50_ms,
            self.commit_to_socket_p99_ms,
        ]
    }

    fn title(&self) -> String {
        format!("{}, {}", self.scenario, self.load)
    }
}

/// All rows, and what they were measured on.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    pub(super) server: String,
    pub(super) database: String,
    pub(super) cores: usize,
    pub(super) text_bytes: usize,
    pub(super) version: &'static str,
    pub(super) rows: Vec<Row>,
}

impl Report {
    pub(super) fn new(bench: &Bench) -> Self {
        let database = match (&bench.args.database, &bench.args.url) {
            // An address may hold a password.
            (Some(url), _) => url.split(':').next().unwrap_or_default().to_owned(),
            (None, Some(_)) => "its own".to_owned(),
            (None, None) => "sqlite".to_owned(),
        };
        Report {
            server: bench.server.describe(),
            database,
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            text_bytes: bench.args.text_bytes,
            version: env!("CARGO_PKG_VERSION"),
            rows: Vec::new(),
        }
    }

    pub(super) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }

    pub(super) fn html(&self) -> String {
        html::page(self)
    }

    pub(super) fn table(&self, out: &mut impl Write, colours: bool) -> Result<()> {
        Ok(table::print(self, out, colours)?)
    }

    fn heading(&self) -> String {
        let Report { server, database, cores, text_bytes, .. } = self;
        format!("{server}, {database}, {cores} cores shared with the generator, texts of {text_bytes} bytes")
    }

    /// Returns what the server did wrong, one sentence a row.
    pub(super) fn faults(&self) -> Vec<String> {
        let wrong = self.rows.iter().filter(|row| row.lost + row.duplicates + row.out_of_order > 0);
        wrong
            .map(|row| {
                let Row { lost, duplicates, out_of_order, .. } = row;
                format!("{}: {lost} lost, {duplicates} twice, {out_of_order} out of order", row.title())
            })
            .collect()
    }
}

/// Writes a number with three significant digits, and thousands apart.
fn short(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude >= 1_000.0 {
        let digits = format!("{value:.0}");
        let split = |(at, digit): (usize, char)| {
            let left = digits.len() - at;
            let comma = if at > 0 && left.is_multiple_of(3) { "," } else { "" };
            format!("{comma}{digit}")
        };
        return digits.chars().enumerate().map(split).collect();
    }
    let decimals = match magnitude {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        0.1.. => 3,
        0.0 => 0,
        _ => 4,
    };
    format!("{value:.decimals$}")
}

fn or_dash(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), short)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::load::stats::histogram;

    pub(super) fn example() -> Report {
        let mut values = histogram();
        (1..=1_000).for_each(|value| values.saturating_record(value * 10));
        let latency = Latency::of(&values);
        let row = Row {
            scenario: "fanout 1 x 1000".to_owned(),
            load: "20 msg/s".to_owned(),
            messages_per_s: Some(20.0),
            deliveries_per_s: Some(20_000.0),
            receive: latency.clone(),
            ack: latency,
            commit_to_socket_p99_ms: Some(1.5),
            cpu_s_per_1000: Some(0.001),
            floor_cpu_s_per_1000: Some(0.004),
            times_floor: Some(0.25),
            cpu_ms_per_message: Some(1.0),
            note: "all <well> & good".to_owned(),
            ..Row::default()
        };
        let idle = Row { scenario: "idle 10000".to_owned(), kib_per_connection: Some(12.3), ..Row::default() };
        Report {
            server: "colink serve".to_owned(),
            database: "sqlite".to_owned(),
            cores: 2,
            text_bytes: 200,
            version: "0.1.0",
            rows: vec![row, idle],
        }
    }

    #[test]
    fn numbers_keep_three_digits() {
        for (value, text) in [
            (1_234_567.0, "1,234,567"),
            (999.6, "1000"),
            (123.4, "123"),
            (12.34, "12.3"),
            (1.234, "1.23"),
            (0.1234, "0.123"),
            (0.0012, "0.0012"),
            (0.0, "0"),
        ] {
            assert_eq!(short(value), text);
        }
    }

    #[test]
    fn only_rows_with_a_fault_are_faults() {
        let mut report = example();
        assert!(report.faults().is_empty());
        report.rows[0].lost = 3;
        assert_eq!(report.faults(), ["fanout 1 x 1000, 20 msg/s: 3 lost, 0 twice, 0 out of order"]);
    }
}
