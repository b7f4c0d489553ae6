//! Clients: what they ask, when they leave, and which answers are right.

use super::{
    dice::Dice,
    ledger::{End, Ledger},
    plan::Plan,
    texts::{self, Nature},
};
use crate::{
    EmbedItem, Embedding, EngineError, Reranker, Retriever,
    cached::CachedRetriever,
    local::{LocalReranker, LocalRetriever},
    on_behalf_of,
};
use futures::{FutureExt, future::BoxFuture};
use nexus_storage::CacheKeyBuilder;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

/// A revision of the embedder that clients can get.
pub(crate) struct Embedder {
    pub(crate) number: u64,
    pub(crate) cached: CachedRetriever,
    pub(crate) local: Arc<LocalRetriever>,
    pub(crate) keys: CacheKeyBuilder,
}

/// Whose requests are, one after the other.
pub(crate) const NAMES: [Option<&str>; 3] = [None, Some("ann"), Some("robot")];

pub(crate) enum Answer {
    Vectors(Vec<Embedding>),
    Scores(Vec<f32>),
}

pub(crate) type Outcome = Result<Answer, EngineError>;

/// What is asked for one text or pair.
pub(crate) struct Wanted {
    pub(crate) tokens: Vec<u32>,
    pub(crate) dimensions: usize,
}

pub(crate) struct Client {
    pub(crate) id: usize,
    pub(crate) revision: u64,
    pub(crate) wanted: Vec<Wanted>,
    pub(crate) deadline_ms: Option<u64>,
    /// Whether there was a moment in which the queue had no room for all that it asks.
    pub(crate) met_full: bool,
    /// Whose it is, if that has a name.
    pub(crate) name: Option<Arc<str>>,
    /// Whether there was a moment in which those of its name may have had their part.
    pub(crate) met_part: bool,
    pub(crate) is_quiet: bool,
    future: BoxFuture<'static, Outcome>,
    woken: Arc<Woken>,
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// What else happened, that makes an error one that may be.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Happened {
    pub(crate) device_failures: usize,
    pub(crate) process_failures: usize,
    pub(crate) shutdown: bool,
    pub(crate) replaced_one_by_one: bool,
}

pub(crate) fn instruct(task: &str, text: &str) -> String {
    format!("{task} {text}")
}

impl Client {
    fn new(id: usize, revision: u64, wanted: Vec<Wanted>, future: BoxFuture<'static, Outcome>) -> Self {
        let woken = Arc::new(Woken(AtomicBool::new(true)));
        let name = NAMES[id % NAMES.len()].map(Arc::from);
        let future = match &name {
            Some(name) => on_behalf_of(Arc::clone(name), future).boxed(),
            None => future,
        };
        Self {
            id,
            revision,
            wanted,
            deadline_ms: None,
            met_full: false,
            name,
            met_part: false,
            is_quiet: false,
            future,
            woken,
        }
    }

    /// A client that has texts embedded, each with a task or none, and so many dimensions or all.
    pub(crate) fn embeds(id: usize, embedder: Arc<Embedder>, texts: Vec<(Vec<u32>, bool, Option<usize>)>) -> Self {
        const TASK: [u32; 2] = [texts::FIRST_WORD, texts::FIRST_WORD + 1];
        let (mut items, mut wanted) = (Vec::new(), Vec::new());
        for (words, has_task, dimensions) in texts {
            let text = texts::text(&words);
            let instruction = has_task.then(|| Arc::from(texts::text(&TASK)));
            items.push(EmbedItem { text, instruction, dimensions });
            let words = if has_task { [&TASK[..], &words].concat() } else { words };
            wanted.push(Wanted { tokens: texts::tokens(&words), dimensions: dimensions.unwrap_or(texts::COLUMNS) });
        }
        let number = embedder.number;
        let future = async move { embedder.cached.embed(items).await.map(Answer::Vectors) }.boxed();
        Self::new(id, number, wanted, future)
    }

    /// A client that has candidates scored.
    pub(crate) fn reranks(
        id: usize,
        revision: u64,
        reranker: Arc<LocalReranker>,
        source: &[u32],
        candidates: &[Vec<u32>],
    ) -> Self {
        let wanted = |words: &Vec<u32>| Wanted { tokens: texts::pair_tokens(source, words), dimensions: 1 };
        let wanted = candidates.iter().map(wanted).collect();
        let (source, candidates) = (texts::text(source), candidates.iter().map(|words| texts::text(words)).collect());
        let future = async move { reranker.score(source, candidates).await.map(Answer::Scores) }.boxed();
        Self::new(id, revision, wanted, future)
    }

    pub(crate) fn is_woken(&self) -> bool {
        self.woken.0.load(Ordering::SeqCst)
    }

