//! Token ids against the reference tokenizers (see `golden/README.md`), truncation included.

#![forbid(unsafe_code)]

use nexus_models::{EncodeError, ModelFiles, TextTokenizer};
use serde::Deserialize;
use std::{collections::BTreeMap, path::Path};

#[derive(Deserialize)]
struct Golden {
    singles: Vec<Single>,
    pairs: Vec<Pair>,
}

#[derive(Deserialize)]
struct Single {
    text: String,
    ids: Vec<u32>,
    truncated: BTreeMap<usize, Vec<u32>>,
}

#[derive(Deserialize)]
struct Pair {
    a: String,
    b: String,
    ids: Vec<u32>,
    truncated: BTreeMap<usize, Vec<u32>>,
}

const ROWS: usize = 640;
const UNBOUNDED: usize = 1_000_000;

/// A model folder with the golden tokenizer `kind` and, if given, another `tokenizer_config.json`.
fn files(kind: &str, config: Option<&str>) -> (tempfile::TempDir, ModelFiles) {
    let folder = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/tokenizers/{kind}.tokenizer.json"));
    std::fs::copy(source, folder.path().join("tokenizer.json")).unwrap();
    if let Some(config) = config {
        std::fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
    }
    let files = ModelFiles::open(folder.path()).unwrap();
    (folder, files)
}

fn golden(kind: &str) -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/tokenizers/{kind}.golden.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn check(kind: &str) {
    let (_folder, files) = files(kind, None);
    let load = |window| TextTokenizer::load(&files, ROWS, window, 0).unwrap();
    let golden = golden(kind);
    assert!(golden.singles.len() > 10 && golden.pairs.len() > 3);
    let whole = load(UNBOUNDED);
    for case in &golden.singles {
        assert_eq!(whole.encode(&case.text).unwrap(), case.ids, "{:?}", case.text);
        for (window, ids) in &case.truncated {
            assert_eq!(load(*window).encode(&case.text).unwrap(), *ids, "{:?} in {window}", case.text);
        }
    }
    for case in &golden.pairs {
        assert_eq!(whole.encode_pair(&case.a, &case.b).unwrap(), case.ids, "{:?} {:?}", case.a, case.b);
        for (window, ids) in &case.truncated {
            let found = load(*window).encode_pair(&case.a, &case.b).unwrap();
            assert_eq!(found, *ids, "{:?} {:?} in {window}", case.a, case.b);
        }
    }
}

#[test]
fn qwen_ids_are_the_reference_ids() {
    check("qwen");
}

#[test]
fn modernbert_ids_are_the_reference_ids() {
    check("modernbert");
}

