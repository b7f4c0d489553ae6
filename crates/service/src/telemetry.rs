//! Logs, on standard error: readable on a terminal, one JSON object a line elsewhere.
//!
//! Texts of controls are logged at TRACE only, and secrets never. Deliberately absent: numbers (`stats`, `monitor`), and how
//! traces are sent (`traces`).

use crate::traces::Traces;
use std::io::IsTerminal as _;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt};

/// Starts logging, and traces where they are sent. A second call, as tests make it, changes nothing.
pub fn start(level: LevelFilter, traces: Option<&Traces>) {
    // Other crates' DEBUG is about their insides; below TRACE, nobody who runs this service asked for it.
    let others = if level == LevelFilter::TRACE { level } else { level.min(LevelFilter::INFO) };
    // It warns at length of each place that has no credentials; where none has, our own line says what to do.
    let credentials = if level == LevelFilter::TRACE { level } else { level.min(LevelFilter::ERROR) };
    let filter = Targets::new().with_default(others).with_target("nexus", level).with_target("aws_config", credentials);
    let layer = if std::io::stderr().is_terminal() {
        fmt::layer().with_writer(|| crate::terminal::Lines).compact().with_target(false).boxed()
    } else {
        let layer = fmt::layer().with_writer(std::io::stderr);
        layer.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed()
    };
    // Fails only where a subscriber is set already.
    let _ = tracing_subscriber::registry().with(layer.with_filter(filter)).with(traces.map(Traces::layer)).try_init();
    // A panic answers 500 and the process lives on; without this, its only trace would be a line of another form.
    std::panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(location, "panic: {}", panic.payload_as_str().unwrap_or("no message"));
    }));
}
