//! What can be configured. Each setting is declared once, here: the declaration gives its flag, its environment
//! variable, its help, its default, how it is checked, and its row in the README.
//!
//! A flag wins over its variable. A variable set to the empty string counts as unset, as container definitions have no
//! other way to unset one. Names end with the unit.
//!
//! Deliberately absent: configuration files, and any reading of the environment elsewhere in the project.

mod values;

pub(crate) use values::is_bucket_name;
pub use values::{
    ApiKeyList, Bytes, CacheDtype, CacheKind, CpuIsa, CpuWeightsSetting, Device, LogLevel, ModelSource, PackedFile,
    Toggle,
};

use crate::http::Origins;
use clap::Args;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

/// What the path of a model on a model hub begins with.
pub(crate) const HUB_SCHEME: &str = "hf://";

/// What any command that runs models needs.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// Where the models come from.
    #[command(flatten)]
    pub models: ModelSettings,
    /// How they are run.
    #[command(flatten)]
    pub engine: EngineSettings,
    /// Where embeddings are kept.
    #[command(flatten)]
    pub cache: CacheSettings,
    /// How much is logged.
    #[command(flatten)]
    pub log: LogSettings,
}

/// Where the models come from.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Models")]
pub struct ModelSettings {
    /// Where model folders are: an S3 bucket's name (or `s3://bucket/prefix`), a local folder (starts with `/`, `./`, `../`
    /// or `file://`), or `hf://` for a model hub; unset, the built-in models serve
    #[arg(long, env = "MODEL_BUCKET", value_name = "PLACE", value_parser = values::non_empty)]
    pub model_bucket: Option<String>,

    /// Folder of the embedding model, under `MODEL_BUCKET`; or `hf://owner/name[@revision]`
    #[arg(long, env = "RETRIEVER_MODEL_PATH", value_name = "PATH", default_value = "models/qwen-embedding-8b/", value_parser = values::non_empty)]
    pub retriever_model_path: String,

    /// Folder of the reranking model, under `MODEL_BUCKET`; or `hf://owner/name[@revision]`
    #[arg(long, env = "RERANKER_MODEL_PATH", value_name = "PATH", default_value = "models/modernbert-reranker/", value_parser = values::non_empty)]
    pub reranker_model_path: String,

    /// Region of the bucket and of the embedding table
    #[arg(long, env = "AWS_REGION", value_name = "REGION", default_value = "us-east-1", value_parser = values::non_empty)]
    pub aws_region: String,

    /// Folder of downloaded models; unset, `models` in the cache folder
    #[arg(long, env = "NEXUS_MODELS_DIR", value_name = "FOLDER")]
    pub models_dir: Option<PathBuf>,

    /// Address of the model hub that `hf://` means
    #[arg(long, env = "HF_ENDPOINT", value_name = "URL", default_value = "https://huggingface.co", value_parser = values::hub)]
    pub hf_endpoint: String,

    /// Token for the model hub; private and gated repositories need one
    #[arg(long, env = "HF_TOKEN", value_name = "TOKEN", hide_env_values = true, value_parser = values::non_empty)]
    pub hf_token: Option<String>,

    /// Bytes of one ranged request to S3
    #[arg(long, env = "NEXUS_DOWNLOAD_RANGE_BYTES", value_name = "BYTES", default_value = "16MiB")]
    pub download_range_bytes: Bytes,

    /// Ranged requests to S3 under way at once, for each model
    #[arg(long, env = "NEXUS_DOWNLOAD_CONNECTIONS_MAX", value_name = "N", default_value = "32", value_parser = values::positive)]
    pub download_connections_max: NonZeroUsize,

    /// A range that arrives more slowly than this, and more slowly than others, is asked for again
    #[arg(long, env = "NEXUS_DOWNLOAD_BYTES_PER_S_MIN", value_name = "BYTES", default_value = "256KiB")]
    pub download_bytes_per_s_min: Bytes,

