//! One room: every message goes to all its members.

use anyhow::Result;

use super::chat::{Hall, Plan};
use crate::cli::load::bench::Bench;
use crate::cli::load::report::Row;

/// Deliveries a second, if nothing else is asked for.
const DELIVERIES: f64 = 20_000.0;

pub(super) async fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for members in bench.args.members.clone() {
        let name = format!("fanout 1 x {members}");
        let hall = Hall::open(bench, name, 1, members, bench.args.senders.min(members)).await?;
        let plan = Plan { rate: (DELIVERIES / members as f64).max(1.0), windows: [16, 64, 256] };
        rows.extend(hall.measure(bench, &plan).await?);
    }
    Ok(rows)
}
