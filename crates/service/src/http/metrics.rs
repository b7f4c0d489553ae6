//! `/metrics`, for Prometheus and whatever else reads OpenMetrics.
//!
//! What is counted as it happens is in [`crate::monitor`]; what can be asked for is asked when it is written down.

use super::App;
use super::error::ApiError;
use crate::monitor::{Process, model_name};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use nexus_engine::{ModelState, ReplicaState, Role};
use nexus_storage::{CacheStats, Circuit};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use std::fmt;
use std::sync::Arc;

/// Version 1.0.0 of <https://github.com/OpenObservability/OpenMetrics>.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the service does, in numbers.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "service",
    operation_id = "metrics",
    responses(
        (status = 200, description = "Counters, gauges and histograms, in OpenMetrics.", body = String, content_type = "application/openmetrics-text"),
        (status = 401, description = "The service asks for API keys, and none came with the request, or a wrong one.", body = super::error::ErrorDetail),
    ),
)]
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    // It reads files, and may ask devices.
    let text = tokio::task::spawn_blocking(move || write(&app)).await.map_err(|_| ApiError::internal())?;
    let text = text.map_err(|_| ApiError::internal())?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}

fn write(app: &Arc<App>) -> Result<String, fmt::Error> {
    let mut asked = Registry::with_prefix("nexus");
    asked.register_collector(Box::new(Asked(Arc::clone(app))));
    let mut text = String::new();
    text::encode_registry(&mut text, app.monitor.registry())?;
    text::encode_registry(&mut text, &asked)?;
    text::encode_eof(&mut text)?;
    Ok(text)
}

/// What is asked for.
#[derive(Debug)]
struct Asked(Arc<App>);

impl Collector for Asked {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let app = &*self.0;
        let mut out = Out(encoder);
        of_process(app, &mut out)?;
        of_http(app, &mut out)?;
        of_cache(app, &mut out)?;
        of_replicas(app, &mut out)?;
        of_models(app, &mut out)
    }
}

/// Writes metrics down, one after another.
struct Out<'a>(DescriptorEncoder<'a>);

type Labels<const N: usize> = [(&'static str, String); N];

impl Out<'_> {
    fn gauge(&mut self, name: &str, unit: Option<Unit>, help: &str, value: f64) -> fmt::Result {
        self.gauges(name, unit, help, [([] as Labels<0>, value)])
    }

    fn counter(&mut self, name: &str, unit: Option<Unit>, help: &str, value: f64) -> fmt::Result {
        self.counters(name, unit, help, [([] as Labels<0>, value)])
    }

    fn gauges<const N: usize>(
        &mut self,
        name: &str,
        unit: Option<Unit>,
        help: &str,
        values: impl IntoIterator<Item = (Labels<N>, f64)>,
    ) -> fmt::Result {
        self.family(name, unit, help, values, ConstGauge::new)
    }

    fn counters<const N: usize>(
        &mut self,
        name: &str,
        unit: Option<Unit>,
        help: &str,
        values: impl IntoIterator<Item = (Labels<N>, f64)>,
    ) -> fmt::Result {
        self.family(name, unit, help, values, ConstCounter::new)
    }

    /// The type is written where there is no value, too, so that who reads it knows the name.
    fn family<const N: usize, M: EncodeMetric>(
        &mut self,
        name: &str,
        unit: Option<Unit>,
        help: &str,
        values: impl IntoIterator<Item = (Labels<N>, f64)>,
        metric: fn(f64) -> M,
    ) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, unit.as_ref(), metric(0.0).metric_type())?;
        for (labels, value) in values {
            let metric = metric(value);
            if N == 0 {
                return metric.encode(encoder);
            }
            let labels: &[(&str, String)] = &labels;
            metric.encode(encoder.encode_family(&Pairs(labels))?)?;
        }
        Ok(())
    }
}

/// Labels that are known as pairs.
struct Pairs<'a>(&'a [(&'static str, String)]);

impl EncodeLabelSet for Pairs<'_> {
    fn encode(&self, encoder: &mut prometheus_client::encoding::LabelSetEncoder<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|pair| prometheus_client::encoding::EncodeLabel::encode(pair, encoder.encode_label()))
    }
}

fn flag(is_so: bool) -> f64 {
    f64::from(u8::from(is_so))
}

fn of_process(app: &App, out: &mut Out<'_>) -> fmt::Result {
    let version = [("version", env!("CARGO_PKG_VERSION").to_owned())];
    out.gauges("build_info", None, "The program, by its version; always 1", [(version, 1.0)])?;
    let uptime = app.monitor.uptime().as_secs_f64();
    out.gauge("uptime", Some(Unit::Seconds), "Time since the start", uptime)?;
    out.gauge("ready", None, "Whether /ready says 200", flag(app.readiness().0 == "ready"))?;
    let Process { resident_bytes, open_fds, cpu_seconds } = Process::now();
    let none = || [] as Labels<0>;
    let known = |value: Option<f64>| value.map(|value| (none(), value));
    let (resident, fds) = (resident_bytes.map(|bytes| bytes as f64), open_fds.map(|fds| fds as f64));
    out.gauges("process_resident_memory", Some(Unit::Bytes), "Memory that the process has", known(resident))?;
    out.gauges("process_open_fds", None, "Files and sockets that the process has open", known(fds))?;
    out.counters("process_cpu", Some(Unit::Seconds), "Time of processors that the process took", known(cpu_seconds))
}

