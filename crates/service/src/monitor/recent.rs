//! The last errors, for people who look after something went wrong. The log has all of them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// How many are kept.
const KEPT: usize = 50;

/// How much of what was said is kept.
const DETAIL_CHARS_MAX: usize = 300;

/// A request that was answered with an error of the service's, or refused for a bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// The request's id, which the log has, too.
    pub request_id: String,
    /// Who asked, where clients have names.
    pub client: Option<Arc<str>>,
    /// The method.
    pub method: String,
    /// The path.
    pub path: String,
    /// The status.
    pub status: u16,
    /// What the answer said.
    pub detail: String,
}

#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<VecDeque<Arc<Failed>>>);

impl Recent {
    pub(super) fn push(&self, mut failed: Failed) {
        for text in [&mut failed.detail, &mut failed.path] {
            if let Some((end, _)) = text.char_indices().nth(DETAIL_CHARS_MAX) {
                text.truncate(end);
                text.push('…');
            }
        }
        let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        list.truncate(KEPT - 1);
        list.push_front(Arc::new(failed));
    }

    pub(super) fn list(&self) -> Vec<Arc<Failed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_kept_and_nothing_is_long() {
        let recent = Recent::default();
        for n in 0..120 {
            recent.push(Failed {
                at_ms: n,
                request_id: n.to_string(),
                client: None,
                method: "POST".into(),
                path: "/é".repeat(1000),
                status: 503,
                detail: "x".repeat(299) + "éé",
            });
        }
        let list = recent.list();
        assert_eq!((list.len(), list[0].at_ms, list[49].at_ms), (50, 119, 70));
        assert_eq!(list[0].detail, "x".repeat(299) + "é…");
        assert_eq!(list[0].path.chars().count(), 301);
    }
}
