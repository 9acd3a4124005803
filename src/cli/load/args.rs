//! The options of `colink load`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::scenario::search::WRITERS;

/// What to measure.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Scenario {
    /// Many idle connections: memory for each, and what their heartbeats cost.
    Idle,
    /// One room, many members: every message goes to all of them.
    Fanout,
    /// Many rooms of a few members: many messages, each to few.
    Rooms,
    /// One connection that waits for each acknowledgement, beside the disk's own fdatasync.
    Ack,
    /// The newest page of a long channel over HTTP.
    History,
    /// Everybody is cut off at once, misses messages, comes back and catches up.
    Reconnect,
    /// Search in many messages, as somebody who may read few of them.
    Search,
}

const EXAMPLES: &str = "\
Examples:
  Everything, at a modest rate, on a server of its own:
    colink load
  The most that one room of 1,000 can do, then half of it:
    colink load fanout --members 1000 --saturate
  A hundred rooms at 800 messages a second, with a page to show:
    colink load rooms --rooms 100 --room-members 20 --rate 800 --html report.html
  On Postgres, and the figures for a program:
    colink load --database postgres://colink@127.0.0.1/colink --json -
  The same load on one node and on three that share it:
    colink load rooms --saturate --nodes 1,3 --database postgres://colink@127.0.0.1/colink \\
      --redis redis://127.0.0.1
  Search in a million messages of 5,000 rooms, by somebody in 200 of them, two at a time:
    colink load search --corpus 1000000 --corpus-rooms 5000 --seen-rooms 200 --readers 2
  A server that runs already:
    colink load fanout --url http://127.0.0.1:8080 --admin-token TOKEN --server-pid 4242

A latency counts from the time at which a message was meant to be sent, so a stall is
charged to every message that came meanwhile. Processor time is that of all nodes and
their children, and Postgres's and Redis's if --database and --redis name one on this
machine. The exit code is not zero if a message was lost, came twice, or came out of order.";