    /// `off` refuses to start on the built-in models, so that production never serves them by mistake
    #[arg(long, env = "NEXUS_BUILTIN", value_name = "on|off", default_value = "on")]
    pub builtin: Toggle,
}

/// How models are run.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Engine")]
pub struct EngineSettings {
    /// What runs the models: `cpu`; `cuda`, all NVIDIA GPUs that can be used, or `cuda:0,2`, these; `auto`, all such GPUs or
    /// else the CPU
    #[arg(long, env = "NEXUS_DEVICE", value_name = "auto|cpu|cuda|cuda:0,2", default_value = "auto")]
    pub device: Device,

    /// Threads that compute on the CPU; 0 takes all cores
    #[arg(long, env = "NEXUS_CPU_THREADS", value_name = "N", default_value = "0", value_parser = values::threads)]
    pub cpu_threads: usize,

    /// Instructions that the CPU computes with; `auto` takes the best of those that have been proven on a real CPU
    #[arg(long, env = "NEXUS_CPU_ISA", value_name = "auto|avx512|avx2|portable", default_value = "auto")]
    pub cpu_isa: CpuIsa,

    /// How the CPU holds weights: `stored`, as in the model's files; `int8`, in 8 bits, which is faster and a little off
    #[arg(long, env = "NEXUS_CPU_WEIGHTS", value_name = "stored|int8", default_value = "stored")]
    pub cpu_weights: CpuWeightsSetting,

    /// Whether the weights, as the CPU's kernels want them, are kept in a file beside the model, which the next start maps
    /// at once: `auto`, beside models of 1 GiB or more; `on`; `off`
    #[arg(long, env = "NEXUS_CPU_PACKED_FILE", value_name = "auto|on|off", default_value = "auto")]
    pub cpu_packed_file: PackedFile,

    /// Most tokens that a device computes at once; longer texts are computed alone; 0 is 4096 on a CPU and 16384 on a GPU
    #[arg(long, env = "NEXUS_BATCH_TOKENS_MAX", value_name = "TOKENS", default_value = "0", value_parser = values::count)]
    pub batch_tokens_max: usize,

    /// Batches of at most so many tokens are recorded on a GPU and replayed; 0 records none
    #[arg(long, env = "NEXUS_GRAPH_TOKENS_MAX", value_name = "TOKENS", default_value = "256", value_parser = values::count)]
    pub graph_tokens_max: usize,

    /// Most tokens that wait; requests beyond are answered 503, and 429 where a client with a key has its part of them
    #[arg(long, env = "NEXUS_QUEUE_TOKENS_MAX", value_name = "TOKENS", default_value = "1048576", value_parser = values::positive)]
    pub queue_tokens_max: NonZeroUsize,

    /// Tokens beyond which a text is truncated; 0 takes the model's own window
    #[arg(long, env = "NEXUS_TEXT_TOKENS_MAX", value_name = "TOKENS", default_value = "0", value_parser = values::count)]
    pub text_tokens_max: usize,
}

/// Where embeddings are kept.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Cache")]
pub struct CacheSettings {
    /// Where computed embeddings are kept: `dynamodb` or `redb` (memory first, then there), `memory`, or `off`; unset,
    /// `dynamodb` where `MODEL_BUCKET` names a bucket or `EMBEDDING_CACHE_TABLE` is set, else `redb`
    #[arg(long = "cache", env = "NEXUS_CACHE", value_name = "dynamodb|redb|memory|off")]
    pub kind: Option<CacheKind>,

    /// Folder of the embedding file; unset, `nexus` in the user's cache folder
    #[arg(long = "cache-dir", env = "NEXUS_CACHE_DIR", value_name = "FOLDER")]
    pub dir: Option<PathBuf>,

