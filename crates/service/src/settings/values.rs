//! The types of settings: what is allowed, and how a refusal reads. Every message says what would be right.

use crate::api_keys::{self, ApiKey};
use crate::http::Origins;
use axum::http::HeaderValue;
use nexus_compute::cpu::{CpuWeights, Isa};
use std::fmt;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::str::FromStr;
use tracing::level_filters::LevelFilter;

/// Where models come from, by the form of `MODEL_BUCKET`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// The models inside this binary.
    BuiltIn,
    /// Folders under this one.
    Folder(PathBuf),
    /// Prefixes in a bucket of S3, under a prefix (empty, or with its final slash).
    Bucket {
        /// The bucket.
        bucket: String,
        /// What is put before the paths of models.
        prefix: String,
    },
    /// Repositories of a model hub.
    Hub,
}

impl ModelSource {
    /// Tells a folder from a bucket. No bucket's name can contain a slash, so that nothing is ambiguous. What follows
    /// `file://` is taken literally, without percent-decoding.
    pub(super) fn parse(value: &str) -> Self {
        if let Some(rest) = value.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let prefix = prefix.trim_matches('/');
            let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
            Self::Bucket { bucket: bucket.to_owned(), prefix }
        } else if matches!(value, "hf" | "hf:" | "hf:/" | "hf://") {
            Self::Hub
        } else if let Some(path) = value.strip_prefix("file://") {
            Self::Folder(PathBuf::from(path.strip_prefix("localhost").filter(|p| p.starts_with('/')).unwrap_or(path)))
        } else if matches!(value, "." | "..") || ["/", "./", "../"].iter().any(|start| value.starts_with(start)) {
            Self::Folder(PathBuf::from(value))
        } else {
            Self::Bucket { bucket: value.to_owned(), prefix: String::new() }
        }
    }
}

/// Whether a bucket can have this name; names of the first years may have capitals, underscores and 255 bytes.
pub(crate) fn is_bucket_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    (3..=255).contains(&name.len()) && name.bytes().all(allowed)
}

/// Bucket and prefix, without slashes at its ends, of `s3://bucket[/prefix]`.
pub(super) fn parse_s3_url(url: &str) -> Option<(String, String)> {
    let (bucket, prefix) = url.strip_prefix("s3://").map(|rest| rest.split_once('/').unwrap_or((rest, "")))?;
    let named = is_bucket_name(bucket);
    let printable = !prefix.chars().any(char::is_control);
    (named && printable).then(|| (bucket.to_owned(), prefix.trim_matches('/').to_owned()))
}

/// A switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toggle {
    /// `on`
    On,
    /// `off`
    Off,
}

impl FromStr for Toggle {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.to_ascii_lowercase().as_str() {
            "on" | "true" | "1" | "yes" => Ok(Self::On),
            "off" | "false" | "0" | "no" => Ok(Self::Off),
            _ => Err("on or off".to_owned()),
        }
    }
}

/// What runs the models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// All GPUs that can be used, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// NVIDIA GPUs: these, by number, or all that can be used.
    Cuda(Option<Vec<usize>>),
}

const DEVICES_ALLOWED: &str = "auto, cpu, cuda, or cuda: with the numbers of GPUs, each once: cuda:0,2";

impl FromStr for Device {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let lower = s.to_ascii_lowercase();
        match lower.as_str() {
            "auto" => return Ok(Self::Auto),
            "cpu" => return Ok(Self::Cpu),
            "cuda" => return Ok(Self::Cuda(None)),
            _ => {}
        }
        let allowed = || DEVICES_ALLOWED.to_owned();
        let numbers = lower.strip_prefix("cuda:").ok_or_else(allowed)?.split(',');
        let numbers: Vec<usize> = numbers.map(|n| n.trim().parse().map_err(|_| allowed())).collect::<Result<_, _>>()?;
        let twice = numbers.iter().enumerate().any(|(at, n)| numbers[..at].contains(n));
        if twice { Err(allowed()) } else { Ok(Self::Cuda(Some(numbers))) }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(None) => f.write_str("cuda"),
            Self::Cuda(Some(numbers)) => {
                let numbers: Vec<_> = numbers.iter().map(usize::to_string).collect();
                write!(f, "cuda:{}", numbers.join(","))
            }
        }
    }
}

/// Which instructions the CPU computes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuIsa {
    /// The best that the CPU has, of those that have been proven on one.
    Auto,
    /// These, and an error where the CPU lacks them.
    Only(Isa),
}

