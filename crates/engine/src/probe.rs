//! What a model has to do before it serves: a few fixed texts through every copy of it.
//!
//! A file can be whole and fit the configuration, and hold weights that give nothing but NaN. Such a revision must not
//! take the place of one that works. Deliberately absent: whether the answers are any good.

use crate::{Role, local::unit_vector, replica::finite};
use nexus_models::TextTokenizer;

/// Of one word and of many, as they come in catalogs and in the texts of checks.
const TEXTS: [&str; 3] = [
    "Encryption",
    "MFA is enabled for the root user of the account",
    "Information systems enforce multi-factor authentication for all users, and access keys are rotated at least \
     every 90 days; exceptions are approved in writing and reviewed once a year.",
];

/// The texts as a model of this role reads them: alone, or in pairs.
pub(crate) fn sequences(role: Role, tokenizer: &TextTokenizer) -> Result<Vec<Vec<u32>>, String> {
    let encode = |text: &str| match role {
        Role::Retriever => tokenizer.encode(text),
        Role::Reranker => tokenizer.encode_pair(TEXTS[1], text),
    };
    TEXTS.into_iter().map(|text| encode(text).map_err(|error| of_text(text, &error.to_string()))).collect()
}

/// Whether `rows` can be what a copy gives for the texts: an embedder gives each a direction, a cross-encoder a score.
pub(crate) fn check(role: Role, rows: Vec<Vec<f32>>) -> Result<(), String> {
    if rows.len() != TEXTS.len() {
        return Err(format!("the model does not work: {} rows for {} texts", rows.len(), TEXTS.len()));
    }
    for (text, row) in TEXTS.into_iter().zip(rows) {
        let row = finite(row).map_err(|error| of_text(text, &error.to_string()))?;
        let dimensions = row.len();
        match role {
            Role::Retriever if unit_vector(row, dimensions).is_none() => {
                return Err(of_text(text, "its vector is zero"));
            }
            Role::Reranker if dimensions == 0 => return Err(of_text(text, "it has no score")),
            _ => {}
        }
    }
    Ok(())
}

fn of_text(text: &str, detail: &str) -> String {
    format!("the model does not work: for the text {text:?}, {detail}")
}
