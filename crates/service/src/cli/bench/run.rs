//! `nexus bench run`: a model's rows, for whoever wants to compare them.

use super::device::Job;
use super::{Failure, model, npy, read_json};
use nexus_compute::Backend;
use serde::Deserialize;
use std::path::Path;
use std::sync::Arc;

pub(super) struct Run<'a> {
    pub(super) model: &'a Path,
    pub(super) tokens: &'a Path,
    pub(super) out: &'a Path,
}

#[derive(Deserialize)]
struct Tokens {
    sequences: Vec<Vec<u32>>,
    batches: Vec<Vec<usize>>,
}

impl Job for Run<'_> {
    fn run<B: Backend>(self, backend: Arc<B>) -> Result<(), Failure> {
        let tokens: Tokens = read_json(self.tokens)?;
        let batches = tokens.batches.iter().map(|batch| model::pack(&tokens.sequences, batch));
        let batches = batches.collect::<Result<Vec<_>, _>>()?;
        let loaded = model::load(&backend, self.model, model::longest(&tokens.sequences))?;
        model::warm_up(&*backend, &*loaded, &batches)?;
        let mut rows = Vec::new();
        for (number, batch) in batches.iter().enumerate() {
            let failed = |error| Failure::Run(format!("batch {number} of {} tokens: {error}", batch.rows()));
            rows.extend(loaded.forward(batch).map_err(failed)?);
        }
        std::fs::write(self.out, npy::matrix(&rows, loaded.output_columns()))
            .map_err(|error| Failure::Run(format!("{}: {error}", self.out.display())))?;
        super::super::print(&format!("{} batches on {}\n", batches.len(), backend.name()))
    }
}