impl FromStr for CpuIsa {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let lower = s.to_ascii_lowercase();
        if lower == "auto" {
            return Ok(Self::Auto);
        }
        let isa = Isa::ALL.into_iter().find(|isa| isa.name() == lower);
        isa.map(Self::Only).ok_or_else(|| "auto, avx512, avx2 or portable".to_owned())
    }
}

/// How the CPU holds weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuWeightsSetting(pub CpuWeights);

impl FromStr for CpuWeightsSetting {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.to_ascii_lowercase().as_str() {
            "stored" => Ok(Self(CpuWeights::Stored)),
            "int8" => Ok(Self(CpuWeights::Int8)),
            _ => Err("stored or int8".to_owned()),
        }
    }
}

/// Whether prepared weights are kept beside a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackedFile {
    /// Beside large models.
    Auto,
    /// Beside every model that lies in a folder.
    On,
    /// Never.
    Off,
}

impl PackedFile {
    /// Bytes of weights for which preparing takes a second.
    const LARGE_BYTES: u64 = 1 << 30;

    /// Bytes of weights from which on they are kept, if they are.
    pub const fn bytes_min(self) -> Option<u64> {
        match self {
            Self::Auto => Some(Self::LARGE_BYTES),
            Self::On => Some(0),
            Self::Off => None,
        }
    }
}

impl FromStr for PackedFile {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.to_ascii_lowercase().as_str() {
            "auto" => Ok(Self::Auto),
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            _ => Err("auto, on or off".to_owned()),
        }
    }
}

/// Where embeddings are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheKind {
    /// In memory, then in DynamoDB, shared by all replicas.
    Dynamodb,
    /// In memory, then in a file that outlives the process.
    Redb,
    /// In memory.
    Memory,
    /// Nowhere.
    Off,
}

impl FromStr for CacheKind {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.to_ascii_lowercase().as_str() {
            "dynamodb" => Ok(Self::Dynamodb),
            "redb" => Ok(Self::Redb),
            "memory" => Ok(Self::Memory),
            "off" => Ok(Self::Off),
            _ => Err("dynamodb, redb, memory or off".to_owned()),
        }
    }
}

/// How vectors are stored in DynamoDB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheDtype {
    /// As they are.
    F32,
    /// Rounded to bf16.
    Bf16,
}

impl FromStr for CacheDtype {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.to_ascii_lowercase().as_str() {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            _ => Err("f32 or bf16".to_owned()),
        }
    }
}

/// A log level, by Python's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLevel(LevelFilter);

impl LogLevel {
    /// As a filter. CRITICAL is ERROR, the highest level there is; NOTSET lets everything through, as in Python.
    pub fn filter(self) -> LevelFilter {
        self.0
    }
}

impl FromStr for LogLevel {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Ok(Self(match s.to_ascii_uppercase().as_str() {
            "CRITICAL" | "FATAL" | "ERROR" => LevelFilter::ERROR,
            "WARNING" | "WARN" => LevelFilter::WARN,
            "INFO" => LevelFilter::INFO,
            "DEBUG" => LevelFilter::DEBUG,
            "TRACE" | "NOTSET" => LevelFilter::TRACE,
            _ => return Err("CRITICAL, FATAL, ERROR, WARNING, WARN, INFO, DEBUG, TRACE or NOTSET".to_owned()),
        }))
    }
}

/// An amount of bytes: `1048576`, `1024KiB`, `1MiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(u64);

impl Bytes {
    /// How many.
    pub fn get(self) -> u64 {
        self.0
    }

    /// How many, cut to what memory can address.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

const BYTES_ALLOWED: &str = "a number of bytes, at least 1, or one with KiB, MiB or GiB: 1048576, 256MiB";

impl FromStr for Bytes {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let lower = s.to_ascii_lowercase();
        let (digits, shift) = [("kib", 10), ("mib", 20), ("gib", 30), ("", 0)]
            .into_iter()
            .find_map(|(unit, shift)| Some((lower.strip_suffix(unit)?.trim_end(), shift)))
            .unwrap_or((&lower, 0));
        let number: u64 = digits.parse().map_err(|_| BYTES_ALLOWED.to_owned())?;
        match number.checked_mul(1 << shift) {
            Some(bytes @ 1..) => Ok(Self(bytes)),
            _ => Err(BYTES_ALLOWED.to_owned()),
        }
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n if n % (1 << 30) == 0 => write!(f, "{} GiB", n >> 30),
            n if n % (1 << 20) == 0 => write!(f, "{} MiB", n >> 20),
            n if n % (1 << 10) == 0 => write!(f, "{} KiB", n >> 10),
            n => write!(f, "{n} bytes"),
        }
    }
}

