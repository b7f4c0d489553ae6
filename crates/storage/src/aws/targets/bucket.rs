//! The requests to S3 that shared target sets are made of, each with a time limit, and what S3 is told of a set.
//!
//! A set is one object, `<prefix>/<name>.safetensors`: the set's file as it was put. What is known of it without its rows
//! is in the object's metadata, so that asking for a set and listing sets download nothing.

use crate::aws::{AwsConfig, Trouble, trouble_of};
use crate::error_chain;
use crate::targets::{SetDtype, SetInfo, SetName, TargetError};
use aws_sdk_s3::config::ResponseChecksumValidation;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use bytes::Bytes;
use std::collections::HashMap;
use std::error::Error;
use std::fmt::Write as _;
use std::future::Future;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::ops::Range;
use std::time::Duration;
use tokio::time::timeout;

/// Time for an answer that has no bytes of a set in it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for a part or a range: 16 MiB in it are 280 KB/s.
const BYTES_TIMEOUT: Duration = Duration::from_secs(60);
/// Time between two pieces of a range. A connection that is as slow as that is given up for another.
const STALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How often what may succeed later is tried.
pub(super) const TRIES: u32 = 3;
const BACKOFF: Duration = Duration::from_millis(100);

const EXTENSION: &str = ".safetensors";
const FORMAT: &str = "1";
const FORMAT_KEY: &str = "nexus-target-set";
const ROWS_KEY: &str = "rows";
const DIMENSIONS_KEY: &str = "dimensions";
const DTYPE_KEY: &str = "dtype";
const CREATED_KEY: &str = "created-unix-s";
const IDS_KEY: &str = "has-ids";
const SHA256_KEY: &str = "sha256";

/// Why S3 did not do what it was asked for.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub(super) trouble: Trouble,
    /// What is wrong, where, and what to do.
    pub(super) message: String,
}

impl From<Fault> for TargetError {
    fn from(fault: Fault) -> Self {
        Self::Unavailable { reason: fault.message }
    }
}

/// A set in S3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Remote {
    pub(super) etag: String,
    pub(super) info: SetInfo,
    /// Of the file. `None` for what is known of a copy on this machine alone.
    pub(super) sha256: Option<[u8; 32]>,
}

/// What S3 has under a set's name.
#[derive(Clone, Debug)]
pub(super) enum Said {
    Absent,
    Present(std::sync::Arc<Remote>),
    /// An object that no service of this kind has put.
    Foreign {
        etag: String,
        damage: String,
    },
}

/// One prefix of one bucket.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    pub(super) s3: aws_sdk_s3::Client,
    pub(super) bucket: String,
    /// Empty, or with its final slash.
    prefix: String,
    region: String,
}

impl Bucket {
    pub(super) fn new(config: &AwsConfig, bucket: &str, prefix: &str) -> Self {
        let s3 = config.s3();
        // Whole files have a SHA-256 of ours. S3's own checksums are of whole objects, and some servers send them along
        // with ranges.
        let own = s3.config().to_builder().response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        let prefix = prefix.trim_matches('/');
        Self {
            s3: aws_sdk_s3::Client::from_conf(own.build()),
            bucket: bucket.to_owned(),
            prefix: if prefix.is_empty() { String::new() } else { format!("{prefix}/") },
            region: config.region().to_owned(),
        }
    }

