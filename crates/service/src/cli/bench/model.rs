//! A model from a folder without its tokenizer.

use super::Failure;
use nexus_compute::{Backend, PackedBatch, Pooling};
use nexus_models::config::Config;
use nexus_models::modernbert::{ModernBert, ModernBertConfig};
use nexus_models::qwen3::{Qwen3, Qwen3Config};
use nexus_models::{ModelFiles, PackedModel, Weights};
use std::path::Path;
use std::sync::Arc;

/// Loads the model of `folder` for sequences of at most `positions` tokens. Embedders pool the last token.
pub(super) fn load<B: Backend>(
    backend: &Arc<B>,
    folder: &Path,
    positions: usize,
) -> Result<Box<dyn PackedModel>, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::Run(format!("{}: {error}", folder.display()));
    let files = ModelFiles::open(folder).map_err(|error| failed(&error))?;
    let config = Config::read(&files, "config.json").map_err(|error| failed(&error))?;
    config.only("model_type", "(absent)", &["qwen3", "modernbert"]).map_err(|error| failed(&error))?;
    let weights = Weights::open(&files, &|_, _| ()).map_err(|error| failed(&error))?;
    // `only` has seen to it that it is one of the two.
    if config.only("model_type", "(absent)", &["qwen3"]).is_ok() {
        let config = Qwen3Config::new(&config).map_err(|error| failed(&error))?;
        let model = Qwen3::load(backend.clone(), config, Pooling::Last, positions, weights);
        Ok(Box::new(model.map_err(|error| failed(&error))?))
    } else {
        let config = ModernBertConfig::new(&config).map_err(|error| failed(&error))?;
        let model = ModernBert::load(backend.clone(), config, positions, weights);
        Ok(Box::new(model.map_err(|error| failed(&error))?))
    }
}

/// Packs a batch, given as indices into `sequences`.
pub(super) fn pack(sequences: &[Vec<u32>], batch: &[usize]) -> Result<PackedBatch, Failure> {
    let chosen = batch.iter().map(|&index| {
        let count = sequences.len();
        sequences
            .get(index)
            .ok_or_else(|| Failure::Run(format!("a batch names sequence {index}, and there are {count} sequences")))
    });
    PackedBatch::new(&chosen.collect::<Result<Vec<_>, _>>()?).map_err(|error| Failure::Run(format!("a batch: {error}")))
}

/// Tokens of the longest sequence: the positions that a model has to be prepared for.
pub(super) fn longest(sequences: &[Vec<u32>]) -> usize {
    sequences.iter().map(Vec::len).max().unwrap_or(0)
}

/// Runs the model once for each size that the device wants to see before it is measured.
pub(super) fn warm_up<B: Backend>(
    backend: &B,
    model: &dyn PackedModel,
    batches: &[PackedBatch],
) -> Result<(), Failure> {
    let tokens_max = batches.iter().map(PackedBatch::rows).max().unwrap_or(0);
    let longest = batches.iter().map(PackedBatch::longest).max().unwrap_or(0).max(1);
    for tokens in backend.warm_up_tokens(tokens_max) {
        let lengths = (0..tokens.div_ceil(longest)).map(|i| longest.min(tokens - i * longest));
        let sequences: Vec<Vec<u32>> = lengths.map(|length| vec![0; length]).collect();
        if sequences.is_empty() {
            continue;
        }
        let batch = PackedBatch::new(&sequences).map_err(|error| Failure::Run(format!("warm-up: {error}")))?;
        model.forward(&batch).map_err(|error| Failure::Run(format!("warm-up with {tokens} tokens: {error}")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_of_a_sequence_that_is_not_there_is_told() {
        let sequences = [vec![1, 2], vec![3]];
        let batch = pack(&sequences, &[1, 0]).unwrap();
        assert_eq!((batch.tokens(), batch.offsets()), (&[3, 1, 2][..], &[0, 1, 3][..]));
        let Err(Failure::Run(message)) = pack(&sequences, &[2]) else { panic!("an index too large") };
        assert_eq!(message, "a batch names sequence 2, and there are 2 sequences");
    }
}
