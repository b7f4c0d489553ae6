//! What is in a table: a sample of it, and deleting it.

use super::super::item::{DIMENSIONS, DTYPE, Item, KEY, REVISION, VERSION, key_in, key_of};
use super::super::jitter::backoff;
use super::super::trouble::Failure;
use super::super::write::BATCH_MAX;
use super::{EmbeddingTable, PAUSE, PAUSE_MAX, TRIES_MAX, TableError};
use aws_sdk_dynamodb::types::{AttributeValue, ConsumedCapacity, DeleteRequest, ReturnConsumedCapacity, WriteRequest};
use std::collections::BTreeMap;
use tokio::time::sleep;

/// Some items of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// How many.
    pub items: u64,
    /// How many of each kind.
    pub kinds: BTreeMap<ItemKind, u64>,
}

/// What kind of embedding an item is, by its attributes; `?` for one that is missing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ItemKind {
    /// Version of the layout.
    pub version: String,
    /// `f32` or `bf16`.
    pub dtype: String,
    /// Number of components.
    pub dimensions: String,
    /// The model revision.
    pub revision: String,
}

/// How far a purge is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Purged {
    /// Items looked at.
    pub scanned: u64,
    /// Items deleted.
    pub deleted: u64,
    /// Read units that it took.
    pub read_units: f64,
    /// Write units that it took.
    pub write_units: f64,
}

impl EmbeddingTable {
    /// What kinds of items there are among `items_max` of them, in no order. Reads whole items, which cost 2.5 read units
    /// each for 4096 components in `f32`; 1 MB at most.
    ///
    /// # Errors
    ///
    /// What AWS refuses.
    pub async fn sample(&self, items_max: u16) -> Result<Sample, TableError> {
        let attributes = [VERSION, DTYPE, DIMENSIONS, REVISION];
        let request = || {
            let mut scan = self.client.scan().table_name(&self.table).limit(items_max.into());
            for (name, attribute) in ["#v", "#t", "#d", "#r"].into_iter().zip(attributes) {
                scan = scan.expression_attribute_names(name, attribute);
            }
            scan.projection_expression("#v, #t, #d, #r").send()
        };
        let output = self.call(request).await.map_err(|f| self.error("sample", "dynamodb:Scan", &f))?;
        let mut sample = Sample::default();
        for item in output.items() {
            let [version, dtype, dimensions, revision] = attributes.map(|name| text_of(item.get(name)));
            sample.items += 1;
            *sample.kinds.entry(ItemKind { version, dtype, dimensions, revision }).or_default() += 1;
        }
        Ok(sample)
    }

    /// Deletes the items of one model revision, or all of them. Reads all of the table to find them. `progress` is told
    /// how far it is after every page.
    ///
    /// # Errors
    ///
    /// What AWS refuses. What was deleted until then stays deleted; another call goes on.
    pub async fn purge(
        &self,
        revision: Option<&str>,
        progress: &(dyn Fn(&Purged) + Sync),
    ) -> Result<Purged, TableError> {
        let mut purged = Purged::default();
        let mut from: Option<Item> = None;
        loop {
            let request = || {
                let scan = (self.client.scan().table_name(&self.table))
                    .expression_attribute_names("#k", KEY)
                    .projection_expression("#k")
                    .return_consumed_capacity(ReturnConsumedCapacity::Total)
                    .set_exclusive_start_key(from.clone());
                match revision {
                    Some(revision) => scan
                        .expression_attribute_names("#r", REVISION)
                        .expression_attribute_values(":r", AttributeValue::S(revision.to_owned()))
                        .filter_expression("#r = :r"),
                    None => scan,
                }
                .send()
            };
            let page = self.call(request).await.map_err(|f| self.error("read", "dynamodb:Scan", &f))?;
            purged.scanned += u64::try_from(page.scanned_count()).unwrap_or(0);
            purged.read_units += page.consumed_capacity().map_or(0.0, units);
            let keys: Vec<Item> = page.items().iter().filter_map(|item| key_in(item).map(|key| key_of(&key))).collect();
            for batch in keys.chunks(BATCH_MAX) {
                self.delete(batch, &mut purged).await?;
            }
            progress(&purged);
            from = page.last_evaluated_key.filter(|key| !key.is_empty());
            if from.is_none() {
                return Ok(purged);
            }
        }
    }

    async fn delete(&self, keys: &[Item], purged: &mut Purged) -> Result<(), TableError> {
        let mut left = Vec::with_capacity(keys.len());
        for key in keys {
            let request = DeleteRequest::builder().set_key(Some(key.clone())).build();
            let request = request.map_err(|error| self.invalid("purge", error))?;
            left.push(WriteRequest::builder().delete_request(request).build());
        }
        let mut tries = 0;
        loop {
            let request = || {
                (self.client.batch_write_item().request_items(&self.table, left.clone()))
                    .return_consumed_capacity(ReturnConsumedCapacity::Total)
                    .send()
            };
            let action = "dynamodb:BatchWriteItem";
            let output = self.call(request).await.map_err(|f| self.error("purge", action, &f))?;
            purged.write_units += output.consumed_capacity().iter().map(units).sum::<f64>();
            let unprocessed: Vec<_> = output.unprocessed_items.unwrap_or_default().into_values().flatten().collect();
            purged.deleted += left.len().saturating_sub(unprocessed.len()) as u64;
            if unprocessed.is_empty() {
                return Ok(());
            }
            tries = if unprocessed.len() < left.len() { 1 } else { tries + 1 };
            if tries >= TRIES_MAX {
                return Err(self.error("purge", action, &Failure::throttled()));
            }
            left = unprocessed;
            sleep(backoff(tries, PAUSE, PAUSE_MAX)).await;
        }
    }
}

fn units(capacity: &ConsumedCapacity) -> f64 {
    capacity.capacity_units().unwrap_or(0.0)
}

fn text_of(value: Option<&AttributeValue>) -> String {
    match value {
        Some(AttributeValue::S(text) | AttributeValue::N(text)) => text.clone(),
        _ => "?".to_owned(),
    }
}
