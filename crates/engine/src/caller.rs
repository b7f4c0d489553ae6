//! For whom something is done, and until when. Both belong to a request and go with its task, so that whatever the request
//! causes, and however deep, knows them without being told.

use std::sync::Arc;
use std::time::Instant;

#[derive(Clone, Default)]
struct Caller {
    deadline: Option<Instant>,
    client: Option<Arc<str>>,
}

tokio::task_local! {
    static CALLER: Caller;
}

fn current() -> Caller {
    CALLER.try_with(Caller::clone).unwrap_or_default()
}

/// Runs `future`, whose answer is of no use after `deadline`: work for it is refused where it would come too late, and not begun
/// once its time is over.
pub async fn within<F: Future>(deadline: Instant, future: F) -> F::Output {
    CALLER.scope(Caller { deadline: Some(deadline), ..current() }, future).await
}

/// Runs `future` for the client of this name, which may have a part of the queue, and not all of it.
pub async fn on_behalf_of<F: Future>(client: Arc<str>, future: F) -> F::Output {
    CALLER.scope(Caller { client: Some(client), ..current() }, future).await
}

/// `future`, for the caller of now, whoever comes to poll it.
pub(crate) fn same<F: Future>(future: F) -> impl Future<Output = F::Output> {
    CALLER.scope(current(), future)
}

/// Until when the task that asks wants its answer.
pub(crate) fn deadline() -> Option<Instant> {
    current().deadline
}

/// For whom the task asks, if that has a name.
pub(crate) fn client() -> Option<Arc<str>> {
    current().client
}