pub(super) fn port(s: &str) -> Result<u16, String> {
    s.parse().map_err(|_| "a port, 0 to 65535".to_owned())
}

pub(super) fn count(s: &str) -> Result<usize, String> {
    s.parse().map_err(|_| "a whole number, at least 0".to_owned())
}

/// No machine has more cores; a number with a zero too many would start threads until nothing else runs.
const THREADS_MAX: usize = 1024;

pub(super) fn threads(s: &str) -> Result<usize, String> {
    let allowed = || format!("a whole number, 0 to {THREADS_MAX}");
    s.parse().ok().filter(|threads| *threads <= THREADS_MAX).ok_or_else(allowed)
}

pub(super) fn positive(s: &str) -> Result<NonZeroUsize, String> {
    s.parse().map_err(|_| "a whole number, at least 1".to_owned())
}

pub(super) fn days(s: &str) -> Result<u32, String> {
    // A century: what is meant to be longer is meant to be for ever.
    s.parse().ok().filter(|days| *days <= 36_500).ok_or_else(|| "a number of days, 0 to 36500".to_owned())
}

pub(super) fn milliseconds(s: &str) -> Result<NonZeroU64, String> {
    s.parse().map_err(|_| "a number of milliseconds, at least 1".to_owned())
}

/// The address of a model hub. Nobody needs another scheme, and a forgotten one would fail with the first request only.
pub(super) fn hub(s: &str) -> Result<String, String> {
    let host = s.strip_prefix("https://").or_else(|| s.strip_prefix("http://"));
    match host {
        Some(host) if !host.is_empty() => Ok(s.to_owned()),
        _ => Err("an address that begins with https:// or http://".to_owned()),
    }
}

/// Checks a name on a model hub.
#[cfg(feature = "hub")]
pub(super) fn hub_name(name: &str) -> Result<(), String> {
    let allowed = "hf://owner/name or hf://owner/name@revision".to_owned();
    nexus_storage::HubName::parse(name).map(|_| ()).map_err(|_| allowed)
}

/// Checks a name on a model hub.
#[cfg(not(feature = "hub"))]
pub(super) fn hub_name(_name: &str) -> Result<(), String> {
    Err("a folder: this build has no model hub (the feature `hub`)".to_owned())
}

/// A secret; the space around it, as files and consoles add it, is no part of it.
pub(super) fn token(s: &str) -> Result<String, String> {
    if s.trim().is_empty() { Err("more than blanks, or nothing at all".to_owned()) } else { Ok(s.trim().to_owned()) }
}

/// Clients and the digests of their keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKeyList(pub Vec<ApiKey>);

/// The address of a collector of traces.
pub(super) fn collector(s: &str) -> Result<String, String> {
    let host = s.trim().strip_prefix("http://").filter(|rest| !rest.is_empty() && !rest.starts_with('/'));
    // Collectors run beside the service, and go on with TLS from there.
    host.map(|_| s.trim().to_owned()).ok_or_else(|| "an address that starts with http://".to_owned())
}

/// Origins of web pages.
pub(super) fn origins(s: &str) -> Result<Origins, String> {
    let expected = || "`*`, or origins such as https://console.example.com with commas between".to_owned();
    if s.trim() == "*" {
        return Ok(Origins::Any);
    }
    // As browsers send them: a scheme, a host, perhaps a port, in small letters, and nothing behind.
    let origin = |origin: &str| {
        let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"))?;
        let sane = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_:[]".contains(&byte);
        (!host.is_empty() && host.bytes().all(sane)).then(|| HeaderValue::from_str(origin).ok())?
    };
    let list: Option<Vec<_>> = s.split(',').map(str::trim).filter(|it| !it.is_empty()).map(origin).collect();
    list.filter(|list| !list.is_empty()).map(Origins::These).ok_or_else(expected)
}

/// A list of clients. What is wrong is not quoted: it may be a key.
pub(super) fn api_keys(s: &str) -> Result<ApiKeyList, String> {
    api_keys::parse_list(s).map(ApiKeyList)
}

