//! ModernBERT as a reranker: a bidirectional encoder with one logit on top.
//!
//! Reference: `transformers`, `models/modernbert/modeling_modernbert.py`; Warner et al. 2024,
//! <https://arxiv.org/abs/2412.13663>. What it computes: token embeddings, layer norm, then per layer
//!
//! ```text
//! x = x + Wo(attention(rope(q), rope(k), v))        from attn_norm(x); layer 0 has none; every n-th layer sees all tokens,
//!                                                   the others a window
//! x = x + Wo(gelu(a) * b)                           (a, b) = halves of Wi(mlp_norm(x)), exact GELU
//! ```
//!
//! then a final norm, pooling, and the head `classifier(norm(gelu(dense(pooled))))`. More than one label is refused:
//! a softmax over classes is another task.

use crate::{LoadError, PackedModel, Weights, config::Config};
use nexus_compute::{Activation, Backend, ComputeError, Heads, Mask, Norm, NormKind, PackedBatch, Pooling};
use std::sync::Arc;

const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

/// Shapes and constants of a ModernBERT sequence classifier.
#[derive(Clone, Debug, PartialEq)]
pub struct ModernBertConfig {
    /// Rows of the embedding table.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the gated MLP, after the gate.
    pub intermediate: usize,
    /// Attention heads.
    pub heads: Heads,
    /// What each layer attends to.
    pub masks: Vec<Mask>,
    /// Base of the rotary angles in layers that see everything.
    pub global_rope_theta: f32,
    /// Base of the rotary angles in windowed layers.
    pub local_rope_theta: f32,
    /// Epsilon of every norm.
    pub eps: f32,
    /// Whether norms have a shift.
    pub norm_bias: bool,
    /// Whether `Wqkv` and the attention's `Wo` have biases.
    pub attention_bias: bool,
    /// Whether `Wi` and the MLP's `Wo` have biases.
    pub mlp_bias: bool,
    /// Whether the head's dense layer has a bias.
    pub classifier_bias: bool,
    /// Which row the head reads.
    pub pooling: Pooling,
    /// Positions the model was made for.
    pub positions: usize,
}

