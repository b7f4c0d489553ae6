//! The devices of a process, whatever they are: what the engine asks of one, without its type.

use crate::Role;
use nexus_compute::Backend;
use nexus_models::{LoadError, LoadOptions, ModelFiles, PackedModel, TextTokenizer, load_embedder, load_reranker};
use std::{fmt, sync::Arc};

/// Devices of one kind, each of which gets a copy of both models and a thread of its own.
pub struct Devices {
    pub(crate) list: Vec<Arc<dyn Device>>,
    pub(crate) batch_tokens_max: usize,
}

impl Devices {
    /// Devices that take packed batches of at most `batch_tokens_max` tokens; a longer text runs alone.
    pub fn new<B: Backend>(backends: Vec<Arc<B>>, batch_tokens_max: usize) -> Self {
        let list = backends.into_iter().map(|backend| Arc::new(Typed(backend)) as Arc<dyn Device>).collect();
        Self { list, batch_tokens_max }
    }
}

impl fmt::Debug for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.list.iter().map(|device| device.name())).finish()
    }
}

/// A [`Backend`] whose type nobody needs to know. The methods of the same names say what they do.
pub(crate) trait Device: Send + Sync {
    fn name(&self) -> String;
    fn numeric_format(&self) -> &'static str;
    fn memory_bytes(&self) -> Option<u64>;
    fn memory_bytes_free(&self) -> Option<u64>;
    fn warm_up_tokens(&self, tokens_max: usize) -> Vec<usize>;
    fn packed_layout(&self) -> Option<String>;
    /// Loads a copy of a model onto it.
    fn load(&self, role: Role, files: &ModelFiles, options: LoadOptions<'_>) -> Result<Loaded, LoadError>;
}

/// A copy of a model, and what it takes to speak to it.
pub(crate) struct Loaded {
    pub(crate) model: Arc<dyn PackedModel>,
    pub(crate) tokenizer: TextTokenizer,
    /// How an embedder pools; empty for a cross-encoder, whose configuration says it.
    pub(crate) pooling: &'static str,
    /// How an embedder is told a task.
    pub(crate) instruct: fn(&str, &str) -> String,
}

struct Typed<B>(Arc<B>);

impl<B: Backend> Device for Typed<B> {
    fn name(&self) -> String {
        self.0.name()
    }

    fn numeric_format(&self) -> &'static str {
        self.0.numeric_format()
    }

    fn memory_bytes(&self) -> Option<u64> {
        self.0.memory_bytes()
    }

    fn memory_bytes_free(&self) -> Option<u64> {
        self.0.memory_bytes_free()
    }

    fn warm_up_tokens(&self, tokens_max: usize) -> Vec<usize> {
        self.0.warm_up_tokens(tokens_max)
    }

    fn packed_layout(&self) -> Option<String> {
        self.0.packed_layout()
    }

    fn load(&self, role: Role, files: &ModelFiles, options: LoadOptions<'_>) -> Result<Loaded, LoadError> {
        match role {
            Role::Retriever => {
                let loaded = load_embedder(&self.0, files, options)?;
                let (tokenizer, pooling, instruct) = (loaded.tokenizer, loaded.pooling, loaded.instruct);
                Ok(Loaded { model: loaded.model.into(), tokenizer, pooling, instruct })
            }
            Role::Reranker => {
                let loaded = load_reranker(&self.0, files, options)?;
                let instruct = |_: &str, text: &str| text.to_owned();
                Ok(Loaded { model: loaded.model.into(), tokenizer: loaded.tokenizer, pooling: "", instruct })
            }
        }
    }
}
