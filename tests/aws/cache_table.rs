//! `nexus cache`: what people do with the table.

use crate::cache::{embed_all, start, texts};
use crate::places::Table;
use crate::replica::Start;
use serde_json::json;
use std::process::Output;

fn text_of(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs `nexus cache` about a table, with or without success.
fn cache(table: &Table, args: &[&str], code: i32) -> String {
    let start = Start::new().env("EMBEDDING_CACHE_TABLE", &table.name);
    let output = start.run(&[&["cache"], args].concat());
    let text = text_of(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
    text
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn a_table_is_created_once_looked_at_and_purged() {
    let table = Table::named();
    // What is not there yet.
    let text = cache(&table, &["stats"], 1);
    assert!(text.contains(&table.name) && text.contains("create-table"), "{text}");

    let text = cache(&table, &["create-table"], 0);
    assert!(text.contains(&table.name), "{text}");
    let made = table.ask("DescribeTable", &json!({ "TableName": table.name })).expect("a table");
    assert_eq!(made["Table"]["KeySchema"].as_array().map(Vec::len), Some(1), "{made}");
    assert_eq!(made["Table"]["BillingModeSummary"]["BillingMode"], "PAY_PER_REQUEST", "{made}");
    // Again, with nothing to do.
    let text = cache(&table, &["create-table"], 0);
    assert!(text.contains(&table.name), "{text}");

    let replica = start(&table).start().ready();
    embed_all(&replica, &texts(70));
    replica.stop();
    assert_eq!(table.items().len(), 70);
    let text = cache(&table, &["stats"], 0);
    // A real table counts its items every six hours; what is in it, a sample tells.
    assert!(text.contains(&table.name) && text.contains("f32") && text.contains("384"), "{text}");

    // Not without being told what, and told twice.
    let text = cache(&table, &["purge"], 2);
    assert!(text.contains("--all"), "{text}");
    let text = cache(&table, &["purge", "--all"], 2);
    assert!(text.contains("--yes"), "{text}");
    assert_eq!(table.items().len(), 70);
    cache(&table, &["purge", "--all", "--yes"], 0);
    assert_eq!(table.items().len(), 0);
    // The table stays.
    cache(&table, &["stats"], 0);
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn a_table_with_another_key_is_told_and_left_alone() {
    let table = Table::named();
    let other = json!({
        "TableName": table.name,
        "AttributeDefinitions": [{ "AttributeName": "id", "AttributeType": "S" }],
        "KeySchema": [{ "AttributeName": "id", "KeyType": "HASH" }],
        "BillingMode": "PAY_PER_REQUEST",
    });
    table.ask("CreateTable", &other).expect("a table");
    table.wait_until_active();
    let text = cache(&table, &["create-table"], 1);
    assert!(text.contains(&table.name) && text.contains("key"), "{text}");
    // Served beside it, all the same.
    let replica = start(&table).start().ready();
    assert_eq!(embed_all(&replica, &texts(3)).len(), 3);
    let log = replica.log().join("\n");
    assert!(log.contains(&table.name) && log.contains("create-table"), "{log}");
}