    pub(crate) fn poll(&mut self) -> Poll<Outcome> {
        self.woken.0.store(false, Ordering::SeqCst);
        self.future.poll_unpin(&mut Context::from_waker(&Waker::from(self.woken.clone())))
    }

    /// Tokens of all that it asks, or what they may be estimated as: words have at most eight bytes.
    pub(crate) fn tokens_at_most(&self) -> usize {
        self.wanted.iter().map(|wanted| 2 * wanted.tokens.len() + 2).sum()
    }

    /// Whether it waits for these tokens of a revision.
    pub(crate) fn wants(&self, revision: u64, tokens: &[u32]) -> bool {
        self.revision == revision && self.wanted.iter().any(|wanted| wanted.tokens == tokens)
    }

    /// Panics unless the outcome is right, or an error for which there is a reason.
    pub(crate) fn check(&self, outcome: &Outcome, ledger: &Ledger, happened: Happened) {
        let id = self.id;
        let natures: Vec<Nature> = self.wanted.iter().map(|wanted| texts::nature(&wanted.tokens)).collect();
        let error = match outcome {
            Ok(Answer::Vectors(vectors)) => {
                assert_eq!(vectors.len(), self.wanted.len(), "client {id}: one vector a text");
                for (at, (vector, wanted)) in vectors.iter().zip(&self.wanted).enumerate() {
                    assert_eq!(natures[at], Nature::Good, "client {id}: text {at} has no vector");
                    let expected = texts::embedding(self.revision, &wanted.tokens, wanted.dimensions);
                    assert_eq!(bits(&vector.vector), bits(&expected), "client {id}: the vector of text {at}");
                }
                return;
            }
            Ok(Answer::Scores(scores)) => {
                let score = |wanted: &Wanted| texts::score(self.revision, &wanted.tokens);
                let expected: Vec<f32> = self.wanted.iter().map(score).collect();
                assert_eq!(bits(scores), bits(&expected), "client {id}: scores");
                return;
            }
            Err(error) => error,
        };
        let tokens: Vec<Vec<u32>> = self.wanted.iter().map(|wanted| wanted.tokens.clone()).collect();
        let any = |what: &dyn Fn(&super::ledger::Record) -> bool| ledger.any(self.revision, &tokens, what);
        let may_be = match error {
            EngineError::Invalid { index: Some(at), .. } => natures.get(*at) == Some(&Nature::Zero),
            EngineError::Invalid { index: None, .. } => false,
            EngineError::Overloaded { by_client: false, .. } => self.met_full,
            EngineError::Overloaded { by_client: true, .. } => self.met_part,
            // Clients have no deadlines here: they leave.
            EngineError::Expired => false,
            EngineError::ShuttingDown => happened.shutdown,
            EngineError::Device(detail) if detail.contains("twice") => {
                any(&|job| job.setbacks + job.too_large >= 2 && job.setbacks > 0)
            }
            EngineError::Device(detail) if detail.contains("spreads") => happened.process_failures > 0,
            EngineError::Device(_) => happened.device_failures > 0 || happened.replaced_one_by_one,
            EngineError::Model(detail) if detail.contains("not finite") => natures.contains(&Nature::Nan),
            EngineError::Model(detail) if detail.contains("does not fit") => any(&|job| job.too_large > 0),
            EngineError::Model(detail) if detail.contains("panicked") => any(&|job| job.end == Some(End::Panicked)),
            EngineError::Model(detail) if detail.contains("linear") => any(&|job| job.end == Some(End::Misshapen)),
            EngineError::Model(_) => false,
        };
        assert!(may_be, "client {id}: nothing happened that this could come of: {error:?} ({happened:?})");
    }
}

fn bits(floats: &[f32]) -> Vec<u32> {
    floats.iter().map(|x| x.to_bits()).collect()
}

/// The words of a text: one of the common ones, or any.
pub(crate) fn draw_text(dice: &mut Dice, plan: &Plan, common: &[Vec<u32>], short: bool) -> Vec<u32> {
    if dice.percent(40) {
        return dice.pick(common);
    }
    let length = match dice.below(1000) {
        _ if short => dice.within(1..4),
        // Long enough that its key is computed on a thread that may block.
        0 => 70_000,
        1..60 => dice.within(15..80),
        _ => dice.within(1..10),
    };
    let mut words = draw_words(dice, length);
    if dice.percent(plan.harmful_percent) {
        let at = dice.below(length);
        words[at] = dice.pick(&texts::HARMFUL);
    }
    words
}

pub(crate) fn draw_words(dice: &mut Dice, length: usize) -> Vec<u32> {
    let first = dice.below(texts::WORDS as usize);
    // All but the ends of a huge text are alike: what is cut off matters to its key alone.
    let word = |n| if n < 80 { dice.below(texts::WORDS as usize) } else { first };
    (0..length).map(word).map(|word| texts::FIRST_WORD + word as u32).collect()
}
