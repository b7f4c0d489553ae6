//! `nexus bench time`: how long a model takes for given batches, tokenizer and queue left out.

use super::clock::Times;
use super::device::Job;
use super::{Failure, model, read_json};
use nexus_compute::{Backend, PackedBatch};
use nexus_models::PackedModel;
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

pub(super) struct Time<'a> {
    pub(super) model: &'a Path,
    pub(super) tokens: &'a Path,
    /// `None`: one for each line of standard input.
    pub(super) repetitions: Option<usize>,
}

#[derive(Deserialize)]
pub(super) struct Tokens {
    pub(super) sequences: Vec<Vec<u32>>,
    pub(super) loads: Vec<Load>,
}

/// Batches that are computed one after another, and timed together.
#[derive(Deserialize)]
pub(super) struct Load {
    pub(super) name: String,
    batches: Vec<Vec<usize>>,
}

impl Tokens {
    /// The batches of a load.
    pub(super) fn batches(&self, load: &Load) -> Result<Vec<PackedBatch>, Failure> {
        load.batches.iter().map(|batch| model::pack(&self.sequences, batch)).collect()
    }
}

impl Job for Time<'_> {
    fn run<B: Backend>(self, backend: Arc<B>) -> Result<(), Failure> {
        let tokens: Tokens = read_json(self.tokens)?;
        let start = Instant::now();
        let loaded = model::load(&backend, self.model, model::longest(&tokens.sequences))?;
        let load_s = start.elapsed().as_secs_f64();
        let Some(repetitions) = self.repetitions else { return on_request(&*backend, &*loaded, &tokens) };
        for load in &tokens.loads {
            let batches = tokens.batches(load)?;
            model::warm_up(&*backend, &*loaded, &batches)?;
            let times = Times::of(repetitions, || run(&*loaded, &batches))
                .map_err(|error| Failure::Run(format!("{} on {}: {error}", load.name, backend.name())))?;
            let line = json!({
                "name": load.name,
                "device": backend.name(),
                "tokens": batches.iter().map(PackedBatch::rows).sum::<usize>(),
                "median_ms": times.median_ms,
                "min_ms": times.min_ms,
                "max_ms": times.max_ms,
                "repetitions": repetitions,
                "load_s": load_s,
            });
            super::super::print(&format!("{line}\n"))?;
        }
        Ok(())
    }
}

/// Runs a load for each line, so that whoever asks can measure something else in between.
fn on_request<B: Backend>(backend: &B, loaded: &dyn PackedModel, tokens: &Tokens) -> Result<(), Failure> {
    let failed = |name: &str, error: &dyn Display| Failure::Run(format!("{name} on {}: {error}", backend.name()));
    let mut loads = BTreeMap::new();
    for load in &tokens.loads {
        let batches = tokens.batches(load)?;
        model::warm_up(backend, loaded, &batches)?;
        run(loaded, &batches).map_err(|error| failed(&load.name, &error))?;
        loads.insert(load.name.as_str(), batches);
    }
    super::super::print("ready\n")?;
    for line in std::io::stdin().lines() {
        let line = line.map_err(|error| failed("standard input", &error))?;
        let batches = loads.get(line.trim()).ok_or_else(|| failed(&line, &"there is no such load"))?;
        let start = Instant::now();
        run(loaded, batches).map_err(|error| failed(&line, &error))?;
        let ms = start.elapsed().as_secs_f64() * 1e3;
        super::super::print(&format!("{ms}\n"))?;
    }
    Ok(())
}

/// All batches, their rows back on the host included.
pub(super) fn run(model: &dyn PackedModel, batches: &[PackedBatch]) -> nexus_compute::Result<()> {
    for batch in batches {
        std::hint::black_box(model.forward(batch)?);
    }
    Ok(())
}
