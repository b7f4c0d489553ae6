//! What people do with a table: create it, look at it, and purge it ([`contents`]).
//!
//! Nothing here is on the path of a request: every call has a time limit, and what fails in a way that passes is tried
//! again a few times.
//!
//! Deliberately absent: deleting the table, which is free and one command of AWS's own, and changing a table that was made
//! otherwise.

mod contents;

pub use contents::{ItemKind, Purged, Sample};

use super::item::{EXPIRES, KEY};
use super::jitter::backoff;
use super::trouble::Failure;
use crate::aws::{AwsConfig, Trouble};
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType, TableDescription, TableStatus,
    TimeToLiveSpecification, TimeToLiveStatus,
};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use std::error::Error;
use std::fmt;
use std::time::Duration;
use thiserror::Error;
use tokio::time::{Instant, sleep, timeout};

const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const TRIES_MAX: u32 = 8;
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// How long a new table may take to become active. It is some ten seconds, mostly.
const ACTIVE_TIMEOUT: Duration = Duration::from_secs(300);
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A table of embeddings, for those who look after it.
pub struct EmbeddingTable {
    client: Client,
    table: String,
    region: String,
}

/// What creating a table came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    /// Whether it was not there before.
    pub new: bool,
    /// Whether it can be used already; TTL can not be turned on before.
    pub active: bool,
    /// Whether expired items are deleted.
    pub ttl: Ttl,
}

/// Whether a table deletes expired items.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ttl {
    /// It does, or is about to.
    On,
    /// It does not.
    Off,
    /// It deletes by another attribute than that of embeddings.
    Other(String),
    /// The endpoint knows no TTL. AWS does; test servers may not.
    Unsupported,
}

/// What DynamoDB says of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableStats {
    /// `ACTIVE` once it can be used.
    pub status: String,
    /// Items; DynamoDB counts every six hours, about.
    pub items: u64,
    /// Bytes of the items; as old as their number.
    pub bytes: u64,
    /// `PAY_PER_REQUEST` or `PROVISIONED`.
    pub billing: String,
    /// Whether expired items are deleted.
    pub ttl: Ttl,
}

impl TableStats {
    /// Read units that reading all of the table costs.
    pub fn scan_read_units(&self) -> u64 {
        self.bytes.div_ceil(8192)
    }

    /// Write units that deleting all items costs, by their mean size.
    pub fn delete_write_units(&self) -> u64 {
        self.bytes.checked_div(self.items).map_or(0, |mean| self.items * mean.div_ceil(1024).max(1))
    }
}

/// Why a table could not be created, looked at or purged.
#[derive(Debug, Error)]
pub enum TableError {
    /// AWS refused, or could not be reached.
    #[error("can not {doing} the table {table} in {region}: {error}; {fix}")]
    Request {
        /// What was being done: `create`.
        doing: &'static str,
        /// The table.
        table: String,
        /// The region.
        region: String,
        /// What went wrong.
        error: String,
        /// What to do about it.
        fix: String,
    },
    /// There is a table of this name for something else.
    #[error(
        "the table {table} in {region} has another key: expected `{KEY}` of type binary alone, found {found}; \
         EMBEDDING_CACHE_TABLE names another table"
    )]
    OtherKey {
        /// The table.
        table: String,
        /// The region.
        region: String,
        /// Its key.
        found: String,
    },
    /// A new table does not become active.
    #[error("the table {table} in {region} is {status} still after {waited_s} s; look again with `nexus cache stats`")]
    NotActive {
        /// The table.
        table: String,
        /// The region.
        region: String,
        /// What it is instead.
        status: String,
        /// How long it was waited for, in seconds.
        waited_s: u64,
    },
}

impl fmt::Display for Ttl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::On => write!(f, "on ({EXPIRES})"),
            Self::Off => f.write_str("off"),
            Self::Other(attribute) => write!(f, "on, by another attribute ({attribute})"),
            Self::Unsupported => f.write_str("not supported by this endpoint"),
        }
    }
}