impl ModernBertConfig {
    /// Reads `config.json`. Variants that this implementation does not compute are refused by key.
    pub fn new(config: &Config) -> Result<Self, LoadError> {
        config.only("hidden_activation", "gelu", &["gelu"])?;
        config.only("classifier_activation", "gelu", &["gelu"])?;
        let labels = match config.section("id2label")? {
            Some(labels) => labels.len(),
            None => config.size_or("num_labels", Some(2))?,
        };
        if labels != 1 {
            return Err(config.unsupported("the number of labels", labels, "1 (a reranker's single logit)"));
        }
        let hidden = config.size("hidden_size")?;
        let heads = config.size("num_attention_heads")?;
        let dim = hidden / heads;
        if !hidden.is_multiple_of(heads) || !dim.is_multiple_of(2) {
            return Err(config.contradiction(format!(
                "hidden_size {hidden} does not part into {heads} heads of an even number of floats"
            )));
        }
        let pooling = match config.text_or("classifier_pooling", "cls")? {
            "cls" => Pooling::First,
            "mean" => Pooling::Mean,
            other => return Err(config.unsupported("classifier_pooling", other, "cls, mean")),
        };
        Ok(Self {
            vocabulary: config.size("vocab_size")?,
            hidden,
            intermediate: config.size("intermediate_size")?,
            heads: Heads { query: heads, key_value: heads, dim },
            masks: masks(config)?,
            global_rope_theta: config.rope_theta(FULL, "global_rope_theta", 160_000.0)?,
            local_rope_theta: config.rope_theta(SLIDING, "local_rope_theta", 10_000.0)?,
            eps: config.positive_or("norm_eps", Some(1e-5))?,
            norm_bias: config.flag_or("norm_bias", false)?,
            attention_bias: config.flag_or("attention_bias", false)?,
            mlp_bias: config.flag_or("mlp_bias", false)?,
            classifier_bias: config.flag_or("classifier_bias", false)?,
            pooling,
            positions: config.size_or("max_position_embeddings", Some(8192))?,
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

/// What each layer attends to: `layer_types` where the file has it, else every n-th layer sees everything.
fn masks(config: &Config) -> Result<Vec<Mask>, LoadError> {
    let layers = config.size("num_hidden_layers")?;
    // `local_attention` counts both sides; the reference halves it, and the bound is inclusive.
    let window = Mask::Window(config.size_or("local_attention", Some(128))? / 2);
    let Some(types) = config.value("layer_types") else {
        let every = config.size_or("global_attn_every_n_layers", Some(3))?;
        return Ok((0..layers).map(|i| if i % every == 0 { Mask::Full } else { window }).collect());
    };
    let types = types.as_array().filter(|types| types.len() == layers).ok_or_else(|| {
        config.contradiction(format!("layer_types must be a list with one entry for each of the {layers} layers"))
    })?;
    types
        .iter()
        .map(|t| match t.as_str() {
            Some(FULL) => Ok(Mask::Full),
            Some(SLIDING) => Ok(window),
            _ => Err(config.unsupported("layer_types", t, "full_attention, sliding_attention")),
        })
        .collect()
}

/// A ModernBERT sequence classifier on a device.
pub struct ModernBert<B: Backend> {
    backend: Arc<B>,
    config: ModernBertConfig,
    embeddings: B::Table,
    embedding_norm: Norm<B::Vector>,
    global_rope: B::Rope,
    local_rope: B::Rope,
    layers: Vec<Layer<B>>,
    final_norm: Norm<B::Vector>,
    dense: B::Linear,
    head_norm: Norm<B::Vector>,
    classifier: B::Linear,
    recording: B::Recording,
}

struct Layer<B: Backend> {
    mask: Mask,
    attention_norm: Option<Norm<B::Vector>>,
    qkv: B::Linear,
    attention_output: B::Linear,
    mlp_norm: Norm<B::Vector>,
    gate_up: B::Linear,
    mlp_output: B::Linear,
}

impl<B: Backend> ModernBert<B> {
    /// Prepares the weights on `backend`. `positions` bounds the length of a sequence, in tokens.
    pub fn load(
        backend: Arc<B>,
        config: ModernBertConfig,
        positions: usize,
        weights: Weights<'_>,
    ) -> Result<Self, LoadError> {
        let hidden = config.hidden;
        let norm = |name: &str| -> Result<_, LoadError> {
            let vector = |part: &str| weights.vector(&*backend, &format!("{name}.{part}"), hidden);
            let weight = vector("weight")?;
            let bias = config.norm_bias.then(|| vector("bias")).transpose()?;
            Ok(Norm { kind: NormKind::Layer, weight, bias, eps: config.eps })
        };
        let linear = |name: &str, rows: usize, columns: usize, biased: bool| {
            weights.linear(&*backend, &[(name.to_owned(), rows)], columns, biased)
        };
        let rope = |theta| {
            let table = backend.prepare_rope(theta, config.heads.dim, positions);
            table.map_err(|source| LoadError::Prepare { tensor: "the rotary table".into(), source })
        };

        let table_name = "model.embeddings.tok_embeddings.weight";
        let embeddings = weights.table(&*backend, table_name, [config.vocabulary, hidden])?;
        let layers = config
            .masks
            .iter()
            .enumerate()
            .map(|(i, &mask)| {
                let at = |name: &str| format!("model.layers.{i}.{name}");
                Ok(Layer {
                    mask,
                    attention_norm: (i > 0).then(|| norm(&at("attn_norm"))).transpose()?,
                    qkv: linear(&at("attn.Wqkv"), config.heads.fused_columns(), hidden, config.attention_bias)?,
                    attention_output: linear(&at("attn.Wo"), hidden, hidden, config.attention_bias)?,
                    mlp_norm: norm(&at("mlp_norm"))?,
                    gate_up: linear(&at("mlp.Wi"), 2 * config.intermediate, hidden, config.mlp_bias)?,
                    mlp_output: linear(&at("mlp.Wo"), hidden, config.intermediate, config.mlp_bias)?,
                })
            })
            .collect::<Result<Vec<_>, LoadError>>()?;
        let embedding_norm = norm("model.embeddings.norm")?;
        let final_norm = norm("model.final_norm")?;
        let dense = linear("head.dense", hidden, hidden, config.classifier_bias)?;
        let head_norm = norm("head.norm")?;
        let classifier = linear("classifier", 1, hidden, true)?;
        let (global_rope, local_rope) = (rope(config.global_rope_theta)?, rope(config.local_rope_theta)?);
        weights.finish(|name| name.ends_with("inv_freq"))?;
        Ok(Self {
            backend,
            embeddings,
            embedding_norm,
            global_rope,
            local_rope,
            layers,
            final_norm,
            dense,
            head_norm,
            classifier,
            config,
            recording: B::Recording::default(),
        })
    }
}

impl<B: Backend> PackedModel for ModernBert<B> {
    fn output_columns(&self) -> usize {
        1
    }

    fn forward(&self, batch: &PackedBatch) -> Result<Vec<f32>, ComputeError> {
        self.backend.run(&self.recording, batch, &|batch| self.logits(batch))
    }
}

impl<B: Backend> ModernBert<B> {
    /// One logit a sequence.
    fn logits(&self, batch: &B::Batch) -> Result<B::Tensor, ComputeError> {
        let (b, heads, pooling) = (&*self.backend, self.config.heads, self.config.pooling);
        let mut x = b.embed(&self.embeddings, Some(&self.embedding_norm), batch)?;
        for (i, layer) in self.layers.iter().enumerate() {
            let mut qkv = match &layer.attention_norm {
                Some(norm) => b.linear(&b.norm(&x, norm)?, &layer.qkv)?,
                None => b.linear(&x, &layer.qkv)?,
            };
            let rope = if layer.mask == Mask::Full { &self.global_rope } else { &self.local_rope };
            b.qk_norm_rope(&mut qkv, heads, None, rope, batch)?;
            let mut attended = b.attention(&qkv, heads, layer.mask, batch)?;
            // The last layer's output is read at one row a sequence: the rest of it need not be computed.
            if i + 1 == self.layers.len() && pooling != Pooling::Mean {
                attended = b.pool(&attended, pooling, batch)?;
                x = b.pool(&x, pooling, batch)?;
            }
            b.linear_add(&attended, &layer.attention_output, &mut x)?;
            let gate_up = b.linear(&b.norm(&x, &layer.mlp_norm)?, &layer.gate_up)?;
            b.linear_add(&b.gated_act(&gate_up, Activation::Gelu)?, &layer.mlp_output, &mut x)?;
        }
        let mut pooled = b.norm(&x, &self.final_norm)?;
        if pooling == Pooling::Mean {
            pooled = b.pool(&pooled, pooling, batch)?;
        }
        let mut head = b.linear(&pooled, &self.dense)?;
        b.activation(&mut head, Activation::Gelu)?;
        b.linear(&b.norm(&head, &self.head_norm)?, &self.classifier)
    }
}
