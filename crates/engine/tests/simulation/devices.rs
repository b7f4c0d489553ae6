//! Devices that fail as they are told, and models on them whose rows can be checked.

use super::texts::{self, Nature};
use crate::{
    Role,
    devices::{Device, Loaded},
    loaded::ModelCopy,
};
use nexus_compute::{ComputeError, PackedBatch};
use nexus_models::{LoadError, LoadOptions, ModelFiles, PackedModel};
use std::sync::{Arc, Mutex, PoisonError};

/// What its next passes end with.
#[derive(Default)]
struct Fate {
    next: Option<ComputeError>,
    /// Once it failed, it fails for ever.
    dead: Option<ComputeError>,
}

/// A device, by number.
#[derive(Clone)]
pub(crate) struct Chip {
    number: usize,
    room_tokens: usize,
    fate: Arc<Mutex<Fate>>,
}

impl Chip {
    pub(crate) fn new(number: usize, room_tokens: usize) -> Self {
        Self { number, room_tokens, fate: Arc::default() }
    }

    /// Tells what its next pass ends with, where it is not dead.
    pub(crate) fn next_pass(&self, error: Option<ComputeError>) {
        self.fate.lock().unwrap_or_else(PoisonError::into_inner).next = error;
    }

    /// A copy of revision `number` of a model with rows of so many floats.
    pub(crate) fn copy(&self, number: u64, columns: usize) -> ModelCopy {
        Arc::new(OnChip { chip: self.clone(), number, columns })
    }
}

impl Device for Chip {
    fn name(&self) -> String {
        format!("device {}", self.number)
    }

    fn packed_layout(&self) -> Option<String> {
        None
    }

    fn numeric_format(&self) -> &'static str {
        "f32"
    }

    fn memory_bytes(&self) -> Option<u64> {
        None
    }

    fn memory_bytes_free(&self) -> Option<u64> {
        None
    }

    fn warm_up_tokens(&self, _: usize) -> Vec<usize> {
        Vec::new()
    }

    fn load(&self, _: Role, _: &ModelFiles, _: LoadOptions<'_>) -> Result<Loaded, LoadError> {
        unreachable!("models are given")
    }
}

struct OnChip {
    chip: Chip,
    number: u64,
    columns: usize,
}

impl PackedModel for OnChip {
    fn output_columns(&self) -> usize {
        self.columns
    }

    fn forward(&self, batch: &PackedBatch) -> Result<Vec<f32>, ComputeError> {
        let mut fate = self.chip.fate.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = &fate.dead {
            return Err(error.clone());
        }
        if let Some(error) = fate.next.take() {
            fate.dead = error.is_device_failure().then(|| error.clone());
            return Err(error);
        }
        drop(fate);
        if batch.tokens().len() > self.chip.room_tokens {
            return Err(ComputeError::OutOfMemory(format!("{} tokens", batch.tokens().len())));
        }
        let mut rows = Vec::with_capacity(batch.sequences() * self.columns);
        for range in batch.ranges() {
            let tokens = &batch.tokens()[range];
            match texts::nature(tokens) {
                // Without a message for each.
                Nature::Panics => std::panic::resume_unwind(Box::new("unlucky")),
                Nature::Shape => return Err(ComputeError::Shape { op: "linear", detail: "3 is not 4".into() }),
                _ => rows.extend(texts::row(self.number, tokens, self.columns)),
            }
        }
        Ok(rows)
    }
}
