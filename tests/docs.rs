//! The specification that is checked in is the one that is served, and the page that shows it stands alone.

use crate::support::{Service, root, run};

#[test]
fn the_specification_checked_in_is_the_one_served() {
    let checked_in = std::fs::read_to_string(root().join("openapi.json")).expect("openapi.json");
    let printed = run(&["openapi"], &[]).stdout;
    assert_eq!(
        checked_in,
        String::from_utf8_lossy(&printed),
        "stale: write it anew with `cargo run -- openapi > openapi.json`"
    );
    let service = Service::start(&[]);
    let response = service.get("/openapi.json");
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(response.text().expect("text"), checked_in);
}

#[test]
fn the_page_and_all_its_assets_come_from_the_binary() {
    let service = Service::start(&[]);
    let response = service.get("/docs");
    assert_eq!(response.status(), 200);
    // Whatever a script may try, the browser asks no other host.
    let policy = response.headers()["content-security-policy"].to_str().expect("text").to_owned();
    assert!(policy.starts_with("default-src 'self';"), "{policy}");
    assert!(!policy.contains("http"), "{policy}");
    let page = response.text().expect("text");
    assert!(!page.contains("//"), "an outside address: {page}");

    let assets: Vec<&str> =
        page.split(['"', '\'']).filter(|part| part.starts_with('/') && !part.starts_with("/>")).collect();
    assert!(assets.len() >= 4, "{assets:?}");
    for asset in assets {
        let response = service.get(asset);
        assert_eq!(response.status(), 200, "{asset}");
        assert!(!response.bytes().expect("bytes").is_empty(), "{asset}");
    }
    // The licence of what is handed out goes with it.
    let script = service.get("/docs/swagger-ui-bundle.js").text().expect("text");
    assert!(script.starts_with("/*! For license information please see swagger-ui-bundle.js.LICENSE.txt */"));
    for (path, expected) in [
        ("/docs/LICENSE", "Apache License"),
        ("/docs/NOTICE", "SmartBear"),
        ("/docs/swagger-ui-bundle.js.LICENSE.txt", "DOMPurify"),
    ] {
        let text = service.get(path).text().expect("text");
        assert!(text.contains(expected), "{path}: {text}");
    }
    let start = service.get("/docs/start.js").text().expect("text");
    assert!(start.contains("\"/openapi.json\"") && start.contains("validatorUrl: null"), "{start}");
}
