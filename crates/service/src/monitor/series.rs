//! The last ten minutes, point by point: what a page can draw when it is opened.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The time of a point.
pub(crate) const EVERY: Duration = Duration::from_secs(2);

/// How many are kept.
const POINTS_MAX: usize = 300;

/// Latencies of a point that are kept, for percentiles; of more, evenly chosen ones.
const LATENCIES_MAX: usize = 4096;

/// What was done in the time of a point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Its end, in milliseconds since 1970.
    pub at_ms: u64,
    /// Requests that were answered.
    pub requests_per_s: f64,
    /// Those of them with an error of the service's.
    pub failed_per_s: f64,
    /// Tokens that went through models.
    pub tokens_per_s: f64,
    /// Half of the requests took no longer; `None` where there were none.
    pub p50_ms: Option<f64>,
    /// Nineteen of twenty took no longer.
    pub p95_ms: Option<f64>,
}

#[derive(Debug)]
pub(super) struct Series(Mutex<State>);

#[derive(Debug)]
struct State {
    since: Instant,
    requests: u64,
    failed: u64,
    latencies_ms: Vec<f32>,
    tokens_before: u64,
    all: (u64, u64),
    points: VecDeque<Point>,
}

impl Default for Series {
    fn default() -> Self {
        let (latencies_ms, points) = (Vec::new(), VecDeque::new());
        let since = Instant::now();
        Self(State { since, requests: 0, failed: 0, latencies_ms, tokens_before: 0, all: (0, 0), points }.into())
    }
}

impl Series {
    pub(super) fn answered(&self, took: Duration, failed: bool) {
        let mut state = self.lock();
        state.requests += 1;
        state.failed += u64::from(failed);
        state.all.0 += 1;
        state.all.1 += u64::from(failed);
        let (ms, n) = (took.as_secs_f32() * 1e3, state.requests);
        if state.latencies_ms.len() < LATENCIES_MAX {
            state.latencies_ms.push(ms);
        } else {
            // Vitter's algorithm R, with the golden ratio for chance: spread evenly, and good enough for a chart.
            let place = (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % n) as usize;
            if let Some(kept) = state.latencies_ms.get_mut(place) {
                *kept = ms;
            }
        }
    }

    /// Ends a point; `tokens` since the start.
    pub(super) fn end_point(&self, tokens: u64) {
        let mut state = self.lock();
        let seconds = state.since.elapsed().as_secs_f64();
        state.since = Instant::now();
        let mut latencies = std::mem::take(&mut state.latencies_ms);
        latencies.sort_unstable_by(f32::total_cmp);
        let percentile = |of: usize| {
            let rank = (latencies.len() * of).div_ceil(100);
            latencies.get(rank.saturating_sub(1)).map(|&ms| f64::from((ms * 100.0).round()) / 100.0)
        };
        let rate = |count: u64| if seconds > 0.0 { (count as f64 / seconds * 100.0).round() / 100.0 } else { 0.0 };
        let point = Point {
            at_ms: now_ms(),
            requests_per_s: rate(state.requests),
            failed_per_s: rate(state.failed),
            tokens_per_s: rate(tokens - state.tokens_before),
            p50_ms: percentile(50),
            p95_ms: percentile(95),
        };
        (state.requests, state.failed, state.tokens_before) = (0, 0, tokens);
        if state.points.len() == POINTS_MAX {
            state.points.pop_front();
        }
        state.points.push_back(point);
    }

    pub(super) fn points(&self) -> Vec<Point> {
        self.lock().points.iter().copied().collect()
    }

    /// Requests since the start, and failed ones.
    pub(super) fn totals(&self) -> (u64, u64) {
        self.lock().all
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_of_its_own_time() {
        let series = Series::default();
        (1..=100).for_each(|ms| series.answered(Duration::from_millis(ms), ms > 98));
        series.end_point(1000);
        series.end_point(1000);
        let points = series.points();
        assert_eq!((points[0].p50_ms, points[0].p95_ms), (Some(50.0), Some(95.0)));
        assert!(points[0].requests_per_s > points[0].failed_per_s && points[0].failed_per_s > 0.0);
        assert_eq!((points[1].p50_ms, points[1].requests_per_s, points[1].tokens_per_s), (None, 0.0, 0.0));
        assert_eq!(series.totals(), (100, 2));
    }

    #[test]
    fn of_many_some_are_kept_that_stand_for_all() {
        let series = Series::default();
        (0..100_000u64).for_each(|n| series.answered(Duration::from_millis(n % 1000), false));
        assert_eq!(series.lock().latencies_ms.len(), LATENCIES_MAX);
        (0..POINTS_MAX + 5).for_each(|_| series.end_point(0));
        assert_eq!(series.points().len(), POINTS_MAX);

        (0..100_000u64).for_each(|n| series.answered(Duration::from_millis(n / 100), false));
        series.end_point(0);
        let p50 = series.points().last().and_then(|point| point.p50_ms).expect("requests");
        assert!((400.0..600.0).contains(&p50), "{p50}");
    }
}
