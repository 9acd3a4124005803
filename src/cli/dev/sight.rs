//! What is seen of the cluster at one time, and what happened between two looks. Pure.

use crate::actors::cluster::status::Report;

/// How a node stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// It answers.
    Up,
    /// It runs, and does not answer: it starts, or stops.
    Silent,
    /// It was killed here.
    Killed,
    /// It ended by itself, or was killed by somebody else.
    Ended,
}

/// One node.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Seen {
    pub(super) name: String,
    pub(super) url: String,
    pub(super) state: State,
    /// Open WebSockets.
    pub(super) sockets: u64,
    /// What it stored, and what it put into sessions' queues, a second.
    pub(super) writes: f64,
    pub(super) deliveries: f64,
    /// Channels that are its own by the database, also while it is gone.
    pub(super) channels: i64,
    /// What it says of itself.
    pub(super) report: Report,
}

/// Postgres or Redis.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Served {
    pub(super) name: &'static str,
    /// Whether it works, by its process or by what the nodes say of it; nothing, if there is nobody to ask.
    pub(super) up: Option<bool>,
}

/// How the demo team's talk goes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Talked {
    /// Messages that were acknowledged.
    pub(super) said: u64,
    /// Messages that each of the team has heard, at least.
    pub(super) heard: u64,
}

/// Everything, at one time.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Sight {
    pub(super) nodes: Vec<Seen>,
    pub(super) services: Vec<Served>,
    /// What others store may be heard late.
    pub(super) degraded: bool,
    pub(super) talk: Option<Talked>,
}

impl Sight {
    /// Returns what happened since `before`, a sentence each.
    pub(super) fn news(&self, before: &Sight) -> Vec<String> {
        let mut news = Vec::new();
        for (node, before) in self.nodes.iter().zip(&before.nodes) {
            node.tell(before, &mut news);
        }
        for (service, before) in self.services.iter().zip(&before.services) {
            match (before.up, service.up) {
                (Some(true), Some(false)) => news.push(format!("{} is down", service.name)),
                (Some(false), Some(true)) => news.push(format!("{} is back", service.name)),
                _ => {}
            }
        }
        match (before.degraded, self.degraded) {
            (false, true) => {
                news.push("degraded: what the bus does not bring is read from Postgres, a little later".to_owned());
            }
            (true, false) => news.push("all nodes hear each other again".to_owned()),
            _ => {}
        }
        news
    }

    /// Returns the sums that stand above everything.
    pub(super) fn summary(&self) -> String {
        let up = self.nodes.iter().filter(|node| node.state == State::Up).count();
        let sockets: u64 = self.nodes.iter().map(|node| node.sockets).sum();
        let writes: f64 = self.nodes.iter().map(|node| node.writes).sum();
        let deliveries: f64 = self.nodes.iter().map(|node| node.deliveries).sum();
        let all = self.nodes.len();
        format!("{up} of {all} nodes up, {sockets} sockets, {writes:.0} writes/s, {deliveries:.0} deliveries/s")
    }
}

impl Seen {
    fn tell(&self, before: &Seen, news: &mut Vec<String>) {
        let name = &self.name;
        if self.state != before.state {
            news.push(match self.state {
                State::Up => format!("{name} is up"),
                State::Silent if before.state == State::Up => format!("{name} does not answer"),
                State::Silent => format!("{name} starts"),
                State::Killed => format!("{name} was killed; it has {} channels", self.channels),
                State::Ended => format!("{name} has ended: see {name}.log"),
            });
        }
        // Another run begins to count at 0.
        let taken = self.report.taken_over.saturating_sub(before.report.taken_over);
        if taken > 0 {
            news.push(format!("{name} took {taken} {} over", if taken == 1 { "channel" } else { "channels" }));
        }
    }
}

/// Returns the value of a metric, summed over its labels.
pub(super) fn metric(text: &str, name: &str) -> f64 {
    let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
    let values = text.lines().filter(of_name).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    values.sum()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Three nodes at work.
    pub(in crate::cli::dev) fn example() -> Sight {
        let node = |n: u16, channels| Seen {
            name: format!("hub-{n}"),
            url: format!("http://127.0.0.1:{}", 8080 + n),
            state: State::Up,
            sockets: 2,
            writes: 4.2,
            deliveries: 21.4,
            channels,
            report: Report { taken_over: 5, forwarded: 120, ..Report::default() },
        };
        let up = |name| Served { name, up: Some(true) };
        Sight {
            nodes: vec![node(1, 5), node(2, 3), node(3, 14)],
            services: vec![up("Postgres"), up("Redis")],
            degraded: false,
            talk: Some(Talked { said: 240, heard: 239 }),
        }
    }

    #[test]
    fn what_happened_is_told_once() {
        let before = example();
        assert!(before.news(&before).is_empty());
        let mut after = before.clone();
        after.nodes[0].report.taken_over = 8;
        after.nodes[1].state = State::Killed;
        after.nodes[1].report = Report::default();
        after.services[1].up = Some(false);
        after.degraded = true;
        assert_eq!(
            after.news(&before),
            [
                "hub-1 took 3 channels over",
                "hub-2 was killed; it has 3 channels",
                "Redis is down",
                "degraded: what the bus does not bring is read from Postgres, a little later",
            ]
        );
        assert_eq!(
            before.news(&after),
            ["hub-2 is up", "hub-2 took 5 channels over", "Redis is back", "all nodes hear each other again"]
        );
        assert!(after.news(&after).is_empty());
        assert_eq!(after.summary(), "2 of 3 nodes up, 6 sockets, 13 writes/s, 64 deliveries/s");
    }

    #[test]
    fn a_metric_is_summed_over_its_labels() {
        let text = "# TYPE a counter\na{x=\"1\"} 2\na{x=\"2\"} 3\na_more 9\nb 4.5\n";
        assert!((metric(text, "a") - 5.0).abs() < 1e-9 && (metric(text, "b") - 4.5).abs() < 1e-9);
        assert!(metric(text, "c").abs() < 1e-9);
    }
}
