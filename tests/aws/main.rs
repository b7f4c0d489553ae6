//! Black-box tests against an S3 and a DynamoDB: the real binary, with the small models put into a bucket.
//!
//! They need servers, and are ignored without: `scripts/aws_services.sh cargo test -p nexus --test aws --
//! --include-ignored`. Every test has a bucket and a table of its own. What the servers can not do (hang, cut
//! connections, leave items unprocessed) a proxy between does.

#![forbid(unsafe_code)]

mod arriving;
mod cache;
mod cache_faults;
mod cache_table;
mod credentials;
mod downloads;
mod models;
mod places;
mod proxy;
mod replica;
mod target_sets;

#[path = "../support.rs"]
#[expect(dead_code, reason = "shared with the other black-box tests, which use all of it")]
mod support;
