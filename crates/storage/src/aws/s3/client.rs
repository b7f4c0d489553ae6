//! The three requests to S3 that a download is made of, each with its time limits and none tried again here.
//!
//! Requests for ranges are pinned to the content that was listed (`If-Match`). What comes back is checked against what
//! was asked for: status, length, place in the object, size of the object, ETag. The SDK's own validation of response
//! checksums is off: it holds for whole objects, and some servers send an object's checksum with a range of it. So is its
//! watch over stalled responses, which has one limit for all.

use super::explain::{Fault, fault};
use super::listing::Object;
use crate::aws::{AwsConfig, Trouble, trouble_of};
use crate::error_chain;
use aws_sdk_s3::config::{ResponseChecksumValidation, StalledStreamProtectionConfig};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumMode, ChecksumType};
use aws_smithy_checksums::ChecksumAlgorithm;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use std::error::Error;
use std::future::Future;
use std::ops::Range;
use std::time::Duration;
use tokio::time::timeout;

/// Time for a listing's page or a question about one object, the search for credentials included.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Objects right under a model's prefix, at most: more are no model but a mistaken path.
const OBJECTS_MAX: usize = 20_000;

/// One bucket.
#[derive(Clone, Debug)]
pub(super) struct Client {
    s3: aws_sdk_s3::Client,
    bucket: String,
    region: String,
}

/// What is right under a prefix.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) objects: Vec<Object>,
    pub(super) folders: Vec<String>,
}

/// A checksum of a whole object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Checksum {
    pub(super) algorithm: ChecksumAlgorithm,
    /// In base64, as S3 writes it.
    pub(super) value: String,
}

impl Client {
    pub(super) fn new(config: &AwsConfig, bucket: &str) -> Self {
        let s3 = config.s3();
        let only_ours = s3
            .config()
            .to_builder()
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        Self {
            s3: aws_sdk_s3::Client::from_conf(only_ours.build()),
            bucket: bucket.to_owned(),
            region: config.region().to_owned(),
        }
    }

    pub(super) fn bucket(&self) -> &str {
        &self.bucket
    }

    pub(super) fn region(&self) -> &str {
        &self.region
    }

    /// The place of a key, for people.
    pub(super) fn url(&self, key: &str) -> String {
        format!("s3://{}/{key}", self.bucket)
    }

    /// Objects and folders right under `prefix`.
    pub(super) async fn list(&self, prefix: &str) -> Result<Found, Fault> {
        let mut found = Found::default();
        let mut next = None;
        loop {
            let request = self.s3.list_objects_v2().bucket(&self.bucket).prefix(prefix).delimiter("/");
            let place = self.url(prefix);
            let page = self.ask(&place, request.set_continuation_token(next).send()).await?;
            for object in page.contents() {
                let (Some(key), Some(etag)) = (object.key(), object.e_tag()) else { continue };
                let size = object.size().and_then(|size| u64::try_from(size).ok()).unwrap_or(0);
                found.objects.push(Object { name: String::new(), key: key.into(), etag: etag.into(), size });
            }
            let folders = page.common_prefixes().iter().filter_map(|folder| folder.prefix());
            found.folders.extend(folders.map(str::to_owned));
            next = page.next_continuation_token().filter(|_| page.is_truncated() == Some(true)).map(str::to_owned);
            if next.is_none() || found.objects.len() + found.folders.len() >= OBJECTS_MAX {
                return Ok(found);
            }
        }
    }

