//! `nexus bench replicas`: two replicas on one device, one of which fails while clients wait for answers.
//!
//! All answers have to come, and to be those of both replicas in health; the failed replica has to be out within a second.
//! Through the engine as it serves, without HTTP. Deliberately absent: what only hardware can do (`faulty`).

use super::Failure;
use super::device::PairJob;
use super::faulty::{Fault, Faulty};
use futures::future::join_all;
use nexus_compute::Backend;
use nexus_engine::{
    Devices, Digests, EmbedItem, Engine, EngineOptions, ModelSource, ModelState, OpenedModel, ReplicaState,
};
use nexus_models::ModelFiles;
use nexus_storage::{NoCache, digest_bytes};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const CLIENTS: usize = 16;
const TEXTS_EACH: usize = 4;
const BATCH_TOKENS_MAX: usize = 4096;
const QUEUE_TOKENS_MAX: usize = 1 << 20;
/// Rounds are run until the replica is out, and one whole round after that; in this time.
const FAILURE_TIME_MAX: Duration = Duration::from_secs(120);
const LOADING_TIME_MAX: Duration = Duration::from_secs(300);
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);
/// In which a replica that failed has to be out.
const OUT_TIME_MAX: Duration = Duration::from_secs(1);

pub(super) struct Replicas<'a> {
    pub(super) retriever: &'a Path,
    pub(super) reranker: &'a Path,
    /// Forward passes that succeed before one replica fails.
    pub(super) passes: usize,
}

/// What one text gets: a vector, and a score beside another text.
#[derive(Clone, Debug, PartialEq)]
struct Answer {
    vector: Vec<f32>,
    score: f32,
}

type Answers = Vec<Result<Answer, String>>;

/// How far an answer may be from the one in health: batches are of other texts, and products are summed in other orders.
#[derive(Clone, Copy, Debug)]
struct Allowed {
    /// One minus the cosine.
    cosine_error: f64,
    /// Of a score in 0..=1.
    score_error: f64,
}

const F32: Allowed = Allowed { cosine_error: 1e-6, score_error: 1e-4 };
/// The cosine is that of bench/gpu/models.py. A score is off by at most a quarter of what its logit is; `golden` has the
/// logit's.
const BF16: Allowed = Allowed { cosine_error: 1e-3, score_error: 0.04 };

/// What was seen.
#[derive(Debug)]
struct Seen {
    healthy: Answers,
    /// Rounds while the replica failed, and after.
    rounds: Vec<Answers>,
    /// From the device's first error until the replica was seen to be out.
    out_after: Option<Duration>,
    /// States of the replicas at the end.
    states: Vec<ReplicaState>,
    retries: u64,
}

impl PairJob for Replicas<'_> {
    fn run<B: Backend>(self, [healthy, failing]: [Arc<B>; 2]) -> Result<(), Failure> {
        let (name, format) = (healthy.name(), healthy.numeric_format());
        let allowed = if format == "f32" { F32 } else { BF16 };
        let fault = Arc::new(Fault::default());
        let backends = vec![
            Arc::new(Faulty { inner: healthy, fault: None }),
            Arc::new(Faulty { inner: failing, fault: Some(fault.clone()) }),
        ];
        let start = Instant::now();
        let runtime = super::super::runtime()?;
        let (seen, ready_s) = runtime.block_on(async {
            let engine = self.start(backends)?;
            ready(&engine).await?;
            let ready_s = start.elapsed().as_secs_f64();
            Ok::<_, Failure>((self.see(&engine, &fault).await?, ready_s))
        })?;
        let (summary, wrong) = judge(&seen, allowed);
        let passes = self.passes;
        super::super::print(&format!(
            "replicas: two on {name}, ready after {ready_s:.1} s; one fails after {passes} forward passes: {summary}\n"
        ))?;
        if wrong.is_empty() { Ok(()) } else { Err(Failure::Run(format!("replicas: {}", wrong.join("; ")))) }
    }
}