    /// Most memory that cached embeddings take
    #[arg(
        long = "cache-memory-bytes-max",
        env = "NEXUS_CACHE_MEMORY_BYTES_MAX",
        value_name = "BYTES",
        default_value = "256MiB"
    )]
    pub memory_bytes_max: Bytes,

    /// Most disk space that cached embeddings take
    #[arg(
        long = "cache-store-bytes-max",
        env = "NEXUS_CACHE_STORE_BYTES_MAX",
        value_name = "BYTES",
        default_value = "4GiB"
    )]
    pub store_bytes_max: Bytes,

    /// What DynamoDB has
    #[command(flatten)]
    pub table: TableSettings,
}

/// The table of embeddings, which `nexus cache` needs, too.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Cache")]
pub struct TableSettings {
    /// DynamoDB table of embeddings; unset, `nexus-embedding-cache`
    #[arg(long, env = "EMBEDDING_CACHE_TABLE", value_name = "TABLE", value_parser = values::non_empty)]
    pub embedding_cache_table: Option<String>,

    /// How vectors are stored in DynamoDB: `f32` (a hit is the very vector that a miss gives), or `bf16` (half the price,
    /// rounded to 8 bits)
    #[arg(long = "cache-dtype", env = "NEXUS_CACHE_DTYPE", value_name = "f32|bf16", default_value = "f32")]
    pub dtype: CacheDtype,

    /// Days after which DynamoDB deletes an embedding; 0 keeps it for ever
    #[arg(long = "cache-ttl-days", env = "NEXUS_CACHE_TTL_DAYS", value_name = "DAYS", default_value = "90", value_parser = values::days)]
    pub ttl_days: u32,

    /// Time for a read of DynamoDB; beyond it the embedding is computed
    #[arg(long = "cache-read-timeout-ms", env = "NEXUS_CACHE_READ_TIMEOUT_MS", value_name = "MS", default_value = "50", value_parser = values::milliseconds)]
    pub read_timeout_ms: NonZeroU64,
}

impl TableSettings {
    /// The table's name.
    pub fn name(&self) -> &str {
        self.embedding_cache_table.as_deref().unwrap_or("nexus-embedding-cache")
    }

    /// [`TableSettings::read_timeout_ms`] as a duration.
    pub fn read_timeout(&self) -> Duration {
        Duration::from_millis(self.read_timeout_ms.get())
    }
}

/// How much is logged.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Logs")]
pub struct LogSettings {
    /// Least level that is logged, by Python's names (DEBUG, INFO, WARNING, ERROR, CRITICAL) or TRACE, in any case
    #[arg(long, env = "LOG_LEVEL", value_name = "LEVEL", default_value = "INFO")]
    pub log_level: LogLevel,
}

/// Where the service listens, which `nexus health` needs, too.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "HTTP")]
pub struct ListenSettings {
    /// Address to listen on
    #[arg(long, env = "NEXUS_HOST", value_name = "HOST", default_value = "127.0.0.1", value_parser = values::non_empty)]
    pub host: String,

    /// Port to listen on; 0 takes a free one
    #[arg(long, env = "NEXUS_PORT", value_name = "PORT", default_value = "8000", value_parser = values::port)]
    pub port: u16,

    /// Certificate for TLS, with those between it and a root, in PEM; read again when it changes. Unset, as the key: no TLS
    #[arg(long, env = "NEXUS_TLS_CERT_FILE", value_name = "FILE")]
    pub tls_cert_file: Option<PathBuf>,

    /// Private key of the certificate, in PEM
    #[arg(long, env = "NEXUS_TLS_KEY_FILE", value_name = "FILE")]
    pub tls_key_file: Option<PathBuf>,
}

impl ListenSettings {
    /// The host, without the brackets that an IPv6 address may come in, as in a URL.
    pub fn bare_host(&self) -> &str {
        self.host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&self.host)
    }
}

/// What only the service needs.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "HTTP")]
pub struct HttpSettings {
    /// Where it listens
    #[command(flatten)]
    pub listen: ListenSettings,

