//! Qwen3 as an embedder: a causal decoder whose last hidden state is pooled.
//!
//! Reference: `transformers`, `models/qwen3/modeling_qwen3.py`; the model card of Qwen3-Embedding for the pooling and
//! the instruction. What it computes, per layer:
//!
//! ```text
//! h = x + o_proj(attention(rope(norm(q)), rope(norm(k)), v))     from input_layernorm(x), causal, grouped queries
//! x = h + down_proj(silu(gate_proj(n)) * up_proj(n))             n = post_attention_layernorm(h)
//! ```
//!
//! then a final RMS norm. The language-model head is not computed, and not loaded.

use crate::{LoadError, PackedModel, Weights, config::Config};
use nexus_compute::{Activation, Backend, ComputeError, Heads, Mask, Norm, NormKind, PackedBatch, Pooling};
use std::sync::Arc;

/// Shapes and constants of a Qwen3 model.
#[derive(Clone, Debug, PartialEq)]
pub struct Qwen3Config {
    /// Rows of the embedding table.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the MLP.
    pub intermediate: usize,
    /// Number of layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: Heads,
    /// Whether the attention projections have biases.
    pub attention_bias: bool,
    /// Epsilon of every norm.
    pub eps: f32,
    /// Base of the rotary angles.
    pub rope_theta: f32,
    /// Positions the model was made for.
    pub positions: usize,
}

impl Qwen3Config {
    /// Reads `config.json`. Variants that this implementation does not compute are refused by key.
    pub fn new(config: &Config) -> Result<Self, LoadError> {
        config.only("hidden_act", "silu", &["silu"])?;
        if config.flag_or("use_sliding_window", false)? {
            return Err(config.unsupported("use_sliding_window", true, "false"));
        }
        if let Some(types) = config.value("layer_types") {
            let full = |t: &serde_json::Value| t == "full_attention";
            if !types.as_array().is_some_and(|types| types.iter().all(full)) {
                return Err(config.unsupported("layer_types", types, "full_attention in every layer"));
            }
        }
        let hidden = config.size("hidden_size")?;
        let query = config.size("num_attention_heads")?;
        let key_value = config.size_or("num_key_value_heads", Some(query))?;
        let dim = config.size_or("head_dim", Some((hidden / query).max(1)))?;
        if !query.is_multiple_of(key_value) {
            return Err(config.contradiction(format!(
                "num_attention_heads {query} is not a multiple of num_key_value_heads {key_value}"
            )));
        }
        if !dim.is_multiple_of(2) {
            return Err(config.contradiction(format!("head_dim {dim} is odd; rotary embedding pairs its halves")));
        }
        Ok(Self {
            vocabulary: config.size("vocab_size")?,
            hidden,
            intermediate: config.size("intermediate_size")?,
            layers: config.size("num_hidden_layers")?,
            heads: Heads { query, key_value, dim },
            attention_bias: config.flag_or("attention_bias", false)?,
            eps: config.positive_or("rms_norm_eps", Some(1e-6))?,
            rope_theta: config.rope_theta("full_attention", "rope_theta", 10_000.0)?,
            positions: config.size_or("max_position_embeddings", Some(32_768))?,
        })
    }

    /// Bytes of device memory that a forward pass of `tokens` tokens takes beside the weights, about: what is held at its
    /// widest moment, in the second half of a layer, with `element_bytes` a number and a residual stream in f32. Scores of
    /// attention are not in it: they are no matrix on devices with little memory.
    pub fn workspace_bytes(&self, tokens: usize, element_bytes: usize) -> u64 {
        let Self { hidden, intermediate, heads, .. } = self;
        let columns = heads.fused_columns() + heads.output_columns() + 2 * intermediate + intermediate.max(hidden);
        (tokens as u64).saturating_mul((columns * element_bytes + 4 * hidden) as u64)
    }
}

/// Puts a task description in front of a query, the way Qwen3-Embedding was trained (no space after `Query:`).
pub fn instruct(instruction: &str, text: &str) -> String {
    format!("Instruct: {instruction}\nQuery:{text}")
}

/// A Qwen3 model on a device.
pub struct Qwen3<B: Backend> {
    backend: Arc<B>,
    config: Qwen3Config,
    pooling: Pooling,
    embeddings: B::Table,
    rope: B::Rope,
    layers: Vec<Layer<B>>,
    final_norm: Norm<B::Vector>,
    recording: B::Recording,
}

struct Layer<B: Backend> {
    attention_norm: Norm<B::Vector>,
    query_norm: Norm<B::Vector>,
    key_norm: Norm<B::Vector>,
    qkv: B::Linear,
    output: B::Linear,
    mlp_norm: Norm<B::Vector>,
    gate_up: B::Linear,
    down: B::Linear,
}

