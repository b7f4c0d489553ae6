//! Repeated measurements of one piece of work.

use std::time::Instant;

/// Runs before the measured ones: the first fills caches and grows buffers, the second is the first as all others.
const WARM_UPS: usize = 2;

/// Milliseconds of some repetitions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Times {
    pub(super) median_ms: f64,
    pub(super) min_ms: f64,
    pub(super) max_ms: f64,
}

impl Times {
    /// Runs `work` twice to warm up, then `repetitions` times, at least once, on the clock.
    pub(super) fn of<E>(repetitions: usize, mut work: impl FnMut() -> Result<(), E>) -> Result<Self, E> {
        for _ in 0..WARM_UPS {
            work()?;
        }
        let mut times_ms = Vec::with_capacity(repetitions);
        for _ in 0..repetitions.max(1) {
            let start = Instant::now();
            work()?;
            times_ms.push(start.elapsed().as_secs_f64() * 1e3);
        }
        times_ms.sort_by(f64::total_cmp);
        Ok(Self { median_ms: median(&times_ms), min_ms: times_ms[0], max_ms: times_ms[times_ms.len() - 1] })
    }
}

/// Of sorted values, of which there is at least one.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0]), 3.0);
        assert_eq!(median(&[1.0, 2.0]), 1.5);
        assert_eq!(median(&[1.0, 2.0, 30.0]), 2.0);
    }

    #[test]
    fn runs_what_it_says_and_stops_at_an_error() {
        let mut runs = 0;
        let times = Times::of(3, || {
            runs += 1;
            Ok::<_, ()>(())
        });
        let times = times.unwrap();
        assert!(runs == WARM_UPS + 3 && times.min_ms <= times.median_ms && times.median_ms <= times.max_ms);
        assert_eq!(Times::of(3, || Err("no")), Err("no"));
    }
}
