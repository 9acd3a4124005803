//! The load generator as a bench: `cargo bench --bench load -- fanout --saturate`. The options are those of `colink load`.
use anyhow::Result;
use clap::Parser;
use colink::cli::load::{LoadArgs, run};

#[derive(Parser)]
#[command(name = "load", about = "Measures a server that it starts, or one that runs already")]
struct Cli {
    #[command(flatten)]
    load: LoadArgs,
    /// Given by cargo bench
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let Cli { mut load, bench } = Cli::parse();
    if !bench {
        // `cargo test --benches` only wants to see that it starts.
        return Ok(());
    }
    if load.url.is_none() && load.server_bin.is_none() {
        load.server_bin = Some(env!("CARGO_BIN_EXE_colink").into());
    }
    run(load).await
}
