//! What people read when S3 does not give what was asked for: what is wrong, where, and what to do.

use super::client::Client;
use crate::ModelStoreError;
use crate::aws::Trouble;

/// How a request ended, if not well.
#[derive(Debug)]
pub(super) enum Fault {
    /// An object is not what it was when it was listed, or gone: the listing has to be taken again.
    Changed,
    /// The bytes of an object are not those of its checksum. They were removed.
    Damaged {
        /// The object.
        place: String,
        /// Which checksum, and what it is.
        problem: String,
    },
    /// The same request may succeed later. With the words of whoever refused it.
    Transient(Trouble, String),
    /// Nothing but somebody's doing helps.
    Final(ModelStoreError),
}

impl From<ModelStoreError> for Fault {
    fn from(error: ModelStoreError) -> Self {
        Self::Final(error)
    }
}

/// The fault that `trouble` with `place` is; `words` are the SDK's.
pub(super) fn fault(client: &Client, trouble: Trouble, place: &str, words: String) -> Fault {
    let place = place.to_owned();
    let (bucket, region) = (client.bucket(), client.region());
    Fault::Final(match trouble {
        Trouble::PreconditionFailed | Trouble::NotFound => return Fault::Changed,
        trouble if trouble.is_transient() => return Fault::Transient(trouble, words),
        Trouble::NoContainer => ModelStoreError::NotFound {
            place: format!("bucket {bucket}"),
            advice: "check the address; MODEL_BUCKET names a bucket of S3 or a folder (one that starts with /, ./, ../ or file://)"
                .to_owned(),
        },
        Trouble::Denied => ModelStoreError::Denied {
            place,
            advice: format!(
                "the credentials need s3:ListBucket on arn:aws:s3:::{bucket} and s3:GetObject on arn:aws:s3:::{bucket}/*, \
                 and kms:Decrypt where the bucket is encrypted with a key of its own ({words})"
            ),
        },
        Trouble::WrongRegion(Some(actual)) => ModelStoreError::WrongRegion {
            place: format!("bucket {bucket}"),
            advice: format!("it is in {actual}, and {region} was asked: set AWS_REGION={actual}"),
        },
        Trouble::WrongRegion(None) => ModelStoreError::WrongRegion {
            place: format!("bucket {bucket}"),
            advice: format!("it is not in {region}: set AWS_REGION to the bucket's region"),
        },
        Trouble::NoCredentials => ModelStoreError::Credentials {
            place,
            problem: "no credentials for AWS were found".to_owned(),
            advice: "give the task or the instance a role, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or \
                     AWS_PROFILE"
                .to_owned(),
        },
        Trouble::CredentialsRefused => ModelStoreError::Credentials {
            place,
            problem: format!("the source of credentials gives none ({words})"),
            advice: "check the role of the task, and AWS_CONTAINER_CREDENTIALS_FULL_URI with its token if they are set"
                .to_owned(),
        },
        Trouble::BadCredentials => ModelStoreError::Credentials {
            place,
            problem: format!("AWS does not take the credentials ({words})"),
            advice: "they are unknown, expired, or of another secret; if the clock of this machine is right, renew them"
                .to_owned(),
        },
        Trouble::BadEndpoint => {
            let words = "AWS_ENDPOINT_URL or AWS_ENDPOINT_URL_S3 is no address: expected http://host:port, or nothing";
            ModelStoreError::Io { place, source: std::io::Error::other(words) }
        }
        _ => ModelStoreError::Io { place, source: std::io::Error::other(words) },
    })
}

/// The error that a fault is when it is not tried again any more. A change is one only for what was not pinned: a listing.
pub(super) fn give_up(client: &Client, fault: Fault, place: &str, tried: &str) -> ModelStoreError {
    match fault {
        Fault::Final(error) => error,
        Fault::Changed => ModelStoreError::NotFound {
            place: place.to_owned(),
            advice: "whoever answers knows no such bucket; check MODEL_BUCKET and AWS_ENDPOINT_URL".to_owned(),
        },
        Fault::Damaged { place, problem } => ModelStoreError::Damaged { place, problem },
        Fault::Transient(trouble, words) => ModelStoreError::Unavailable {
            place: place.to_owned(),
            problem: match trouble {
                Trouble::Throttled => format!("S3 asks to slow down ({words})"),
                Trouble::Server => format!("S3 has an error of its own ({words})"),
                Trouble::Other => words,
                Trouble::TimedOut => format!("S3 in {} does not answer in time ({words})", client.region()),
                _ => format!("S3 in {} cannot be reached ({words})", client.region()),
            },
            tried: tried.to_owned(),
        },
    }
}
