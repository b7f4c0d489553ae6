//! The key of a cached embedding: a digest over everything that the vector depends on.

use sha2::{Digest, Sha256};
use std::fmt;

/// SHA-256 over what determines an embedding. Two texts share a key only if they share all of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CacheKey([u8; 32]);

impl CacheKey {
    /// The key with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The digest.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// Builds keys for one model: what does not change between texts is hashed once.
///
/// Fields are length-prefixed, so that no two different sequences of fields have the same bytes.
#[derive(Clone, Debug)]
pub struct CacheKeyBuilder {
    prefix: Sha256,
}

impl CacheKeyBuilder {
    /// Version of the key's layout. Raise it when a field is added or its meaning changes: old entries become misses.
    pub const VERSION: u32 = 1;

    /// Starts from what identifies the model: digests of its content, how its rows are pooled (`last`), the tokens
    /// beyond which a text is truncated, and the numeric format that it computes in (`f32`, `bf16`, `int8`).
    pub fn new(
        model_digest: &[u8; 32],
        tokenizer_digest: &[u8; 32],
        pooling: &str,
        window_tokens: usize,
        numeric_format: &str,
    ) -> Self {
        let mut prefix = Sha256::new();
        prefix.update(b"nexus embedding");
        prefix.update(Self::VERSION.to_le_bytes());
        for field in [model_digest.as_slice(), tokenizer_digest, pooling.as_bytes(), numeric_format.as_bytes()] {
            update_field(&mut prefix, field);
        }
        prefix.update((window_tokens as u64).to_le_bytes());
        Self { prefix }
    }

    /// The key of one text. `instruction` is part of what the model reads; `dimensions` is the length of the vector.
    pub fn key(&self, instruction: Option<&str>, dimensions: usize, text: &str) -> CacheKey {
        let mut hasher = self.prefix.clone();
        // An absent instruction and an empty one are different requests.
        hasher.update([u8::from(instruction.is_some())]);
        update_field(&mut hasher, instruction.unwrap_or_default().as_bytes());
        hasher.update((dimensions as u64).to_le_bytes());
        update_field(&mut hasher, text.as_bytes());
        CacheKey(hasher.finalize().into())
    }
}

fn update_field(hasher: &mut Sha256, field: &[u8]) {
    hasher.update((field.len() as u64).to_le_bytes());
    hasher.update(field);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_key_matters() {
        let base = CacheKeyBuilder::new(&[1; 32], &[2; 32], "last", 512, "f32");
        let keys = [
            base.key(None, 256, "text"),
            base.key(Some(""), 256, "text"),
            base.key(Some("a"), 256, "text"),
            base.key(None, 128, "text"),
            base.key(None, 256, "text "),
            CacheKeyBuilder::new(&[9; 32], &[2; 32], "last", 512, "f32").key(None, 256, "text"),
            CacheKeyBuilder::new(&[1; 32], &[9; 32], "last", 512, "f32").key(None, 256, "text"),
            CacheKeyBuilder::new(&[1; 32], &[2; 32], "mean", 512, "f32").key(None, 256, "text"),
            CacheKeyBuilder::new(&[1; 32], &[2; 32], "last", 512, "bf16").key(None, 256, "text"),
            CacheKeyBuilder::new(&[1; 32], &[2; 32], "last", 32, "f32").key(None, 256, "text"),
        ];
        for (i, a) in keys.iter().enumerate() {
            for b in &keys[i + 1..] {
                assert_ne!(a, b);
            }
        }
        assert_eq!(keys[0], base.key(None, 256, "text"));
    }

    #[test]
    fn the_layout_does_not_change_by_accident() {
        let key = CacheKeyBuilder::new(&[1; 32], &[2; 32], "last", 512, "f32").key(Some("find"), 4096, "MFA");
        let hex = format!("{key:?}");
        assert_eq!(hex, "c223aa23b76928f31ed001465b42c1580e29c349df9737e86689224cee137248");
    }
}
