//! The property test: whatever people do, by whichever door, the hub does what a much simpler one would have done.
//!
//! ```text
//! plan.rs      what can happen, as small values that shrink
//! model/       the reference: lists, counted anew each time; view.rs is what its readers see
//! client.rs    a gateway client that keeps the protocol's rules
//! case.rs      carries a plan out, on a node and on the model, and compares every answer and all that is left
//! ```
//!
//! A node serves many cases, each with people and channels of its own. `COLINK_PROPERTY_CASES` sets how many there are,
//! `COLINK_PROPERTY_STEPS` how long they are, and `COLINK_PROPERTY_SEED` is the first one's seed: a case that fails says
//! which seed repeats it, and the shortest plan that still fails.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(clippy::print_stderr, reason = "it says what a run met, and how to repeat one that failed")]

mod case;
mod client;
#[path = "../it/http.rs"]
#[expect(dead_code, reason = "shared with the black-box tests")]
mod http;
mod model;
mod plan;
#[path = "../it/socket.rs"]
#[expect(dead_code, reason = "shared with the black-box tests")]
mod socket;
mod view;
#[path = "../it/world.rs"]
#[expect(dead_code, unused_imports, unused_macros, reason = "shared with the black-box tests")]
mod world;

use std::cell::Cell;
use std::time::{Duration, Instant};

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use tokio::runtime::Runtime;

use case::{Case, Met};
use plan::Step;
use world::{Database, World};

/// How long a client waits for what has to come.
const PATIENCE: Duration = Duration::from_secs(8);
/// While a plan that failed is made shorter, what does not come at once does not come.
const SHRINKING_PATIENCE: Duration = Duration::from_secs(1);
/// How long a plan that failed is made shorter, in milliseconds.
const SHRINK_MS: u32 = 120_000;

fn number(name: &str, default: u64) -> u64 {
    let set = std::env::var(name).ok().filter(|text| !text.is_empty());
    set.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

#[test]
fn the_hub_does_what_the_model_does_on_sqlite() {
    run(Database::Sqlite, number("COLINK_PROPERTY_CASES", 120));
}

#[test]
fn the_hub_does_what_the_model_does_on_postgres() {
    if !world::postgres_is_there() {
        eprintln!("skipped: COLINK_TEST_POSTGRES is not set");
        return;
    }
    run(Database::Postgres, number("COLINK_PROPERTY_CASES", 120).div_ceil(4));
}

/// Where the cases run.
struct Bench {
    runtime: Runtime,
    database: Database,
    kept: Cell<Option<Kept>>,
    runs: Cell<u32>,
    patience: Cell<Duration>,
}

/// What goes from case to case. One that fails, or panics, leaves it to nobody: the next one gets a new node.
struct Kept {
    world: World,
    met: Met,
}

fn run(database: Database, cases: u64) {
    let first = number("COLINK_PROPERTY_SEED", 1);
    let steps = usize::try_from(number("COLINK_PROPERTY_STEPS", 120)).unwrap();
    let (kept, runs, patience) = (Cell::new(None), Cell::new(0), Cell::new(PATIENCE));
    let bench = Bench { runtime: Runtime::new().unwrap(), database, kept, runs, patience };
    let started = Instant::now();
    for seed in first..first + cases {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let config = Config {
            cases: 1,
            max_shrink_time: SHRINK_MS,
            max_shrink_iters: 1_000_000,
            failure_persistence: None,
            ..Config::default()
        };
        let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
        match runner.run(&plan::steps(steps), |steps| bench.one(&steps)) {
            Ok(()) => {}
            Err(TestError::Fail(why, steps)) => panic!(
                "COLINK_PROPERTY_SEED={seed} COLINK_PROPERTY_CASES=1 repeats this on {database:?}\n{}\nwrong: {why}",
                shown(&steps)
            ),
            Err(TestError::Abort(why)) => panic!("COLINK_PROPERTY_SEED={seed}: {why}"),
        }
    }
    if let Some(mut kept) = bench.kept.take() {
        eprintln!("{cases} cases on {database:?} in {:.1?}: {:?}", started.elapsed(), kept.met);
        bench.runtime.block_on(kept.world.stop());
    }
}

fn shown(steps: &[Step]) -> String {
    (0..).zip(steps).map(|(n, step): (usize, _)| format!("  {n}: {step:?}")).collect::<Vec<_>>().join("\n")
}

impl Bench {
    fn one(&self, steps: &[Step]) -> Result<(), TestCaseError> {
        let name = self.runs.replace(self.runs.get() + 1).to_string();
        let patience = self.patience.replace(SHRINKING_PATIENCE);
        let outcome = self.runtime.block_on(async {
            let mut kept = match self.kept.take() {
                Some(kept) => kept,
                None => Kept { world: World::on(self.database, |_| ()).await, met: Met::default() },
            };
            let mut case = Case::begin(&mut kept.world, &mut kept.met, &name, patience).await?;
            Box::pin(case.run(steps)).await?;
            Ok(kept)
        });
        self.kept.set(Some(outcome.map_err(|wrong: String| TestCaseError::fail(wrong))?));
        self.patience.set(patience);
        Ok(())
    }
}
