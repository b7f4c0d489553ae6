//! How long jobs waited in the queue: a histogram that whoever reports it empties.
//!
//! Deliberately absent: when to report, and to whom.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Two buckets for each doubling, from a tenth of a millisecond on: a percentile is at most 42% too high.
const BUCKETS: usize = 44;
const FIRST_MS: f64 = 0.1;

/// Counts waits; shared by replicas without a lock.
#[derive(Debug)]
pub(crate) struct Waits {
    buckets: [AtomicU64; BUCKETS],
}

impl Default for Waits {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

/// What waited since the last look, in milliseconds; all zero where nothing did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct QueueWaits {
    /// Jobs: texts, or pairs of texts.
    pub jobs: u64,
    /// Half of them waited no longer than this.
    pub p50_ms: f64,
    /// Nineteen of twenty waited no longer than this.
    pub p95_ms: f64,
    /// None waited longer than this.
    pub max_ms: f64,
}

impl Waits {
    /// Counts `jobs` that waited as long.
    pub(crate) fn record(&self, wait: Duration) {
        let ms = wait.as_secs_f64() * 1e3;
        let bucket = if ms <= FIRST_MS { 0 } else { ((ms / FIRST_MS).log2() * 2.0).ceil() as usize };
        self.buckets[bucket.min(BUCKETS - 1)].fetch_add(1, Ordering::Relaxed);
    }

    /// What was counted since the last call.
    pub(crate) fn take(&self) -> QueueWaits {
        let counts: Vec<u64> = self.buckets.iter().map(|bucket| bucket.swap(0, Ordering::Relaxed)).collect();
        let jobs: u64 = counts.iter().sum();
        if jobs == 0 {
            return QueueWaits::default();
        }
        // The upper bound of the bucket in which the job of this rank is.
        let at = |rank: u64| {
            let mut below = 0;
            let bucket = counts.iter().position(|count| {
                below += count;
                below >= rank
            });
            let bound = FIRST_MS * 2f64.powf(bucket.unwrap_or(BUCKETS - 1) as f64 / 2.0);
            (bound * 10.0).round() / 10.0
        };
        QueueWaits { jobs, p50_ms: at(jobs.div_ceil(2)), p95_ms: at((jobs * 19).div_ceil(20)), max_ms: at(jobs) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_upper_bounds_within_a_bucket() {
        let waits = Waits::default();
        (1..=100).for_each(|ms| waits.record(Duration::from_millis(ms)));
        let QueueWaits { jobs, p50_ms, p95_ms, max_ms } = waits.take();
        assert_eq!(jobs, 100);
        for (found, exact) in [(p50_ms, 50.0), (p95_ms, 95.0), (max_ms, 100.0)] {
            assert!((exact..exact * 1.42).contains(&found), "{found} for {exact}");
        }
        assert_eq!(waits.take(), QueueWaits::default(), "a look empties it");
    }

    #[test]
    fn the_shortest_and_the_longest_have_a_place() {
        let waits = Waits::default();
        waits.record(Duration::ZERO);
        assert_eq!(waits.take().max_ms, 0.1);
        waits.record(Duration::from_secs(1 << 30));
        assert!(waits.take().max_ms > 200_000.0);
    }
}
