//! What an error of the SDK means.

use crate::chain::causes;
use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use std::error::Error;

/// What went wrong, as far as it decides what to do: fix a setting, try again, give up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// No source of credentials had any.
    NoCredentials,
    /// A source of credentials is there, and refuses to give any: an agent that does not know the task.
    CredentialsRefused,
    /// There are credentials, and AWS does not take them: unknown, expired, wrong secret.
    BadCredentials,
    /// The credentials do not allow it.
    Denied,
    /// The bucket is elsewhere; where, if S3 said so.
    WrongRegion(Option<String>),
    /// No such bucket or table.
    NoContainer,
    /// No such object or item.
    NotFound,
    /// It is not what it was (`If-Match`), or is there already (`If-None-Match`).
    PreconditionFailed,
    /// Too many requests for now.
    Throttled,
    /// Nobody answers at the address, or the connection broke.
    Unreachable,
    /// No answer in time.
    TimedOut,
    /// The service says that it is its own fault (5xx).
    Server,
    /// The endpoint that was set is no address.
    BadEndpoint,
    /// The request itself is wrong, or anything else.
    Other,
}

impl Trouble {
    /// Whether the same request may succeed later without anybody's doing.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Throttled | Self::Unreachable | Self::TimedOut | Self::Server)
    }
}

/// What `error` means.
pub(crate) fn trouble_of<E>(error: &SdkError<E, HttpResponse>) -> Trouble
where
    E: ProvideErrorMetadata + Error + 'static,
{
    match error {
        SdkError::TimeoutError(_) => Trouble::TimedOut,
        SdkError::DispatchFailure(failure) => {
            // "identity resolver timed out" is the instance's metadata service, where there is none.
            if causes(error).any(|text| is_of_the_endpoint(&text)) {
                Trouble::BadEndpoint
            } else if provider_failed(error) {
                let refused = causes(error).any(|text| is_refusal(&text));
                if refused { Trouble::CredentialsRefused } else { Trouble::Unreachable }
            } else if causes(error).any(|text| text.contains("credential") || text.contains("identity resolver")) {
                Trouble::NoCredentials
            } else if failure.is_timeout() {
                Trouble::TimedOut
            } else {
                Trouble::Unreachable
            }
        }
        SdkError::ResponseError(_) => Trouble::Unreachable,
        SdkError::ServiceError(service) => {
            let response = service.raw();
            let header = response.headers().get("x-amz-bucket-region");
            let region = header.or_else(|| region_in(service.err().message()?)).map(str::to_owned);
            of_service(service.err().code(), response.status().as_u16(), region)
        }
        SdkError::ConstructionFailure(_) if causes(error).any(|text| is_of_the_endpoint(&text)) => Trouble::BadEndpoint,
        _ => Trouble::Other,
    }
}

/// Whether the library says that the endpoint is no address.
fn is_of_the_endpoint(text: &str) -> bool {
    text.contains("not a valid URI") || text.contains("failed to apply endpoint")
}

/// Whether there is a source of credentials that did not give them this time: an agent that restarts or has too much to
/// do. Where no source has any, that is no failure of one.
fn provider_failed(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| (*error).source())
        .filter_map(|error| error.downcast_ref::<CredentialsError>())
        .any(|error| matches!(error, CredentialsError::ProviderError(_) | CredentialsError::ProviderTimedOut(_)))
}

/// Whether the library says that a source of credentials answered with a status that stays so: of the client's fault, and
/// neither too late nor too often. The status is in its words only.
fn is_refusal(text: &str) -> bool {
    let Some((_, status)) = text.split_once("HTTP credential provider: StatusCode(") else { return false };
    let status = status.split_once(')').and_then(|(status, _)| status.parse().ok());
    status.is_some_and(|status: u16| (400..500).contains(&status) && !matches!(status, 408 | 429))
}

