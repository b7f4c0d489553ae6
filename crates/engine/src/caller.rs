//! For whom something is done, and until when. Both belong to a request and go with its task, so that whatever the request
//! causes, and however deep, knows them without being told.

use std::sync::Arc;
use std::time::Instant;

tokio::task_local! {
    static DEADLINE: Instant;
    static CLIENT: Arc<str>;
}

/// Runs `future`, whose answer is of no use after `deadline`: work for it is refused where it would come too late, and not begun
/// once its time is over.
pub async fn within<F: Future>(deadline: Instant, future: F) -> F::Output {
    DEADLINE.scope(deadline, future).await
}

/// Runs `future` for the client of this name, which may have a part of the queue, and not all of it.
pub async fn on_behalf_of<F: Future>(client: Arc<str>, future: F) -> F::Output {
    CLIENT.scope(client, future).await
}

/// Until when the task that asks wants its answer.
pub(crate) fn deadline() -> Option<Instant> {
    DEADLINE.try_with(|deadline| *deadline).ok()
}

/// For whom the task asks, if that has a name.
pub(crate) fn client() -> Option<Arc<str>> {
    CLIENT.try_with(Arc::clone).ok()
}

/// `future`, for the caller of now, whoever comes to poll it.
pub(crate) async fn same<F: Future>(deadline: Option<Instant>, client: Option<Arc<str>>, future: F) -> F::Output {
    match (deadline, client) {
        (Some(deadline), Some(client)) => within(deadline, on_behalf_of(client, future)).await,
        (Some(deadline), None) => within(deadline, future).await,
        (None, Some(client)) => on_behalf_of(client, future).await,
        (None, None) => future.await,
    }
}
