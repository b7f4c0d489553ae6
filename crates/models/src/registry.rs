//! Which implementation a model folder asks for. A new architecture is one file and one line here.

use crate::{
    LoadError, ModelFiles, PackedModel, PackedWeights, TextTokenizer, Weights,
    config::Config,
    modernbert::{ModernBert, ModernBertConfig},
    qwen3::{self, Qwen3, Qwen3Config},
};
use nexus_compute::{Backend, Pooling};
use std::sync::Arc;

/// An embedder, ready to run.
pub struct LoadedEmbedder {
    /// Token ids to pooled hidden states; not normalized.
    pub model: Box<dyn PackedModel>,
    /// Text to token ids.
    pub tokenizer: TextTokenizer,
    /// How rows become a vector, by its name in the field: `last`, `cls`, `mean`.
    pub pooling: &'static str,
    /// Wraps a task description around a query.
    pub instruct: fn(instruction: &str, text: &str) -> String,
}

/// A cross-encoder, ready to run.
pub struct LoadedReranker {
    /// Token ids of a pair to its logit.
    pub model: Box<dyn PackedModel>,
    /// Pair of texts to token ids.
    pub tokenizer: TextTokenizer,
}

/// What the caller chooses about loading.
#[derive(Clone, Copy)]
pub struct LoadOptions<'a> {
    /// Truncate texts to this many tokens even if the model could take more; 0 is the model's own window.
    pub window_limit_tokens: usize,
    /// Called with bytes of weights done and in all.
    pub progress: &'a dyn Fn(u64, u64),
    /// Where prepared weights are taken from, or collected.
    pub packed_weights: Option<&'a PackedWeights>,
}

/// Loads an embedder from its files. Supported `model_type`: `qwen3`.
pub fn load_embedder<B: Backend>(
    backend: &Arc<B>,
    files: &ModelFiles,
    options: LoadOptions<'_>,
) -> Result<LoadedEmbedder, LoadError> {
    let config = Config::read(files, "config.json")?;
    config.only("model_type", "(absent)", &["qwen3"])?;
    let model = Qwen3Config::new(&config)?;
    let pooling = embedder_pooling(files)?;
    let tokenizer = TextTokenizer::load(files, model.vocabulary, model.positions, options.window_limit_tokens)?;
    if pooling == Pooling::Last {
        tokenizer.require_end_token(files)?;
    }
    let weights = Weights::open(files, options.progress)?.with_packed(options.packed_weights);
    let model = Qwen3::load(backend.clone(), model, pooling, tokenizer.window_tokens(), weights)?;
    Ok(LoadedEmbedder { model: Box::new(model), tokenizer, pooling: pooling_name(pooling), instruct: qwen3::instruct })
}

/// Loads a cross-encoder from its files. Supported `model_type`: `modernbert` with one label.
pub fn load_reranker<B: Backend>(
    backend: &Arc<B>,
    files: &ModelFiles,
    options: LoadOptions<'_>,
) -> Result<LoadedReranker, LoadError> {
    let config = Config::read(files, "config.json")?;
    config.only("model_type", "(absent)", &["modernbert"])?;
    let model = ModernBertConfig::new(&config)?;
    let tokenizer = TextTokenizer::load(files, model.vocabulary, model.positions, options.window_limit_tokens)?;
    tokenizer.require_room_for_pairs(files)?;
    let weights = Weights::open(files, options.progress)?.with_packed(options.packed_weights);
    let model = ModernBert::load(backend.clone(), model, tokenizer.window_tokens(), weights)?;
    Ok(LoadedReranker { model: Box::new(model), tokenizer })
}

/// Device memory that a model takes, about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryNeed {
    /// Bytes of its weights; `None` where the files that tell are still on their way.
    pub weights_bytes: Option<u64>,
    /// Bytes that a forward pass takes beside them.
    pub workspace_bytes: u64,
}

/// What an embedder takes, before any of it is loaded, with batches of `tokens` tokens and `element_bytes` a number.
pub fn embedder_memory(files: &ModelFiles, tokens: usize, element_bytes: usize) -> Result<MemoryNeed, LoadError> {
    let config = Config::read(files, "config.json")?;
    config.only("model_type", "(absent)", &["qwen3"])?;
    let workspace_bytes = Qwen3Config::new(&config)?.workspace_bytes(tokens, element_bytes);
    Ok(MemoryNeed { weights_bytes: Weights::open(files, &|_, _| {})?.bytes_expected(), workspace_bytes })
}

/// What a cross-encoder takes, as [`embedder_memory`] tells of an embedder.
pub fn reranker_memory(files: &ModelFiles, tokens: usize, element_bytes: usize) -> Result<MemoryNeed, LoadError> {
    let config = Config::read(files, "config.json")?;
    config.only("model_type", "(absent)", &["modernbert"])?;
    let workspace_bytes = ModernBertConfig::new(&config)?.workspace_bytes(tokens, element_bytes);
    Ok(MemoryNeed { weights_bytes: Weights::open(files, &|_, _| {})?.bytes_expected(), workspace_bytes })
}

/// How an embedder pools: `1_Pooling/config.json` of sentence-transformers where there is one, else the last token.
fn embedder_pooling(files: &ModelFiles) -> Result<Pooling, LoadError> {
    let Some(config) = Config::read_optional(files, "1_Pooling/config.json")? else {
        return Ok(Pooling::Last);
    };
    let modes = [
        ("pooling_mode_lasttoken", Pooling::Last),
        ("pooling_mode_cls_token", Pooling::First),
        ("pooling_mode_mean_tokens", Pooling::Mean),
    ];
    let mut chosen = Vec::new();
    for (key, pooling) in modes {
        if config.flag_or(key, false)? {
            chosen.push(pooling);
        }
    }
    match chosen[..] {
        [pooling] => Ok(pooling),
        _ => Err(config.contradiction(
            "exactly one of pooling_mode_lasttoken, pooling_mode_cls_token, pooling_mode_mean_tokens must be true",
        )),
    }
}

const fn pooling_name(pooling: Pooling) -> &'static str {
    match pooling {
        Pooling::First => "cls",
        Pooling::Last => "last",
        Pooling::Mean => "mean",
    }
}
