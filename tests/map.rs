//! `nexus map` on the examples, and on catalogs that are wrong.

use crate::support::{nexus, root, run, stderr_of, wait};
use serde_json::Value;
use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Output, Stdio};

const SOURCE: &str = "examples/cloud-checks.json";
const TARGET: &str = "examples/policy-controls.csv";
const NO_CACHE: [(&str, &str); 1] = [("NEXUS_CACHE", "off")];

fn map(args: &[&str]) -> Output {
    let all: Vec<&str> = [&["map", SOURCE, TARGET], args].concat();
    let output = run(&all, &NO_CACHE);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

#[test]
fn the_examples_are_mapped_as_a_person_would() {
    let output = map(&["--format", "json"]);
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let result: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&result["source"], &result["target"]), (&"cloud-checks".into(), &"policy-controls".into()));
    let found: HashMap<&str, Vec<&str>> = result["mappings"]
        .as_array()
        .expect("mappings")
        .iter()
        .map(|entry| {
            let matches = entry["matches"].as_array().expect("matches");
            let scores: Vec<f64> = matches.iter().filter_map(|m| m["score"].as_f64()).collect();
            assert!(scores.len() == 5 && scores.is_sorted_by(|a, b| a >= b), "{entry}");
            assert!(matches.iter().all(|m| m["similarity"].is_number()), "{entry}");
            let ids = matches.iter().filter_map(|m| m["control_id"].as_str()).collect();
            (entry["control_id"].as_str().expect("an id"), ids)
        })
        .collect();

    let expected = std::fs::read(root().join("examples/expected-pairs.json")).expect("the pairs");
    let expected: Value = serde_json::from_slice(&expected).expect("JSON");
    let pairs = expected["pairs"].as_array().expect("pairs");
    let is_found = |pair: &&Value| {
        let (source, target) = (pair[0].as_str().unwrap_or_default(), pair[1].as_str().unwrap_or_default());
        found.get(source).is_some_and(|ids| ids.contains(&target))
    };
    let hits = pairs.iter().filter(is_found).count();
    assert!(hits * 4 >= pairs.len() * 3, "{hits} of {} expected pairs are among the first five", pairs.len());
}

#[test]
fn csv_has_a_row_for_each_match_in_the_order_of_the_source() {
    let output = map(&["--format", "csv", "--top-k", "2", "--candidates", "4"]);
    let mut reader = csv::Reader::from_reader(output.stdout.as_slice());
    let headers = reader.headers().expect("headers").clone();
    assert_eq!(
        headers.iter().collect::<Vec<_>>(),
        ["source_id", "source_title", "rank", "target_id", "target_title", "similarity", "score"]
    );
    let rows: Vec<csv::StringRecord> = reader.records().map(|record| record.expect("a record")).collect();
    let catalog = std::fs::read(root().join(SOURCE)).expect("the example");
    let catalog: Value = serde_json::from_slice(&catalog).expect("JSON");
    let ids: Vec<&str> =
        catalog["controls"].as_array().expect("controls").iter().filter_map(|c| c["control_id"].as_str()).collect();
    let sources: Vec<&str> = rows.iter().step_by(2).map(|row| &row[0]).collect();
    assert_eq!(sources, ids);
    for (i, row) in rows.iter().enumerate() {
        assert_eq!(row[2], (i % 2 + 1).to_string());
    }
}

#[test]
fn a_table_is_readable_in_a_hundred_columns() {
    let output = map(&["--top-k", "1"]);
    let table = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(table.starts_with("SOURCE"), "{table}");
    assert!(table.lines().all(|line| line.chars().count() <= 100), "{table}");
    assert_eq!(table.lines().count(), 1 + 26, "{table}");
}

#[test]
fn a_file_is_written_whole_and_its_name_tells_the_form() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("mapping.csv");
    std::fs::write(&path, "what was there before").expect("written");
    let output = map(&["--top-k", "1", "-o", path.to_str().expect("UTF-8")]);
    assert!(output.stdout.is_empty());
    let text = std::fs::read_to_string(&path).expect("the result");
    assert!(text.starts_with("source_id,"), "{text}");
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 1);
}

#[test]
fn an_interrupted_run_leaves_the_file_as_it_was() {
    // Minutes of work on any machine.
    let catalogs = tempfile::tempdir().expect("a folder");
    let catalog = catalogs.path().join("large.csv");
    let words = "access to systems and data is reviewed, logged and kept for a year; ".repeat(30);
    let rows: String = (0..20_000).map(|i| format!("C-{i},\"{i} {words}\"\n")).collect();
    std::fs::write(&catalog, format!("control_id,text\n{rows}")).expect("written");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("mapping.csv");
    std::fs::write(&path, "what was there before").expect("written");
    let mut child = nexus()
        .arg("map")
        .args([&catalog, &catalog])
        .arg("-o")
        .arg(&path)
        .envs(NO_CACHE)
        .env("NEXUS_CPU_THREADS", "1")
        .env("LOG_LEVEL", "DEBUG")
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    // The first line of the log comes when the signals are watched and the models load.
    let mut log = BufReader::new(child.stderr.take().expect("piped"));
    let mut line = String::new();
    log.read_line(&mut line).expect("a line");
    assert!(line.contains("\"level\""), "{line}");
    let sent = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(sent.is_ok_and(|status| status.success()));
    let status = wait(&mut child);
    let mut rest = String::new();
    log.read_to_string(&mut rest).expect("text");
    assert_eq!(status.code(), Some(130), "{line}{rest}");
    assert_eq!(std::fs::read_to_string(&path).expect("the file"), "what was there before");
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 1);
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let mut child = nexus()
        .args(["map", SOURCE, TARGET])
        .envs(NO_CACHE)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    drop(child.stdout.take());
    let status = wait(&mut child);
    assert_eq!((status.code(), stderr_of(&mut child).as_str()), (Some(0), ""));
}

#[test]
fn what_is_wrong_with_a_catalog_is_one_line_that_names_the_place() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, content, expected) in [
        ("columns.csv", "id,text\nA,x\n", "columns.csv: line 1: there is no column control_id"),
        ("twice.csv", "control_id,text\nA,x\nA,y\n", "twice.csv: line 3: control_id A is taken, by line 2"),
        ("empty-text.csv", "control_id,text\nA,\n", "empty-text.csv: line 2: the text of A is empty"),
        ("broken.json", "{\"controls\": [", "broken.json: not valid JSON"),
        ("no-text.json", "[{\"control_id\": \"A\"}]", "no-text.json: control 1 has no \"text\""),
        ("empty.json", "", "empty.json: the file is empty"),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, content).expect("written");
        let output = run(&["map", SOURCE, path.to_str().expect("UTF-8")], &NO_CACHE);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.lines().count() == 1 && stderr.contains(expected), "{stderr}");
    }
    let output = run(&["map", SOURCE, "none.csv"], &NO_CACHE);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && stderr.contains("none.csv: "), "{stderr}");
}

#[test]
fn models_that_are_missing_end_the_run_with_the_reason() {
    let output = run(&["map", SOURCE, TARGET], &[("MODEL_BUCKET", "/nowhere/at/all"), ("NEXUS_CACHE", "off")]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.lines().last().is_some_and(|line| line.contains("/nowhere/at/all")), "{stderr}");
}
