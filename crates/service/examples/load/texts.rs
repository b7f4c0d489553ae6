//! Texts that no cache has seen, and the bodies around them.
//!
//! Sentences of a control's length over the words of controls. Random, from a seed: a run can be repeated, and no text
//! comes twice in one.

use std::fmt::Write as _;

/// SplitMix64: small, and good enough to choose words with.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 to below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        // The bias is far below anything measured here.
        self.next() % end
    }

    pub(crate) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }
}

const WORDS: [&str; 64] = [
    "access",
    "accounts",
    "administrators",
    "alarms",
    "all",
    "and",
    "are",
    "audit",
    "authentication",
    "backups",
    "be",
    "boundaries",
    "buckets",
    "changes",
    "cloud",
    "configuration",
    "controls",
    "credentials",
    "data",
    "detection",
    "devices",
    "disabled",
    "enabled",
    "encryption",
    "events",
    "every",
    "for",
    "functions",
    "groups",
    "identities",
    "in",
    "incidents",
    "information",
    "integrity",
    "is",
    "keys",
    "least",
    "logs",
    "media",
    "monitoring",
    "must",
    "network",
    "of",
    "organization",
    "passwords",
    "permissions",
    "personnel",
    "policies",
    "privileges",
    "protected",
    "public",
    "records",
    "recovery",
    "remote",
    "required",
    "review",
    "risk",
    "roles",
    "security",
    "should",
    "systems",
    "the",
    "users",
    "with",
];

/// Words in a text: about as many as a control of SP 800-53 has.
const WORDS_A_TEXT: usize = 40;

/// A text that has not been before, unless 2^48 have.
pub(crate) fn text(random: &mut Random) -> String {
    format!("control {:x} {}", random.next() >> 16, known(random))
}

/// The same without a word of its own, of which tokenizers remember thousands: memory that fills and is no leak. No two are alike
/// either, there being 64 words for each place.
pub(crate) fn known(random: &mut Random) -> String {
    let words: Vec<&str> = (0..WORDS_A_TEXT).map(|_| WORDS[random.below(WORDS.len() as u64) as usize]).collect();
    words.join(" ")
}

/// The body of an embed.
pub(crate) fn embed_body(text: &str) -> String {
    format!(r#"{{"control_id":"C","text":"{text}"}}"#)
}

/// The body of an embed batch.
pub(crate) fn batch_body<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let items: Vec<String> = texts.into_iter().map(embed_body).collect();
    format!(r#"{{"items":[{}]}}"#, items.join(","))
}

/// The body of a rerank with `count` new candidates.
pub(crate) fn rerank_body(random: &mut Random, count: usize) -> String {
    let candidates: Vec<String> = (0..count).map(|_| embed_body(&known(random))).collect();
    format!(r#"{{"source_text":"{}","candidates":[{}]}}"#, known(random), candidates.join(","))
}

/// The body of a retrieve among `rows` new vectors.
pub(crate) fn retrieve_body(random: &mut Random, rows: usize, dimensions: usize) -> String {
    let mut vector = || {
        let mut out = String::from("[");
        for i in 0..dimensions {
            let _ = write!(out, "{}{}", if i > 0 { "," } else { "" }, random.unit() - 0.5);
        }
        out + "]"
    };
    let source = vector();
    let targets: Vec<String> = (0..rows).map(|_| vector()).collect();
    format!(r#"{{"source_embedding":{source},"target_embeddings":[{}],"top_k":5}}"#, targets.join(","))
}
