//! `nexus bench time`: how long a model takes for given batches, tokenizer and queue left out.

use super::clock::Times;
use super::device::Job;
use super::{Failure, model, read_json};
use nexus_compute::{Backend, PackedBatch};
use nexus_models::PackedModel;
use serde::Deserialize;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

pub(super) struct Time<'a> {
    pub(super) model: &'a Path,
    pub(super) tokens: &'a Path,
    pub(super) repetitions: usize,
}

#[derive(Deserialize)]
struct Tokens {
    sequences: Vec<Vec<u32>>,
    loads: Vec<Load>,
}

/// Batches that are computed one after another, and timed together.
#[derive(Deserialize)]
struct Load {
    name: String,
    batches: Vec<Vec<usize>>,
}

impl Job for Time<'_> {
    fn run<B: Backend>(self, backend: Arc<B>) -> Result<(), Failure> {
        let tokens: Tokens = read_json(self.tokens)?;
        let start = Instant::now();
        let loaded = model::load(&backend, self.model, model::longest(&tokens.sequences))?;
        let load_s = start.elapsed().as_secs_f64();
        for load in &tokens.loads {
            let batches = load.batches.iter().map(|batch| model::pack(&tokens.sequences, batch));
            let batches = batches.collect::<Result<Vec<_>, _>>()?;
            model::warm_up(&*backend, &*loaded, &batches)?;
            let times = Times::of(self.repetitions, || run(&*loaded, &batches))
                .map_err(|error| Failure::Run(format!("{} on {}: {error}", load.name, backend.name())))?;
            let line = json!({
                "name": load.name,
                "device": backend.name(),
                "tokens": batches.iter().map(PackedBatch::rows).sum::<usize>(),
                "median_ms": times.median_ms,
                "min_ms": times.min_ms,
                "max_ms": times.max_ms,
                "repetitions": self.repetitions,
                "load_s": load_s,
            });
            super::super::print(&format!("{line}\n"))?;
        }
        Ok(())
    }
}

/// All batches, their rows back on the host included.
fn run(model: &dyn PackedModel, batches: &[PackedBatch]) -> nexus_compute::Result<()> {
    for batch in batches {
        std::hint::black_box(model.forward(batch)?);
    }
    Ok(())
}
