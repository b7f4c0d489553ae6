//! A look at the queue from outside.

use super::{Queue, lane_of};
use crate::Role;
use std::{fmt, sync::Arc};

/// What waits, for whoever asks.
#[derive(Clone)]
pub struct QueueView(pub(crate) Arc<Queue>);

impl QueueView {
    /// Tokens that wait, now.
    pub fn tokens(&self) -> usize {
        self.0.queued_tokens()
    }

    /// Tokens that may wait; requests beyond are refused.
    pub fn tokens_max(&self) -> usize {
        self.0.queued_tokens_max
    }

    /// Texts, or pairs of texts, that wait for a model, now.
    pub fn jobs(&self, role: Role) -> usize {
        self.0.lock().lanes[lane_of(role)].len()
    }
}

impl fmt::Debug for QueueView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueView").field("tokens", &self.tokens()).finish_non_exhaustive()
    }
}
