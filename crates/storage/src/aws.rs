//! AWS: models and target sets in S3, embeddings in DynamoDB.
//!
//! [`config`] makes the one configuration that all clients share; [`s3`] brings models, [`dynamodb`] keeps embeddings,
//! [`targets`] shares target sets; [`trouble`] tells what an error of the SDK means, so that people read the cause and what
//! to do about it instead of the SDK's words.
//!
//! Deliberately absent: credentials (the SDK finds them: environment, profile, container, instance), and any use of the
//! environment beyond the SDK's own.

mod config;
mod dynamodb;
mod s3;
mod targets;
mod trouble;

pub use config::{AwsConfig, aws_config};
pub use dynamodb::{
    Created, DynamoCache, DynamoOptions, EmbeddingTable, ItemDtype, ItemKind, Purged, Sample, TableError, TableStats,
    Ttl,
};
pub use s3::{Arriving, Fetched, S3Models, S3Options};
pub use targets::SharedTargets;
pub(crate) use trouble::{Trouble, trouble_of};
