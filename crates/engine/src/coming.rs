//! Digests that are computed while the weights are prepared: both read the same files, which then come from the disk once.

use crate::{BoxError, ComputeDigests, Digests};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc::{Receiver, sync_channel},
    thread,
};

/// Digests of a model: yet to be computed, being computed on a thread of their own, or known.
pub(crate) enum ComingDigests {
    Later(ComputeDigests),
    Coming(Receiver<Result<Digests, BoxError>>),
    Known(Digests),
    Failed,
}

impl ComingDigests {
    /// Starts to compute them, or leaves that for the time when they are asked for (`later`).
    pub(crate) fn new(compute: ComputeDigests, later: bool) -> Self {
        if later {
            return Self::Later(compute);
        }
        let (sender, receiver) = sync_channel(1);
        let work = move || {
            let panicked = |_| Err("computing digests panicked".into());
            // Nobody may want them any more: the weights can be wrong as well.
            let _ = sender.send(catch_unwind(AssertUnwindSafe(compute)).unwrap_or_else(panicked));
        };
        // Without a thread the channel is closed, which is told below.
        let _ = thread::Builder::new().name("digests".into()).spawn(work);
        Self::Coming(receiver)
    }

    /// The digests; waits for them.
    pub(crate) fn get(&mut self) -> Result<Digests, BoxError> {
        let digests = match std::mem::replace(self, Self::Failed) {
            Self::Later(compute) => compute()?,
            Self::Coming(coming) => coming.recv().map_err(|_| "there is no thread to compute digests on")??,
            Self::Known(digests) => digests,
            Self::Failed => return Err("the digests could not be computed".into()),
        };
        *self = Self::Known(digests);
        Ok(digests)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGESTS: Digests = Digests { model: [1; 32], tokenizer: [2; 32] };

    #[test]
    fn digests_are_computed_once_and_given_as_often_as_asked() {
        for later in [false, true] {
            let mut coming = ComingDigests::new(Box::new(|| Ok(DIGESTS)), later);
            assert_eq!(coming.get().unwrap(), DIGESTS);
            assert_eq!(coming.get().unwrap(), DIGESTS);
        }
    }

    #[test]
    fn what_goes_wrong_is_told() {
        for later in [false, true] {
            let mut coming = ComingDigests::new(Box::new(|| Err("the folder changed".into())), later);
            assert_eq!(coming.get().unwrap_err().to_string(), "the folder changed");
            assert!(coming.get().is_err());
        }
        let mut coming = ComingDigests::new(Box::new(|| panic!("deliberate")), false);
        assert_eq!(coming.get().unwrap_err().to_string(), "computing digests panicked");
    }
}
