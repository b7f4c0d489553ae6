//! `nexus`, the process: the only place that knows exit statuses.

#![forbid(unsafe_code)]

use nexus::cli::{self, Failure};
use std::process::ExitCode;

/// Of a request, one thread makes what another drops, and bodies of all sizes lie beside what caches keep. glibc's arenas, eight a
/// core, each grow with that, long after the caches are full (`bench/load.sh soak`).
#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match cli::run(std::env::args_os()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let (message, status) = match failure {
                Failure::Usage(message) => (Some(message), 2),
                Failure::Run(message) => (Some(message), 1),
                // 128 + SIGINT, as shells report it.
                Failure::Interrupted => (None, 130),
            };
            if let Some(message) = message {
                eprintln!("nexus: {message}");
            }
            ExitCode::from(status)
        }
    }
}
