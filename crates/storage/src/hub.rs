//! Models from a model hub: `owner/name[@revision]`.
//!
//! Names and addresses, the list of a repository's files and the layout on disk are those of the crate `hf-hub`, so that
//! a folder can be shared with other tools of the hub: `models--owner--name/{blobs,refs,snapshots}`. The bytes are
//! fetched here ([`transfer`]): that crate's own way has no time limits, no retries, and goes on after an error.
//!
//! A fetch asks for the commit that the revision stands for, takes the files that a model needs ([`listing`]), and
//! answers that commit's snapshot folder, in which each file is a link to its content ([`layout`]). What is complete is
//! kept: a later fetch transfers only what is missing, one of a full commit hash asks nobody, and one that can not reach
//! the hub answers the commit that it knew last.
//!
//! Deliberately absent: the environment and token files (address and token are given), and other protocols of the hub
//! (Xet, git).

mod layout;
mod listing;
mod name;
mod transfer;
mod trouble;

use crate::model_store::{FetchProgress, ModelStore, ModelStoreError, Progress};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use hf_hub::api::tokio::{Api, ApiBuilder};
use hf_hub::{Cache, Repo, RepoType};
use layout::Layout;
use listing::Listing;
use reqwest_of_hf_hub::Client;
use reqwest_of_hf_hub::header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue, USER_AGENT};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use trouble::Trouble;

pub use name::HubName;

/// Where people find models, unless told otherwise.
pub const HUB_ENDPOINT: &str = "https://huggingface.co";

/// Progress is told this often; a state that is told on every packet is a lock that is taken on every packet.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// Tries to get the list of files.
const LISTING_TRIES_MAX: u32 = 4;

/// How a hub is used.
#[derive(Clone)]
pub struct HubOptions {
    /// Address of the hub, without a path.
    pub endpoint: String,
    /// What proves who asks; private and gated repositories need it. It is sent to the hub alone, never to the servers
    /// that the hub sends to.
    pub token: Option<String>,
    /// Folder of what is downloaded.
    pub folder: PathBuf,
    /// Files of one model that are transferred at once.
    pub files_at_once_max: usize,
    /// Time for a connection.
    pub connect_timeout: Duration,
    /// Time for an answer to begin, and for the next [`HubOptions::stall_bytes_min`] of a file; beyond it the rest of
    /// the file is asked for again.
    pub stall_timeout: Duration,
    /// Bytes that come in each `stall_timeout`, at least.
    pub stall_bytes_min: u64,
    /// Tries in a row that bring nothing, after which the fetch fails.
    pub tries_max: u32,
    /// Pause before the first new try; each further one is twice as long, up to 16 times this.
    pub backoff: Duration,
}

impl HubOptions {
    /// Usual limits: 8 files at once, 10 s to connect, 64 KiB in each 30 s, 6 tries from 0.5 s on.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: HUB_ENDPOINT.to_owned(),
            token: None,
            folder: folder.into(),
            files_at_once_max: 8,
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            stall_bytes_min: 64 << 10,
            tries_max: 6,
            backoff: Duration::from_millis(500),
        }
    }
}

impl fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A token has no place in logs.
        f.debug_struct("HubOptions")
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "set"))
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

/// Models of a hub. To be used on a tokio runtime.
#[derive(Debug)]
pub struct HubModels {
    options: HubOptions,
    api: Api,
    client: Client,
}