    /// Most requests under `/api/v1` that are worked on at once; those beyond are answered 503, and 429 where a client with a
    /// key has its part of them
    #[arg(long, env = "NEXUS_REQUESTS_MAX", value_name = "N", default_value = "1024", value_parser = values::positive)]
    pub requests_max: NonZeroUsize,

    /// Most connections; the one that has been idle for longest goes for a new one
    #[arg(long, env = "NEXUS_CONNECTIONS_MAX", value_name = "N", default_value = "4096", value_parser = values::positive)]
    pub connections_max: NonZeroUsize,

    /// Largest request body with vectors, of `/api/v1/retrieve` and `/api/v1/targets`, decoded; beyond it, 413
    #[arg(long, env = "NEXUS_BODY_BYTES_MAX", value_name = "BYTES", default_value = "2GiB")]
    pub body_bytes_max: Bytes,

    /// Largest request body of embed and rerank; beyond it, 413
    #[arg(long, env = "NEXUS_TEXT_BODY_BYTES_MAX", value_name = "BYTES", default_value = "16MiB")]
    pub text_body_bytes_max: Bytes,

    /// Most memory that request bodies take, all together, while they are read; requests beyond are answered 503
    #[arg(long, env = "NEXUS_BODIES_BYTES_MAX", value_name = "BYTES", default_value = "4GiB")]
    pub bodies_bytes_max: Bytes,

    /// Most items in one embed batch, and most candidates in one rerank; beyond it, 422
    #[arg(long, env = "NEXUS_BATCH_ITEMS_MAX", value_name = "N", default_value = "10000", value_parser = values::positive)]
    pub batch_items_max: NonZeroUsize,

    /// Folder of resident target sets; unset, `targets` in the cache folder
    #[arg(long, env = "NEXUS_TARGETS_DIR", value_name = "FOLDER")]
    pub targets_dir: Option<PathBuf>,

    /// Where resident target sets are shared by replicas: `s3://bucket/prefix`; unset, they are this machine's own
    #[arg(long, env = "NEXUS_TARGETS_URL", value_name = "URL", value_parser = values::non_empty)]
    pub targets_url: Option<String>,

    /// Most disk space that resident target sets take; a set beyond it is answered 507
    #[arg(long, env = "NEXUS_TARGETS_BYTES_MAX", value_name = "BYTES", default_value = "16GiB")]
    pub targets_bytes_max: Bytes,

    /// Most memory of the first GPU that resident target sets take, to be searched there; unset, the CPU searches all
    #[arg(long, env = "NEXUS_TARGETS_DEVICE_BYTES_MAX", value_name = "BYTES")]
    pub targets_device_bytes_max: Option<Bytes>,

    /// Token that `POST /admin/reload` asks for (`Authorization: Bearer`); unset, there is no such endpoint
    #[arg(long, env = "NEXUS_ADMIN_TOKEN", value_name = "TOKEN", hide_env_values = true, value_parser = values::token)]
    pub admin_token: Option<String>,

    /// Clients that may ask, as `name:digest` with commas between; all others are answered 401. A digest is the SHA-256 of a
    /// key; `nexus key NAME` makes both. Unset, as the file: everybody may
    #[arg(long, env = "NEXUS_API_KEYS", value_name = "NAME:DIGEST,…", hide_env_values = true, value_parser = values::api_keys)]
    pub api_keys: Option<ApiKeyList>,

    /// File of such clients, one a line, which is read again when it changes
    #[arg(long, env = "NEXUS_API_KEYS_FILE", value_name = "FILE")]
    pub api_keys_file: Option<PathBuf>,

    /// Origins of web pages that may ask from a browser (CORS), as `https://console.example.com` with commas between, or `*`
    #[arg(long, env = "NEXUS_CORS_ORIGINS", value_name = "ORIGIN,…", value_parser = values::origins)]
    pub cors_origins: Option<Origins>,

