//! Whether a table that failed is asked again.
//!
//! After some failures in a row nobody is let through for a while, twice as long each time; then one is, and what comes
//! of it decides for all. Trouble that somebody has to clear up (no such table, no permission) needs no second failure,
//! and is looked at less often.
//!
//! Deliberately absent: what a failure is. Whoever was let through says what came of it.

use super::jitter::jittered;
use crate::Circuit;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// When a breaker opens, and for how long.
#[derive(Clone, Debug)]
pub(super) struct BreakerOptions {
    /// Failures in a row that open it.
    pub(super) failures_max: u32,
    /// How long it stays open at first. Half to all of it, by chance, so that replicas do not come back as one.
    pub(super) open: Duration,
    /// How long it stays open at most, and after trouble that does not pass by itself.
    pub(super) open_max: Duration,
}

impl Default for BreakerOptions {
    fn default() -> Self {
        Self { failures_max: 5, open: Duration::from_secs(1), open_max: Duration::from_secs(30) }
    }
}

pub(super) struct Breaker {
    options: BreakerOptions,
    state: Mutex<State>,
}

#[derive(Clone, Copy)]
enum State {
    Closed {
        failures: u32,
    },
    Open {
        until: Instant,
        /// Times that it was opened without having been closed.
        openings: u32,
    },
    Probing {
        openings: u32,
    },
}

/// Leave to ask the table once. Dropped without a word, it says nothing about the table.
pub(super) struct Pass<'a> {
    breaker: &'a Breaker,
    probe: bool,
}

impl Breaker {
    pub(super) fn new(options: BreakerOptions) -> Self {
        Self { options, state: Mutex::new(State::Closed { failures: 0 }) }
    }

    /// `None` while the table is not to be asked.
    pub(super) fn admit(&self) -> Option<Pass<'_>> {
        let mut state = self.lock();
        match *state {
            State::Closed { .. } => Some(Pass { breaker: self, probe: false }),
            State::Open { until, openings } if until <= Instant::now() => {
                *state = State::Probing { openings };
                Some(Pass { breaker: self, probe: true })
            }
            State::Open { .. } | State::Probing { .. } => None,
        }
    }

    /// Whether the table would not be asked now.
    pub(super) fn is_shut(&self) -> bool {
        matches!(*self.lock(), State::Open { until, .. } if until > Instant::now())
    }

    pub(super) fn circuit(&self) -> Circuit {
        match *self.lock() {
            State::Closed { .. } => Circuit::Closed,
            State::Open { until, .. } if until > Instant::now() => Circuit::Open,
            // The next request finds out; where none comes, there is nothing to worry about.
            State::Open { .. } => Circuit::HalfOpen,
            State::Probing { .. } => Circuit::HalfOpen,
        }
    }

    /// Opens it, whoever is under way: what is known now does not pass by itself.
    pub(super) fn trip(&self) {
        let mut state = self.lock();
        if let State::Closed { .. } = *state {
            *state = self.opened(1, true);
        }
    }

    fn opened(&self, openings: u32, lasting: bool) -> State {
        let BreakerOptions { open, open_max, .. } = self.options;
        let doubled = open.saturating_mul(1 << openings.saturating_sub(1).min(16));
        let open = if lasting { open_max } else { doubled.min(open_max) };
        State::Open { until: Instant::now() + jittered(open), openings }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing between lock and unlock panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass<'_> {
    /// The table answered.
    pub(super) fn succeeded(self) {
        let mut state = self.breaker.lock();
        // What was let through before it opened is no news.
        if self.probe || matches!(*state, State::Closed { .. }) {
            *state = State::Closed { failures: 0 };
        }
    }

    /// The table did not; `lasting` where that does not pass by itself.
    pub(super) fn failed(self, lasting: bool) {
        let mut state = self.breaker.lock();
        match *state {
            State::Closed { failures } => {
                let failures = failures.saturating_add(1);
                *state = if lasting || failures >= self.breaker.options.failures_max {
                    self.breaker.opened(1, lasting)
                } else {
                    State::Closed { failures }
                };
            }
            State::Probing { openings } if self.probe => {
                *state = self.breaker.opened(openings.saturating_add(1), lasting);
            }
            State::Open { .. } | State::Probing { .. } => {}
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let mut state = self.breaker.lock();
        if let State::Probing { openings } = *state
            && self.probe
        {
            // Its caller went away before the answer: the next one asks.
            *state = State::Open { until: Instant::now(), openings };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::sleep;

    fn breaker(open_ms: u64, open_max_ms: u64) -> Breaker {
        let (open, open_max) = (Duration::from_millis(open_ms), Duration::from_millis(open_max_ms));
        Breaker::new(BreakerOptions { failures_max: 3, open, open_max })
    }

    const LONG_MS: u64 = 3_600_000;

    #[test]
    fn failures_in_a_row_open_it_and_others_do_not() {
        let breaker = breaker(LONG_MS, LONG_MS);
        for _ in 0..10 {
            breaker.admit().unwrap().failed(false);
            breaker.admit().unwrap().failed(false);
            breaker.admit().unwrap().succeeded();
        }
        for _ in 0..2 {
            breaker.admit().unwrap().failed(false);
            assert_eq!(breaker.circuit(), Circuit::Closed);
        }
        let late = breaker.admit().unwrap();
        breaker.admit().unwrap().failed(false);
        assert_eq!(breaker.circuit(), Circuit::Open);
        assert!(breaker.admit().is_none() && breaker.is_shut());
        late.succeeded();
        assert!(breaker.admit().is_none(), "what was let through before does not close it");
    }

    #[test]
    fn lasting_trouble_opens_it_at_once() {
        let breaker = breaker(0, LONG_MS);
        breaker.admit().unwrap().failed(true);
        assert!(breaker.admit().is_none(), "for the long time, too");
        let tripped = self::breaker(0, LONG_MS);
        tripped.trip();
        assert!(tripped.is_shut());
    }

    #[test]
    fn one_probe_decides() {
        let breaker = breaker(1, 1);
        breaker.admit().unwrap().failed(true);
        sleep(Duration::from_millis(5));
        let probe = breaker.admit().unwrap();
        assert_eq!(breaker.circuit(), Circuit::HalfOpen);
        assert!(breaker.admit().is_none(), "one at a time");
        probe.failed(false);
        assert_eq!(breaker.circuit(), Circuit::Open);
        sleep(Duration::from_millis(5));
        breaker.admit().unwrap().succeeded();
        assert_eq!(breaker.circuit(), Circuit::Closed);
    }

    #[test]
    fn a_probe_whose_caller_went_away_leaves_its_place() {
        let breaker = breaker(1, 1);
        breaker.admit().unwrap().failed(true);
        sleep(Duration::from_millis(5));
        drop(breaker.admit().unwrap());
        breaker.admit().expect("the next one asks").succeeded();
        assert_eq!(breaker.circuit(), Circuit::Closed);
    }

    #[test]
    fn it_stays_open_longer_each_time_up_to_a_bound() {
        let breaker = breaker(1000, 30_000);
        for (openings, most_ms) in [(1, 1000), (2, 2000), (5, 16_000), (6, 30_000), (1000, 30_000)] {
            let State::Open { until, .. } = breaker.opened(openings, false) else { panic!("not open") };
            let open = until - Instant::now();
            assert!(open <= Duration::from_millis(most_ms), "{openings}: {open:?}");
            assert!(open + Duration::from_millis(200) >= Duration::from_millis(most_ms / 2), "{openings}: {open:?}");
        }
    }
}
