//! The configuration that all clients of AWS share.

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_smithy_http_client::tls;
use aws_types::service_config::ServiceConfigKey;
use std::time::Duration;

/// Time for a connection. The SDK's own, 3.1 s, is a long time to learn that nobody is there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// What clients of AWS are made from: region, credentials, connections.
#[derive(Clone, Debug)]
pub struct AwsConfig {
    pub(crate) sdk: SdkConfig,
}

/// Prepares access to AWS in `region`. Asks nobody for credentials yet: that happens with the first request, and a
/// failure is that request's.
///
/// TLS is rustls with the roots that this machine trusts. Nothing is tried again by itself, and nothing but connecting
/// has a time limit: both belong to who makes the request.
pub async fn aws_config(region: &str) -> AwsConfig {
    let https = aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
        .build_https();
    let sdk = aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new(region.to_owned()))
        .http_client(https)
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).build())
        .load()
        .await;
    AwsConfig { sdk }
}

impl AwsConfig {
    /// A client of S3. With another endpoint than AWS's (`AWS_ENDPOINT_URL`, `AWS_ENDPOINT_URL_S3`) the bucket's name
    /// goes into the path: servers that speak S3 on one address have no name for each bucket.
    pub(crate) fn s3(&self) -> aws_sdk_s3::Client {
        let endpoint = self.endpoint("s3");
        let mut config = aws_sdk_s3::config::Builder::from(&self.sdk).force_path_style(endpoint.is_some());
        config.set_endpoint_url(endpoint);
        aws_sdk_s3::Client::from_conf(config.build())
    }

    /// A client of DynamoDB.
    pub(crate) fn dynamodb(&self) -> aws_sdk_dynamodb::Client {
        let mut config = aws_sdk_dynamodb::config::Builder::from(&self.sdk);
        config.set_endpoint_url(self.endpoint("dynamodb"));
        aws_sdk_dynamodb::Client::from_conf(config.build())
    }

    /// The endpoint that the environment or the profile names for a service. An empty one counts as unset, as everywhere:
    /// container definitions have no other way to unset a variable, and the SDK panics over it.
    fn endpoint(&self, service: &str) -> Option<String> {
        let key = ServiceConfigKey::builder().service_id(service).env("AWS_ENDPOINT_URL").profile("endpoint_url");
        let of_service = key.build().ok().and_then(|key| self.sdk.service_config()?.load_config(key));
        let of_all = || self.sdk.endpoint_url().map(str::to_owned);
        of_service.filter(|url| !url.is_empty()).or_else(of_all).filter(|url| !url.is_empty())
    }

    /// The region, for messages.
    pub(crate) fn region(&self) -> &str {
        self.sdk.region().map_or("", |region| region.as_ref())
    }
}
