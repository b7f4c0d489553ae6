//! A body with vectors, parsed while it is received: one task feeds the parser, the pool works on its blocks, and the
//! outcomes are taken in order.
//!
//! At any time there are a few blocks under way and no more: a client that sends faster than rows can be worked on is
//! not read from. Memory for all of it comes out of the same budget as that for other bodies.

use super::App;
use super::body::{self, INLINE_BYTES_MAX, IncomingBody, MediaType};
use super::budget::Share;
use super::error::ApiError;
use axum::extract::Request;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use nexus_vectors::{Block, BodyError, BodyParser, Form, Head, Limits, Outcome, Purpose};
use std::sync::LazyLock;
use tokio::sync::oneshot;

/// Blocks of one request that are worked on, or wait for it. Enough to keep all cores busy between two chunks.
static BLOCKS_IN_FLIGHT: LazyLock<usize> =
    LazyLock::new(|| 2 + 2 * std::thread::available_parallelism().map_or(1, usize::from));

/// What outcomes go to.
pub(super) trait Sink: Send {
    /// Takes the next outcome, in the order of the body.
    fn take(&mut self, outcome: Outcome) -> impl Future<Output = Result<(), ApiError>> + Send;

    /// Bytes of memory that it holds.
    fn held_bytes(&self) -> usize;
}

/// What a body with vectors may hold, beside its bytes.
pub(super) const LIMITS: Limits = Limits::DEFAULT;

/// A body of which nothing was read.
pub(super) struct Opened {
    form: Form,
    body: IncomingBody,
}

impl Opened {
    /// The body of `request`, if it is one that may have vectors.
    pub(super) fn of(app: &App, request: Request) -> Result<Self, ApiError> {
        let (media_type, _, body) = body::open(request, app.limits.body_bytes_max, true)?;
        let form = match media_type {
            MediaType::Json => Form::Json,
            MediaType::Binary => Form::Safetensors,
        };
        Ok(Self { form, body })
    }

    /// Gives the body up with `error`.
    pub(super) fn refuse(self, error: ApiError) -> ApiError {
        self.body.refuse(error)
    }
}

/// Reads a body, and gives its rows to `sink`. Returns all else that is in it, and what of the budget is
/// still held for it.
pub(super) async fn ingest(
    app: &App,
    opened: Opened,
    purpose: Purpose,
    sink: &mut impl Sink,
) -> Result<(Head, Share), ApiError> {
    let Opened { form, mut body } = opened;
    let mut parser = BodyParser::new(form, purpose, LIMITS);
    let mut under_way = UnderWay::default();
    let mut share = body.share(app);
    match read(&mut body, &mut parser, &mut under_way, &mut share, sink).await {
        Ok(()) => {}
        // Where blocks before it are wrong, too, the first is told.
        Err(error) => {
            let error = under_way.drain(sink).await.err().unwrap_or(error);
            return Err(body.refuse(error));
        }
    }
    let mut blocks = Vec::new();
    let head = parser.finish(&mut blocks);
    for block in blocks {
        under_way.push(block, sink).await?;
    }
    under_way.drain(sink).await?;
    Ok((head?, share))
}

async fn read(
    body: &mut IncomingBody,
    parser: &mut BodyParser,
    under_way: &mut UnderWay,
    share: &mut Share,
    sink: &mut impl Sink,
) -> Result<(), ApiError> {
    let mut blocks = Vec::new();
    while let Some(chunk) = body.next().await? {
        let chunk_bytes = chunk.len();
        let fed = parser.feed(chunk, &mut blocks);
        for block in blocks.drain(..) {
            under_way.push(block, sink).await?;
        }
        fed?;
        share.resize(parser.held_bytes() + under_way.bytes + sink.held_bytes()).map_err(body::no_room)?;
        if chunk_bytes > INLINE_BYTES_MAX {
            // Others are waiting for this thread, too.
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

type Pending = BoxFuture<'static, (usize, Result<Outcome, Failure>)>;

enum Failure {
    Body(BodyError),
    /// The work panicked.
    Lost,
}

#[derive(Default)]
struct UnderWay {
    blocks: FuturesOrdered<Pending>,
    /// Bytes of the body in them.
    bytes: usize,
}

impl UnderWay {
    /// Starts the work on a block, once there is room for another one.
    async fn push(&mut self, block: Block, sink: &mut impl Sink) -> Result<(), ApiError> {
        while self.blocks.len() >= *BLOCKS_IN_FLIGHT {
            self.take_next(sink).await?;
        }
        let bytes = block.bytes();
        self.bytes += bytes;
        if block.work_bytes() <= INLINE_BYTES_MAX {
            let result = block.run().map_err(Failure::Body);
            self.blocks.push_back(Box::pin(std::future::ready((bytes, result))));
            return Ok(());
        }
        let (sender, receiver) = oneshot::channel();
        nexus_vectors::spawn(move || {
            // Whoever asked may be gone.
            if !sender.is_closed() {
                let _ = sender.send(block.run());
            }
        });
        self.blocks.push_back(Box::pin(async move {
            let result = match receiver.await {
                Ok(result) => result.map_err(Failure::Body),
                Err(_) => Err(Failure::Lost),
            };
            (bytes, result)
        }));
        Ok(())
    }

    async fn take_next(&mut self, sink: &mut impl Sink) -> Result<(), ApiError> {
        let Some((bytes, result)) = self.blocks.next().await else { return Ok(()) };
        self.bytes -= bytes;
        match result {
            Ok(outcome) => {
                let taken = sink.take(outcome).await;
                if taken.is_err() {
                    // What comes after has nowhere to go, and must not be told in its place.
                    self.blocks.clear();
                }
                taken
            }
            Err(Failure::Body(error)) => {
                self.blocks.clear();
                Err(error.into())
            }
            Err(Failure::Lost) => {
                self.blocks.clear();
                tracing::error!("work on a body's rows did not finish");
                Err(ApiError::internal())
            }
        }
    }

    async fn drain(&mut self, sink: &mut impl Sink) -> Result<(), ApiError> {
        while !self.blocks.is_empty() {
            self.take_next(sink).await?;
        }
        Ok(())
    }
}
