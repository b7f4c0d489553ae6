//! What one model revision computed is no answer for another: each part of what a vector depends on, by itself.

use super::*;
use crate::{CacheKeyBuilder, digest_bytes};

/// All that a vector depends on.
#[derive(Clone)]
struct Of {
    model: &'static [u8],
    tokenizer: &'static [u8],
    pooling: &'static str,
    window: usize,
    numeric_format: &'static str,
    instruction: Option<&'static str>,
    dimensions: usize,
    text: &'static str,
}

const BASE: Of = Of {
    model: b"weights",
    tokenizer: b"merges",
    pooling: "last",
    window: 512,
    numeric_format: "bf16",
    instruction: Some("find"),
    dimensions: 4096,
    text: "MFA is required",
};

impl Of {
    fn key(&self) -> CacheKey {
        let model = digest_bytes(&[("model.safetensors", self.model)]);
        let tokenizer = digest_bytes(&[("tokenizer.json", self.tokenizer)]);
        CacheKeyBuilder::new(&model, &tokenizer, self.pooling, self.window, self.numeric_format).key(
            self.instruction,
            self.dimensions,
            self.text,
        )
    }
}

/// One revision writes, another, which shares its table, reads.
async fn misses(changed: Of) {
    let double = Double::start();
    let (old, new) = (cache(&double), cache(&double));
    old.put(vec![(BASE.key(), numbered(1).1)]);
    old.flush().await;
    assert_eq!(new.get(&[changed.key(), BASE.key()]).await, [None, Some(numbered(1).1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_model_bytes_are_a_miss() {
    misses(Of { model: b"weightz", ..BASE }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_tokenizer_is_a_miss() {
    misses(Of { tokenizer: b"mergez", ..BASE }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_instruction_is_a_miss() {
    misses(Of { instruction: Some("find similar"), ..BASE }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_instruction_is_a_miss() {
    misses(Of { instruction: None, ..BASE }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_pooling_is_a_miss() {
    misses(Of { pooling: "mean", ..BASE }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_dimensions_are_a_miss() {
    misses(Of { dimensions: 1024, ..BASE }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_text_is_a_miss() {
    misses(Of { text: "MFA is required.", ..BASE }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_window_is_a_miss() {
    misses(Of { window: 8192, ..BASE }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_numeric_format_is_a_miss() {
    misses(Of { numeric_format: "f32", ..BASE }).await;
}