    /// Address of an OpenTelemetry collector that takes OTLP over HTTP, such as `http://127.0.0.1:4318`; unset, no traces are sent
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL", value_parser = values::collector)]
    pub otlp_endpoint: Option<String>,

    /// Time for one request, body included; beyond it, 504
    #[arg(long, env = "NEXUS_REQUEST_TIMEOUT_MS", value_name = "MS", default_value = "120000", value_parser = values::milliseconds)]
    pub request_timeout_ms: NonZeroU64,

    /// Time for requests in flight to finish after SIGTERM
    #[arg(long, env = "NEXUS_SHUTDOWN_TIMEOUT_MS", value_name = "MS", default_value = "25000", value_parser = values::milliseconds)]
    pub shutdown_timeout_ms: NonZeroU64,
}

impl Settings {
    /// Checks what no single value can tell. The message names the settings at fault.
    pub fn check(&self) -> Result<(), String> {
        // Left to the device, it is no less than that.
        let batch_tokens_max = match self.engine.batch_tokens_max {
            0 => crate::wiring::CPU_BATCH_TOKENS,
            tokens => tokens,
        };
        if self.engine.queue_tokens_max.get() < batch_tokens_max {
            return Err(format!(
                "NEXUS_QUEUE_TOKENS_MAX={}: expected at least NEXUS_BATCH_TOKENS_MAX, which is {batch_tokens_max}",
                self.engine.queue_tokens_max
            ));
        }
        self.models.check_hub_names()?;
        if cfg!(not(feature = "aws")) && self.cache_kind() == CacheKind::Dynamodb {
            return Err(
                "NEXUS_CACHE=dynamodb, which MODEL_BUCKET and EMBEDDING_CACHE_TABLE stand for, too: this nexus was \
                        built without the feature `aws`: set NEXUS_CACHE to redb, memory or off"
                    .to_owned(),
            );
        }
        match self.models.source() {
            ModelSource::BuiltIn if self.models.builtin == Toggle::Off || cfg!(not(feature = "builtin")) => {
                let why = match self.models.builtin {
                    Toggle::Off => "NEXUS_BUILTIN=off refuses the built-in models",
                    Toggle::On => "this program was built without models (feature builtin)",
                };
                // Both have to come from elsewhere, or one of them would be built in.
                match self.models.paths().into_iter().find(|(_, path)| !path.starts_with(HUB_SCHEME)) {
                    Some((name, _)) => Err(format!(
                        "MODEL_BUCKET is unset, and {why}: set MODEL_BUCKET to a bucket's name or to a folder that starts \
                         with /, ./, ../ or file://, or {name} to hf://owner/name"
                    )),
                    None => Ok(()),
                }
            }
            ModelSource::Bucket { bucket, .. } if cfg!(not(feature = "aws")) => Err(format!(
                "MODEL_BUCKET={bucket:?}: this program was built without AWS (feature aws): expected a folder that starts \
                 with /, ./, ../ or file://, or nothing at all for the built-in models"
            )),
            ModelSource::Bucket { bucket, .. } if !is_bucket_name(&bucket) => Err(format!(
                "MODEL_BUCKET={bucket:?} can be no bucket of S3: expected letters, digits, dots and hyphens, at \
                 least 3, with a path s3://bucket/path, or a folder that starts with /, ./, ../ or file://"
            )),
            _ => Ok(()),
        }
    }
}

impl Settings {
    /// Where embeddings are kept: what is asked for, or what follows from the other settings.
    pub fn cache_kind(&self) -> CacheKind {
        let shared = matches!(self.models.source(), ModelSource::Bucket { .. })
            || self.cache.table.embedding_cache_table.is_some();
        self.cache.kind.unwrap_or(if shared { CacheKind::Dynamodb } else { CacheKind::Redb })
    }
}

