//! `nexus bench time`: how long a model takes for given batches, tokenizer and queue left out.

use super::device::Job;
use super::{Failure, model, read_json};
use nexus_compute::{Backend, PackedBatch};
use nexus_models::PackedModel;
use serde::Deserialize;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Runs before the measured ones: the first fills caches and grows buffers, the second is the first as all others.
const WARM_UPS: usize = 2;

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
            let mut times_ms = Vec::with_capacity(self.repetitions);
            for repetition in 0..WARM_UPS + self.repetitions {
                let time_ms = once(&*loaded, &batches)
                    .map_err(|error| Failure::Run(format!("{} on {}: {error}", load.name, backend.name())))?;
                if repetition >= WARM_UPS {
                    times_ms.push(time_ms);
                }
            }
            times_ms.sort_by(f64::total_cmp);
            let line = json!({
                "name": load.name,
                "device": backend.name(),
                "tokens": batches.iter().map(PackedBatch::rows).sum::<usize>(),
                "median_ms": median(&times_ms),
                "min_ms": times_ms[0],
                "max_ms": times_ms[times_ms.len() - 1],
                "repetitions": self.repetitions,
                "load_s": load_s,
            });
            super::super::print(&format!("{line}\n"))?;
        }
        Ok(())
    }
}

/// Milliseconds for all batches, their rows back on the host included.
fn once(model: &dyn PackedModel, batches: &[PackedBatch]) -> nexus_compute::Result<f64> {
    let start = Instant::now();
    for batch in batches {
        std::hint::black_box(model.forward(batch)?);
    }
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// Of sorted values, of which there is at least one.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn medians() {
        assert_eq!(super::median(&[3.0]), 3.0);
        assert_eq!(super::median(&[1.0, 2.0]), 1.5);
        assert_eq!(super::median(&[1.0, 2.0, 30.0]), 2.0);
    }
}
