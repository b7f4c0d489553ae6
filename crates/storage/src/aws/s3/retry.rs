//! When to try again, and when not any more.

use super::explain::Fault;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;
use tokio::time::{Instant, sleep};

const WAIT_MIN: Duration = Duration::from_millis(100);
const WAIT_MAX: Duration = Duration::from_secs(5);

/// The attempts of one thing since it last got anywhere. Given up when there were too many and too long a time, both:
/// refusals that come at once do not use the attempts up while a service restarts.
#[derive(Debug)]
pub(super) struct Tries {
    attempts_max: u32,
    patience: Duration,
    attempts: u32,
    since: Instant,
}

impl Tries {
    pub(super) fn new(attempts_max: u32, patience: Duration) -> Self {
        Self { attempts_max, patience, attempts: 0, since: Instant::now() }
    }

    /// Something was got.
    pub(super) fn progressed(&mut self) {
        self.attempts = 0;
        self.since = Instant::now();
    }

    /// Waits until it is time for the next attempt; gives the fault back where there is none.
    pub(super) async fn wait(&mut self, fault: Fault, place: &str) -> Result<(), Fault> {
        let Fault::Transient(trouble, words) = fault else { return Err(fault) };
        self.attempts += 1;
        if self.attempts >= self.attempts_max && self.since.elapsed() >= self.patience {
            return Err(Fault::Transient(trouble, words));
        }
        // The first one is nothing unusual.
        if self.attempts > 1 && self.attempts.is_power_of_two() {
            tracing::warn!(place, attempts = self.attempts, problem = words, "S3: trying again");
        }
        sleep(jittered(self.attempts - 1)).await;
        Ok(())
    }

    /// For people: how much was tried.
    pub(super) fn tried(attempts_max: u32, patience: Duration) -> String {
        format!("tried {attempts_max} times or more in {} s or more", patience.as_secs())
    }
}

/// A random time up to one that doubles with each attempt, so that what was refused together does not come back together.
pub(super) fn jittered(attempt: u32) -> Duration {
    let most = WAIT_MIN.saturating_mul(1 << attempt.min(16)).min(WAIT_MAX);
    // The standard library's one source of randomness: the keys of its hash tables.
    let random = RandomState::new().build_hasher().finish();
    most.mul_f64(random as f64 / u64::MAX as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_random_and_bounded() {
        for (attempt, most_ms) in [(0, 100), (1, 200), (5, 3200), (6, 5000), (40, 5000), (u32::MAX, 5000)] {
            let waits: Vec<_> = (0..200).map(|_| jittered(attempt)).collect();
            assert!(waits.iter().all(|wait| *wait <= Duration::from_millis(most_ms)), "{attempt}");
            assert!(waits.iter().any(|wait| *wait != waits[0]));
        }
    }
}