/// Measures a server: throughput, latency, processor time, memory, and that nothing is lost.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct LoadArgs {
    /// What to measure; everything, if left out
    #[arg(value_enum)]
    pub scenarios: Vec<Scenario>,

    /// The server to start; this program, if left out
    #[arg(long, value_name = "FILE", conflicts_with = "url", help_heading = "Server")]
    pub server_bin: Option<PathBuf>,
    /// The database of the server that is started, as in `database.url`; SQLite in --dir, if left out
    #[arg(long, value_name = "URL", conflicts_with = "url", help_heading = "Server")]
    pub database: Option<String>,
    /// Where the started server keeps its data: choose the disk to measure
    #[arg(long, value_name = "DIR", help_heading = "Server")]
    pub dir: Option<PathBuf>,
    /// Another setting of the server that is started, as `section.key=value`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", conflicts_with = "url", help_heading = "Server")]
    pub settings: Vec<String>,
    /// How many nodes to start, each a run of its own; more than one need --database and --redis
    #[arg(long, value_delimiter = ',', default_value = "1", value_name = "N", conflicts_with = "url",
          value_parser = clap::value_parser!(u8).range(1..=16), help_heading = "Server")]
    pub nodes: Vec<u8>,
    /// The Redis between the nodes, as in `cluster.redis`; what is one node alone does not use it
    #[arg(long, value_name = "URL", conflicts_with = "url", help_heading = "Server")]
    pub redis: Option<String>,
    /// Use a server that runs already; switch its limits off first
    #[arg(long, value_name = "URL", requires = "admin_token", help_heading = "Server")]
    pub url: Option<String>,
    /// An administrator's token, with --url
    #[arg(long, env = "COLINK_ADMIN_TOKEN", hide_env_values = true, value_name = "TOKEN", help_heading = "Server")]
    pub admin_token: Option<String>,
    /// The process of the running server, to measure its cost, with --url
    #[arg(long, value_name = "PID", help_heading = "Server")]
    pub server_pid: Option<u32>,

    /// Members of the room, each a run of its own
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 100], value_name = "N", help_heading = "fanout")]
    pub members: Vec<usize>,
    /// How many of them send
    #[arg(long, default_value_t = 4, value_name = "N", help_heading = "fanout")]
    pub senders: usize,

    /// How many rooms
    #[arg(long, default_value_t = 100, value_name = "N", help_heading = "rooms")]
    pub rooms: usize,
    /// Members of each
    #[arg(long, default_value_t = 20, value_name = "N", help_heading = "rooms")]
    pub room_members: usize,

    /// How many idle connections
    #[arg(long, default_value_t = 10_000, value_name = "N", help_heading = "idle")]
    pub connections: usize,

    /// Messages in the channel
    #[arg(long, default_value_t = 10_000, value_name = "N", help_heading = "history")]
    pub messages: u64,
    /// Keep-alive connections that ask, one request at a time each; of search as well
    #[arg(long, default_value_t = 16, value_name = "N", help_heading = "history")]
    pub readers: usize,

    /// How many are cut off
    #[arg(long, default_value_t = 1_000, value_name = "N", help_heading = "reconnect")]
    pub clients: usize,
    /// Messages posted while they are away
    #[arg(long, default_value_t = 100, value_name = "N", help_heading = "reconnect")]
    pub missed: u64,

    /// Messages in the hub
    #[arg(long, default_value_t = 20_000, value_name = "N", help_heading = "search")]
    pub corpus: u64,
    /// Rooms that they are in
    #[arg(long, default_value_t = 100, value_name = "N", help_heading = "search")]
    pub corpus_rooms: usize,
    /// Rooms of these that who searches is in
    #[arg(long, default_value_t = 4, value_name = "N", help_heading = "search")]
    pub seen_rooms: usize,

    /// Messages a second; a modest figure for each scenario, if left out
    #[arg(long, value_name = "N", conflicts_with = "saturate", help_heading = "Load")]
    pub rate: Option<f64>,
    /// Find the highest rate by windows of messages in flight, then run at half of it
    #[arg(long, help_heading = "Load")]
    pub saturate: bool,
    /// The windows to try with --saturate
    #[arg(long, value_delimiter = ',', value_name = "N", help_heading = "Load")]
    pub window: Vec<u64>,
    /// Seconds to measure
    #[arg(long, default_value_t = 10.0, value_name = "S", help_heading = "Load")]
    pub duration: f64,
    /// Seconds before that which do not count
    #[arg(long, default_value_t = 2.0, value_name = "S", help_heading = "Load")]
    pub warm_up: f64,
    /// Bytes of a message's text, at least 28
    #[arg(long, default_value_t = 200, value_name = "N", help_heading = "Load")]
    pub text_bytes: usize,
    /// Send no `client_msg_id`, so that the server need not remember any
    #[arg(long, help_heading = "Load")]
    pub no_keys: bool,
    /// Threads that receive
    #[arg(long, default_value_t = 1, value_name = "N", help_heading = "Load")]
    pub threads: usize,
    /// Skip the comparison with plain writes to as many sockets
    #[arg(long, help_heading = "Load")]
    pub no_floor: bool,

    /// Write the results as JSON; `-` is the standard output
    #[arg(long, value_name = "FILE", help_heading = "Report")]
    pub json: Option<PathBuf>,
    /// Write a page with plots that needs nothing else
    #[arg(long, value_name = "FILE", help_heading = "Report")]
    pub html: Option<PathBuf>,
}

impl LoadArgs {
    /// Returns what to measure. Idle connections come first, while the server's memory is untouched.
    pub(super) fn chosen(&self) -> Vec<Scenario> {
        if self.scenarios.is_empty() { Scenario::value_variants().to_vec() } else { self.scenarios.clone() }
    }

    /// Returns how many users the chosen scenarios need.
    pub(super) fn people(&self) -> usize {
        let need = |scenario: &Scenario| match scenario {
            Scenario::Idle => self.connections,
            Scenario::Fanout => self.members.iter().copied().max().unwrap_or(0),
            Scenario::Rooms => self.rooms * self.room_members,
            Scenario::Ack => 1,
            Scenario::History => 2,
            Scenario::Reconnect => self.clients + 1,
            Scenario::Search => WRITERS + 1,
        };
        self.chosen().iter().map(need).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        load: LoadArgs,
    }

    #[test]
    fn the_options_hold_together() {
        Cli::command().debug_assert();
        let load = Cli::parse_from(["load", "fanout", "ack", "--members", "50,10", "--saturate"]).load;
        assert_eq!(load.chosen(), [Scenario::Fanout, Scenario::Ack]);
        assert_eq!((load.people(), load.members), (50, vec![50, 10]));
        assert_eq!(Cli::parse_from(["load", "--nodes", "1,3"]).load.nodes, [1, 3]);
        assert!(Cli::try_parse_from(["load", "--nodes", "0"]).is_err());
        assert!(Cli::try_parse_from(["load", "--url", "http://x"]).is_err());
        assert!(Cli::try_parse_from(["load", "--rate", "5", "--saturate"]).is_err());
    }
}
