//! `nexus key`: a new API key, and the line by which a service knows it.

use super::{Failure, print};
use crate::api_keys::{self, ApiKey};
use clap::Args;
use std::fmt::Write as _;

/// What a key begins with, so that people and scanners of repositories know one when they see it.
const PREFIX: &str = "nxs_";
const RANDOM_BYTES: usize = 32;

#[derive(Args, Debug)]
pub(super) struct KeyArgs {
    /// Whose key it is: letters, digits, `.`, `_` and `-`; the log names clients so
    #[arg(value_name = "NAME", value_parser = name)]
    name: String,
}

fn name(s: &str) -> Result<String, String> {
    if api_keys::is_name(s) { Ok(s.to_owned()) } else { Err("1 to 64 letters, digits, `.`, `_` and `-`".to_owned()) }
}

pub(super) fn run(args: &KeyArgs) -> Result<(), Failure> {
    let mut random = [0; RANDOM_BYTES];
    getrandom::fill(&mut random)
        .map_err(|error| Failure::Run(format!("the system gives no random numbers: {error}")))?;
    let mut key = PREFIX.to_owned();
    for byte in random {
        // Into memory: nothing can fail.
        let _ = write!(key, "{byte:02x}");
    }
    let line = ApiKey { name: args.name.as_str().into(), digest: api_keys::digest_of(key.as_bytes()) };
    print(&format!(
        "key, for the client; it is kept nowhere:\n  {key}\nline, for NEXUS_API_KEYS or the file of NEXUS_API_KEYS_FILE:\n  {line}\n"
    ))
}
