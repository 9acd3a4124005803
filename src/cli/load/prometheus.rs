//! Reads a histogram out of the server's `/metrics`, and what it counted between two looks.

/// Cumulative buckets: the upper bound in seconds, and how many were at or below it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Buckets(Vec<(f64, f64)>);

impl Buckets {
    /// Reads the buckets of `name`, added up over all other labels.
    pub(super) fn parse(text: &str, name: &str) -> Self {
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for line in text.lines() {
            let Some(labels) = line.strip_prefix(name).and_then(|rest| rest.strip_prefix("_bucket{")) else { continue };
            let Some((labels, value)) = labels.rsplit_once("} ") else { continue };
            let bound = labels.split(',').find_map(|label| label.strip_prefix("le=\"")?.strip_suffix('"'));
            let count = value.split_whitespace().next().and_then(|value| value.parse::<f64>().ok());
            // Rust reads "+Inf" too.
            let (Some(bound), Some(count)) = (bound.and_then(|bound| bound.parse::<f64>().ok()), count) else {
                continue;
            };
            match buckets.iter_mut().find(|(known, _)| *known == bound) {
                Some((_, sum)) => *sum += count,
                None => buckets.push((bound, count)),
            }
        }
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        Buckets(buckets)
    }

    /// Returns what was counted since `earlier`.
    pub(super) fn since(&self, earlier: &Buckets) -> Self {
        let before = |bound: f64| earlier.0.iter().find(|(known, _)| *known == bound).map_or(0.0, |(_, count)| *count);
        Buckets(self.0.iter().map(|(bound, count)| (*bound, (count - before(*bound)).max(0.0))).collect())
    }

    /// Returns a quantile in milliseconds, interpolated within its bucket as Prometheus does; `None` without samples.
    pub(super) fn quantile(&self, quantile: f64) -> Option<f64> {
        let total = self.0.last().map(|(_, count)| *count).filter(|count| *count > 0.0)?;
        let rank = quantile * total;
        let (mut low, mut below) = (0.0, 0.0);
        for (bound, count) in &self.0 {
            if *count >= rank && *count > below {
                if bound.is_infinite() {
                    return Some(low * 1_000.0);
                }
                return Some((low + (bound - low) * (rank - below) / (count - below)) * 1_000.0);
            }
            (low, below) = (*bound, *count);
        }
        Some(low * 1_000.0)
    }
}

/// Adds up a counter without labels, over all pages in a text.
pub(super) fn counter(text: &str, name: &str) -> f64 {
    let values = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse::<f64>().ok());
    values.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "colink_commit_to_socket_seconds";

    fn page(counts: [u32; 3]) -> String {
        let [a, b, c] = counts;
        format!(
            "# TYPE {NAME} histogram\n{NAME}_bucket{{le=\"0.001\"}} {a}\n{NAME}_bucket{{le=\"0.01\"}} {b}\n\
             {NAME}_bucket{{le=\"+Inf\"}} {c}\n{NAME}_sum 1\n{NAME}_count {c}\nother_bucket{{le=\"0.001\"}} 9\n"
        )
    }

    #[test]
    fn two_looks_are_subtracted() {
        let before = Buckets::parse(&page([100, 100, 100]), NAME);
        let after = Buckets::parse(&page([150, 190, 200]), NAME);
        let between = after.since(&before);
        assert_eq!(between.0.iter().map(|(_, count)| *count).collect::<Vec<_>>(), [50.0, 90.0, 100.0]);
        for (quantile, ms) in [(0.5, 1.0), (0.7, 5.5), (0.9, 10.0), (0.99, 10.0)] {
            assert!((between.quantile(quantile).unwrap() - ms).abs() < 1e-9, "{quantile}");
        }
    }

    #[test]
    fn a_counter_is_added_up_over_pages() {
        let text = "# TYPE a counter\na 3\nab 5\na{x=\"y\"} 7\n# TYPE a counter\na 4\n";
        assert_eq!((counter(text, "a"), counter(text, "b")), (7.0, 0.0));
    }

    #[test]
    fn labels_are_added_up_and_nothing_is_no_quantile() {
        let text = format!("{NAME}_bucket{{node=\"a\",le=\"1\"}} 1\n{NAME}_bucket{{node=\"b\",le=\"1\"}} 2\n");
        assert_eq!(Buckets::parse(&text, NAME).0, [(1.0, 3.0)]);
        assert_eq!(Buckets::parse("", NAME).quantile(0.5), None);
    }
}
