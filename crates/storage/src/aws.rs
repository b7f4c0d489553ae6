//! AWS: models and target sets in S3, embeddings in DynamoDB.
//!
//! [`config`] makes the one configuration that all clients share; [`trouble`] tells what an error of the SDK means, so
//! that people read the cause and what to do about it instead of the SDK's words.
//!
//! Deliberately absent: credentials (the SDK finds them: environment, profile, container, instance), and any use of the
//! environment beyond the SDK's own.

#[allow(dead_code, reason = "used by the parts that follow")]
mod config;
mod targets;
#[allow(dead_code, reason = "used by the parts that follow")]
mod trouble;

pub use config::{AwsConfig, aws_config};
pub use targets::SharedTargets;
#[allow(unused_imports, reason = "used by the parts that follow")]
pub(crate) use trouble::{Trouble, chain, trouble_of};
