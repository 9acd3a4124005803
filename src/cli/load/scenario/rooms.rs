//! Many rooms, one sender in each: many messages, each to few.

use anyhow::Result;

use super::chat::{Hall, Plan};
use crate::cli::load::bench::Bench;
use crate::cli::load::report::Row;

pub(super) async fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    let (rooms, members) = (bench.args.rooms, bench.args.room_members);
    let hall = Hall::open(bench, format!("rooms {rooms} x {members}"), rooms, members, 1).await?;
    hall.measure(bench, &Plan { rate: 400.0, windows: [64, 256, 1_024] }).await
}
