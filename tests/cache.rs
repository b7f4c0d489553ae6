//! The table of embeddings, where it can not be reached: the service goes on, and `nexus cache` says what is wrong.

use crate::support::{PATIENCE, Service, run};
use std::net::TcpListener;
use std::process::Output;
use std::time::Instant;

/// AWS as these tests see it: credentials, and a place where nothing listens.
const NOBODY: [(&str, &str); 4] = [
    ("AWS_ACCESS_KEY_ID", "id"),
    ("AWS_SECRET_ACCESS_KEY", "secret"),
    ("AWS_ENDPOINT_URL", "http://127.0.0.1:1"),
    ("EMBEDDING_CACHE_TABLE", "a-table"),
];

fn one_line(output: &Output, status: i32) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(output.stdout.is_empty());
    stderr
}

#[test]
fn a_service_without_its_table_answers_and_ends_in_order() {
    // Takes connections, and never says anything.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent = format!("http://{}", silent.local_addr().expect("an address"));
    for endpoint in ["http://127.0.0.1:1", &silent] {
        let env: Vec<_> = NOBODY
            .into_iter()
            .map(|(name, value)| (name, if name == "AWS_ENDPOINT_URL" { endpoint } else { value }))
            .collect();
        let mut service = Service::start(&env).ready();
        let (computed, hit) = service.embed("Multi-factor authentication is required");
        assert!(!hit);
        assert_eq!(service.embed("Multi-factor authentication is required"), (computed, true), "memory has it");
        for i in 0..10 {
            assert!(!service.embed(&format!("Control {i}")).1);
        }
        let began = Instant::now();
        service.signal("TERM");
        assert_eq!(service.exit().code(), Some(0));
        assert!(began.elapsed() < PATIENCE / 2, "{:?}", began.elapsed());
    }
}

#[test]
fn what_is_wrong_with_the_table_is_one_line() {
    for action in [&["cache", "stats"][..], &["cache", "create-table"], &["cache", "purge", "--all", "--yes"]] {
        let line = one_line(&run(action, &NOBODY), 1);
        assert!(line.contains("a-table in us-east-1") && line.contains("check AWS_REGION"), "{line}");
    }
    let line = one_line(&run(&["cache", "stats", "--aws-region", "eu-west-1"], &NOBODY), 1);
    assert!(line.contains("in eu-west-1"), "{line}");
    let mut unset = NOBODY;
    unset[3].1 = "";
    let line = one_line(&run(&["cache", "stats"], &unset), 1);
    assert!(line.contains("nexus-embedding-cache in us-east-1"), "an empty variable is an unset one: {line}");
}

#[test]
fn a_purge_says_of_what() {
    let line = one_line(&run(&["cache", "purge", "--yes"], &NOBODY), 2);
    assert!(line.contains("--revision") && line.contains("--all"), "{line}");
    let line = one_line(&run(&["cache", "purge", "--yes", "--all", "--revision", "0123456789ab"], &NOBODY), 2);
    assert!(line.contains("--all"), "{line}");
    let line = one_line(&run(&["cache", "stats"], &[("NEXUS_CACHE_TTL_DAYS", "long")]), 2);
    assert!(line.contains("NEXUS_CACHE_TTL_DAYS=\"long\""), "{line}");
}

#[test]
fn an_endpoint_that_is_none_is_told_at_once() {
    // Empty is unset, which leads to where there are no credentials; the library by itself would panic.
    let empty = [("AWS_ENDPOINT_URL", ""), ("AWS_EC2_METADATA_DISABLED", "true")];
    let no_address = [NOBODY[0], NOBODY[1], ("AWS_ENDPOINT_URL", "nonsense")];
    for (env, expected) in [
        (&empty[..], "no credentials for AWS were found"),
        (&no_address, "is no address"),
        (&no_address, "http://host:port"),
    ] {
        for command in [&["cache", "stats"][..], &["pull", "s3://a-bucket/a/model"]] {
            let line = one_line(&run(command, env), 1);
            assert!(line.contains(expected), "{line}");
        }
    }
    let line = one_line(&run(&["cache", "purge", "--yes", "--revision", "latest"], &NOBODY), 2);
    assert!(line.contains("--revision=\"latest\""), "{line}");
}
