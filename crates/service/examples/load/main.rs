//! What the service does under more load than it can carry, under attack, when it is told to stop, and when it is killed.
//!
//! ```text
//! bench/load.sh [PART...]
//! ```
//!
//! Starts the release binary on one core, stays on another, and asks it over real sockets. Prints one table: the bar, the
//! figure, whether it holds; ends with status 1 if one does not. Each part is a file, and says what it measures and how.
//!
//! Deliberately absent: other machines than this one, GPUs, and figures without a bar that only say how fast it is
//! (`bench/service.py`).

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the table is what the program is for")]

mod attacks;
mod bounds;
mod client;
mod crash;
mod deadlines;
mod fairness;
mod generator;
mod leavers;
mod overload;
mod server;
mod shutdown;
mod soak;
mod table;
mod texts;

use server::Plan;
use std::error::Error;
use std::process::ExitCode;
use table::Table;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// In the order in which they run. The soak takes twenty minutes and runs only when it is named.
const PARTS: [&str; 8] = ["bounds", "overload", "deadlines", "leavers", "fairness", "attacks", "shutdown", "crash"];

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<bool> {
    let mut parts: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = parts.iter().find(|part| !PARTS.contains(&part.as_str()) && *part != "soak") {
        return Err(format!("no part {unknown}; there are {} and soak", PARTS.join(", ")).into());
    }
    if parts.is_empty() {
        parts = PARTS.map(str::to_owned).to_vec();
    }
    let plan = Plan::of_environment()?;
    let busy = plan.busy_before()?;
    // Before the runtime, whose threads inherit it.
    plan.pin_this_process()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut table = Table::new(plan.quick, busy);
    for part in &parts {
        eprintln!("-- {part}");
        table.begin(part);
        let ended = runtime.block_on(async {
            match part.as_str() {
                "bounds" => bounds::run(&plan, &mut table).await,
                "overload" => overload::run(&plan, &mut table).await,
                "deadlines" => deadlines::run(&plan, &mut table).await,
                "leavers" => leavers::run(&plan, &mut table).await,
                "fairness" => fairness::run(&plan, &mut table).await,
                "attacks" => attacks::run(&plan, &mut table).await,
                "shutdown" => shutdown::run(&plan, &mut table).await,
                "crash" => crash::run(&plan, &mut table).await,
                _ => soak::run(&plan, &mut table).await,
            }
        });
        // The other parts are still worth having.
        if let Err(error) = ended {
            table.row("the part runs to its end", "yes", format!("no: {error}"), false);
        }
    }
    println!("{table}");
    Ok(table.all_hold())
}
