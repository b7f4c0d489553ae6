//! Bodies of embed and rerank requests as fuzz targets see them: bytes to what was understood, or to the answer's body.
//!
//! Deliberately absent: bodies with vectors, whose parser (`nexus-vectors`) is fuzzed by itself.

use super::embed::{self, EncodingFormat, Item};
use super::error::ApiError;
use super::rerank;
use serde_json::{Value, json};

/// A control of an embed request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// The caller's name of it.
    pub control_id: String,
    /// Never blank.
    pub text: String,
    /// Never empty.
    pub instruction: Option<String>,
    /// At least 1.
    pub dimensions: Option<usize>,
    /// Whether the vector is asked for in base64.
    pub is_base64: bool,
}

/// A rerank request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rerank {
    /// Never blank.
    pub source: String,
    /// Names and texts.
    pub candidates: Vec<(String, String)>,
    /// At least 1.
    pub top_n: Option<usize>,
}

/// The body of `/api/v1/embed`, or the list of what is wrong with it.
pub fn embed(body: &[u8]) -> Result<Control, Value> {
    embed::parse_single(body).map(control).map_err(problems)
}

/// The body of `/api/v1/embed/batch`, or the list of what is wrong with it.
pub fn embed_batch(body: &[u8], items_max: usize) -> Result<Vec<Control>, Value> {
    let items = embed::parse_batch(body, items_max).map_err(problems)?;
    Ok(items.into_iter().map(control).collect())
}

/// The body of `/api/v1/rerank`, or the list of what is wrong with it.
pub fn rerank(body: &[u8], candidates_max: usize) -> Result<Rerank, Value> {
    let rerank::Parsed { source, ids, texts, top_n } = rerank::parse(body, candidates_max).map_err(problems)?;
    Ok(Rerank { source, candidates: ids.into_iter().zip(texts).collect(), top_n })
}

fn control(Item { control_id, text, options }: Item) -> Control {
    Control {
        control_id,
        text,
        instruction: options.instruction.as_deref().map(str::to_owned),
        dimensions: options.dimensions.map(|dimensions| dimensions.count),
        is_base64: options.format == EncodingFormat::Base64,
    }
}

fn problems(error: ApiError) -> Value {
    match error {
        ApiError::Invalid(problems) => json!(problems),
        ApiError::Refused { status, detail, .. } => json!({ "status": status.as_u16(), "detail": detail }),
    }
}
