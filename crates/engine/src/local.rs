//! The two contracts, answered by models on this machine's replicas.

use crate::{
    EmbedItem, Embedding, EngineError, Reranker, RerankerInfo, Retriever, RetrieverInfo, Stage,
    cached::FULL_PAUSE,
    caller,
    loaded::LoadedModel,
    queue::{Job, Queue, Reserved},
};
use futures::{FutureExt, StreamExt, TryStreamExt, future::BoxFuture, stream};
use nexus_models::{EncodeError, TextTokenizer};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};
use tokio::sync::{Semaphore, oneshot};
use tracing::Instrument as _;

/// A [`Retriever`] whose model runs on the replicas behind a queue.
#[derive(Debug)]
pub(crate) struct LocalRetriever {
    pub(crate) info: RetrieverInfo,
    pub(crate) instruct: fn(&str, &str) -> String,
    pub(crate) tokens: Tokens,
}

impl Retriever for LocalRetriever {
    fn info(&self) -> &RetrieverInfo {
        &self.info
    }

    fn embed(&self, items: Vec<EmbedItem>) -> BoxFuture<'_, Result<Vec<Embedding>, EngineError>> {
        async move {
            let lengths = items
                .iter()
                .enumerate()
                .map(|(at, item)| kept_dimensions(at, item.dimensions, self.info.dimensions))
                .collect::<Result<Vec<_>, _>>()?;
            let (tokenizer, instruct) = (self.tokens.tokenizer.clone(), self.instruct);
            let encode = move |(at, item): (usize, &EmbedItem)| {
                match &item.instruction {
                    Some(instruction) => tokenizer.encode(&instruct(instruction, &item.text)),
                    None => tokenizer.encode(&item.text),
                }
                .map_err(|e| encode_error("text", Some(at), &e))
            };
            let tokens = items.iter().map(|item| about_tokens(bytes_of(item), self.info.window_tokens)).sum();
            let room = self.tokens.reserve(tokens)?;
            let sequences =
                self.tokens.work(move || items.iter().enumerate().map(encode).collect::<Result<Vec<_>, _>>()).await??;
            let rows = self.tokens.run(sequences, room).await?;
            let vector = |(at, (row, length))| {
                // The model has nothing to say about the text: so it is with a text of end tokens only, where training
                // left their embedding at zero.
                unit_vector(row, length).ok_or_else(|| EngineError::Invalid {
                    field: "text",
                    index: Some(at),
                    message: "The model gives this text no direction: its vector is zero".into(),
                })
            };
            rows.into_iter().zip(lengths).enumerate().map(vector).collect()
        }
        .boxed()
    }
}

/// A [`Reranker`] whose model runs on the replicas behind a queue.
#[derive(Debug)]
pub(crate) struct LocalReranker {
    pub(crate) info: RerankerInfo,
    pub(crate) tokens: Tokens,
}

impl Reranker for LocalReranker {
    fn info(&self) -> &RerankerInfo {
        &self.info
    }

    fn score(&self, source: String, candidates: Vec<String>) -> BoxFuture<'_, Result<Vec<f32>, EngineError>> {
        async move {
            let (source, started) = (Arc::<str>::from(source), AtomicBool::new(false));
            let pieces: Vec<BoxFuture<'_, _>> = (candidates.chunks(PIECE_PAIRS).enumerate())
                .map(|(n, piece)| self.persist(source.clone(), piece, n * PIECE_PAIRS, &started).boxed())
                .collect();
            let scores: Vec<Vec<f32>> = stream::iter(pieces).buffered(PIECES_AT_ONCE).try_collect().await?;
            Ok(scores.into_iter().flatten().collect())
        }
        .boxed()
    }
}

/// Pairs of a long list that are tokenized and queued together. A list is worked off piece by piece, so that it leaves room
/// in the queue for others, is tokenized while a device works on what came before, and costs nothing more once its client has
/// left.
const PIECE_PAIRS: usize = 64;

/// Pieces of one list under way at once: enough to keep several devices busy.
const PIECES_AT_ONCE: usize = 8;