pub(super) fn non_empty(s: &str) -> Result<String, String> {
    if s.is_empty() { Err("something, or nothing at all".to_owned()) } else { Ok(s.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_in_s3_is_a_bucket_and_a_prefix() {
        for (url, bucket, prefix) in [
            ("s3://sets", "sets", ""),
            ("s3://sets/", "sets", ""),
            ("s3://my.sets-1/a/b/", "my.sets-1", "a/b"),
            ("s3://sets//a b/", "sets", "a b"),
        ] {
            assert_eq!(parse_s3_url(url), Some((bucket.to_owned(), prefix.to_owned())), "{url}");
        }
        for url in [
            "",
            "sets",
            "s3:/sets",
            "s3://",
            "s3:///a",
            "s3://ab",
            "s3://a b",
            "s3://a:b",
            "http://sets/a",
            "s3://sets/\n",
        ] {
            assert_eq!(parse_s3_url(url), None, "{url}");
        }
    }

    #[test]
    fn a_model_source_is_told_by_its_form() {
        let bucket = |bucket: &str, prefix: &str| ModelSource::Bucket { bucket: bucket.into(), prefix: prefix.into() };
        for (value, expected) in [
            ("/models", ModelSource::Folder("/models".into())),
            ("./models", ModelSource::Folder("./models".into())),
            ("../models", ModelSource::Folder("../models".into())),
            ("..", ModelSource::Folder("..".into())),
            ("file:///models", ModelSource::Folder("/models".into())),
            ("file://localhost/models", ModelSource::Folder("/models".into())),
            ("hf://", ModelSource::Hub),
            ("models", bucket("models", "")),
            (".hidden", bucket(".hidden", "")),
            ("s3://models", bucket("models", "")),
            ("s3://models/", bucket("models", "")),
            ("s3://models/a/b", bucket("models", "a/b/")),
            ("s3://models/a/b/", bucket("models", "a/b/")),
        ] {
            assert_eq!(ModelSource::parse(value), expected, "{value}");
        }
    }

    #[test]
    fn devices_are_named_once_each() {
        for (text, expected) in [
            ("AUTO", Some(Device::Auto)),
            ("cpu", Some(Device::Cpu)),
            ("cuda", Some(Device::Cuda(None))),
            ("cuda:0", Some(Device::Cuda(Some(vec![0])))),
            ("CUDA:2, 0", Some(Device::Cuda(Some(vec![2, 0])))),
            ("cuda:", None),
            ("cuda:0,", None),
            ("cuda:0,0", None),
            ("cuda:-1", None),
            ("gpu", None),
        ] {
            assert_eq!(text.parse::<Device>().ok(), expected, "{text:?}");
        }
        assert_eq!(Device::Cuda(Some(vec![2, 0])).to_string(), "cuda:2,0");
    }

    #[test]
    fn instruction_sets_have_the_names_that_backends_show() {
        for isa in Isa::ALL {
            assert_eq!(isa.name().to_uppercase().parse(), Ok(CpuIsa::Only(isa)));
        }
        assert_eq!("auto".parse(), Ok(CpuIsa::Auto));
        assert_eq!("sse".parse::<CpuIsa>(), Err("auto, avx512, avx2 or portable".to_owned()));
    }

    #[test]
    fn packed_files_are_for_large_models_unless_they_are_asked_for() {
        for (text, bytes_min) in [("auto", Some(1 << 30)), ("ON", Some(0)), ("off", None)] {
            assert_eq!(text.parse::<PackedFile>().map(PackedFile::bytes_min), Ok(bytes_min));
        }
        assert!("yes".parse::<PackedFile>().is_err());
    }

    #[test]
    fn bytes() {
        for (text, expected) in [
            ("1", Some(1)),
            ("1048576", Some(1 << 20)),
            ("256MiB", Some(256 << 20)),
            ("4 gib", Some(4 << 30)),
            ("0", None),
            ("", None),
            ("MiB", None),
            ("-1", None),
            ("1.5GiB", None),
            ("18446744073709551615GiB", None),
        ] {
            assert_eq!(text.parse::<Bytes>().ok().map(Bytes::get), expected, "{text:?}");
        }
        assert_eq!(Bytes(256 << 20).to_string(), "256 MiB");
    }

    #[test]
    fn log_levels_are_pythons_in_any_case() {
        for (name, expected) in [
            ("info", LevelFilter::INFO),
            ("Warn", LevelFilter::WARN),
            ("WARNING", LevelFilter::WARN),
            ("critical", LevelFilter::ERROR),
            ("notset", LevelFilter::TRACE),
        ] {
            assert_eq!(name.parse::<LogLevel>().map(LogLevel::filter), Ok(expected), "{name}");
        }
        assert!("verbose".parse::<LogLevel>().is_err());
    }
}
