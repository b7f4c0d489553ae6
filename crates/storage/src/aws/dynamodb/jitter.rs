//! Waiting times that no two replicas share.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Half of `time` to all of it, by chance.
pub(super) fn jittered(time: Duration) -> Duration {
    time.mul_f64(0.5 + 0.5 * chance())
}

/// None of `time` to all of it, by chance.
pub(super) fn any_of(time: Duration) -> Duration {
    time.mul_f64(chance())
}

/// From 0 to 1.
fn chance() -> f64 {
    // Each `RandomState` has keys of its own: the standard library's only source of chance.
    let random = RandomState::new().hash_one(0) as u32;
    f64::from(random) / f64::from(u32::MAX)
}

/// The time before try number `tries` (from 1): `first`, doubled each time, up to `most`; half to all of it.
pub(super) fn backoff(tries: u32, first: Duration, most: Duration) -> Duration {
    jittered(first.saturating_mul(1 << tries.saturating_sub(1).min(16)).min(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn between_half_and_all() {
        let time = Duration::from_millis(100);
        let drawn: Vec<_> = (0..200).map(|_| jittered(time)).collect();
        assert!(drawn.iter().all(|t| *t >= time / 2 && *t <= time));
        assert!(drawn.iter().any(|t| *t != drawn[0]));
    }

    #[test]
    fn any_of_it() {
        let time = Duration::from_millis(100);
        let drawn: Vec<_> = (0..200).map(|_| any_of(time)).collect();
        assert!(drawn.iter().all(|t| *t <= time));
        // 200 of either half alone would be a rare chance.
        assert!(drawn.iter().any(|t| *t < time / 2) && drawn.iter().any(|t| *t > time / 2));
    }

    #[test]
    fn doubles_up_to_a_bound() {
        let (first, most) = (Duration::from_millis(10), Duration::from_millis(70));
        for (tries, expected_ms) in [(1, 10), (2, 20), (3, 40), (4, 70), (1000, 70)] {
            let time = backoff(tries, first, most);
            let expected = Duration::from_millis(expected_ms);
            assert!(time <= expected && time >= expected / 2, "{tries}: {time:?}");
        }
    }
}