/// The region in what S3 says of a signature for another one: `the region 'us-east-1' is wrong; expecting 'eu-west-1'`.
fn region_in(message: &str) -> Option<&str> {
    let (_, region) = message.split_once("expecting '")?;
    region.split_once('\'').map(|(region, _)| region)
}

fn of_service(code: Option<&str>, status: u16, region: Option<String>) -> Trouble {
    match (code.unwrap_or_default(), status) {
        ("PermanentRedirect" | "AuthorizationHeaderMalformed" | "TemporaryRedirect", _) | (_, 301 | 307) => {
            Trouble::WrongRegion(region)
        }
        ("NoSuchBucket" | "ResourceNotFoundException", _) => Trouble::NoContainer,
        (
            "InvalidAccessKeyId"
            | "SignatureDoesNotMatch"
            | "ExpiredToken"
            | "ExpiredTokenException"
            | "InvalidToken"
            | "InvalidSignatureException"
            | "UnrecognizedClientException"
            | "MissingAuthenticationToken"
            | "MissingAuthenticationTokenException"
            | "RequestTimeTooSkewed",
            _,
        ) => Trouble::BadCredentials,
        (
            "ProvisionedThroughputExceededException"
            | "ThrottlingException"
            | "Throttling"
            | "RequestLimitExceeded"
            | "ServiceUnavailable"
            | "SlowDown"
            | "TooManyRequestsException",
            _,
        )
        | (_, 429 | 503) => Trouble::Throttled,
        // S3 ends long answers that it has begun with 200 in this way, too.
        ("InternalError" | "InternalServerError", _) => Trouble::Server,
        ("RequestTimeout", _) | (_, 408) => Trouble::TimedOut,
        ("NoSuchKey" | "NoSuchVersion", _) | (_, 404) => Trouble::NotFound,
        (_, 403) | ("AccessDenied" | "AccessDeniedException", _) => Trouble::Denied,
        (_, 409 | 412) => Trouble::PreconditionFailed,
        (_, 500..) => Trouble::Server,
        _ => Trouble::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_an_agent_stay_and_troubles_of_it_pass() {
        let said = |status| format!("Non-success status from HTTP credential provider: StatusCode({status})");
        for (status, refused) in [(400, true), (403, true), (404, true), (408, false), (429, false), (500, false)] {
            assert_eq!(is_refusal(&said(status)), refused, "{status}");
        }
        assert!(!is_refusal("StatusCode(403)"));
    }

    #[test]
    fn what_services_say() {
        for (code, status, expected) in [
            (Some("NoSuchBucket"), 404, Trouble::NoContainer),
            (Some("NoSuchKey"), 404, Trouble::NotFound),
            // HEAD has no body, so no code.
            (None, 404, Trouble::NotFound),
            (None, 403, Trouble::Denied),
            (Some("AccessDenied"), 403, Trouble::Denied),
            (Some("InvalidAccessKeyId"), 403, Trouble::BadCredentials),
            (Some("ResourceNotFoundException"), 400, Trouble::NoContainer),
            (Some("AccessDeniedException"), 400, Trouble::Denied),
            (Some("ThrottlingException"), 400, Trouble::Throttled),
            (Some("SlowDown"), 503, Trouble::Throttled),
            (Some("InternalError"), 500, Trouble::Server),
            (Some("InternalError"), 200, Trouble::Server),
            (Some("PreconditionFailed"), 412, Trouble::PreconditionFailed),
            (Some("ValidationException"), 400, Trouble::Other),
        ] {
            assert_eq!(of_service(code, status, None), expected, "{code:?} {status}");
        }
        let elsewhere = of_service(None, 301, Some("eu-west-1".into()));
        assert_eq!(elsewhere, Trouble::WrongRegion(Some("eu-west-1".into())));
        let message = "The authorization header is malformed; the region 'us-east-1' is wrong; expecting 'eu-west-1'";
        assert_eq!(region_in(message), Some("eu-west-1"));
        assert_eq!(region_in("The authorization header is malformed"), None);
    }
}
