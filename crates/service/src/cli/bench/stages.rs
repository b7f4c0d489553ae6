//! `nexus bench stages`: where a model's time goes, operation by operation.

use super::device::Job;
use super::time::{Tokens, run};
use super::timed::{Stage, Timed};
use super::{Failure, model, read_json};
use nexus_compute::{Backend, PackedBatch};
use serde_json::{Map, json};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

pub(super) struct Stages<'a> {
    pub(super) model: &'a Path,
    pub(super) tokens: &'a Path,
    pub(super) repetitions: usize,
}

impl Job for Stages<'_> {
    fn run<B: Backend>(self, backend: Arc<B>) -> Result<(), Failure> {
        let tokens: Tokens = read_json(self.tokens)?;
        let timed = Arc::new(Timed::new(backend));
        let loaded = model::load(&timed, self.model, model::longest(&tokens.sequences))?;
        for load in &tokens.loads {
            let batches = tokens.batches(load)?;
            let failed = |error| Failure::Run(format!("{} on {}: {error}", load.name, timed.name()));
            run(&*loaded, &batches).map_err(failed)?;
            timed.reset();
            let start = Instant::now();
            for _ in 0..self.repetitions {
                run(&*loaded, &batches).map_err(failed)?;
            }
            let repetitions = self.repetitions as f64;
            let total_ms = start.elapsed().as_secs_f64() * 1e3 / repetitions;
            let ms = |stage: Stage| timed.seconds(stage) * 1e3 / repetitions;
            let stages: Map<_, _> =
                Stage::ALL.iter().map(|&stage| (stage.name().to_owned(), json!(ms(stage)))).collect();
            let rate = |stage| timed.flops(stage) / timed.seconds(stage) / 1e9;
            let line = json!({
                "name": load.name,
                "device": timed.name(),
                "tokens": batches.iter().map(PackedBatch::rows).sum::<usize>(),
                "total_ms": total_ms,
                "stages_ms": stages,
                "linear_gflops": rate(Stage::Linear),
                "attention_gflops": rate(Stage::Attention),
            });
            super::super::print(&format!("{line}\n"))?;
        }
        Ok(())
    }
}