impl<B: Backend> Qwen3<B> {
    /// Prepares the weights on `backend`. `positions` bounds the length of a sequence, in tokens.
    pub fn load(
        backend: Arc<B>,
        config: Qwen3Config,
        pooling: Pooling,
        positions: usize,
        weights: Weights<'_>,
    ) -> Result<Self, LoadError> {
        let weights = weights.with_prefix(&["", "model."], "embed_tokens.weight")?;
        let norm = |name: &str, columns: usize| -> Result<_, LoadError> {
            let weight = weights.vector(&*backend, name, columns)?;
            Ok(Norm { kind: NormKind::Rms, weight, bias: None, eps: config.eps })
        };
        let linear = |layer: &str, parts: &[(&str, usize)], columns: usize, biased: bool| {
            let parts: Vec<_> = parts.iter().map(|(part, rows)| (format!("{layer}{part}"), *rows)).collect();
            weights.linear(&*backend, &parts, columns, biased)
        };

        let Qwen3Config { hidden, intermediate, heads, attention_bias, .. } = config;
        let (query, key_value) = (heads.query * heads.dim, heads.key_value * heads.dim);
        let embeddings = weights.table(&*backend, "embed_tokens.weight", [config.vocabulary, hidden])?;
        let layers = (0..config.layers)
            .map(|i| {
                let at = |name: &str| format!("layers.{i}.{name}");
                let attention = at("self_attn.");
                let mlp = at("mlp.");
                Ok(Layer {
                    attention_norm: norm(&at("input_layernorm.weight"), hidden)?,
                    query_norm: norm(&at("self_attn.q_norm.weight"), heads.dim)?,
                    key_norm: norm(&at("self_attn.k_norm.weight"), heads.dim)?,
                    qkv: linear(
                        &attention,
                        &[("q_proj", query), ("k_proj", key_value), ("v_proj", key_value)],
                        hidden,
                        attention_bias,
                    )?,
                    output: linear(&attention, &[("o_proj", hidden)], query, attention_bias)?,
                    mlp_norm: norm(&at("post_attention_layernorm.weight"), hidden)?,
                    gate_up: linear(&mlp, &[("gate_proj", intermediate), ("up_proj", intermediate)], hidden, false)?,
                    down: linear(&mlp, &[("down_proj", hidden)], intermediate, false)?,
                })
            })
            .collect::<Result<Vec<_>, LoadError>>()?;
        let final_norm = norm("norm.weight", hidden)?;
        // After the tensors, whose shapes prove that the sizes in the configuration are real.
        let rope = backend
            .prepare_rope(config.rope_theta, heads.dim, positions)
            .map_err(|source| LoadError::Prepare { tensor: "the rotary table".into(), source })?;
        weights.finish(|name| name == "lm_head.weight" || name.ends_with("rotary_emb.inv_freq"))?;
        Ok(Self { backend, config, pooling, embeddings, rope, layers, final_norm, recording: B::Recording::default() })
    }
}

impl<B: Backend> PackedModel for Qwen3<B> {
    fn output_columns(&self) -> usize {
        self.config.hidden
    }

    fn forward(&self, batch: &PackedBatch) -> Result<Vec<f32>, ComputeError> {
        self.backend.run(&self.recording, batch, &|batch| self.pooled(batch))
    }
}

impl<B: Backend> Qwen3<B> {
    /// One pooled hidden state a sequence.
    fn pooled(&self, batch: &B::Batch) -> Result<B::Tensor, ComputeError> {
        let (b, heads) = (&*self.backend, self.config.heads);
        let mut x = b.embed(&self.embeddings, None, batch)?;
        for (i, layer) in self.layers.iter().enumerate() {
            let mut qkv = b.linear(&b.norm(&x, &layer.attention_norm)?, &layer.qkv)?;
            b.qk_norm_rope(&mut qkv, heads, Some((&layer.query_norm, &layer.key_norm)), &self.rope, batch)?;
            let mut attended = b.attention(&qkv, heads, Mask::Causal, batch)?;
            // The last layer's output is read at one row a sequence: the rest of it need not be computed.
            if i + 1 == self.layers.len() && self.pooling != Pooling::Mean {
                attended = b.pool(&attended, self.pooling, batch)?;
                x = b.pool(&x, self.pooling, batch)?;
            }
            b.linear_add(&attended, &layer.output, &mut x)?;
            let gate_up = b.linear(&b.norm(&x, &layer.mlp_norm)?, &layer.gate_up)?;
            b.linear_add(&b.gated_act(&gate_up, Activation::Silu)?, &layer.down, &mut x)?;
        }
        let hidden = b.norm(&x, &self.final_norm)?;
        match self.pooling {
            Pooling::Mean => b.pool(&hidden, Pooling::Mean, batch),
            Pooling::First | Pooling::Last => Ok(hidden),
        }
    }
}
