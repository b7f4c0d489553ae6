//! Settings that are wrong stop the start with one line that names them; the README lists all that exist.

use crate::support::{root, run};
use std::process::Output;

/// The one line of a start that failed with `status`.
fn line(output: &Output, status: i32) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(output.stdout.is_empty());
    stderr
}

#[test]
fn a_wrong_variable_is_named_with_its_value_and_what_is_allowed() {
    for (variable, value, allowed) in [
        ("NEXUS_PORT", "http", "0 to 65535"),
        ("NEXUS_PORT", "65536", "0 to 65535"),
        ("NEXUS_PORT", "-1", "0 to 65535"),
        ("LOG_LEVEL", "LOUD", "WARNING"),
        ("NEXUS_BUILTIN", "maybe", "on or off"),
        ("NEXUS_DEVICE", "cuda:0,0", "each once: cuda:0,2"),
        ("NEXUS_DEVICE", "gpu", "auto, cpu, cuda"),
        ("NEXUS_CPU_THREADS", "many", "whole number"),
        ("NEXUS_CPU_THREADS", "100000", "0 to 1024"),
        ("NEXUS_CPU_ISA", "sse", "auto, avx512, avx2"),
        ("NEXUS_CPU_WEIGHTS", "int4", "stored or int8"),
        ("NEXUS_CPU_PACKED_FILE", "maybe", "auto, on or off"),
        ("NEXUS_BATCH_TOKENS_MAX", "few", "whole number"),
        ("NEXUS_QUEUE_TOKENS_MAX", "1", "NEXUS_BATCH_TOKENS_MAX"),
        ("NEXUS_TEXT_TOKENS_MAX", "1.5", "whole number"),
        ("NEXUS_CACHE", "disk", "dynamodb, redb, memory or off"),
        ("NEXUS_CACHE_MEMORY_BYTES_MAX", "much", "256MiB"),
        ("NEXUS_CACHE_STORE_BYTES_MAX", "-1", "256MiB"),
        ("NEXUS_BODY_BYTES_MAX", "0", "at least 1"),
        ("NEXUS_TEXT_BODY_BYTES_MAX", "1TB", "256MiB"),
        ("NEXUS_BATCH_ITEMS_MAX", "0", "at least 1"),
        ("NEXUS_REQUEST_TIMEOUT_MS", "1s", "milliseconds"),
        ("NEXUS_SHUTDOWN_TIMEOUT_MS", "soon", "milliseconds"),
        ("NEXUS_BODIES_BYTES_MAX", "lots", "256MiB"),
        ("NEXUS_BODIES_BYTES_MAX", "1 GiB", "NEXUS_BODY_BYTES_MAX, which is 2 GiB"),
        ("NEXUS_TARGETS_URL", "my-bucket", "s3://bucket/prefix"),
        ("MODEL_BUCKET", "my bucket", "can be no bucket of S3"),
    ] {
        let line = line(&run(&["serve"], &[("NEXUS_PORT", "0"), (variable, value)]), 2);
        assert!(line.contains(&format!("{variable}=")), "{line}");
        assert!(line.contains(value) && line.contains(allowed), "{line}");
    }
}

#[test]
fn a_wrong_flag_is_named_as_it_was_given() {
    for args in [["serve", "--port", "http"], ["serve", "--port=http", "--log-level=INFO"]] {
        let line = line(&run(&args, &[("NEXUS_PORT", "1")]), 2);
        assert!(line.contains("--port=\"http\""), "{line}");
    }
    let line = line(&run(&["serve", "--nonsense"], &[]), 2);
    assert!(line.contains("--nonsense"), "{line}");
}

#[test]
fn empty_variables_count_as_unset() {
    // Would be refused if it were not unset: the last setting checked is the one reported.
    let env = [
        ("NEXUS_PORT", ""),
        ("LOG_LEVEL", ""),
        ("MODEL_BUCKET", ""),
        ("NEXUS_CACHE_DIR", ""),
        ("NEXUS_BUILTIN", "off"),
    ];
    let line = line(&run(&["serve"], &env), 2);
    assert!(line.contains("NEXUS_BUILTIN=off"), "{line}");
}

#[test]
fn without_built_in_models_something_has_to_be_named() {
    let line = line(&run(&["serve"], &[("NEXUS_BUILTIN", "off")]), 2);
    assert!(line.contains("MODEL_BUCKET") && line.contains("NEXUS_BUILTIN=off"), "{line}");
}

#[test]
fn help_and_version_are_no_errors() {
    for (args, expected) in [(vec!["--version"], env!("CARGO_PKG_VERSION")), (vec!["serve", "--help"], "NEXUS_PORT")] {
        let output = run(&args, &[]);
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains(expected));
    }
    let output = run(&[], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("serve"));
}

#[test]
fn the_readme_lists_all_settings() {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("README.md");
    let (_, rest) = readme.split_once("<!-- settings -->\n").expect("the marker before the table");
    let (table, _) = rest.split_once("<!-- settings -->").expect("the marker after the table");
    let output = run(&["settings", "--markdown"], &[]);
    assert_eq!(
        table.trim(),
        String::from_utf8_lossy(&output.stdout).trim(),
        "stale: replace it with the output of `nexus settings --markdown`"
    );
}

#[test]
fn the_originals_variables_keep_their_names_and_defaults() {
    let output = run(&["settings", "--markdown"], &[]);
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    for (variable, default) in [
        ("AWS_REGION", "`us-east-1`"),
        ("MODEL_BUCKET", "unset"),
        ("RETRIEVER_MODEL_PATH", "`models/qwen-embedding-8b/`"),
        ("RERANKER_MODEL_PATH", "`models/modernbert-reranker/`"),
        ("EMBEDDING_CACHE_TABLE", "unset"),
        ("LOG_LEVEL", "`INFO`"),
        ("NEXUS_HOST", "`127.0.0.1`"),
        ("NEXUS_PORT", "`8000`"),
    ] {
        let row = table.lines().find(|line| line.starts_with(&format!("| `{variable}` |"))).expect(variable);
        assert!(row.contains(&format!("| {default} |")), "{row}");
    }
}

#[cfg(not(feature = "aws"))]
#[test]
fn a_build_without_aws_says_so() {
    for env in [("NEXUS_CACHE", "dynamodb"), ("EMBEDDING_CACHE_TABLE", "a-table")] {
        let line = line(&run(&["serve"], &[("NEXUS_PORT", "0"), env]), 2);
        assert!(line.contains("NEXUS_CACHE=dynamodb") && line.contains("without the feature `aws`"), "{line}");
    }
}