impl LocalReranker {
    /// The scores of a piece that begins at `offset`. A list of which nothing was let in yet is refused by a full queue at once;
    /// what is partly done (`started`) is not thrown away, and waits.
    async fn persist(
        &self,
        source: Arc<str>,
        candidates: &[String],
        offset: usize,
        started: &AtomicBool,
    ) -> Result<Vec<f32>, EngineError> {
        let bytes = |text: &String| source.len() + text.len();
        let tokens = candidates.iter().map(|text| about_tokens(bytes(text), self.info.window_tokens)).sum();
        let room = loop {
            match self.tokens.reserve(tokens) {
                Err(EngineError::Overloaded { .. }) if started.load(Ordering::Relaxed) => {
                    tokio::time::sleep(FULL_PAUSE).await;
                }
                Err(error) => return Err(error),
                Ok(room) => break room,
            }
        };
        started.store(true, Ordering::Relaxed);
        let (tokenizer, candidates) = (self.tokens.tokenizer.clone(), candidates.to_vec());
        let encode = move || {
            if offset == 0 {
                // A source that can not be encoded is at fault itself, not the first candidate.
                tokenizer.encode(&source).map_err(|e| encode_error("source_text", None, &e))?;
            }
            let pair = |(at, candidate): (usize, &String)| {
                let place = Some(offset + at);
                tokenizer.encode_pair(&source, candidate).map_err(|e| encode_error("candidates", place, &e))
            };
            candidates.iter().enumerate().map(pair).collect::<Result<Vec<_>, _>>()
        };
        let sequences = self.tokens.work(encode).await??;
        Ok(self.tokens.run(sequences, room).await?.into_iter().map(|row| sigmoid(row[0])).collect())
    }
}

fn bytes_of(item: &EmbedItem) -> usize {
    item.text.len() + item.instruction.as_ref().map_or(0, |instruction| instruction.len())
}

/// About how many tokens a text of so many bytes has: English prose has four to five bytes a token.
fn about_tokens(bytes: usize, window_tokens: usize) -> usize {
    (bytes / 4 + 2).min(window_tokens)
}

/// A tokenizer, the model that its tokens are for, and the queue between them. The two are never parted: tokens of one
/// revision mean nothing to another.
#[derive(Debug)]
pub(crate) struct Tokens {
    tokenizer: Arc<TextTokenizer>,
    model: Arc<LoadedModel>,
    queue: Arc<Queue>,
    /// Texts are tokenized by at most as many threads as there are cores: more would only take them from the model.
    permits: Arc<Semaphore>,
    /// As many threads, always the same: each remembers thousands of words. `None` for whichever of the runtime's may block.
    threads: Option<ThreadPool>,
}

impl Tokens {
    pub(crate) fn new(tokenizer: Arc<TextTokenizer>, model: Arc<LoadedModel>, queue: Arc<Queue>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = ThreadPoolBuilder::new().num_threads(cores).thread_name(|n| format!("tokenize-{n}")).build();
        let threads = threads.inspect_err(|error| tracing::warn!(%error, "no threads of its own for a tokenizer")).ok();
        Self { threads, ..Self::with_threads(tokenizer, model, queue, cores) }
    }

    /// Texts are tokenized by at most `threads` of the runtime's threads.
    pub(crate) fn with_threads(
        tokenizer: Arc<TextTokenizer>,
        model: Arc<LoadedModel>,
        queue: Arc<Queue>,
        threads: usize,
    ) -> Self {
        Self { tokenizer, model, queue, permits: Arc::new(Semaphore::new(threads)), threads: None }
    }

    /// How many threads could tokenize, now.
    #[cfg(test)]
    pub(crate) fn threads_free(&self) -> usize {
        self.permits.available_permits()
    }

    /// Takes room in the queue for about so many tokens, before any work is put into them.
    fn reserve(&self, tokens: usize) -> Result<Reserved, EngineError> {
        self.queue.reserve(self.model.role(), tokens, caller::deadline(), caller::client())
    }

    /// Runs `encode` on a thread that may block: a long text would hold up every other request otherwise.
    async fn work<T: Send + 'static>(&self, encode: impl FnOnce() -> T + Send + 'static) -> Result<T, EngineError> {
        let asked = Instant::now();
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| EngineError::ShuttingDown)?;
        let work = move || {
            let result = encode();
            // Held by the work, which goes on when its caller goes away.
            drop(permit);
            result
        };
        let done = async {
            let Some(threads) = &self.threads else { return tokio::task::spawn_blocking(work).await.ok() };
            let (reply, done) = oneshot::channel();
            threads.spawn(move || {
                // The panic hook logs it, and the sender is gone.
                if let Ok(result) = catch_unwind(AssertUnwindSafe(work)) {
                    let _ = reply.send(result);
                }
            });
            done.await.ok()
        };
        let done = done.instrument(tracing::debug_span!("tokenize")).await;
        self.queue.observer().stage(self.model.role(), Stage::Tokenize, asked.elapsed());
        done.ok_or_else(|| EngineError::Model("tokenization stopped".to_owned()))
    }

    /// Queues one job a sequence, for which room was taken, and waits for all rows, in order.
    async fn run(&self, sequences: Vec<Vec<u32>>, room: Reserved) -> Result<Vec<Vec<f32>>, EngineError> {
        let span = tracing::debug_span!("compute", texts = sequences.len());
        let job = |tokens| {
            let (reply, receiver) = oneshot::channel();
            (Job::new(self.model.clone(), tokens, reply), receiver)
        };
        let (jobs, replies): (Vec<_>, Vec<_>) = sequences.into_iter().map(job).unzip();
        self.queue.push_reserved(jobs, room)?;
        let answers = async {
            let mut rows = Vec::with_capacity(replies.len());
            for reply in replies {
                // A replica that ends drops its jobs' senders.
                rows.push(reply.await.map_err(|_| EngineError::ShuttingDown)??);
            }
            Ok(rows)
        };
        answers.instrument(span).await
    }
}