fn of_http(app: &App, out: &mut Out<'_>) -> fmt::Result {
    let bytes = || Some(Unit::Bytes);
    let gauges = [
        ("http_requests_in_flight", None, "Requests that are worked on", app.requests.held()),
        ("http_requests_in_flight_max", None, "Requests that may be worked on", app.requests.max()),
        ("http_connections", None, "Connections that are open", app.connections.open()),
        ("http_connections_max", None, "Connections that may be open", app.connections.max()),
        ("request_bodies", bytes(), "Memory that bodies of requests take", app.bodies.held()),
        ("request_bodies_bytes_max", None, "Memory that bodies of requests may take", app.bodies.max()),
        ("queue_tokens", None, "Tokens that wait for a device", app.queue.as_ref().map_or(0, |queue| queue.tokens())),
        ("queue_tokens_max", None, "Tokens that may wait", app.queue.as_ref().map_or(0, |queue| queue.tokens_max())),
    ];
    for (name, unit, help, value) in gauges {
        out.gauge(name, unit, help, value as f64)?;
    }
    let jobs =
        |role| ([("model", model_name(role).to_owned())], app.queue.as_ref().map_or(0, |it| it.jobs(role)) as f64);
    let help = "Texts, or pairs of texts, that wait for a device";
    out.gauges("queue_jobs", None, help, [Role::Retriever, Role::Reranker].map(jobs))?;
    let help = "Connections turned away for want of room, idle ones that were closed for others included";
    out.counter("http_connections_refused", None, help, app.connections.turned_away() as f64)
}

fn of_cache(app: &App, out: &mut Out<'_>) -> fmt::Result {
    let (stats, tiers) = app.cache.as_ref().map(|cache| (cache.stats(), cache.tiers())).unwrap_or_default();
    let hits = |(tier, stats): (&str, CacheStats)| ([("tier", tier.to_owned())], stats.hits as f64);
    out.counters("cache_hits", None, "Embeddings found, by where", tiers.into_iter().map(hits))?;
    let by_operation = |read: f64, write: f64| {
        [("read", read), ("write", write)].map(|(operation, value)| ([("operation", operation.to_owned())], value))
    };
    let help = "Requests that the store failed";
    out.counters("cache_failures", None, help, by_operation(stats.read_failures as f64, stats.write_failures as f64))?;
    for (name, help, value) in [
        ("cache_misses", "Embeddings not found", stats.misses),
        ("cache_read_timeouts", "Reads that the store did not answer in time", stats.read_timeouts),
        ("cache_read_skips", "Reads that the store was not asked, since it had failed", stats.read_skips),
        ("cache_damaged", "Entries found damaged or of an unknown format", stats.damaged),
        ("cache_writes_dropped", "Embeddings that were not kept", stats.dropped),
    ] {
        out.counter(name, None, help, value as f64)?;
    }
    out.gauge("cache_writes_waiting", None, "Embeddings that wait to be written", stats.waiting as f64)?;
    let open = |circuit| flag(circuit != Circuit::Closed);
    let help = "Whether the store is left alone since it failed; it is tried now and then";
    out.gauges("cache_breaker_open", None, help, by_operation(open(stats.reads), open(stats.writes)))
}

fn of_replicas(app: &App, out: &mut Out<'_>) -> fmt::Result {
    let (replicas, counts) = (app.models.replicas.status(), app.models.replicas.counts());
    let up = replicas.iter().filter(|it| !matches!(it.state, ReplicaState::Failed { .. })).count();
    out.gauge("replicas", None, "Devices that were opened", replicas.len() as f64)?;
    out.gauge("replicas_up", None, "Devices that work", up as f64)?;
    let help = "Devices that failed and were taken out";
    out.counter("device_failures", None, help, counts.device_failures as f64)?;
    let help = "Batches that were run again, elsewhere or in parts";
    out.counter("device_retries", None, help, counts.device_retries as f64)?;
    let labels = |n: usize| [("device", replicas[n].device.clone()), ("replica", n.to_string())];
    let busy = replicas.iter().enumerate().map(|(n, it)| (labels(n), it.busy.as_secs_f64()));
    out.counters("device_busy", Some(Unit::Seconds), "Time that a device has computed", busy)?;
    let memory = app.models.replicas.memory();
    let known = || memory.iter().enumerate().take(replicas.len()).filter_map(|(n, it)| Some((labels(n), (*it)?)));
    let bytes = || Some(Unit::Bytes);
    let all = known().map(|(labels, it)| (labels, it.bytes as f64));
    out.gauges("device_memory", bytes(), "Memory of a device", all)?;
    let free = known().map(|(labels, it)| (labels, it.bytes_free as f64));
    out.gauges("device_memory_free", bytes(), "Memory of a device that nobody has", free)
}

fn of_models(app: &App, out: &mut Out<'_>) -> fmt::Result {
    let status = app.models.status();
    let labels = |role| [("model", model_name(role).to_owned())];
    let ready = status.iter().map(|it| (labels(it.role), flag(it.state == ModelState::Ready)));
    out.gauges("model_ready", None, "Whether a model serves", ready)?;
    let loading = || {
        status.iter().filter_map(|it| match it.state {
            ModelState::Loading { bytes_done, bytes_total, .. } if bytes_total > 0 => {
                Some((labels(it.role), bytes_done as f64, bytes_total as f64))
            }
            _ => None,
        })
    };
    let bytes = || Some(Unit::Bytes);
    let done = loading().map(|(labels, done, _)| (labels, done));
    out.gauges("model_loading", bytes(), "How far a model is that loads", done)?;
    let total = loading().map(|(labels, _, total)| (labels, total));
    out.gauges("model_loading_bytes_max", None, "Where it will be then", total)
}
