//! Where credentials come from: each source that a task or an instance has, seen by what requests are signed with.

use crate::cache::{embed_all, texts};
use crate::places::{Bucket, Table, dynamodb_url, s3_url};
use crate::proxy::{Asked, Fault, Message, Proxy};
use crate::replica::Start;
use serde_json::json;

/// Serves models and caches embeddings with what `start` says about credentials; every request has to be signed with
/// `id`, and to have the session's token with it, if there is one.
fn signs(start: Start, id: &str, token: &str) {
    let bucket = Bucket::with_models();
    let table = Table::new();
    let (s3, dynamodb) = (Proxy::to(&s3_url()), Proxy::to(&dynamodb_url()));
    let start = start
        .env("MODEL_BUCKET", &bucket.name)
        .env("EMBEDDING_CACHE_TABLE", &table.name)
        .env("NEXUS_CACHE", "dynamodb")
        .env("AWS_ENDPOINT_URL_S3", &s3.url)
        .env("AWS_ENDPOINT_URL_DYNAMODB", &dynamodb.url);
    let replica = start.start().ready();
    embed_all(&replica, &texts(3));
    table.wait_for_items(3);
    replica.stop();
    for asked in [s3.asked(), dynamodb.asked()] {
        assert!(!asked.is_empty());
        for request in asked {
            let authorization = request.header("authorization");
            assert!(authorization.contains(&format!("Credential={id}/")), "{authorization}");
            assert_eq!(request.header("x-amz-security-token"), token);
        }
    }
}

/// No variables with credentials, and an endpoint that answers as `answer` does.
fn without_own(answer: impl Fn(&Asked) -> Message + Send + Sync + 'static) -> (Start, Proxy) {
    let endpoint = Proxy::to("http://127.0.0.1:1");
    endpoint.rule(move |asked| Fault::Answer(answer(asked)));
    (Start::new().without("AWS_ACCESS_KEY_ID").without("AWS_SECRET_ACCESS_KEY"), endpoint)
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn of_the_environment_with_a_session() {
    let start = Start::new().env("AWS_ACCESS_KEY_ID", "ASIAENVIRONMENT").env("AWS_SESSION_TOKEN", "session");
    signs(start, "ASIAENVIRONMENT", "session");
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn of_a_profile() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("credentials");
    std::fs::write(&file, "[audit]\naws_access_key_id = AKIAPROFILE\naws_secret_access_key = secret\n")
        .expect("a file");
    let start = Start::new().without("AWS_ACCESS_KEY_ID").without("AWS_SECRET_ACCESS_KEY");
    let start = start.env("AWS_SHARED_CREDENTIALS_FILE", file.to_str().expect("UTF-8")).env("AWS_PROFILE", "audit");
    signs(start, "AKIAPROFILE", "");
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn of_a_container() {
    let (start, endpoint) = without_own(|asked| {
        if asked.path != "/creds" || asked.header("authorization") != "let-me-in" {
            return Message::response(403, &[], "who are you?");
        }
        let body = json!({
            "AccessKeyId": "ASIACONTAINER", "SecretAccessKey": "secret", "Token": "of the task",
            "Expiration": "2099-01-01T00:00:00Z", "RoleArn": "arn:aws:iam::123456789012:role/task",
        });
        Message::response(200, &[("content-type", "application/json")], body.to_string())
    });
    let start = start
        .env("AWS_CONTAINER_CREDENTIALS_FULL_URI", &format!("{}/creds", endpoint.url))
        .env("AWS_CONTAINER_AUTHORIZATION_TOKEN", "let-me-in");
    signs(start, "ASIACONTAINER", "of the task");
    assert!(!endpoint.asked().is_empty());
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn of_an_instance() {
    let (start, endpoint) = without_own(|asked| {
        let json = [("content-type", "application/json")];
        match (asked.method.as_str(), asked.path.trim_end_matches('/')) {
            ("PUT", "/latest/api/token") => {
                Message::response(200, &[("x-aws-ec2-metadata-token-ttl-seconds", "21600")], "metadata-token")
            }
            _ if asked.header("x-aws-ec2-metadata-token") != "metadata-token" => Message::response(401, &[], ""),
            ("GET", "/latest/meta-data/iam/security-credentials") => Message::response(200, &[], "instance-role"),
            ("GET", "/latest/meta-data/iam/security-credentials/instance-role") => {
                let body = json!({
                    "Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": "ASIAINSTANCE", "SecretAccessKey": "secret",
                    "Token": "of the instance", "LastUpdated": "2026-01-01T00:00:00Z",
                    "Expiration": "2099-01-01T00:00:00Z",
                });
                Message::response(200, &json, body.to_string())
            }
            _ => Message::response(404, &[], ""),
        }
    });
    let start = start.without("AWS_EC2_METADATA_DISABLED").env("AWS_EC2_METADATA_SERVICE_ENDPOINT", &endpoint.url);
    signs(start, "ASIAINSTANCE", "of the instance");
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn a_container_endpoint_that_refuses_is_told() {
    let (start, endpoint) = without_own(|_| Message::response(403, &[], "who are you?"));
    let start = start
        .env("AWS_CONTAINER_CREDENTIALS_FULL_URI", &format!("{}/creds", endpoint.url))
        .env("MODEL_BUCKET", "anything");
    let replica = start.start();
    assert_eq!(replica.get("/health").status(), 200);
    let answer = replica.wait_while_loading();
    assert_eq!(answer["status"], "failed", "{answer}");
    for model in [0, 1] {
        let detail = answer["models"][model]["detail"].as_str().expect("a reason");
        assert!(detail.contains("the source of credentials gives none"), "{detail}");
    }
    // It is no failure that passes.
    assert!(!replica.log().iter().any(|line| line.contains("trying again")));
}
