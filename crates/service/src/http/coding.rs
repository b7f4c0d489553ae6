//! Compressed bodies: gzip and zstd, decoded as they come.
//!
//! What a body may have at most counts decoded: [`super::body`] sees nothing else. Responses are compressed by a layer
//! around all endpoints ([`super::router`]). Deliberately absent: several codings on top of each other.

use super::error::ApiError;
use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
use async_compression::zstd::DParameter;
use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use std::io;
use tokio::io::AsyncRead;
use tokio_util::io::{ReaderStream, StreamReader};

/// Bytes that are decoded at once.
const CHUNK_BYTES: usize = 256 << 10;

/// What a zstd frame may ask for as its window, as a power of two: the 8 MiB that HTTP allows (RFC 9659). The library's
/// own bound is 128 MiB, for each request.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// How the bytes of a body are coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    /// As they are.
    Identity,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Coding {
    /// What the headers declare.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        let mut values = headers.get_all(header::CONTENT_ENCODING).iter();
        let coding = match (values.next(), values.next()) {
            (None, _) => return Ok(Self::Identity),
            (Some(value), None) => value.to_str().unwrap_or_default().trim().to_ascii_lowercase(),
            (Some(_), Some(_)) => String::new(),
        };
        match coding.as_str() {
            "identity" => Ok(Self::Identity),
            "gzip" | "x-gzip" => Ok(Self::Gzip),
            "zstd" => Ok(Self::Zstd),
            _ => Err(ApiError::refused(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "Unsupported Media Type: Content-Encoding must be gzip, zstd or identity",
            )),
        }
    }

    /// The bytes of `body`, decoded.
    pub(super) fn decode(self, body: Body) -> BoxStream<'static, io::Result<Bytes>> {
        let stream = body.into_data_stream().map_err(io::Error::other);
        match self {
            Self::Identity => stream.boxed(),
            Self::Gzip => {
                let mut decoder = GzipDecoder::new(StreamReader::new(stream));
                decoder.multiple_members(true);
                chunks(decoder)
            }
            Self::Zstd => {
                let parameters = [DParameter::window_log_max(ZSTD_WINDOW_LOG_MAX)];
                let mut decoder = ZstdDecoder::with_params(StreamReader::new(stream), &parameters);
                decoder.multiple_members(true);
                chunks(decoder)
            }
        }
    }

    /// What to say when reading fails.
    pub(super) fn failure(self) -> &'static str {
        match self {
            Self::Identity => "the body broke off",
            Self::Gzip => "the body broke off, or is not gzip",
            Self::Zstd => "the body broke off, or is not zstd with a window of at most 8 MiB",
        }
    }
}

fn chunks(decoder: impl AsyncRead + Send + 'static) -> BoxStream<'static, io::Result<Bytes>> {
    ReaderStream::with_capacity(decoder, CHUNK_BYTES).boxed()
}
