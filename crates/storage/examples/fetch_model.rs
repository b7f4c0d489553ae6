//! Fetches a model from a bucket, and says how fast that was and how much memory it took:
//! `cargo run -p nexus-storage --features aws --example fetch_model -- BUCKET PATH FOLDER`. Credentials and endpoint are
//! the SDK's business (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, ...).

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "it is what this is for")]

use nexus_storage::{ModelStore, S3Models, S3Options, aws_config};
use std::sync::Mutex;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bucket, path, folder] = &arguments[..] else { return Err("expected BUCKET PATH FOLDER".into()) };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let store = S3Models::new(aws_config("us-east-1"), bucket, "", S3Options::new(folder));
    let began = Instant::now();
    let progress = Mutex::new((None, 0));
    let found = runtime.block_on(store.fetch(path, &|told| {
        let mut progress = progress.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let first = *progress.0.get_or_insert(told.bytes_done);
        *progress = (Some(first), told.bytes_done);
    }))?;
    let seconds = began.elapsed().as_secs_f64();
    let (first, last) = progress.into_inner().unwrap_or_default();
    let megabytes = (last - first.unwrap_or(0)) as f64 / 1e6;
    println!("{}: {megabytes:.0} MB in {seconds:.1} s, {:.0} MB/s", found.display(), megabytes / seconds);
    // Linux tells what the most was.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().filter(|line| line.starts_with("VmHWM")).for_each(|line| println!("{line}"));
    Ok(())
}
