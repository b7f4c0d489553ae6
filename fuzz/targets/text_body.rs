//! Bodies of embed and rerank requests: what is understood is what JSON says, one control alone and in a list is the same,
//! and what is wrong is told in a bounded answer.

#![forbid(unsafe_code)]
#![no_main]

use libfuzzer_sys::fuzz_target;
use nexus::http::fuzz::{Control, embed, embed_batch, rerank};
use serde_json::{Value, json};

const ITEMS_MAX: usize = 8;

fuzz_target!(|body: &[u8]| {
    let parsed: Option<Value> = serde_json::from_slice(body).ok();
    let alone = embed(body);
    match (&alone, &parsed) {
        (Ok(control), Some(value)) => check(control, value),
        (Ok(_), None) => panic!("no JSON"),
        (Err(problems), _) => refused(problems, body),
    }
    match (embed_batch(body, ITEMS_MAX), &parsed) {
        (Ok(controls), Some(value)) => {
            let items = value["items"].as_array().expect("a list");
            assert!(controls.len() == items.len() && items.len() <= ITEMS_MAX);
            controls.iter().zip(items).for_each(|(control, item)| check(control, item));
        }
        (Ok(_), None) => panic!("no JSON"),
        (Err(problems), _) => refused(&problems, body),
    }
    match (rerank(body, ITEMS_MAX), &parsed) {
        (Ok(rerank), Some(value)) => {
            assert_eq!(value["source_text"], *rerank.source);
            assert!(rerank.candidates.len() <= ITEMS_MAX && rerank.top_n != Some(0));
            let candidates = value["candidates"].as_array().expect("a list");
            for ((id, text), candidate) in rerank.candidates.iter().zip(candidates) {
                assert_eq!((&candidate["control_id"], &candidate["text"]), (&json!(id), &json!(text)));
                assert!(!text.trim().is_empty());
            }
        }
        (Ok(_), None) => panic!("no JSON"),
        (Err(problems), _) => refused(&problems, body),
    }
    // Far from the depth at which a list more would be one too many.
    if let Some(value) = parsed
        && body.iter().filter(|byte| b"[{".contains(byte)).count() < 100
    {
        let list = embed_batch(json!({ "items": [value] }).to_string().as_bytes(), ITEMS_MAX);
        match (alone, list) {
            (Ok(alone), Ok(list)) => assert_eq!([alone], *list),
            (Err(_), Err(_)) => {}
            other => panic!("alone and in a list: {other:?}"),
        }
    }
});

fn check(control: &Control, value: &Value) {
    assert_eq!((&value["control_id"], &value["text"]), (&json!(control.control_id), &json!(control.text)));
    assert!(!control.text.trim().is_empty() && control.dimensions != Some(0));
    if let Some(instruction) = value["instruction"].as_str() {
        assert_eq!(control.instruction.as_deref(), (!instruction.is_empty()).then_some(instruction));
    }
    if let Some(format) = value["encoding_format"].as_str() {
        assert_eq!(control.is_base64, format == "base64");
    }
}

/// A list of problems, each with its place, and not much more than what was sent.
fn refused(problems: &Value, body: &[u8]) {
    let problems = problems.as_array().expect("422");
    assert!((1..=100).contains(&problems.len()));
    for problem in problems {
        assert_eq!(problem["loc"][0], "body", "{problem}");
        assert!(problem["msg"].as_str().is_some_and(|msg| !msg.is_empty()));
        // Escaping makes six bytes of one.
        assert!(problem.to_string().len() <= 200 * 6 + 400, "{problem}");
        if problem["type"] == "json_invalid" {
            let at = problem["loc"][1].as_u64().expect("a position");
            assert!(at <= body.len() as u64, "{problem}");
        }
    }
}
