//! A set's way into S3: one request for a small file, parts for a large one. Either way the object is replaced at once
//! and as a whole, when everything has arrived.

use super::bucket::{Bucket, Fault, Metadata, Remote, Said, TRIES, encode, retried};
use crate::aws::Trouble;
use crate::targets::{TargetError, TargetSet, blocking};
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use sha2::{Digest as _, Sha256};
use std::sync::Arc;
use std::time::Duration;

/// S3 takes no more parts.
const PARTS_MAX: u64 = 10_000;
const PART_TIMEOUT: Duration = Duration::from_secs(60);
/// S3 may take its time to make one object of many parts.
const COMPLETE_TIMEOUT: Duration = Duration::from_secs(30);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Puts `set` into S3, in parts of about `part_bytes` of which `parts_at_once` are under way. What S3 has then.
///
/// An answer that was lost is asked for: when S3 has these very bytes now, they were put. After an error nothing of the
/// set is left in S3, as far as S3 could be told.
pub(super) async fn upload(
    bucket: &Bucket,
    set: &Arc<TargetSet>,
    part_bytes: u64,
    parts_at_once: usize,
) -> Result<Remote, TargetError> {
    let info = set.info().clone();
    let digest = {
        let set = Arc::clone(set);
        blocking(move || Ok(<[u8; 32]>::from(Sha256::digest(set.file())))).await?
    };
    let metadata = encode(&info, &digest);
    let put = if info.bytes <= part_bytes {
        let file = piece(set, 0, info.bytes).await?;
        bucket.put(&info.name, &metadata, file).await
    } else {
        let part_bytes = part_bytes.max(info.bytes.div_ceil(PARTS_MAX));
        in_parts(bucket, set, metadata, part_bytes, parts_at_once).await
    };
    match put {
        Ok(etag) => Ok(Remote { etag, info, sha256: Some(digest) }),
        Err(fault) => match bucket.head(&info.name).await {
            Ok(Said::Present(remote)) if remote.sha256 == Some(digest) && remote.info == info => Ok((*remote).clone()),
            _ => Err(fault.into()),
        },
    }
}

async fn in_parts(
    bucket: &Bucket,
    set: &Arc<TargetSet>,
    metadata: Metadata,
    part_bytes: u64,
    parts_at_once: usize,
) -> Result<String, Fault> {
    let name = &set.info().name;
    let place = bucket.place(name);
    let begin = || {
        let request = bucket.s3.create_multipart_upload().bucket(&bucket.bucket).key(bucket.key(name));
        // The SDK sends one with each part, and S3 refuses parts with a checksum that was not announced.
        let request = request.checksum_algorithm(ChecksumAlgorithm::Crc32);
        bucket.call(ANSWER_TIMEOUT, &place, request.set_metadata(Some(metadata.clone())).send())
    };
    let begun = retried(TRIES, begin).await?;
    let Some(id) = begun.upload_id() else {
        return Err(Fault { trouble: Trouble::Other, message: format!("{place}: S3 began no upload") });
    };
    let finished = async {
        let parts = parts(bucket, set, id, part_bytes, parts_at_once).await?;
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let complete = || {
            let request = bucket.s3.complete_multipart_upload().bucket(&bucket.bucket).key(bucket.key(name));
            let request = request.upload_id(id).multipart_upload(parts.clone());
            bucket.call(COMPLETE_TIMEOUT, &place, request.send())
        };
        let completed = retried(TRIES, complete).await?;
        let etag = completed.e_tag().map(str::to_owned);
        etag.ok_or_else(|| Fault { trouble: Trouble::Other, message: format!("{place}: an answer without an ETag") })
    };
    match finished.await {
        Ok(etag) => Ok(etag),
        Err(fault) => {
            let abort = || {
                let request = bucket.s3.abort_multipart_upload().bucket(&bucket.bucket).key(bucket.key(name));
                bucket.call(ANSWER_TIMEOUT, &place, request.upload_id(id).send())
            };
            match retried(TRIES, abort).await {
                // No such upload: it was completed, and only the answer was lost.
                Ok(_) | Err(Fault { trouble: Trouble::NotFound, .. }) => {}
                Err(left) => tracing::warn!(
                    reason = left.message,
                    "parts of a target set are left in S3; a lifecycle rule that aborts incomplete uploads removes them"
                ),
            }
            Err(fault)
        }
    }
}

async fn parts(
    bucket: &Bucket,
    set: &Arc<TargetSet>,
    id: &str,
    part_bytes: u64,
    parts_at_once: usize,
) -> Result<Vec<CompletedPart>, Fault> {
    let (bytes, name) = (set.info().bytes, &set.info().name);
    let place = &bucket.place(name);
    let upload = |(number, at): (i32, u64)| async move {
        let read = piece(set, at, part_bytes.min(bytes - at)).await;
        let part = read.map_err(|error| Fault { trouble: Trouble::Other, message: error.to_string() })?;
        let put = || {
            let request = bucket.s3.upload_part().bucket(&bucket.bucket).key(bucket.key(name)).upload_id(id);
            bucket.call(PART_TIMEOUT, place, request.part_number(number).body(part.clone().into()).send())
        };
        let put = retried(TRIES, put).await?;
        let done = CompletedPart::builder().part_number(number).set_e_tag(put.e_tag().map(str::to_owned));
        // S3 checks the checksums that the SDK sent with the parts once more.
        Ok(done.set_checksum_crc32(put.checksum_crc32().map(str::to_owned)).build())
    };
    let pieces = (0..bytes.div_ceil(part_bytes)).zip(1..).map(|(part, number)| (number, part * part_bytes));
    stream::iter(pieces).map(upload).buffered(parts_at_once).try_collect().await
}

/// Bytes of the file, which the disk may have to be asked for.
async fn piece(set: &Arc<TargetSet>, at: u64, bytes: u64) -> Result<Bytes, TargetError> {
    let set = Arc::clone(set);
    let range = at as usize..(at + bytes) as usize;
    blocking(move || Ok(Bytes::copy_from_slice(&set.file()[range]))).await
}
