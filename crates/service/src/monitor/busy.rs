//! How busy devices are of late, from the time that they have computed since the start.

use super::EVERY;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) struct Busy(Mutex<State>);

#[derive(Debug)]
struct State {
    looked_at: Instant,
    busy: Vec<Duration>,
    ratios: Vec<f64>,
}

impl Default for Busy {
    fn default() -> Self {
        Self(State { looked_at: Instant::now(), busy: Vec::new(), ratios: Vec::new() }.into())
    }
}

impl Busy {
    /// The part of the last seconds that each device has computed, where `busy` is what it has since the start.
    pub(super) fn ratios(&self, busy: Vec<Duration>) -> Vec<f64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = state.looked_at.elapsed();
        if passed >= EVERY || state.ratios.len() != busy.len() {
            let before = state.busy.iter().copied().chain(std::iter::repeat(Duration::ZERO));
            let ratio = |(now, before): (&Duration, Duration)| {
                let of_it = now.saturating_sub(before).as_secs_f64() / passed.as_secs_f64().max(1e-3);
                (of_it.min(1.0) * 1e3).round() / 1e3
            };
            state.ratios = busy.iter().zip(before).map(ratio).collect();
            (state.looked_at, state.busy) = (Instant::now(), busy);
        }
        state.ratios.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_is_of_the_time_since_the_one_before() {
        let busy = Busy::default();
        assert!(busy.ratios(Vec::new()).is_empty());
        let long_ago = Duration::from_secs(1000);
        let first = busy.ratios(vec![long_ago, Duration::ZERO]);
        assert_eq!(first, [1.0, 0.0]);
        assert_eq!(busy.ratios(vec![long_ago; 2]), first, "too soon for another");
        busy.0.lock().unwrap().looked_at -= Duration::from_secs(10);
        let ratios = busy.ratios(vec![long_ago + Duration::from_secs(5), Duration::ZERO]);
        assert!((ratios[0] - 0.5).abs() < 0.05 && ratios[1] == 0.0, "{ratios:?}");
    }
}