impl EmbeddingTable {
    /// A table that may or may not be there; nothing is asked.
    pub fn new(config: &AwsConfig, table: impl Into<String>) -> Self {
        Self::with(config.dynamodb(), config.region(), table)
    }

    pub(super) fn with(client: Client, region: &str, table: impl Into<String>) -> Self {
        Self { client, table: table.into(), region: region.to_owned() }
    }

    /// Creates the table, on demand, with TTL, or makes sure that the one that is there fits. TTL needs an active table:
    /// without `wait`, a table that is new has none yet, and a second call turns it on.
    ///
    /// # Errors
    ///
    /// [`TableError::OtherKey`] where there is a table for something else; [`TableError::NotActive`] where it takes longer
    /// than five minutes; else what AWS refuses.
    pub async fn create(&self, wait: bool) -> Result<Created, TableError> {
        let key = KeySchemaElement::builder().attribute_name(KEY).key_type(KeyType::Hash).build();
        let attribute =
            AttributeDefinition::builder().attribute_name(KEY).attribute_type(ScalarAttributeType::B).build();
        let (key, attribute) =
            (key.map_err(|e| self.invalid("create", e))?, attribute.map_err(|e| self.invalid("create", e))?);
        let request = || {
            (self.client.create_table().table_name(&self.table))
                .key_schema(key.clone())
                .attribute_definitions(attribute.clone())
                .billing_mode(BillingMode::PayPerRequest)
                .send()
        };
        let new = match self.call(request).await {
            Ok(_) => true,
            Err(failure) if failure.code == "ResourceInUseException" => false,
            Err(failure) => return Err(self.error("create", "dynamodb:CreateTable", &failure)),
        };

        let began = Instant::now();
        loop {
            let described = match self.describe().await {
                // A moment after it was created, a table may not be known everywhere.
                Err(failure) if new && failure.trouble == Trouble::NoContainer && began.elapsed() < CALL_TIMEOUT => {
                    None
                }
                Err(failure) => return Err(self.error("look at", "dynamodb:DescribeTable", &failure)),
                Ok(table) => Some(table),
            };
            let status = described.as_ref().map_or("CREATING".to_owned(), status_of);
            if let Some(table) = described {
                self.check_key(&table)?;
            }
            if status == TableStatus::Active.as_str() || status == TableStatus::Updating.as_str() {
                return Ok(Created { new, active: true, ttl: self.turn_ttl_on().await? });
            }
            if !wait {
                return Ok(Created { new, active: false, ttl: Ttl::Off });
            }
            if began.elapsed() > ACTIVE_TIMEOUT {
                let (table, region, waited_s) = (self.table.clone(), self.region.clone(), ACTIVE_TIMEOUT.as_secs());
                return Err(TableError::NotActive { table, region, status, waited_s });
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// What DynamoDB says of the table.
    ///
    /// # Errors
    ///
    /// What AWS refuses; a table that is not there, too. Only a table with the key of embeddings is described.
    pub async fn stats(&self) -> Result<TableStats, TableError> {
        let table = self.describe().await.map_err(|f| self.error("look at", "dynamodb:DescribeTable", &f))?;
        self.check_key(&table)?;
        let unsigned = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
        let billing = table.billing_mode_summary().and_then(|summary| summary.billing_mode());
        Ok(TableStats {
            status: status_of(&table),
            items: unsigned(table.item_count()),
            bytes: unsigned(table.table_size_bytes()),
            // What was never on demand has no summary.
            billing: billing.unwrap_or(&BillingMode::Provisioned).as_str().to_owned(),
            ttl: self.ttl().await?,
        })
    }

    async fn describe(&self) -> Result<TableDescription, Failure> {
        let output = self.call(|| self.client.describe_table().table_name(&self.table).send()).await?;
        output.table.ok_or_else(|| Failure::invalid(fmt::Error))
    }

    fn check_key(&self, table: &TableDescription) -> Result<(), TableError> {
        let type_of = |name: &str| {
            let found = table.attribute_definitions().iter().find(|attribute| attribute.attribute_name() == name);
            found.map_or("?", |attribute| attribute.attribute_type().as_str())
        };
        let found: Vec<_> =
            table.key_schema().iter().map(|e| (e.attribute_name(), type_of(e.attribute_name()))).collect();
        if found == [(KEY, ScalarAttributeType::B.as_str())] {
            return Ok(());
        }
        let found: Vec<_> = found.iter().map(|(name, kind)| format!("`{name}` ({kind})")).collect();
        let (table, region) = (self.table.clone(), self.region.clone());
        Err(TableError::OtherKey { table, region, found: found.join(", ") })
    }

    async fn ttl(&self) -> Result<Ttl, TableError> {
        let request = || self.client.describe_time_to_live().table_name(&self.table).send();
        let described = match self.call(request).await {
            Ok(output) => output.time_to_live_description,
            Err(failure) if failure.code == "UnknownOperationException" => return Ok(Ttl::Unsupported),
            Err(failure) => return Err(self.error("look at TTL of", "dynamodb:DescribeTimeToLive", &failure)),
        };
        let on = [&TimeToLiveStatus::Enabled, &TimeToLiveStatus::Enabling];
        Ok(match described {
            Some(ttl) if ttl.time_to_live_status().is_some_and(|status| on.contains(&status)) => {
                match ttl.attribute_name().unwrap_or_default() {
                    EXPIRES => Ttl::On,
                    other => Ttl::Other(other.to_owned()),
                }
            }
            _ => Ttl::Off,
        })
    }

    async fn turn_ttl_on(&self) -> Result<Ttl, TableError> {
        let now = self.ttl().await?;
        if now != Ttl::Off {
            return Ok(now);
        }
        let doing = "turn TTL on for";
        let ttl = TimeToLiveSpecification::builder().enabled(true).attribute_name(EXPIRES).build();
        let ttl = ttl.map_err(|error| self.invalid(doing, error))?;
        let request = || {
            (self.client.update_time_to_live().table_name(&self.table)).time_to_live_specification(ttl.clone()).send()
        };
        match self.call(request).await {
            Ok(_) => Ok(Ttl::On),
            Err(failure) if failure.code == "UnknownOperationException" => Ok(Ttl::Unsupported),
            Err(failure) => Err(self.error(doing, "dynamodb:UpdateTimeToLive", &failure)),
        }
    }

    /// Makes a request, a few times where it fails in a way that passes.
    async fn call<T, E, F>(&self, request: impl Fn() -> F) -> Result<T, Failure>
    where
        E: ProvideErrorMetadata + Error + 'static,
        F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    {
        let mut tries = 0;
        loop {
            tries += 1;
            let failure = match timeout(CALL_TIMEOUT, request()).await {
                Ok(Ok(output)) => return Ok(output),
                Ok(Err(error)) => Failure::from(&error),
                Err(_) => Failure::timed_out(CALL_TIMEOUT),
            };
            // Each try of what hangs or is not there takes long, and people are waiting.
            let patient = matches!(failure.trouble, Trouble::Throttled | Trouble::Server);
            if failure.lasts() || tries >= if patient { TRIES_MAX } else { 2 } {
                return Err(failure);
            }
            sleep(backoff(tries, PAUSE, PAUSE_MAX)).await;
        }
    }

    fn error(&self, doing: &'static str, action: &str, failure: &Failure) -> TableError {
        let (table, region) = (self.table.clone(), self.region.clone());
        TableError::Request { doing, table, region, error: failure.text.clone(), fix: failure.what_to_do(action) }
    }

    fn invalid(&self, doing: &'static str, error: impl Error) -> TableError {
        self.error(doing, "", &Failure::invalid(error))
    }
}

fn status_of(table: &TableDescription) -> String {
    table.table_status().map_or("unknown", TableStatus::as_str).to_owned()
}
