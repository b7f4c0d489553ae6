//! What tells one revision of a model from another.

use bytes::Bytes;
use nexus_storage::digest_bytes;
use std::fmt;

/// Digits of a revision.
const DIGITS: usize = 12;

/// A revision of a model: the first 12 hexadecimal digits of a digest over all that its answers depend on but the text.
/// The same content has the same revision on every machine, whatever its folder is called.
///
/// Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Revision(Bytes);

/// Digests of a model's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digests {
    /// Of configuration and weights.
    pub model: [u8; 32],
    /// Of the tokenizer.
    pub tokenizer: [u8; 32],
}

impl Revision {
    /// The revision of a model that pools its rows as `pooling` says, truncates texts to `window_tokens`, and computes in
    /// `numeric_format`: what the cache's keys hold, too.
    pub fn of(digests: &Digests, pooling: &str, window_tokens: usize, numeric_format: &str) -> Self {
        let window_tokens = (window_tokens as u64).to_le_bytes();
        let digest = digest_bytes(&[
            ("model", &digests.model),
            ("tokenizer", &digests.tokenizer),
            ("pooling", pooling.as_bytes()),
            ("window", &window_tokens),
            ("format", numeric_format.as_bytes()),
        ]);
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Self(Bytes::from(hex).slice(..DIGITS))
    }

    /// Its digits, in ASCII.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.0).unwrap_or_default())
    }
}

impl fmt::Debug for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_matters_and_nothing_else() {
        let digests = |model, tokenizer| Digests { model: [model; 32], tokenizer: [tokenizer; 32] };
        let revisions = [
            Revision::of(&digests(1, 2), "last", 512, "f32"),
            Revision::of(&digests(9, 2), "last", 512, "f32"),
            Revision::of(&digests(1, 9), "last", 512, "f32"),
            Revision::of(&digests(2, 1), "last", 512, "f32"),
            Revision::of(&digests(1, 2), "mean", 512, "f32"),
            Revision::of(&digests(1, 2), "last", 32, "f32"),
            Revision::of(&digests(1, 2), "last", 512, "bf16"),
        ];
        for (i, a) in revisions.iter().enumerate() {
            assert!(a.as_bytes().len() == 12 && a.as_bytes().iter().all(u8::is_ascii_hexdigit), "{a}");
            for b in &revisions[i + 1..] {
                assert_ne!(a, b);
            }
        }
        assert_eq!(revisions[0], Revision::of(&digests(1, 2), "last", 512, "f32"));
    }
}
