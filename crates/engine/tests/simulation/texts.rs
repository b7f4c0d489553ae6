//! Texts, their tokens, and what a model makes of them: a row of floats that nothing else gives, or a fault.

use super::dice::mix;
use nexus_models::{ModelFiles, TextTokenizer};
use std::{
    fmt::Write,
    sync::{Arc, OnceLock},
};

pub(crate) const WINDOW_TOKENS: usize = 24;
pub(crate) const COLUMNS: usize = 4;

const END: u32 = 0;
const ZERO: u32 = 2;
const NAN: u32 = 3;
const PANICS: u32 = 4;
const SHAPE: u32 = 5;
/// Words that do no harm begin here.
pub(crate) const FIRST_WORD: u32 = 6;
pub(crate) const WORDS: u32 = 60;
pub(crate) const HARMFUL: [u32; 4] = [ZERO, NAN, PANICS, SHAPE];

/// What comes of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nature {
    Good,
    /// Its vector is zero.
    Zero,
    /// Its row is not finite.
    Nan,
    /// It fails its batch, by a panic.
    Panics,
    /// It fails its batch, by an error.
    Shape,
}

pub(crate) fn nature(tokens: &[u32]) -> Nature {
    match tokens.iter().find(|token| HARMFUL.contains(token)) {
        Some(&ZERO) => Nature::Zero,
        Some(&NAN) => Nature::Nan,
        Some(&PANICS) => Nature::Panics,
        Some(_) => Nature::Shape,
        None => Nature::Good,
    }
}

/// The text whose words have these tokens.
pub(crate) fn text(words: &[u32]) -> String {
    let mut text = String::with_capacity(4 * words.len());
    for (at, word) in words.iter().enumerate() {
        let space = if at == 0 { "" } else { " " };
        write!(text, "{space}w{word}").expect("a string takes it");
    }
    text
}

/// The tokens of a text alone.
pub(crate) fn tokens(words: &[u32]) -> Vec<u32> {
    let kept = &words[..words.len().min(WINDOW_TOKENS - 1)];
    [kept, &[END]].concat()
}

/// The tokens of a pair, which fits the window.
pub(crate) fn pair_tokens(first: &[u32], second: &[u32]) -> Vec<u32> {
    [first, &[END], second, &[END]].concat()
}

/// What revision `number` of a model gives for tokens, if they do not fail it.
pub(crate) fn row(number: u64, tokens: &[u32], columns: usize) -> Vec<f32> {
    match nature(tokens) {
        Nature::Zero => return vec![0.0; columns],
        Nature::Nan => return vec![f32::NAN; columns],
        _ => {}
    }
    let all = tokens.iter().fold(mix(number), |all, &token| mix(all ^ u64::from(token)));
    // 20 bits and a half: exact, and never zero.
    let float = |column| ((mix(all ^ (column << 32)) >> 44) as f32 + 0.5) / 65536.0 - 8.0;
    (1..=columns as u64).map(float).collect()
}

/// The embedding that a client has to get.
pub(crate) fn embedding(number: u64, tokens: &[u32], dimensions: usize) -> Vec<f32> {
    let kept = &row(number, tokens, COLUMNS)[..dimensions];
    let norm = kept.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    kept.iter().map(|&x| (f64::from(x) / norm) as f32).collect()
}

/// The score that a client has to get.
pub(crate) fn score(number: u64, tokens: &[u32]) -> f32 {
    (1.0 / (1.0 + (-f64::from(row(number, tokens, 1)[0])).exp())) as f32
}

/// A tokenizer of words, one a token.
pub(crate) fn tokenizer() -> Arc<TextTokenizer> {
    static TOKENIZER: OnceLock<Arc<TextTokenizer>> = OnceLock::new();
    let load = || {
        let mut vocabulary: serde_json::Map<String, _> =
            (ZERO..FIRST_WORD + WORDS).map(|id| (format!("w{id}"), id.into())).collect();
        vocabulary.extend([("</s>".to_owned(), END.into()), ("[UNK]".to_owned(), 1.into())]);
        let (a, b) = (
            serde_json::json!({"Sequence": {"id": "A", "type_id": 0}}),
            |id| serde_json::json!({"Sequence": {"id": "B", "type_id": id}}),
        );
        let end = serde_json::json!({"SpecialToken": {"id": "</s>", "type_id": 0}});
        let json = serde_json::json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [{
                "id": END, "content": "</s>", "special": true,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            }],
            "normalizer": null,
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [a, end],
                "pair": [a, end, b(0), end],
                "special_tokens": {"</s>": {"id": "</s>", "ids": [END], "tokens": ["</s>"]}},
            },
            "decoder": null,
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
        });
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).expect("a file");
        let files = ModelFiles::open(folder.path()).expect("files");
        let rows = (FIRST_WORD + WORDS) as usize;
        Arc::new(TextTokenizer::load(&files, rows, WINDOW_TOKENS, 0).expect("a tokenizer"))
    };
    TOKENIZER.get_or_init(load).clone()
}

#[test]
fn texts_have_the_tokens_that_are_expected_of_them() {
    let tokenizer = tokenizer();
    let words: Vec<u32> = (0..50).map(|n| FIRST_WORD + n).collect();
    for n in [1, 2, 22, 23, 24, 50] {
        assert_eq!(tokenizer.encode(&text(&words[..n])).unwrap(), tokens(&words[..n]));
    }
    let pair = tokenizer.encode_pair(&text(&words[..3]), &text(&words[5..9])).unwrap();
    assert_eq!(pair, pair_tokens(&words[..3], &words[5..9]));
    assert_eq!(tokenizer.encode(&text(&[FIRST_WORD, NAN])).map(|tokens| nature(&tokens)), Ok(Nature::Nan));
}