    /// The prefix as an address, for people.
    pub(super) fn url(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.prefix)
    }

    pub(super) fn key(&self, name: &str) -> String {
        format!("{}{name}{EXTENSION}", self.prefix)
    }

    /// A set's address, for people.
    pub(super) fn place(&self, name: &str) -> String {
        format!("s3://{}/{}", self.bucket, self.key(name))
    }

    /// What S3 has under a name, now. `Said::Absent` is S3's word that the bucket is there and the set is not.
    pub(super) async fn head(&self, name: &str) -> Result<Said, Fault> {
        let place = self.place(name);
        let head = || self.s3.head_object().bucket(&self.bucket).key(self.key(name)).send();
        let head = match retried(2, || self.call(ANSWER_TIMEOUT / 2, &place, head())).await {
            Ok(head) => head,
            Err(Fault { trouble: Trouble::NotFound, .. }) => return self.absent(name).await.map(|()| Said::Absent),
            Err(fault) => return Err(fault),
        };
        let bytes = head.content_length().and_then(|length| u64::try_from(length).ok()).unwrap_or(0);
        let etag = head.e_tag().unwrap_or_default().to_owned();
        Ok(match decode(name, bytes, head.metadata()) {
            Ok((info, sha256)) => Said::Present(Remote { etag, info, sha256: Some(sha256) }.into()),
            Err(damage) => Said::Foreign { etag, damage },
        })
    }

    /// Makes sure that there is no set of a name. The answer to HEAD has no body, and so no word of what is missing: the
    /// set, the bucket, or an S3 at this address.
    async fn absent(&self, name: &str) -> Result<(), Fault> {
        let place = self.place(name);
        let peek = || async {
            let request = self.s3.get_object().bucket(&self.bucket).key(self.key(name)).range("bytes=0-0");
            match request.send().await {
                // Put since: HEAD came before that. Its byte is not read.
                Ok(_) => Ok(()),
                Err(error) if error.code() == Some("NoSuchKey") => Ok(()),
                Err(error) => Err(error),
            }
        };
        match retried(2, || self.call(ANSWER_TIMEOUT / 2, &place, peek())).await {
            Err(Fault { trouble: Trouble::NotFound, .. }) => {
                Err(broken(&place, "who answers 404 is no S3: check AWS_ENDPOINT_URL_S3, and proxies".to_owned()))
            }
            outcome => outcome,
        }
    }

    /// Names and ETags of all objects that are sets by their names.
    pub(super) async fn list(&self) -> Result<Vec<(SetName, String)>, Fault> {
        let place = self.url();
        let (mut found, mut next) = (Vec::new(), None::<String>);
        loop {
            let page = || {
                let request = self.s3.list_objects_v2().bucket(&self.bucket).prefix(&self.prefix).delimiter("/");
                self.call(ANSWER_TIMEOUT, &place, request.set_continuation_token(next.clone()).send())
            };
            let page = retried(2, page).await?;
            for object in page.contents() {
                let name = object.key().and_then(|key| key.strip_prefix(&self.prefix)?.strip_suffix(EXTENSION));
                let name = name.and_then(|name| SetName::parse(name).ok());
                if let (Some(name), Some(etag)) = (name, object.e_tag()) {
                    found.push((name, etag.to_owned()));
                }
            }
            next = page.next_continuation_token().filter(|_| page.is_truncated() == Some(true)).map(str::to_owned);
            if next.is_none() {
                return Ok(found);
            }
        }
    }

    /// A range of a set's file, of exactly this state of it. `Trouble::PreconditionFailed` or `Trouble::NotFound` when
    /// there is another by now, or none.
    pub(super) async fn range(&self, remote: &Remote, range: &Range<u64>) -> Result<Vec<u8>, Fault> {
        let name = &remote.info.name;
        let place = self.place(name);
        let request = self.s3.get_object().bucket(&self.bucket).key(self.key(name)).if_match(&remote.etag);
        let request = request.range(format!("bytes={}-{}", range.start, range.end - 1));
        let mut got = self.call(STALL_TIMEOUT, &place, request.send()).await?;
        let length = range.end - range.start;
        let expected = format!("bytes {}-{}/{}", range.start, range.end - 1, remote.info.bytes);
        if got.content_range() != Some(&expected) {
            let found = got.content_range().unwrap_or("no range");
            return Err(broken(&place, format!("asked for {expected}, it sent {found}")));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
        let reading = async {
            loop {
                match timeout(STALL_TIMEOUT, got.body.next()).await {
                    Err(_) => return Err(broken(&place, "bytes stopped coming".to_owned())),
                    Ok(Some(Err(error))) => return Err(broken(&place, error_chain(&error))),
                    Ok(Some(Ok(piece))) => bytes.extend_from_slice(&piece),
                    Ok(None) => return Ok(()),
                }
            }
        };
        timeout(BYTES_TIMEOUT, reading).await.unwrap_or_else(|_| Err(broken(&place, "too slow".to_owned())))?;
        if bytes.len() as u64 != length {
            return Err(broken(&place, format!("asked for {length} bytes, it sent {}", bytes.len())));
        }
        Ok(bytes)
    }

    /// Puts a whole file. Its ETag.
    pub(super) async fn put(&self, name: &str, info: &Metadata, file: Bytes) -> Result<String, Fault> {
        let place = self.place(name);
        let put = || {
            let request = self.s3.put_object().bucket(&self.bucket).key(self.key(name)).body(file.clone().into());
            self.call(BYTES_TIMEOUT, &place, request.set_metadata(Some(info.clone())).send())
        };
        let put = retried(TRIES, put).await?;
        put.e_tag().map(str::to_owned).ok_or_else(|| broken(&place, "an answer without an ETag".to_owned()))
    }

    /// Removes a set. There may be none.
    pub(super) async fn delete(&self, name: &str) -> Result<(), Fault> {
        let place = self.place(name);
        let delete = || self.s3.delete_object().bucket(&self.bucket).key(self.key(name)).send();
        retried(TRIES, || self.call(ANSWER_TIMEOUT, &place, delete())).await.map(drop)
    }

    /// Makes one request, within a time, and says what went wrong.
    pub(super) async fn call<T, E>(
        &self,
        limit: Duration,
        place: &str,
        request: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    ) -> Result<T, Fault>
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        match timeout(limit, request).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                let trouble = trouble_of(&error);
                let message = format!("{place}: {}", self.explain(&trouble, &error));
                Err(Fault { trouble, message })
            }
            Err(_) => Err(Fault { trouble: Trouble::TimedOut, message: format!("{place}: no answer in {limit:?}") }),
        }
    }

    fn explain(&self, trouble: &Trouble, error: &(dyn Error + 'static)) -> String {
        match trouble {
            Trouble::NoCredentials => {
                "no credentials for AWS were found: give the task a role, or set AWS_PROFILE, or \
                                       AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                    .to_owned()
            }
            Trouble::CredentialsRefused => format!("the source of credentials gives none: {}", error_chain(error)),
            Trouble::BadCredentials => format!("AWS does not take the credentials: {}", error_chain(error)),
            Trouble::Denied => {
                "access denied: sets need s3:GetObject, s3:PutObject, s3:DeleteObject and s3:AbortMultipartUpload on \
                 the prefix, and s3:ListBucket on the bucket (without it, a set that is missing reads as denied)"
                    .to_owned()
            }
            Trouble::WrongRegion(Some(other)) => format!("the bucket is in {other}: set AWS_REGION={other}"),
            Trouble::WrongRegion(None) => format!("the bucket is not in {}: set AWS_REGION to its region", self.region),
            Trouble::NoContainer => {
                format!("there is no bucket {}: create it, or name another in NEXUS_TARGETS_URL", self.bucket)
            }
            Trouble::BadEndpoint => {
                "AWS_ENDPOINT_URL or AWS_ENDPOINT_URL_S3 is no address: expected http://host:port, or nothing"
                    .to_owned()
            }
            Trouble::Throttled => "S3 asks for fewer requests".to_owned(),
            Trouble::TimedOut => "no answer in time".to_owned(),
            _ => error_chain(error),
        }
    }
}

