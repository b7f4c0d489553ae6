//! Models in a bucket, as far as one sees it without S3: what it refuses is told within seconds.

use crate::support::Service;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;

/// A server that answers everything alike; its URL.
fn server(status: &'static str, headers: &'static str, code: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            let lines = BufReader::new(connection.try_clone().expect("a socket")).lines();
            lines.map_while(Result::ok).take_while(|line| !line.is_empty()).for_each(drop);
            let body = format!("<Error><Code>{code}</Code><Message>no</Message></Error>");
            let length = body.len();
            let _ = write!(
                connection,
                "HTTP/1.1 {status}\r\n{headers}connection: close\r\ncontent-length: {length}\r\n\r\n{body}"
            );
        }
    });
    url
}

#[test]
fn what_a_bucket_refuses_is_told_while_the_service_lives() {
    for (status, headers, code, expected) in [
        ("403 Forbidden", "", "AccessDenied", "s3:ListBucket"),
        ("404 Not Found", "", "NoSuchBucket", "bucket some-models does not exist"),
        ("301 Moved", "x-amz-bucket-region: eu-west-1\r\n", "PermanentRedirect", "set AWS_REGION=eu-west-1"),
        ("403 Forbidden", "", "InvalidAccessKeyId", "AWS does not take the credentials"),
    ] {
        let service = Service::start(&[
            ("MODEL_BUCKET", "some-models"),
            ("NEXUS_CACHE", "memory"),
            ("AWS_ENDPOINT_URL", &server(status, headers, code)),
            ("AWS_ACCESS_KEY_ID", "x"),
            ("AWS_SECRET_ACCESS_KEY", "x"),
        ]);
        assert_eq!(service.get("/health").status(), 200);
        let answer = service.wait_while_loading();
        for (model, path) in [(0, "models/qwen-embedding-8b"), (1, "models/modernbert-reranker")] {
            let model = &answer["models"][model];
            assert_eq!(model["source"], format!("s3://some-models/{path}"));
            assert!(model["detail"].as_str().is_some_and(|detail| detail.contains(expected)), "{answer}");
        }
        assert_eq!(service.get("/ready").status(), 503);
    }
}
