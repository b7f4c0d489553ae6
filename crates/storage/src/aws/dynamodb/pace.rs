//! How fast a table is written to: how many requests are under way at once, and how long each waits before it is sent.
//!
//! | a request's items were | requests at once | pause |
//! |---|---|---|
//! | all written | one more, after as many such answers as there are requests | a quarter, then none |
//! | written in part | half | a quarter, but not less than the first one |
//! | not written: the table throttles | half | twice, up to a bound |
//!
//! A table that takes a part of everything works as fast as it can: there a long pause would only be time lost. What was
//! sent before the last time that requests were halved, or the pause doubled, was sent too fast already, and does so no
//! second time.
//!
//! Each pause is any time between none and the whole of it, so that neither replicas nor requests come in step.

use super::jitter::any_of;
use super::write::WriteTuning;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Requests to write that may be under way at once: 100 items.
const REQUESTS_MAX: f64 = 4.0;
/// What a pause is divided by when something was written.
const RELIEF: u32 = 4;

pub(super) struct Pace {
    first: Duration,
    most: Duration,
    state: Mutex<State>,
}

struct State {
    pause: Duration,
    /// Requests at once. Its fraction is what is still missing until there may be one more.
    requests: f64,
    halved: Option<Instant>,
    doubled: Option<Instant>,
}

impl Pace {
    /// One request at a time, without a pause: how much a new table takes is not known.
    pub(super) fn new(tuning: &WriteTuning) -> Self {
        let state = State { pause: Duration::ZERO, requests: 1.0, halved: None, doubled: None };
        Self { first: tuning.pause, most: tuning.pause_max, state: Mutex::new(state) }
    }

    /// Requests that may be under way now; at least one.
    pub(super) fn requests(&self) -> usize {
        self.lock().requests as usize
    }

    /// To be waited for before each request. When it may be sent.
    pub(super) async fn wait(&self) -> Instant {
        let pause = self.lock().pause;
        if !pause.is_zero() {
            sleep(any_of(pause)).await;
        }
        Instant::now()
    }

    /// All items of a request were written.
    pub(super) fn whole(&self) {
        let mut state = self.lock();
        state.requests = (state.requests + 1.0 / state.requests).min(REQUESTS_MAX);
        state.pause /= RELIEF;
        if state.pause < self.first {
            state.pause = Duration::ZERO;
        }
    }

    /// Some items of a request that was `sent` then were written.
    pub(super) fn part(&self, sent: Instant) {
        let mut state = self.lock();
        state.halve(sent);
        state.pause = (state.pause / RELIEF).max(self.first);
    }

    /// None of the items of a request that was `sent` then was written, as the table has to do with others.
    pub(super) fn throttled(&self, sent: Instant) {
        let mut state = self.lock();
        state.halve(sent);
        if state.doubled.is_none_or(|doubled| sent >= doubled) {
            state.pause = (state.pause * 2).clamp(self.first, self.most);
            state.doubled = Some(Instant::now());
        }
    }

    /// There was no answer to use: one request finds out when there is.
    pub(super) fn failed(&self) {
        self.lock().requests = 1.0;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing between lock and unlock panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn halve(&mut self, sent: Instant) {
        if self.halved.is_none_or(|halved| sent >= halved) {
            self.requests = (self.requests / 2.0).max(1.0);
            self.halved = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(50);
    const MOST: Duration = Duration::from_secs(5);

    fn pace() -> Pace {
        Pace::new(&WriteTuning { pause: FIRST, pause_max: MOST, ..WriteTuning::default() })
    }

    /// A moment later than all before it.
    fn later() -> Instant {
        let now = Instant::now();
        while Instant::now() == now {}
        Instant::now()
    }

    #[test]
    fn what_is_written_in_part_is_no_reason_to_wait_longer_and_longer() {
        let pace = pace();
        for _ in 0..100 {
            pace.part(later());
            assert_eq!((pace.requests(), pace.lock().pause), (1, FIRST));
        }
    }

    #[test]
    fn pauses_double_up_to_a_bound_and_are_soon_gone() {
        let pace = pace();
        for expected_ms in [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            pace.throttled(later());
            assert_eq!(pace.lock().pause, Duration::from_millis(expected_ms));
        }
        pace.part(later());
        assert_eq!(pace.lock().pause, MOST / 4);
        for _ in 0..3 {
            pace.whole();
        }
        assert_eq!(pace.lock().pause, Duration::ZERO);
    }

    #[test]
    fn requests_grow_one_by_one_and_are_halved_once_for_all_that_are_under_way() {
        let pace = pace();
        let mut seen = vec![pace.requests()];
        for _ in 0..40 {
            pace.whole();
            seen.push(pace.requests());
        }
        assert!(seen.windows(2).all(|pair| pair[1] - pair[0] <= 1), "{seen:?}");
        assert_eq!((seen[0], seen[40]), (1, 4));
        let together = later();
        for _ in 0..4 {
            pace.throttled(together);
        }
        assert_eq!((pace.requests(), pace.lock().pause), (2, FIRST));
        pace.part(later());
        assert_eq!(pace.requests(), 1);
        pace.whole();
        assert_eq!(pace.requests(), 2);
        pace.failed();
        assert_eq!(pace.requests(), 1);
    }
}