    /// The checksum of the whole object, where it has one that can be computed here.
    pub(super) async fn checksum(&self, object: &Object) -> Result<Option<Checksum>, Fault> {
        let request = self.s3.head_object().bucket(&self.bucket).key(&object.key).if_match(&object.etag);
        let place = self.url(&object.key);
        let head = self.ask(&place, request.checksum_mode(ChecksumMode::Enabled).send()).await?;
        let size = head.content_length().and_then(|size| u64::try_from(size).ok());
        if size != Some(object.size) || head.e_tag().is_some_and(|etag| etag != object.etag) {
            return Err(Fault::Changed);
        }
        let known = [
            (ChecksumAlgorithm::Sha256, head.checksum_sha256()),
            (ChecksumAlgorithm::Crc64Nvme, head.checksum_crc64_nvme()),
            (ChecksumAlgorithm::Crc32c, head.checksum_crc32_c()),
            (ChecksumAlgorithm::Crc32, head.checksum_crc32()),
            (ChecksumAlgorithm::Sha1, head.checksum_sha1()),
        ];
        let whole = known.into_iter().find_map(|(algorithm, value)| Some((algorithm, value?)));
        Ok(whole
            .filter(|(_, value)| is_of_whole(head.checksum_type(), &object.etag, value))
            .map(|(algorithm, value)| Checksum { algorithm, value: value.to_owned() }))
    }

    /// The bytes of a range, which begin within `first_byte_timeout`. How long the rest takes is for the caller to watch.
    pub(super) async fn range(
        &self,
        object: &Object,
        range: &Range<u64>,
        first_byte_timeout: Duration,
    ) -> Result<ByteStream, Fault> {
        let request = self.s3.get_object().bucket(&self.bucket).key(&object.key).if_match(&object.etag);
        let request = request.range(format!("bytes={}-{}", range.start, range.end - 1));
        let place = self.url(&object.key);
        let got = timeout(first_byte_timeout, request.send())
            .await
            .map_err(|_| Fault::Transient(Trouble::TimedOut, format!("no first byte in {first_byte_timeout:?}")))?
            .map_err(|error| self.explain(&error, &place))?;
        if got.e_tag().is_some_and(|etag| etag != object.etag) {
            return Err(Fault::Changed);
        }
        let expected = format!("bytes {}-{}/{}", range.start, range.end - 1, object.size);
        let wrong = |what: &str, found: String| {
            let words = format!("a response that was not asked for: {what} {found}, expected {expected}");
            Err(Fault::Transient(Trouble::Other, words))
        };
        if got.content_range() != Some(&expected) {
            return wrong("range", format!("{:?}", got.content_range().unwrap_or("of the whole object")));
        }
        let length = got.content_length().and_then(|length| u64::try_from(length).ok());
        if length.is_some_and(|length| length != range.end - range.start) {
            return wrong("length", format!("{length:?}"));
        }
        Ok(got.body)
    }

    async fn ask<T, E>(
        &self,
        place: &str,
        request: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    ) -> Result<T, Fault>
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        match timeout(ANSWER_TIMEOUT, request).await {
            Ok(answer) => answer.map_err(|error| self.explain(&error, place)),
            Err(_) => Err(Fault::Transient(Trouble::TimedOut, format!("no answer in {ANSWER_TIMEOUT:?}"))),
        }
    }

    fn explain<E>(&self, error: &SdkError<E, HttpResponse>, place: &str) -> Fault
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        fault(self, trouble_of(error), place, error_chain(error))
    }
}

/// Whether a checksum is that of the whole object, and not one of the checksums of its parts (`composite`).
fn is_of_whole(kind: Option<&ChecksumType>, etag: &str, value: &str) -> bool {
    match kind {
        Some(ChecksumType::FullObject) => true,
        // Servers that do not tell: only what was uploaded in one piece is certain. An ETag and a checksum of parts have
        // their number behind a hyphen.
        None => !etag.contains('-') && !value.contains('-'),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_of_parts_are_not_taken_for_those_of_the_whole() {
        let (one, parts) = ("\"9b45\"", "\"9b45-2\"");
        assert!(is_of_whole(Some(&ChecksumType::FullObject), parts, "W6kpbg=="));
        assert!(is_of_whole(None, one, "W6kpbg=="));
        assert!(!is_of_whole(None, parts, "W6kpbg=="));
        assert!(!is_of_whole(None, one, "W6kpbg==-2"));
        assert!(!is_of_whole(Some(&ChecksumType::Composite), one, "W6kpbg=="));
    }
}
