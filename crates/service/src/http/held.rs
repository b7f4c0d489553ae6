//! What a request holds until the last byte of its response is on its way: its place among the requests that are worked on,
//! and its connection's.
//!
//! A client that does not read its response holds both. Over HTTP/1 the socket stops taking bytes, which `server` gives no more
//! than a while. Over HTTP/2 the socket goes on, and only the stream stands still: the whole response has a time limit there.

use super::budget::Share;
use super::connections::{Busy, Connection};
use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::task::AbortHandle;

/// What is given back when a response is over, or its client gone.
#[derive(Debug)]
pub(super) struct Holds {
    _place: Option<Arc<Share>>,
    _busy: Option<Busy>,
    limit: Option<Limit>,
}

impl Holds {
    /// A place among the requests that are worked on, and that of a connection that has one.
    pub(super) fn new(place: Option<Arc<Share>>, busy: Option<Busy>) -> Self {
        Self { _place: place, _busy: busy, limit: None }
    }

    /// Closes `connection` if this is still held after `time_max`.
    pub(super) fn for_at_most(&mut self, time_max: Duration, connection: Arc<Connection>) {
        let task = tokio::spawn(async move {
            tokio::time::sleep(time_max).await;
            tracing::debug!("a client did not read its response");
            connection.close();
        });
        self.limit = Some(Limit(task.abort_handle()));
    }
}

#[derive(Debug)]
struct Limit(AbortHandle);

impl Drop for Limit {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// `body`, which holds `holds`.
pub(super) fn holding(body: Body, holds: Holds) -> Body {
    Body::new(Held { body, holds: Some(holds) })
}

struct Held {
    body: Body,
    holds: Option<Holds>,
}

impl hyper::body::Body for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(None | Some(Err(_))) = polled {
            self.holds = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
