//! A response's body out of parts: text that is written for it, and bytes that others hold, too, which are not copied.
//!
//! Deliberately absent: bodies whose length is not known before they are sent.

use axum::body::Body;
use bytes::{Buf as _, Bytes};
use hyper::body::{Frame, SizeHint};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Shared bytes up to this length are copied: a part of their own costs more than that.
const COPY_BYTES_MAX: usize = 8 << 10;

/// A body in the making.
#[derive(Debug, Default)]
pub(super) struct Writer {
    parts: VecDeque<Bytes>,
    /// Text, which the next part follows.
    text: Vec<u8>,
}

impl Writer {
    /// Where text goes.
    pub(super) fn text(&mut self) -> &mut Vec<u8> {
        &mut self.text
    }

    /// Appends bytes that are shared.
    pub(super) fn shared(&mut self, bytes: Bytes) {
        if bytes.len() <= COPY_BYTES_MAX {
            self.text.extend_from_slice(&bytes);
            return;
        }
        self.end_text();
        self.parts.push_back(bytes);
    }

    /// The body, which knows its length.
    pub(super) fn finish(mut self) -> Body {
        if self.parts.is_empty() {
            return self.text.into();
        }
        self.end_text();
        let length = self.parts.iter().map(|part| part.len() as u64).sum();
        Body::new(Parts { parts: self.parts, left: length })
    }

    fn end_text(&mut self) {
        if !self.text.is_empty() {
            self.parts.push_back(mem::take(&mut self.text).into());
        }
    }
}

/// A frame a part: the server hands several of them to the socket at once.
struct Parts {
    parts: VecDeque<Bytes>,
    /// Bytes in `parts`.
    left: u64,
}

impl hyper::body::Body for Parts {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let part = self.parts.pop_front();
        self.left -= part.as_ref().map_or(0, |part| part.remaining() as u64);
        Poll::Ready(part.map(|part| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.parts.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::to_bytes;
    use hyper::body::Body as _;

    #[tokio::test]
    async fn text_and_shared_bytes_in_order() {
        let (small, large) = (Bytes::from("small"), Bytes::from(vec![b'x'; COPY_BYTES_MAX + 1]));
        let mut writer = Writer::default();
        writer.text().extend_from_slice(b"one");
        writer.shared(small);
        writer.shared(large.clone());
        writer.shared(large.clone());
        writer.text().extend_from_slice(b"end");
        let mut body = writer.finish();
        let length = 8 + 2 * large.len() + 3;
        assert_eq!(body.size_hint().exact(), Some(length as u64));
        assert!(!body.is_end_stream());

        let mut frames = Vec::new();
        while !body.is_end_stream() {
            let left = body.size_hint().exact().expect("a length");
            let frame = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
            let frame = frame.expect("a frame").expect("no error").into_data().expect("data");
            assert_eq!(body.size_hint().exact(), Some(left - frame.len() as u64));
            frames.push(frame);
        }
        assert_eq!(frames.iter().map(Bytes::len).collect::<Vec<_>>(), [8, large.len(), large.len(), 3]);
        assert_eq!(frames[1].as_ptr(), large.as_ptr(), "not copied");
        assert_eq!((frames[0].as_ref(), frames[3].as_ref()), (&b"onesmall"[..], &b"end"[..]));
    }

    #[tokio::test]
    async fn nothing_and_text_alone() {
        assert_eq!(Writer::default().finish().size_hint().exact(), Some(0));
        let mut writer = Writer::default();
        writer.text().extend_from_slice(b"text");
        assert_eq!(to_bytes(writer.finish(), 10).await.expect("a body"), "text");
    }
}
