//! A simulation: the real queue, replicas, cache and clients' contracts, led through whatever order of events a seed
//! stands for, with everything failing that may fail.
//!
//! Nothing runs by itself. Futures are polled, replicas take a step, stores answer, time passes and clients leave when the
//! seed says so, one at a time, on one thread (tokenization has another, which waits at a gate meanwhile). The same seed
//! gives the same world on every machine; what it does is looked at after each step:
//!
//! - Who stays gets one answer: the right one, bit for bit, of the revision that was asked, or an error for which there was
//!   a reason.
//! - A batch is of the first jobs of its lane that its replica can take, in order, within its bound; nobody's job is run,
//!   or one's that left; no lane is passed over twice; who can work is not asleep while there is work.
//! - No job is run a third time for a device. Tokens in the queue are those of the jobs in it.
//! - In the end, nothing is held: no tokens, threads, flights, reads, models; replicas end; what is cached is right.
//!
//! `NEXUS_SIM_SEED=n` replays one seed and prints what happens; `NEXUS_SIM_SEEDS=n` says how many are tried.
//!
//! It was shown to notice what it is for: answers that were swapped or forgotten, work that was done for nobody, once too
//! often or not at all, replicas that nobody woke, places and permits that never came back, values that were believed
//! unseen.
//!
//! Deliberately absent: threads that meet inside of one step (the tests of `queue` and `replica` have them), devices that
//! hang for ever, and whatever loads models.

mod clients;
mod clock;
mod devices;
mod dice;
mod end;
mod hands;
mod ledger;
mod plan;
mod reload;
mod store;
mod texts;
mod threads;
mod world;

pub(crate) use texts::tokenizer;

use std::{
    env,
    hash::{DefaultHasher, Hash, Hasher},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, PoisonError},
};
use world::{Trace, World};

const SEEDS: u64 = 10_000;
/// Lines of a failed seed's trace that are printed.
const LINES_SHOWN: usize = 60;

fn setting(name: &str) -> Option<u64> {
    env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}

/// Runs a seed; whether all was well.
fn holds(seed: u64, trace: Trace) -> bool {
    catch_unwind(AssertUnwindSafe(|| World::new(seed, trace).run())).is_ok()
}

/// Runs a seed and keeps what happens; whether all was well.
fn traced(seed: u64) -> (Vec<String>, bool) {
    let lines = Arc::default();
    let well = holds(seed, Some(Arc::clone(&lines)));
    (std::mem::take(&mut *lines.lock().unwrap_or_else(PoisonError::into_inner)), well)
}

fn show(lines: &[String]) {
    lines.iter().for_each(|line| eprintln!("{line}"));
}

#[test]
fn every_seed_holds() {
    if let Some(seed) = setting("NEXUS_SIM_SEED") {
        let (lines, well) = traced(seed);
        show(&lines);
        assert!(well, "seed {seed} fails");
        return;
    }
    for seed in 0..setting("NEXUS_SIM_SEEDS").unwrap_or(SEEDS) {
        if !holds(seed, None) {
            let (lines, _) = traced(seed);
            show(&lines[lines.len().saturating_sub(LINES_SHOWN)..]);
            panic!(
                "seed {seed} fails; replay it: NEXUS_SIM_SEED={seed} cargo test -p nexus-engine every_seed -- --nocapture"
            );
        }
    }
}

#[test]
fn the_same_seed_is_the_same_world() {
    let hash = |seed| {
        let mut hasher = DefaultHasher::new();
        traced(seed).0.hash(&mut hasher);
        hasher.finish()
    };
    let hashes: Vec<u64> = (0..50).map(hash).collect();
    assert_eq!(hashes, (0..50).map(hash).collect::<Vec<_>>());
    assert_ne!(hashes[0], hashes[1]);
}
