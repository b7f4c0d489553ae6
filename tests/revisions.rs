//! A cache never crosses a revision: whatever a vector depends on, a change of it is a miss, on one cache folder.

use crate::revised::{Models, negate};
use crate::support::{Service, floats};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

const TEXT: &str = "MFA is enabled for the Root User of the account";

fn request() -> Value {
    json!({ "control_id": "A", "text": TEXT })
}

/// The vector, whether it came from the cache, and the revision.
fn ask(service: &Service, body: &Value) -> (Vec<f32>, bool, String) {
    let response = service.post("/api/v1/embed", body.to_string());
    assert_eq!(response.status(), 200);
    let revision = response.headers()["x-nexus-model-revision"].to_str().expect("text").to_owned();
    let answer: Value = response.json().expect("JSON");
    (floats(&answer["embedding"]), answer["cache_hit"].as_bool().expect("a boolean"), revision)
}

/// Starts a service, asks once, and ends it in order, so that the cache is written.
fn ask_once(cache: &Path, models: &Models, kind: &str) -> (Vec<f32>, bool, String) {
    let mut env = models.env().to_vec();
    env.push(("NEXUS_CACHE", kind));
    let mut service = Service::start_on(cache, &env).ready();
    let answer = ask(&service, &request());
    service.signal("TERM");
    assert!(service.exit().success());
    answer
}

/// The first revision fills a cache; the second, made by `change`, must find nothing in it, and both must still find
/// their own.
fn a_change_of_the_folder_is_a_miss(change: impl Fn(&Path)) {
    let (models, cache, empty) =
        (Models::new(), tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let (old, hit, old_revision) = ask_once(cache.path(), &models, "redb");
    assert!(!hit);
    assert_eq!(ask_once(cache.path(), &models, "redb"), (old.clone(), true, old_revision.clone()));

    change(&models.revise("embedder", 2));
    models.link("embedder", 2);
    let (new, hit, revision) = ask_once(cache.path(), &models, "redb");
    assert!(!hit && revision != old_revision && new != old);
    // What it computed is what this model computes where there is no cache at all.
    assert_eq!(ask_once(empty.path(), &models, "off"), (new.clone(), false, revision.clone()));
    assert_eq!(ask_once(cache.path(), &models, "redb"), (new, true, revision));
    models.link("embedder", 1);
    assert_eq!(ask_once(cache.path(), &models, "redb"), (old, true, old_revision));
}

#[test]
fn other_weights_are_a_miss() {
    a_change_of_the_folder_is_a_miss(|folder| negate(folder, "layers.0.mlp.down_proj.weight"));
}

#[test]
fn another_tokenizer_is_a_miss() {
    a_change_of_the_folder_is_a_miss(|folder| {
        let path = folder.join("tokenizer.json");
        let text = fs::read_to_string(&path).expect("text");
        let changed = text.replace(r#",{"type":"Lowercase"}"#, "");
        assert_ne!(changed, text);
        fs::write(path, changed).expect("written");
    });
}

#[test]
fn another_pooling_is_a_miss() {
    a_change_of_the_folder_is_a_miss(|folder| {
        fs::create_dir(folder.join("1_Pooling")).expect("a folder");
        let pooling = json!({ "pooling_mode_mean_tokens": true }).to_string();
        fs::write(folder.join("1_Pooling/config.json"), pooling).expect("written");
    });
}

/// `base`, cached, and `changed`, which must not be found there.
fn a_change_of_the_request_is_a_miss(base: &Value, changed: &Value) {
    let service = Service::start(&[]).ready();
    let (old, hit, revision) = ask(&service, base);
    assert!(!hit);
    let (new, hit, same) = ask(&service, changed);
    assert!(!hit && new != old && same == revision);
    assert_eq!(ask(&service, base), (old, true, revision.clone()));
    assert_eq!(ask(&service, changed), (new.clone(), true, revision));
    let uncached = Service::start(&[("NEXUS_CACHE", "off")]).ready();
    assert_eq!(ask(&uncached, changed).0, new);
}

#[test]
fn another_instruction_is_a_miss() {
    let instructed = |instruction| json!({ "control_id": "A", "text": TEXT, "instruction": instruction });
    a_change_of_the_request_is_a_miss(&request(), &instructed("Find the control that this check fulfils"));
    a_change_of_the_request_is_a_miss(&instructed("Find the control"), &instructed("Find the controls"));
}

#[test]
fn other_dimensions_are_a_miss() {
    a_change_of_the_request_is_a_miss(&request(), &json!({ "control_id": "A", "text": TEXT, "dimensions": 64 }));
}

#[test]
fn another_text_is_a_miss() {
    a_change_of_the_request_is_a_miss(&request(), &json!({ "control_id": "A", "text": format!("{TEXT}.") }));
}
