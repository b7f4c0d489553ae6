//! Resident target sets over HTTP.

use super::{Answer, app, get, method, post};
use crate::http::App;
use axum::http::StatusCode;
use nexus_engine::Models;
use nexus_storage::{TargetOptions, TargetSets, TargetStore};
use nexus_vectors::encode_base64;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

const SET: &str = "/api/v1/targets/nist";

fn open(folder: &Path, bytes_max: u64) -> Arc<App> {
    let app = app(Models::default());
    let options = TargetOptions { bytes_max, ..TargetOptions::default() };
    let opened = TargetSets::open(folder, options).map(|sets| Arc::new(sets) as Arc<dyn TargetStore>);
    app.targets.opened(opened.map_err(|error| error.to_string()));
    app
}

async fn put(app: &Arc<App>, path: &str, body: &Value) -> Answer {
    method(app, "PUT", path, body.to_string()).await
}

fn vectors() -> Value {
    json!({ "target_embeddings": [[1, 0], [0, 1], [1, 1]], "target_ids": ["AC-1", "AC-2", "AC-3"] })
}

#[tokio::test]
async fn put_ask_replace_delete() {
    let folder = tempfile::tempdir().expect("a folder");
    let app = open(folder.path(), 1 << 20);
    let answer = put(&app, SET, &vectors()).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
    let info = answer.json();
    assert_eq!((&info["name"], &info["rows"], &info["dimensions"]), (&json!("nist"), &json!(3), &json!(2)));
    assert_eq!((&info["dtype"], &info["has_ids"]), (&json!("F32"), &json!(true)));
    assert_eq!(get(&app, SET).await.json(), info);

    let ask = json!({ "source_embedding": [0.2, 1], "targets": "nist", "top_k": 2 });
    let answer = post(&app, "/api/v1/retrieve", ask.to_string()).await.json();
    let ids = |answer: &Value| -> Vec<String> {
        let candidates = answer["candidates"].as_array().into_iter().flatten();
        candidates.map(|candidate| candidate["control_id"].as_str().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(ids(&answer), ["AC-2", "AC-3"]);
    let many = json!({ "source_embeddings": [[0.2, 1], [1, 0]], "targets": "nist", "top_k": 1 });
    let answer = post(&app, "/api/v1/retrieve", many.to_string()).await.json();
    let results = answer["results"].as_array().expect("results");
    assert_eq!(results.iter().map(ids).collect::<Vec<_>>(), [["AC-2"], ["AC-1"]]);

    // The same without names, as one string whose length of rows comes after it.
    let matrix = encode_base64(&[1.0, 0.0, 0.0, 1.0]);
    let answer = put(&app, SET, &json!({ "target_embeddings": matrix, "xdimensions": 0, "dimensions": 2 })).await;
    assert_eq!((answer.status, answer.json()["rows"].as_u64()), (StatusCode::OK, Some(2)), "{}", answer.text);
    let answer = post(&app, "/api/v1/retrieve", ask.to_string()).await.json();
    assert_eq!(ids(&answer), ["1", "0"]);

    // Back after a restart.
    drop(app);
    let app = open(folder.path(), 1 << 20);
    let list = get(&app, "/api/v1/targets").await.json();
    assert_eq!(list["targets"].as_array().map(Vec::len), Some(1));
    assert_eq!((&list["bytes"], &list["bytes_max"]), (&list["targets"][0]["bytes"], &json!(1 << 20)));
    assert_eq!(ids(&post(&app, "/api/v1/retrieve", ask.to_string()).await.json()), ["1", "0"]);

    assert_eq!(method(&app, "DELETE", SET, "").await.status, StatusCode::NO_CONTENT);
    for answer in [
        method(&app, "DELETE", SET, "").await,
        get(&app, SET).await,
        post(&app, "/api/v1/retrieve", ask.to_string()).await,
    ] {
        assert_eq!(answer.status, StatusCode::NOT_FOUND);
        assert_eq!(answer.json(), json!({ "detail": "there is no target set \"nist\"" }));
    }
}

#[tokio::test]
async fn what_is_wrong_leaves_the_set_as_it_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let app = open(folder.path(), 40_000);
    assert_eq!(put(&app, SET, &vectors()).await.status, StatusCode::CREATED);
    let before = get(&app, SET).await.json();
    let place = async |path: &str, body: Value| {
        let answer = put(&app, path, &body).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{body}: {}", answer.text);
        answer.json()["detail"][0]["loc"].clone()
    };
    let row = |row: u64| json!(["body", "target_embeddings", row]);
    assert_eq!(place(SET, json!({ "target_embeddings": [[1, 0], [0, 0]] })).await, row(1));
    assert_eq!(place(SET, json!({ "target_embeddings": [[1, 0], [0]] })).await, row(1));
    assert_eq!(place(SET, json!({ "target_embeddings": encode_base64(&[1.0; 3]), "dimensions": 2 })).await, row(1));
    assert_eq!(
        place(SET, json!({ "target_embeddings": encode_base64(&[1.0, 0.0, 0.0]), "dimensions": 1 })).await,
        row(1)
    );
    let late = format!(r#"{{"target_embeddings":"{}","dimensions":1}}"#, encode_base64(&[1.0, 0.0]));
    let answer = method(&app, "PUT", SET, late).await;
    assert_eq!(answer.json()["detail"][0]["loc"], row(1), "{}", answer.text);
    assert_eq!(
        place(SET, json!({ "target_embeddings": encode_base64(&[1.0; 3]) })).await,
        json!(["body", "dimensions"])
    );
    assert_eq!(
        place(SET, json!({ "target_embeddings": [[1]], "target_ids": [] })).await,
        json!(["body", "target_ids"])
    );
    assert_eq!(place(SET, json!({})).await, json!(["body", "target_embeddings"]));
    assert_eq!(place("/api/v1/targets/.nist", vectors()).await, json!(["path", "name"]));
    assert_eq!(place("/api/v1/targets/a%2Fb", vectors()).await, json!(["path", "name"]));
    let large = json!({ "target_embeddings": vec![vec![1; 100]; 40] });
    assert_eq!(put(&app, "/api/v1/targets/second", &large).await.status, StatusCode::CREATED);
    let answer = put(&app, "/api/v1/targets/third", &large).await;
    assert_eq!(answer.status, StatusCode::INSUFFICIENT_STORAGE, "{}", answer.text);
    assert_eq!(get(&app, SET).await.json(), before);
    let wrong = json!({ "source_embedding": [1, 2, 3], "targets": "nist" });
    let answer = post(&app, "/api/v1/retrieve", wrong.to_string()).await;
    assert_eq!(answer.json()["detail"][0]["loc"], json!(["body", "source_embedding"]));
}

#[tokio::test]
async fn without_a_folder_everything_else_works() {
    let app = app(Models::default());
    let answer = get(&app, "/api/v1/targets").await;
    assert_eq!((answer.status, answer.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, "1"));
    app.targets.opened(Err("the folder is in use".to_owned()));
    for answer in [
        get(&app, "/api/v1/targets").await,
        put(&app, SET, &vectors()).await,
        post(&app, "/api/v1/retrieve", r#"{"source_embedding": [1], "targets": "nist"}"#).await,
    ] {
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.json()["detail"], "resident target sets are not available: the folder is in use");
    }
    let answer = post(&app, "/api/v1/retrieve", r#"{"source_embedding": [1], "target_embeddings": [[1]]}"#).await;
    assert_eq!(answer.status, StatusCode::OK);
}