#[test]
fn the_window_is_the_smallest_of_all_limits() {
    let window = |config: Option<&str>, model, limit| {
        let (_folder, files) = files("qwen", config);
        TextTokenizer::load(&files, ROWS, model, limit).unwrap().window_tokens()
    };
    assert_eq!(window(None, 512, 0), 512);
    assert_eq!(window(None, 512, 100), 100);
    assert_eq!(window(Some(r#"{"model_max_length": 300}"#), 512, 0), 300);
    assert_eq!(window(Some(r#"{"model_max_length": 1000000000000000019884624838656}"#), 512, 0), 512);
}

#[test]
fn an_end_token_is_required_where_the_last_token_is_pooled() {
    let (_folder, files) = files("qwen", None);
    let tokenizer = TextTokenizer::load(&files, ROWS, 64, 0).unwrap();
    assert_eq!(tokenizer.require_end_token(&files).unwrap(), 0);

    let (folder, _) = self::files("qwen", None);
    let path = folder.path().join("tokenizer.json");
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    json["post_processor"] = serde_json::Value::Null;
    std::fs::write(&path, json.to_string()).unwrap();
    let files = ModelFiles::open(folder.path()).unwrap();
    let tokenizer = TextTokenizer::load(&files, ROWS, 64, 0).unwrap();
    let error = tokenizer.require_end_token(&files).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json") && error.contains("appends no end-of-text token"), "{error}");
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let (_folder, files) = files("qwen", None);
    let error = TextTokenizer::load(&files, 100, 64, 0).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json") && error.contains("belongs to another model"), "{error}");
}

#[test]
fn a_special_token_without_an_embedding_is_the_texts_fault() {
    // Published models exist whose table is cut below the ids of their added tokens.
    let (folder, _) = files("qwen", None);
    let path = folder.path().join("tokenizer.json");
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let mut added = json["added_tokens"][0].clone();
    added["id"] = ROWS.into();
    added["content"] = "<think>".into();
    json["added_tokens"].as_array_mut().unwrap().push(added);
    std::fs::write(&path, json.to_string()).unwrap();
    let files = ModelFiles::open(folder.path()).unwrap();
    let tokenizer = TextTokenizer::load(&files, ROWS, 64, 0).unwrap();
    assert!(tokenizer.encode("plain text").is_ok());
    assert_eq!(tokenizer.encode("a <think> b"), Err(EncodeError::UnknownSpecial { token: "<think>".into() }));
}

#[test]
fn what_no_window_reaches_is_not_tokenized() {
    for kind in ["qwen", "modernbert"] {
        let (_folder, files) = files(kind, None);
        let tokenizer = TextTokenizer::load(&files, ROWS, 16, 0).unwrap();
        // 40 MB: tokenized whole, each would take seconds and gigabytes.
        for unit in ["Access keys are rotated. ", "a", "é", "🔑", "   ", "\u{65}\u{301}"] {
            let few = unit.repeat(20_000 / unit.len());
            let many = unit.repeat(40_000_000 / unit.len());
            let started = std::time::Instant::now();
            assert_eq!(tokenizer.encode(&many).unwrap(), tokenizer.encode(&few).unwrap(), "{unit:?}");
            assert_eq!(
                tokenizer.encode_pair(&many, "b").unwrap(),
                tokenizer.encode_pair(&few, "b").unwrap(),
                "{unit:?}"
            );
            // Not a measurement: whole, it would be minutes.
            assert!(started.elapsed() < std::time::Duration::from_secs(30), "{unit:?}");
        }
    }
}

/// A tokenizer of one's own, in a window of `window` tokens.
fn load_json(json: &serde_json::Value, window: usize) -> Result<TextTokenizer, String> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    let files = ModelFiles::open(folder.path()).unwrap();
    TextTokenizer::load(&files, ROWS, window, 0).map_err(|error| error.to_string())
}

#[test]
fn one_unknown_token_may_stand_for_any_length() {
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": { "a": 0, "b": 1, "<unk>": 2 }, "unk_token": "<unk>" },
    });
    let tokenizer = load_json(&json, 3).unwrap();
    for length in [1, 100, 10_000] {
        assert_eq!(tokenizer.encode(&format!("{} a b", "z".repeat(length))).unwrap(), [2, 0, 1]);
        assert_eq!(tokenizer.encode(&format!("a{}b", " ".repeat(length))).unwrap(), [0, 1]);
    }
}

#[test]
fn a_tokenizer_that_draws_lots_is_refused() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizers/qwen.tokenizer.json");
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    for (dropout, fits) in [(0.0, true), (0.5, false)] {
        json["model"]["dropout"] = dropout.into();
        let loaded = load_json(&json, 100);
        assert_eq!(loaded.is_ok(), fits, "{loaded:?}");
        assert!(loaded.is_ok() || loaded.unwrap_err().contains("model.dropout"));
    }
}

/// The library takes such files, and panics over every text or makes more of it than fits.
#[test]
fn a_post_processor_without_sense_is_refused() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizers/modernbert.tokenizer.json");
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let with = |form: &str, piece: &serde_json::Value| {
        let mut json = json.clone();
        json["post_processor"][form].as_array_mut().unwrap().push(piece.clone());
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
        let files = ModelFiles::open(folder.path()).unwrap();
        let tokenizer = TextTokenizer::load(&files, ROWS, 100, 0).map_err(|error| error.to_string())?;
        tokenizer.require_room_for_pairs(&files).map_err(|error| error.to_string())
    };
    for (piece, expected) in [
        (serde_json::json!({ "SpecialToken": { "id": "[NONE]", "type_id": 0 } }), "the tokenizer library panicked"),
        (serde_json::json!({ "Sequence": { "id": "A", "type_id": 0 } }), "tokens in a window of"),
    ] {
        for form in ["single", "pair"] {
            let error = with(form, &piece).unwrap_err();
            assert!(error.contains("tokenizer.json: ") && error.contains(expected), "{error}");
        }
    }
}