fn broken(place: &str, what: String) -> Fault {
    Fault { trouble: Trouble::Unreachable, message: format!("{place}: {what}") }
}

/// Makes a request again while what is wrong may pass, `tries` times in all, with growing pauses of random length.
pub(super) async fn retried<T, F>(tries: u32, mut request: impl FnMut() -> F) -> Result<T, Fault>
where
    F: Future<Output = Result<T, Fault>>,
{
    let mut tried = 1;
    loop {
        match request().await {
            Err(fault) if fault.trouble.is_transient() && tried < tries => {
                let random = RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64;
                tokio::time::sleep(BACKOFF.mul_f64(f64::from(1 << tried) * random)).await;
                tried += 1;
            }
            outcome => return outcome,
        }
    }
}

/// What S3 keeps beside an object.
pub(super) type Metadata = HashMap<String, String>;

pub(super) fn encode(info: &SetInfo, sha256: &[u8; 32]) -> Metadata {
    let SetInfo { rows, dimensions, dtype, created_unix_s, has_ids, .. } = info;
    let mut hex = String::with_capacity(64);
    for byte in sha256 {
        // Writing to a string does not fail.
        let _ = write!(hex, "{byte:02x}");
    }
    let pairs = [
        (FORMAT_KEY, FORMAT.to_owned()),
        (ROWS_KEY, rows.to_string()),
        (DIMENSIONS_KEY, dimensions.to_string()),
        (DTYPE_KEY, dtype.name().to_owned()),
        (CREATED_KEY, created_unix_s.to_string()),
        (IDS_KEY, has_ids.to_string()),
        (SHA256_KEY, hex),
    ];
    pairs.map(|(key, value)| (key.to_owned(), value)).into()
}

fn decode(name: &str, bytes: u64, metadata: Option<&Metadata>) -> Result<(SetInfo, [u8; 32]), String> {
    let text = |key: &str| metadata.and_then(|all| all.get(key)).map(String::as_str);
    match text(FORMAT_KEY) {
        Some(FORMAT) => {}
        Some(other) => return Err(format!("it is of format {other}; this version reads format {FORMAT}")),
        None => return Err("it was not put through this service".to_owned()),
    }
    let read = || {
        let dtype = [SetDtype::F32, SetDtype::F16, SetDtype::Bf16].into_iter();
        let info = SetInfo {
            name: name.to_owned(),
            rows: text(ROWS_KEY)?.parse().ok()?,
            dimensions: text(DIMENSIONS_KEY)?.parse().ok()?,
            dtype: dtype.into_iter().find(|dtype| Some(dtype.name()) == text(DTYPE_KEY))?,
            bytes,
            created_unix_s: text(CREATED_KEY)?.parse().ok()?,
            has_ids: text(IDS_KEY)?.parse().ok()?,
        };
        Some((info, sha256(text(SHA256_KEY)?)?))
    };
    read().ok_or_else(|| "its metadata is damaged".to_owned())
}

fn sha256(hex: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    if pairs.len() != bytes.len() || !rest.is_empty() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(pairs) {
        *byte = u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_says_what_it_was_given_or_why_not() {
        let info = SetInfo {
            name: "nist".to_owned(),
            rows: 3,
            dimensions: 5,
            dtype: SetDtype::Bf16,
            bytes: 77,
            created_unix_s: 1_700_000_000,
            has_ids: true,
        };
        let digest = std::array::from_fn(|i| i as u8 * 7);
        let good = encode(&info, &digest);
        assert_eq!(decode("nist", 77, Some(&good)), Ok((info, digest)));
        assert_eq!(decode("nist", 77, None), Err("it was not put through this service".to_owned()));
        for key in good.keys() {
            let mut other = good.clone();
            other.insert(key.clone(), "-".to_owned());
            decode("nist", 77, Some(&other)).unwrap_err();
        }
    }
}
