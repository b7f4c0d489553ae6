//! Counters and histograms that are written while the service works.

use super::Answered;
use crate::http::Rejection;
use nexus_engine::{RanBatch, Role};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// From half a millisecond, in steps of two and two and a half, to two minutes: a cache hit and a rerank of thousands.
const SECONDS: [f64; 17] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];

/// Finer at the short end: a look into memory takes microseconds.
const STAGE_SECONDS: [f64; 17] = [
    0.00001, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0,
];

const RATIOS: [f64; 10] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

const SEQUENCES: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    endpoint: String,
    method: &'static str,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndpointLabels {
    endpoint: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabels {
    stage: &'static str,
    model: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabels {
    model: &'static str,
}

/// Histograms with the same bounds.
#[derive(Clone, Debug)]
struct Bounds(&'static [f64]);

impl MetricConstructor<Histogram> for Bounds {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

#[derive(Debug)]
pub(super) struct Counted {
    requests: Family<RequestLabels, Counter>,
    durations: Family<EndpointLabels, Histogram, Bounds>,
    rejected: Family<ReasonLabels, Counter>,
    rejections: AtomicU64,
    stages: Family<StageLabels, Histogram, Bounds>,
    tokens: Family<ModelLabels, Counter>,
    all_tokens: AtomicU64,
    fill: Family<ModelLabels, Histogram, Bounds>,
    sequences: Family<ModelLabels, Histogram, Bounds>,
}

/// What a model does, which is what its endpoint is for.
pub(crate) const fn model_name(role: Role) -> &'static str {
    match role {
        Role::Retriever => "embedder",
        Role::Reranker => "reranker",
    }
}

/// Names that clients invent are one.
fn method_name(method: &str) -> &'static str {
    ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"]
        .into_iter()
        .find(|known| *known == method)
        .unwrap_or("other")
}

impl Counted {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let it = Self {
            requests: Family::default(),
            durations: Family::new_with_constructor(Bounds(&SECONDS)),
            rejected: Family::default(),
            rejections: AtomicU64::new(0),
            stages: Family::new_with_constructor(Bounds(&STAGE_SECONDS)),
            tokens: Family::default(),
            all_tokens: AtomicU64::new(0),
            fill: Family::new_with_constructor(Bounds(&RATIOS)),
            sequences: Family::new_with_constructor(Bounds(&SEQUENCES)),
        };
        // What was never counted is 0, and not missing.
        for rejection in Rejection::ALL {
            let _ = it.rejected.get_or_create(&ReasonLabels { reason: rejection.name() });
        }
        for model in [Role::Retriever, Role::Reranker].map(model_name) {
            let _ = it.tokens.get_or_create(&ModelLabels { model });
        }
        let seconds = || Unit::Seconds;
        registry.register("http_requests", "Requests that are over", it.requests.clone());
        let help = "Time from the head of a request to the head of its response";
        registry.register_with_unit("http_request_duration", help, seconds(), it.durations.clone());
        registry.register("requests_rejected", "Requests refused for a bound", it.rejected.clone());
        let help = "Time of each stage: of a request (cache, tokenize, serialize), a text (queue), a batch (compute)";
        registry.register_with_unit("stage_duration", help, seconds(), it.stages.clone());
        registry.register("tokens", "Tokens that went through a model", it.tokens.clone());
        registry.register("batch_fill_ratio", "Tokens of a batch, as a part of the most", it.fill.clone());
        registry.register("batch_sequences", "Texts, or pairs of texts, in a batch", it.sequences.clone());
        it
    }

    pub(super) fn answered(&self, answered: Answered<'_>) {
        let Answered { endpoint, method, status, took, .. } = answered;
        let endpoint = endpoint.to_owned();
        let labels = RequestLabels { endpoint: endpoint.clone(), method: method_name(method), status };
        self.requests.get_or_create(&labels).inc();
        self.durations.get_or_create(&EndpointLabels { endpoint }).observe(took.as_secs_f64());
    }

    pub(super) fn rejected(&self, rejection: Rejection) {
        self.rejections.fetch_add(1, Ordering::Relaxed);
        self.rejected.get_or_create(&ReasonLabels { reason: rejection.name() }).inc();
    }

    pub(super) fn rejections(&self) -> u64 {
        self.rejections.load(Ordering::Relaxed)
    }

    pub(super) fn stage(&self, role: Role, stage: &'static str, took: Duration) {
        let model = model_name(role);
        self.stages.get_or_create(&StageLabels { stage, model }).observe(took.as_secs_f64());
    }

    pub(super) fn ran(&self, RanBatch { role, sequences, tokens, tokens_max }: RanBatch) {
        let labels = ModelLabels { model: model_name(role) };
        self.all_tokens.fetch_add(tokens as u64, Ordering::Relaxed);
        self.tokens.get_or_create(&labels).inc_by(tokens as u64);
        self.sequences.get_or_create(&labels).observe(sequences as f64);
        // A text longer than the most runs alone.
        self.fill.get_or_create(&labels).observe((tokens as f64 / tokens_max.max(1) as f64).min(1.0));
    }

    pub(super) fn tokens(&self) -> u64 {
        self.all_tokens.load(Ordering::Relaxed)
    }
}
