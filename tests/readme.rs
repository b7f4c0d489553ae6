//! The Python of the README does what it says.

use crate::support::{Service, root};
use std::process::{Command, Stdio};

/// The fenced blocks of a language.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    text.split(fence.as_str()).skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

#[test]
fn the_examples_run() {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("the README");
    let service = Service::start(&[]).ready();
    let examples = blocks(&readme, "python");
    assert!(examples.len() >= 4, "{}", examples.len());
    for example in examples {
        let example = example.replace("http://localhost:8000", &service.url);
        let python = Command::new("python3")
            .args(["-c", &example])
            .env("NO_PROXY", "*")
            .stdin(Stdio::null())
            .output()
            .expect("python3 is there");
        let error = String::from_utf8_lossy(&python.stderr);
        assert!(python.status.success(), "{example}\n{error}");
        assert!(String::from_utf8_lossy(&python.stdout).contains("control_id"), "{example}");
    }
}
