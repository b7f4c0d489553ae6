//! What went wrong with the table, in words for people, and no more often than they want to read it.

use crate::aws::{Trouble, trouble_of};
use crate::error_chain;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use std::error::Error;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A table that is missing fails every request: once in this time is often enough to say so.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// A request to DynamoDB that failed.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) trouble: Trouble,
    /// The service's name for the error.
    pub(super) code: String,
    /// The error in one line.
    pub(super) text: String,
}

impl Failure {
    pub(super) fn timed_out(limit: Duration) -> Self {
        let text = format!("no answer in {} ms", limit.as_millis());
        Self { trouble: Trouble::TimedOut, code: String::new(), text }
    }

    /// An answer without an error in which nothing was done.
    pub(super) fn throttled() -> Self {
        let text = "none of the request was processed".to_owned();
        Self { trouble: Trouble::Throttled, code: String::new(), text }
    }

    /// A request that could not even be built.
    pub(super) fn invalid(error: impl Error) -> Self {
        Self { trouble: Trouble::Other, code: String::new(), text: error.to_string() }
    }

    /// Whether it stays until somebody does something about it.
    pub(super) fn lasts(&self) -> bool {
        !self.trouble.is_transient()
    }

    /// What to do about it, as the end of a sentence. `actions` are those that the credentials have to allow.
    pub(super) fn what_to_do(&self, actions: &str) -> String {
        match &self.trouble {
            Trouble::NoContainer => {
                "there is no such table in this region: `nexus cache create-table` creates it; EMBEDDING_CACHE_TABLE and \
                 AWS_REGION name another"
                    .to_owned()
            }
            Trouble::Denied => format!("allow {actions} on the table to the role that this runs as"),
            Trouble::NoCredentials => "give the task a role, or set AWS_PROFILE, or \
                                       AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                .to_owned(),
            Trouble::CredentialsRefused => "the source of credentials gives none: check the role of the task, and \
                                            AWS_CONTAINER_CREDENTIALS_FULL_URI with its token if they are set"
                .to_owned(),
            Trouble::BadEndpoint => "expected http://host:port, or nothing".to_owned(),
            Trouble::BadCredentials => "the credentials are not taken: renew them, and check the clock".to_owned(),
            Trouble::Throttled => {
                "the table's capacity is used up: one on demand grows by itself, a provisioned one needs more".to_owned()
            }
            Trouble::TimedOut => "if that stays so, check the way to DynamoDB (a VPC endpoint, security groups), or raise \
                                  NEXUS_CACHE_READ_TIMEOUT_MS"
                .to_owned(),
            Trouble::Unreachable => {
                "check AWS_REGION and the way to DynamoDB (a VPC endpoint, security groups, DNS)".to_owned()
            }
            Trouble::Server => "DynamoDB says that it is its own fault; it is tried again".to_owned(),
            _ if self.code == "ValidationException" => {
                "the table may have another key than `k`, of type binary, alone: `nexus cache create-table` creates one \
                 that fits, EMBEDDING_CACHE_TABLE names it"
                    .to_owned()
            }
            _ => "see the error".to_owned(),
        }
    }
}

impl<E> From<&SdkError<E, HttpResponse>> for Failure
where
    E: ProvideErrorMetadata + Error + 'static,
{
    fn from(error: &SdkError<E, HttpResponse>) -> Self {
        let code = error.code().unwrap_or_default().to_owned();
        // The service's own sentence, where there is one; the library's chain of wrappers says less in more words.
        let text = match (code.as_str(), error.message()) {
            ("", _) | (_, None) => error_chain(error),
            (code, Some(message)) => format!("{code}: {message}"),
        };
        let trouble = trouble_of(error);
        // The library lists all places that it has looked at.
        let text = match trouble {
            Trouble::NoCredentials => "no credentials for AWS were found".to_owned(),
            Trouble::BadEndpoint => "AWS_ENDPOINT_URL or AWS_ENDPOINT_URL_DYNAMODB is no address".to_owned(),
            _ => one_line(&text),
        };
        Self { trouble, code, text }
    }
}

/// Who has no credentials is told where they were looked for, on a line each.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What was being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    Read,
    Write,
}

impl Doing {
    fn line(self) -> &'static str {
        match self {
            Self::Read => "can not read the embedding table; what it has is computed again",
            Self::Write => "can not write to the embedding table; what is computed is not kept there",
        }
    }

    pub(super) fn action(self) -> &'static str {
        match self {
            Self::Read => "dynamodb:BatchGetItem",
            Self::Write => "dynamodb:BatchWriteItem",
        }
    }
}

/// Logs failures, one line a minute.
pub(super) struct Complaints {
    table: String,
    region: String,
    said: Mutex<Said>,
}

#[derive(Default)]
struct Said {
    last: Option<Instant>,
    failures_since: u64,
}

impl Complaints {
    pub(super) fn new(table: &str, region: &str) -> Self {
        Self { table: table.to_owned(), region: region.to_owned(), said: Mutex::default() }
    }

    /// Logs `failure` with the number of failures since the last line, this one included. Answers whether it did.
    pub(super) fn complain(&self, doing: Doing, failure: &Failure) -> bool {
        let failures = {
            let now = Instant::now();
            // Nothing between lock and unlock panics.
            let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            said.failures_since += 1;
            if said.last.is_some_and(|last| now - last < SAY_EVERY) {
                return false;
            }
            said.last = Some(now);
            std::mem::take(&mut said.failures_since)
        };
        let (table, region) = (&self.table, &self.region);
        let fix = failure.what_to_do(doing.action());
        tracing::warn!(%table, %region, failures, error = %failure.text, fix, "{}", doing.line());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_minute() {
        let complaints = Complaints::new("table", "eu-west-1");
        let failure = Failure::timed_out(Duration::from_millis(50));
        assert!(complaints.complain(Doing::Read, &failure));
        for doing in [Doing::Read, Doing::Write].repeat(50) {
            assert!(!complaints.complain(doing, &failure));
        }
        assert_eq!(complaints.said.lock().unwrap().failures_since, 100);
        complaints.said.lock().unwrap().last = Instant::now().checked_sub(SAY_EVERY);
        assert!(complaints.complain(Doing::Write, &failure));
        assert_eq!(complaints.said.lock().unwrap().failures_since, 0);
    }

    #[test]
    fn an_error_is_one_line() {
        assert_eq!(
            one_line("no credentials found:\n  Environment: none\n  Profile: none"),
            "no credentials found: Environment: none Profile: none"
        );
    }

    #[test]
    fn it_says_what_to_do() {
        let failure = |trouble, code: &str| Failure { trouble, code: code.to_owned(), text: String::new() };
        for (failure, expected) in [
            (failure(Trouble::NoContainer, ""), "nexus cache create-table"),
            (failure(Trouble::Denied, ""), "allow dynamodb:BatchGetItem on"),
            (failure(Trouble::NoCredentials, ""), "AWS_ACCESS_KEY_ID"),
            (failure(Trouble::Other, "ValidationException"), "another key than `k`"),
            (Failure::timed_out(Duration::from_secs(1)), "NEXUS_CACHE_READ_TIMEOUT_MS"),
        ] {
            let said = failure.what_to_do(Doing::Read.action());
            assert!(said.contains(expected), "{said}");
        }
    }
}