impl HubModels {
    /// Prepares access to the hub; asks nobody yet.
    ///
    /// # Errors
    ///
    /// When the token can not be part of a request, or this machine's certificates can not be read.
    pub fn new(mut options: HubOptions) -> Result<Self, ModelStoreError> {
        options.endpoint.truncate(options.endpoint.trim_end_matches('/').len());
        options.token = options.token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        let place = || options.endpoint.clone();
        let other = |error: &dyn std::error::Error| trouble::other(place(), crate::error_chain(error));
        let mut headers = HeaderMap::new();
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("nexus/", env!("CARGO_PKG_VERSION"))));
        // Sizes are those of the files, not of what a server makes of them.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(token) = &options.token {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| ModelStoreError::Denied {
                place: place(),
                advice: "the token (HF_TOKEN) has characters that no token has".to_owned(),
            })?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        // A connection for each file: a dead one takes nothing else along, and ends with its request.
        let client = Client::builder()
            .http1_only()
            .connect_timeout(options.connect_timeout)
            .default_headers(headers)
            .build()
            .map_err(|error| other(&error))?;
        // Its transfers are not used, so that its folder is none; it would look for a token file beside it.
        let api = ApiBuilder::from_cache(Cache::new(options.folder.join("none")))
            .with_endpoint(options.endpoint.clone())
            .with_token(options.token.clone())
            .with_progress(false)
            .build()
            .map_err(|error| other(&error))?;
        Ok(Self { options, api, client })
    }

    async fn fetch_named(&self, name: &HubName, progress: &Progress<'_>) -> Result<PathBuf, ModelStoreError> {
        let explain = |trouble: Trouble| trouble.explain(name, &self.options);
        let layout = Layout::new(&self.options.folder, name);
        let known = layout.known(name);
        if let Some((folder, bytes)) = known.as_ref().filter(|_| name.is_commit()) {
            progress(FetchProgress { bytes_done: *bytes, bytes_total: *bytes });
            return Ok(folder.clone());
        }
        // With something to fall back on, nobody has to wait for a network that is down; without, the reason is known
        // within seconds.
        let tries_max = if known.is_some() { 1 } else { self.options.tries_max.min(LISTING_TRIES_MAX) };
        let listing = match self.listing(name, tries_max).await {
            Ok(listing) => listing,
            Err(trouble) => match known {
                Some((folder, bytes)) if trouble.is_transient() => {
                    let reason = explain(trouble).with_causes();
                    tracing::warn!(reason, folder = %folder.display(), "the hub is out of reach: the commit known last serves");
                    progress(FetchProgress { bytes_done: bytes, bytes_total: bytes });
                    return Ok(folder);
                }
                _ => return Err(explain(trouble)),
            },
        };
        self.complete(&layout, name, &listing, progress).await.map_err(explain)
    }

    async fn listing(&self, name: &HubName, tries_max: u32) -> Result<Listing, Trouble> {
        let mut tries = transfer::Tries::new(tries_max, self.options.backoff);
        loop {
            match listing::get(&self.api, name, self.options.stall_timeout).await {
                Err(trouble) if trouble.is_transient() => tries.again(trouble, "the list of files").await?,
                listing => return listing,
            }
        }
    }

    /// Brings all files here; the folder that they are in.
    async fn complete(
        &self,
        layout: &Layout,
        name: &HubName,
        listing: &Listing,
        progress: &Progress<'_>,
    ) -> Result<PathBuf, Trouble> {
        let tally = Tally::new(listing, progress);
        tally.tell();
        let _lock = layout.lock(|| tally.look(listing, layout)).await?;
        let repo = Repo::with_revision(listing.repository.clone(), RepoType::Model, listing.commit.clone());
        let repo = self.api.repo(repo);
        let mut transfers: Vec<BoxFuture<'_, Result<(), Trouble>>> = Vec::new();
        for (index, file) in listing.files.iter().enumerate() {
            let url = repo.url(&file.name);
            let tally = &tally;
            let one = async move {
                let blob = layout.blob(file);
                if layout::bytes_of(&blob) != Some(file.size) {
                    let part = layout.part(file);
                    let count = |bytes| tally.set(index, bytes);
                    transfer::fetch(&self.client, &self.options, &url, file, &part, &count).await?;
                    layout::settle(&part, &blob)?;
                }
                tally.set(index, file.size);
                Ok(layout.link(&listing.commit, file)?)
            };
            transfers.push(one.boxed());
        }
        // Nothing is spawned: who drops the fetch ends it, and so does the first file that fails.
        stream::iter(transfers).buffer_unordered(self.options.files_at_once_max.max(1)).try_collect::<()>().await?;
        tally.tell();
        // Still under the lock: another process may be about to do the same.
        Ok(layout.remember(name, listing)?)
    }
}

impl ModelStore for HubModels {
    fn name(&self) -> String {
        format!("hub {}", self.options.endpoint)
    }

    /// `path` is `owner/name[@revision]`, with or without `hf://`.
    fn fetch<'a>(
        &'a self,
        path: &'a str,
        progress: &'a Progress<'a>,
    ) -> BoxFuture<'a, Result<PathBuf, ModelStoreError>> {
        async move { self.fetch_named(&HubName::parse(path)?, progress).await }.boxed()
    }
}

/// How many bytes of each file are here.
struct Tally<'a> {
    progress: &'a Progress<'a>,
    bytes_total: u64,
    counted: Mutex<Counted>,
}

struct Counted {
    bytes: Vec<u64>,
    told: Instant,
}

impl<'a> Tally<'a> {
    fn new(listing: &Listing, progress: &'a Progress<'a>) -> Self {
        let counted = Counted { bytes: vec![0; listing.files.len()], told: Instant::now() };
        Self { progress, bytes_total: listing.bytes(), counted: Mutex::new(counted) }
    }

    fn set(&self, index: usize, bytes: u64) {
        let due = {
            let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
            counted.bytes[index] = bytes;
            let due = counted.told.elapsed() >= TELL_EVERY;
            if due {
                counted.told = Instant::now();
            }
            due
        };
        if due {
            self.tell();
        }
    }

    /// Counts what another process brings here; whether there is more than before.
    fn look(&self, listing: &Listing, layout: &Layout) -> bool {
        let found: Vec<u64> = listing.files.iter().map(|file| layout.bytes_here(file)).collect();
        let more = {
            let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
            let more = found != counted.bytes;
            counted.bytes = found;
            more
        };
        if more {
            self.tell();
        }
        more
    }

    fn tell(&self) {
        let bytes_done = self.counted.lock().unwrap_or_else(PoisonError::into_inner).bytes.iter().sum();
        (self.progress)(FetchProgress { bytes_done, bytes_total: self.bytes_total });
    }
}
