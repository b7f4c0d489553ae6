//! What a model has to do before it serves: a few fixed texts through every copy of it.
//!
//! A file can be whole and fit the configuration, and hold weights that give nothing but NaN. Such a revision must not
//! take the place of one that works. Deliberately absent: whether the answers are any good.

use crate::{
    loaded::LoadedModel,
    local::unit_vector,
    replica::{finite, forward},
};
use nexus_models::TextTokenizer;

/// Of one word and of many, as they come in catalogs and in the texts of checks.
const TEXTS: [&str; 3] = [
    "Encryption",
    "MFA is enabled for the root user of the account",
    "Information systems enforce multi-factor authentication for all users, and access keys are rotated at least \
     every 90 days; exceptions are approved in writing and reviewed once a year.",
];

/// An embedder gives each text a direction.
pub(crate) fn embedder(tokenizer: &TextTokenizer, model: &LoadedModel) -> Result<(), String> {
    each_row(
        model,
        |text| tokenizer.encode(text).map_err(|e| e.to_string()),
        |row| {
            let dimensions = row.len();
            unit_vector(row, dimensions).map(drop).ok_or_else(|| "its vector is zero".to_owned())
        },
    )
}

/// A cross-encoder gives each pair a score.
pub(crate) fn reranker(tokenizer: &TextTokenizer, model: &LoadedModel) -> Result<(), String> {
    each_row(
        model,
        |text| tokenizer.encode_pair(TEXTS[1], text).map_err(|e| e.to_string()),
        |row| {
            if row.is_empty() { Err("it has no score".to_owned()) } else { Ok(()) }
        },
    )
}

fn each_row(
    model: &LoadedModel,
    encode: impl Fn(&str) -> Result<Vec<u32>, String>,
    check: impl Fn(Vec<f32>) -> Result<(), String>,
) -> Result<(), String> {
    let of_text = |text: &str, detail: String| format!("the model does not work: for the text {text:?}, {detail}");
    let mut sequences = Vec::with_capacity(TEXTS.len());
    for text in TEXTS {
        sequences.push(encode(text).map_err(|detail| of_text(text, detail))?);
    }
    let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    for copy in model.copies() {
        let rows = forward(copy, &sequences).map_err(|detail| format!("the model does not work: {detail}"))?;
        if rows.len() != TEXTS.len() {
            return Err(format!("the model does not work: {} rows for {} texts", rows.len(), TEXTS.len()));
        }
        for (text, row) in TEXTS.into_iter().zip(rows) {
            let row = finite(row).map_err(|error| of_text(text, error.to_string()))?;
            check(row).map_err(|detail| of_text(text, detail))?;
        }
    }
    Ok(())
}