impl Replicas<'_> {
    fn start<B: Backend>(&self, backends: Vec<Arc<B>>) -> Result<Engine, Failure> {
        let options = EngineOptions { queue_tokens_max: QUEUE_TOKENS_MAX, text_tokens_max: 0, packed_bytes_min: None };
        let open = move || Ok(Devices::new(backends, BATCH_TOKENS_MAX));
        Engine::start(open, options, Arc::new(NoCache::new()), source(self.retriever), source(self.reranker))
            .map_err(|error| Failure::Run(format!("can not start a thread: {error}")))
    }

    async fn see(&self, engine: &Engine, fault: &Fault) -> Result<Seen, Failure> {
        let healthy = round(engine).await;
        fault.arm(self.passes);
        let (start, mut rounds, mut out_after) = (Instant::now(), Vec::new(), None);
        while out_after.is_none() && start.elapsed() < FAILURE_TIME_MAX {
            let mut asked = std::pin::pin!(round(engine));
            loop {
                tokio::select! {
                    biased;
                    answers = &mut asked => {
                        rounds.push(answers);
                        break;
                    }
                    () = tokio::time::sleep(Duration::from_millis(1)) => {
                        out_after = out_after.or_else(|| out_since(engine, fault));
                    }
                }
            }
            out_after = out_after.or_else(|| out_since(engine, fault));
        }
        if out_after.is_some() {
            rounds.push(round(engine).await);
        }
        let states = engine.replicas().status().into_iter().map(|replica| replica.state).collect();
        Ok(Seen { healthy, rounds, out_after, states, retries: engine.replicas().counts().device_retries })
    }
}

/// How long ago the device failed, once a replica is out.
fn out_since(engine: &Engine, fault: &Fault) -> Option<Duration> {
    let is_out = engine.replicas().counts().device_failures > 0;
    fault.failed_at().filter(|_| is_out).map(|at| at.elapsed())
}

/// A folder, whose name stands for its content: nothing is cached here, and nothing reloaded.
fn source(folder: &Path) -> ModelSource {
    let (name, folder) = (folder.display().to_string(), folder.to_owned());
    let digest = digest_bytes(&[("folder", name.as_bytes())]);
    let open = move |_: nexus_engine::Progress<'_>| {
        let digests = Digests { model: digest, tokenizer: digest };
        Ok(OpenedModel { files: ModelFiles::open(&folder)?, digests: Box::new(move || Ok(digests)), arrival: None })
    };
    ModelSource { name, open: Arc::new(open) }
}