impl ModelSettings {
    /// The paths of both models, with the settings that they come from.
    fn paths(&self) -> [(&'static str, &str); 2] {
        [("RETRIEVER_MODEL_PATH", &self.retriever_model_path), ("RERANKER_MODEL_PATH", &self.reranker_model_path)]
    }

    /// The repository of a model hub that a path means: any path, where `MODEL_BUCKET` is `hf://`.
    pub fn hub_name<'a>(&self, path: &'a str) -> Option<&'a str> {
        path.strip_prefix(HUB_SCHEME).or((self.source() == ModelSource::Hub).then_some(path))
    }

    /// Whether some model is one that the binary carries.
    pub fn serves_built_in(&self) -> bool {
        self.source() == ModelSource::BuiltIn && self.paths().iter().any(|(_, path)| self.hub_name(path).is_none())
    }

    fn check_hub_names(&self) -> Result<(), String> {
        if let Some(bucket) = self.model_bucket.as_deref().filter(|bucket| bucket.starts_with(HUB_SCHEME))
            && self.source() != ModelSource::Hub
        {
            return Err(format!(
                "MODEL_BUCKET={bucket:?}: expected hf:// alone; RETRIEVER_MODEL_PATH and RERANKER_MODEL_PATH name the \
                 repositories"
            ));
        }
        for (name, path) in self.paths() {
            if let Some(repository) = self.hub_name(path) {
                values::hub_name(repository).map_err(|expected| format!("{name}={path:?}: expected {expected}"))?;
            }
        }
        Ok(())
    }

    /// Where the models come from.
    pub fn source(&self) -> ModelSource {
        self.model_bucket.as_deref().map_or(ModelSource::BuiltIn, ModelSource::parse)
    }
}

impl HttpSettings {
    /// Checks what no single value can tell. The message names the settings at fault.
    pub fn check(&self) -> Result<(), String> {
        for (name, bytes) in
            [("NEXUS_BODY_BYTES_MAX", self.body_bytes_max), ("NEXUS_TEXT_BODY_BYTES_MAX", self.text_body_bytes_max)]
        {
            // The largest body would never be taken, and its 503 would ask to try again.
            if self.bodies_bytes_max < bytes {
                return Err(format!(
                    "NEXUS_BODIES_BYTES_MAX={}: expected at least {name}, which is {bytes}",
                    self.bodies_bytes_max
                ));
            }
        }
        let ListenSettings { tls_cert_file, tls_key_file, .. } = &self.listen;
        if tls_cert_file.is_some() != tls_key_file.is_some() {
            let (given, missing) = match tls_cert_file {
                Some(_) => ("NEXUS_TLS_CERT_FILE", "NEXUS_TLS_KEY_FILE"),
                None => ("NEXUS_TLS_KEY_FILE", "NEXUS_TLS_CERT_FILE"),
            };
            return Err(format!("{given} is set, and {missing} is not: TLS needs both"));
        }
        let Some(url) = &self.targets_url else { return Ok(()) };
        if values::parse_s3_url(url).is_none() {
            return Err(format!(
                "NEXUS_TARGETS_URL={url:?}: expected s3://bucket or s3://bucket/prefix, with a bucket's name of letters, digits, dots and hyphens, at least 3"
            ));
        }
        if cfg!(not(feature = "aws")) {
            return Err(format!(
                "NEXUS_TARGETS_URL={url:?}: S3 is not in this build, which is without the feature `aws`"
            ));
        }
        Ok(())
    }

    /// Bucket and prefix (without slashes at its ends) of [`HttpSettings::targets_url`].
    pub fn targets_place(&self) -> Option<(String, String)> {
        self.targets_url.as_deref().and_then(values::parse_s3_url)
    }

    /// [`HttpSettings::request_timeout_ms`] as a duration.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms.get())
    }

    /// [`HttpSettings::shutdown_timeout_ms`] as a duration.
    pub fn shutdown_timeout(&self) -> Duration {
        Duration::from_millis(self.shutdown_timeout_ms.get())
    }
}
