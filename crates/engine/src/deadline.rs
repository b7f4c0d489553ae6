//! Until when an answer is wanted. It belongs to a request and goes with its task, so that whatever the request causes, and
//! however deep, knows it without being told.

use std::time::Instant;

tokio::task_local! {
    static DEADLINE: Instant;
}

/// Runs `future`, whose answer is of no use after `deadline`: work for it is refused where it would come too late, and not begun
/// once its time is over.
pub async fn within<F: Future>(deadline: Instant, future: F) -> F::Output {
    DEADLINE.scope(deadline, future).await
}

/// That of the task that asks.
pub(crate) fn current() -> Option<Instant> {
    DEADLINE.try_with(|deadline| *deadline).ok()
}
