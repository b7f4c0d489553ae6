//! Traces, sent by OTLP over HTTP to a collector, where one is set.
//!
//! A trace of a client's goes on here: its `traceparent` (W3C Trace Context) is the parent of the request's span, and decides
//! whether it is sampled. Sending is done by a thread of its own, in batches, bounded: a collector that is slow or gone costs
//! spans, and never a request. The SDK reads the variables of the OpenTelemetry specification (`OTEL_TRACES_SAMPLER`,
//! `OTEL_BSP_*`, `OTEL_RESOURCE_ATTRIBUTES`).
//!
//! Deliberately absent: metrics and logs by OTLP. Collectors scrape `/metrics` and read standard error.

use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use std::time::Duration;
use tracing::level_filters::LevelFilter;
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

/// How long the end waits for spans that were not sent yet.
const LAST_TIME_MAX: Duration = Duration::from_secs(3);

/// Where OTLP over HTTP takes spans, under a collector's address.
const PATH: &str = "/v1/traces";

/// What sends traces; dropped, it sends what it still has.
#[derive(Debug)]
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// Sends to the collector at `endpoint`. Not to be called on an async runtime.
    ///
    /// # Errors
    ///
    /// What is wrong with the address.
    pub fn start(endpoint: &str) -> Result<Self, String> {
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
            .with_endpoint(format!("{}{PATH}", endpoint.trim_end_matches('/')))
            .build()
            .map_err(|error| format!("OTEL_EXPORTER_OTLP_ENDPOINT={endpoint:?}: {error}"))?;
        let resource = Resource::builder().with_service_name("nexus").build();
        Ok(Self(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build()))
    }

    /// What turns the spans of this program into spans of traces.
    pub(crate) fn layer<S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync>(&self) -> impl Layer<S> + use<S> {
        // Spans are ours; events stay in the log, which has the trace's id.
        let spans = Targets::new().with_target("nexus", LevelFilter::DEBUG);
        let spans = spans.with_target("nexus_engine", LevelFilter::DEBUG);
        tracing_opentelemetry::layer().with_tracer(self.0.tracer("nexus")).with_filter(spans)
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown_with_timeout(LAST_TIME_MAX) {
            tracing::debug!(%error, "the last spans were not sent");
        }
    }
}

/// Headers, as the propagator wants them.
struct Headers<'a>(&'a axum::http::HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(axum::http::HeaderName::as_str).collect()
    }
}

/// Makes the span that a client names the parent of `span`; the id of the trace, if it names one that can be.
pub(crate) fn continue_trace(span: &Span, headers: &axum::http::HeaderMap) -> Option<String> {
    if !headers.contains_key("traceparent") {
        return None;
    }
    let context = TraceContextPropagator::new().extract(&Headers(headers));
    let trace = context.span().span_context().clone();
    if !trace.is_valid() {
        return None;
    }
    // Refused where no collector is set, and nothing is lost.
    let _ = span.set_parent(context);
    Some(trace.trace_id().to_string())
}