fn encode_error(field: &'static str, index: Option<usize>, error: &EncodeError) -> EngineError {
    let message = error.to_string();
    match error {
        EncodeError::UnknownSpecial { .. } | EncodeError::NoTokens => EngineError::Invalid { field, index, message },
        EncodeError::Failed(_) => EngineError::Model(message),
    }
}

fn kept_dimensions(index: usize, asked: Option<usize>, all: usize) -> Result<usize, EngineError> {
    match asked {
        None => Ok(all),
        Some(n) if (1..=all).contains(&n) => Ok(n),
        Some(_) => Err(EngineError::Invalid {
            field: "dimensions",
            index: Some(index),
            message: format!("Input should be between 1 and {all}, the dimensions of this model"),
        }),
    }
}

/// The first `length` components, scaled to length 1 (Matryoshka: Kusupati et al. 2022,
/// <https://arxiv.org/abs/2205.13147>). `None` where they are all zero.
pub(crate) fn unit_vector(mut row: Vec<f32>, length: usize) -> Option<Embedding> {
    row.truncate(length);
    // In f64, squares of f32 can neither overflow nor vanish.
    let norm = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    if norm == 0.0 {
        return None;
    }
    let vector = row.iter().map(|&x| (f64::from(x) / norm) as f32).collect();
    Some(Embedding { vector, cache_hit: false })
}

/// `1 / (1 + exp(-x))`, without overflow on either side.
fn sigmoid(logit: f32) -> f32 {
    (1.0 / (1.0 + (-f64::from(logit)).exp())) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> Tokens {
        let model = Arc::new(LoadedModel::new(crate::Role::Retriever, Vec::new(), Vec::new()));
        Tokens::new(crate::simulation::tokenizer(), model, Arc::new(Queue::new(100)))
    }

    #[tokio::test]
    async fn a_tokenizer_has_threads_of_its_own_and_a_panic_ends_none() {
        let tokens = tokens();
        let threads = tokens.threads_free();
        let name = || std::thread::current().name().map(str::to_owned);
        assert!(tokens.work(name).await.unwrap().is_some_and(|name| name.starts_with("tokenize-")));
        for _ in 0..=threads {
            let failed = tokens.work(|| -> usize { panic!("as asked") }).await;
            assert_eq!(failed, Err(EngineError::Model("tokenization stopped".to_owned())));
        }
        assert_eq!(tokens.work(|| 1).await, Ok(1));
        assert_eq!(tokens.threads_free(), threads);
    }

    #[test]
    fn truncates_then_normalizes() {
        let vector = unit_vector(vec![3.0, 4.0, 100.0], 2).unwrap().vector;
        assert_eq!(*vector, [0.6, 0.8]);
        let tiny = unit_vector(vec![1e-30, 0.0], 2).unwrap().vector;
        assert_eq!(*tiny, [1.0, 0.0]);
        assert_eq!(unit_vector(vec![0.0, 0.0, 1.0], 2), None);
    }

    #[test]
    fn refuses_dimensions_that_the_model_does_not_have() {
        assert_eq!(kept_dimensions(0, None, 8), Ok(8));
        assert_eq!(kept_dimensions(0, Some(8), 8), Ok(8));
        for asked in [0, 9] {
            let refused = kept_dimensions(3, Some(asked), 8);
            assert!(matches!(refused, Err(EngineError::Invalid { field: "dimensions", index: Some(3), .. })));
        }
    }

    #[test]
    fn sigmoid_is_exact_at_the_ends() {
        assert_eq!(sigmoid(0.0), 0.5);
        assert_eq!(sigmoid(200.0), 1.0);
        assert_eq!(sigmoid(-1000.0), 0.0);
        assert!((sigmoid(-2.0) + sigmoid(2.0) - 1.0).abs() < 1e-7);
    }
}
