//! One file's way here: asked for again from where it broke off, until all of it is here and right.
//!
//! A file grows under its temporary name, by appending, so that its length is what is here. An answer that stalls, breaks
//! off or is an error that passes is followed by another request after a pause; tries that bring something do not count.

use super::HubOptions;
use super::layout::bytes_of;
use super::listing::Wanted;
use super::trouble::Trouble;
use reqwest_of_hf_hub::header::{CONTENT_RANGE, RANGE};
use reqwest_of_hf_hub::{Client, Response, StatusCode};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Read as _};
use std::path::Path;
use std::time::Duration;
use tokio::fs::OpenOptions;
use tokio::io::AsyncWriteExt as _;
use tokio::time::{Instant, timeout, timeout_at};

/// A try that brings this much is one that works.
const WORKING_BYTES: u64 = 64 << 10;
const READ_BYTES: usize = 1 << 20;

/// Tries in a row that brought nothing.
pub(super) struct Tries {
    failed: u32,
    max: u32,
    backoff: Duration,
}

impl Tries {
    pub(super) fn new(max: u32, backoff: Duration) -> Self {
        Self { failed: 0, max, backoff }
    }

    /// Counts a failure and waits before the next try, or gives the failure back when there were enough.
    pub(super) async fn again(&mut self, trouble: Trouble, what: &str) -> Result<(), Trouble> {
        self.failed += 1;
        if self.failed >= self.max {
            return Err(trouble);
        }
        let pause = self.backoff * (1 << (self.failed - 1).min(4));
        // Half to all of it, so that many who lost one server do not come back as one.
        let share = 0.5 + 0.5 * (RandomState::new().hash_one(0) as f64 / u64::MAX as f64);
        if let Trouble::Passing(reason) = &trouble {
            tracing::warn!(reason, tries = self.failed, "{what} did not come; trying again");
        }
        tokio::time::sleep(pause.mul_f64(share)).await;
        Ok(())
    }
}

/// Brings all of `file` to `part`, synchronized and checked. `count` is told how much of it is here.
pub(super) async fn fetch(
    client: &Client,
    options: &HubOptions,
    url: &str,
    file: &Wanted,
    part: &Path,
    count: &(dyn Fn(u64) + Sync),
) -> Result<(), Trouble> {
    let mut tries = Tries::new(options.tries_max, options.backoff);
    let mut wrong = false;
    loop {
        let before = bytes_of(part).unwrap_or(0);
        match attempt(client, options, url, file, part, count).await {
            Ok(()) if is_right(file, part).await? => return Ok(()),
            Ok(()) => {
                tokio::fs::remove_file(part).await?;
                if wrong {
                    let what = format!("{} has other bytes than the hub lists (SHA-256), twice", file.name);
                    return Err(Trouble::Broken(what));
                }
                // Perhaps what was here before was wrong already.
                wrong = true;
                tracing::warn!(file = file.name, "other bytes than the hub lists (SHA-256); from the start");
            }
            Err(trouble) if trouble.is_transient() => {
                if bytes_of(part).unwrap_or(0) >= before + WORKING_BYTES {
                    tries.failed = 0;
                }
                tries.again(trouble, &file.name).await?;
            }
            Err(trouble) => return Err(trouble),
        }
    }
}

/// One request, for what is missing.
async fn attempt(
    client: &Client,
    options: &HubOptions,
    url: &str,
    file: &Wanted,
    part: &Path,
    count: &(dyn Fn(u64) + Sync),
) -> Result<(), Trouble> {
    let mut out = OpenOptions::new().create(true).append(true).open(part).await?;
    let mut here = out.metadata().await?.len();
    if here > file.size {
        out.set_len(0).await?;
        here = 0;
    }
    count(here);
    if here < file.size {
        let mut request = client.get(url);
        if here > 0 {
            request = request.header(RANGE, format!("bytes={here}-"));
        }
        let sent = timeout(options.stall_timeout, request.send()).await;
        let response = sent.map_err(|_| stalled(options))?.map_err(Trouble::of_request)?;
        let response = Trouble::of_status(response)?;
        if response.status() == StatusCode::PARTIAL_CONTENT {
            check_range(&response, here, file)?;
        } else if here > 0 {
            // Ranges are an offer that servers need not take.
            out.set_len(0).await?;
            here = 0;
        }
        if let Some(bytes) = response.content_length()
            && here + bytes != file.size
        {
            return Err(other_size(file, here + bytes));
        }
        receive(response, options, file, here, &mut out, count).await?;
    }
    out.flush().await?;
    out.sync_all().await?;
    Ok(())
}

/// Appends the body. Slower than the floor counts as broken.
async fn receive(
    mut response: Response,
    options: &HubOptions,
    file: &Wanted,
    mut here: u64,
    out: &mut tokio::fs::File,
    count: &(dyn Fn(u64) + Sync),
) -> Result<(), Trouble> {
    let mut window = (Instant::now() + options.stall_timeout, here);
    loop {
        let chunk = match timeout_at(window.0, response.chunk()).await {
            Ok(Ok(Some(chunk))) => chunk,
            Ok(Ok(None)) if here < file.size => {
                out.flush().await?;
                return Err(Trouble::Passing(format!("{} ended after {here} of {} bytes", file.name, file.size)));
            }
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(error)) => {
                // What came is kept; the next request begins behind it.
                out.flush().await?;
                return Err(Trouble::of_request(error));
            }
            Err(_) if here - window.1 >= options.stall_bytes_min => {
                window = (Instant::now() + options.stall_timeout, here);
                continue;
            }
            Err(_) => {
                out.flush().await?;
                return Err(stalled(options));
            }
        };
        here += chunk.len() as u64;
        if here > file.size {
            return Err(other_size(file, here));
        }
        out.write_all(&chunk).await?;
        count(here);
    }
}

/// An answer of another range would put bytes in the wrong place.
fn check_range(response: &Response, here: u64, file: &Wanted) -> Result<(), Trouble> {
    let expected = format!("bytes {here}-{}/{}", file.size - 1, file.size);
    let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok()).unwrap_or("none");
    if range == expected {
        return Ok(());
    }
    Err(Trouble::Broken(format!("{}: expected the range {expected:?}, got {range:?}", file.name)))
}

fn other_size(file: &Wanted, bytes: u64) -> Trouble {
    Trouble::Broken(format!("{} has {bytes} bytes or more, and is listed with {}", file.name, file.size))
}

fn stalled(options: &HubOptions) -> Trouble {
    Trouble::Passing(format!("nearly nothing came for {} s", options.stall_timeout.as_secs_f32()))
}

/// Whether a complete file has the content that the hub lists, as far as it lists any.
async fn is_right(file: &Wanted, part: &Path) -> Result<bool, Trouble> {
    let Some(expected) = file.sha256.clone() else { return Ok(true) };
    let part = part.to_owned();
    let sum = tokio::task::spawn_blocking(move || sha256_of(&part)).await.map_err(io::Error::other)??;
    Ok(sum == expected)
}

fn sha256_of(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            bytes => hasher.update(&buffer[..bytes]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