/// Waits until both replicas serve both models.
async fn ready(engine: &Engine) -> Result<(), Failure> {
    let start = Instant::now();
    loop {
        let models = engine.models().status();
        for model in &models {
            if let ModelState::Failed { reason } = &model.state {
                return Err(Failure::Run(format!("{}: {reason}", model.source)));
            }
        }
        let replicas = engine.replicas().status();
        let serving = replicas.len() == 2 && replicas.iter().all(|replica| replica.state == ReplicaState::Serving);
        if serving && models.iter().all(|model| model.state == ModelState::Ready) {
            return Ok(());
        }
        if start.elapsed() > LOADING_TIME_MAX
            || replicas.iter().any(|it| matches!(it.state, ReplicaState::Failed { .. }))
        {
            return Err(Failure::Run(format!("two replicas do not come to serve: {replicas:?}, {models:?}")));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Each client asks for its texts, one after another. Answers are in the order of the texts.
async fn round(engine: &Engine) -> Answers {
    let client = |client: usize| async move {
        let mut answers = Vec::with_capacity(TEXTS_EACH);
        for text in (0..TEXTS_EACH).map(|n| text(client * TEXTS_EACH + n)) {
            let answer = tokio::time::timeout(ANSWER_TIME_MAX, ask(engine, text)).await;
            answers.push(answer.unwrap_or_else(|_| Err(format!("no answer after {ANSWER_TIME_MAX:?}"))));
        }
        answers
    };
    join_all((0..CLIENTS).map(client)).await.concat()
}

/// Text number `n`, of 8 to 71 words, which are whatever the tokenizer makes of them.
fn text(n: usize) -> String {
    let words: Vec<String> = (0..8 + n % 64).map(|at| format!("w{}", 3 + (31 * n + 7 * at) % 1000)).collect();
    words.join(" ")
}

async fn ask(engine: &Engine, text: String) -> Result<Answer, String> {
    let models = engine.models();
    let retriever = models.retriever.get().map_err(|state| format!("{state:?}"))?;
    let reranker = models.reranker.get().map_err(|state| format!("{state:?}"))?;
    let item = EmbedItem { text: text.clone(), instruction: None, dimensions: None };
    let embeddings = retriever.embed(vec![item]).await.map_err(|error| error.to_string())?;
    let scores = reranker.score(text, vec!["w11 w12 w13".to_owned()]).await.map_err(|error| error.to_string())?;
    match (&embeddings[..], &scores[..]) {
        ([embedding], [score]) => Ok(Answer { vector: embedding.vector.to_vec(), score: *score }),
        _ => Err(format!("{} vectors and {} scores for one text", embeddings.len(), scores.len())),
    }
}

/// What there is to say, and what is wrong.
fn judge(seen: &Seen, allowed: Allowed) -> (String, Vec<String>) {
    let mut wrong = Vec::new();
    let all = || std::iter::once(&seen.healthy).chain(&seen.rounds).flatten();
    let (asked, missing) = (all().count(), all().filter(|answer| answer.is_err()).count());
    if let Some(error) = all().find_map(|answer| answer.as_ref().err()) {
        wrong.push(format!("{missing} of {asked} answers did not come: {error}"));
    }
    let (mut cosine_error, mut score_error) = (0.0_f64, 0.0_f64);
    for (answer, healthy) in seen.rounds.iter().flat_map(|round| round.iter().zip(&seen.healthy)) {
        if let (Ok(answer), Ok(healthy)) = (answer, healthy) {
            let (apart, scores) = (1.0 - dot(&answer.vector, &healthy.vector), f64::from(answer.score - healthy.score));
            // `max` would drop not-a-number.
            cosine_error = if apart.is_nan() { f64::INFINITY } else { cosine_error.max(apart) };
            score_error = if scores.is_nan() { f64::INFINITY } else { score_error.max(scores.abs()) };
        }
    }
    for (what, error, allowed) in
        [("1 - cosine", cosine_error, allowed.cosine_error), ("score", score_error, allowed.score_error)]
    {
        if error > allowed {
            wrong.push(format!("answers differ from those in health: {what} by {error:.2e}, allowed {allowed:.0e}"));
        }
    }
    let out = match seen.out_after {
        Some(after) if after < OUT_TIME_MAX => format!("out after {:.1} ms", after.as_secs_f64() * 1e3),
        Some(after) => {
            wrong.push(format!("the replica was out after {after:.1?}, expected less than {OUT_TIME_MAX:?}"));
            format!("out after {after:.1?}")
        }
        None => {
            wrong.push("no replica was taken out".to_owned());
            "never out".to_owned()
        }
    };
    if !matches!(seen.states[..], [ReplicaState::Serving, ReplicaState::Failed { .. }]) {
        wrong.push(format!("expected the first replica to serve and the second to have failed: {:?}", seen.states));
    }
    if seen.retries == 0 {
        wrong.push("no batch was run again".to_owned());
    }
    let summary = format!(
        "{out}, {} of {asked} answers came, {} batches run again; farthest from health: 1 - cosine {cosine_error:.1e}, \
         score {score_error:.1e}",
        asked - missing,
        seen.retries
    );
    (summary, wrong)
}

/// Of unit vectors: their cosine.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

#[cfg(test)]
mod tests {
    use super::super::device::{parse, with_two};
    use super::*;

    type Break = fn(&mut Seen);

    fn seen() -> Seen {
        let answer = || Ok(Answer { vector: vec![0.6, 0.8], score: 0.5 });
        let failed = ReplicaState::Failed { reason: "it burns".to_owned() };
        Seen {
            healthy: vec![answer(), answer()],
            rounds: vec![vec![answer(), answer()]; 2],
            out_after: Some(Duration::from_millis(3)),
            states: vec![ReplicaState::Serving, failed],
            retries: 1,
        }
    }

    #[test]
    fn the_built_in_models_outlive_a_replica() {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
        let (retriever, reranker) = (models.join("embedder"), models.join("reranker"));
        let job = Replicas { retriever: &retriever, reranker: &reranker, passes: 3 };
        with_two(parse("cpu").unwrap(), job).unwrap();
    }

    #[test]
    fn whatever_goes_wrong_is_told() {
        let (summary, wrong) = judge(&seen(), F32);
        assert!(
            wrong.is_empty() && summary.starts_with("out after 3.0 ms, 6 of 6 answers came"),
            "{summary}, {wrong:?}"
        );
        let breaks: [(&str, Break); 7] = [
            ("1 of 6 answers did not come: gone", |seen| seen.rounds[1][0] = Err("gone".to_owned())),
            ("1 - cosine by", |seen| seen.rounds[0][1].as_mut().unwrap().vector = vec![0.8, 0.6]),
            ("1 - cosine by inf", |seen| seen.rounds[0][0].as_mut().unwrap().vector = vec![f32::NAN, 0.6]),
            ("score by", |seen| seen.rounds[1][1].as_mut().unwrap().score = 0.6),
            ("out after 2.0s", |seen| seen.out_after = Some(Duration::from_secs(2))),
            ("no replica was taken out", |seen| seen.out_after = None),
            ("no batch was run again", |seen| seen.retries = 0),
        ];
        for (told, break_it) in breaks {
            let mut seen = seen();
            break_it(&mut seen);
            let (_, wrong) = judge(&seen, F32);
            assert!(matches!(&wrong[..], [only] if only.contains(told)), "{told} in {wrong:?}");
        }
        let healthy = Seen { states: vec![ReplicaState::Serving, ReplicaState::Serving], ..seen() };
        assert!(judge(&healthy, F32).1[0].contains("the second to have failed"));
    }
}
