//! The top-k kernels and the machine's read bandwidth, one timing for each line on standard input: the half of
//! `bench/topk.py` that is Rust, so that it and other libraries can take turns.
//!
//!     topk_bench ROWS SOURCES DIM K
//!
//! ROWS and SOURCES are files of little-endian `f32`, row-major. Each line asks for one run of a task (see [`Task`]);
//! the answer is a line with its nanoseconds, then the positions of each source's best rows, sources apart by `;`.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout)]

use nexus_vectors::{Dtype, Rows, Scored, Sources, Threads, kernel_name, norms, top_k_many};
use rayon::prelude::*;
use std::error::Error;
use std::hint::black_box;
use std::io::Write;
use std::time::Instant;

/// What a line may ask for: `read`, or `SOURCES DTYPE NORMS`, as in `one F32 squares` or `many BF16 norms`.
enum Task {
    /// Reads all rows and adds them up: the bandwidth that a scan can have at most.
    Read,
    /// All sources, or the first alone; rows of a format; squared norms computed in the scan, or norms from before.
    TopK { many: bool, dtype: Dtype, norms: bool },
}

impl Task {
    fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["read"] => Some(Self::Read),
            [sources @ ("one" | "many"), dtype, norms @ ("squares" | "norms")] => {
                Some(Self::TopK { many: sources == "many", dtype: Dtype::parse(dtype)?, norms: norms == "norms" })
            }
            _ => None,
        }
    }
}

struct Stored {
    dtype: Dtype,
    bytes: Vec<u8>,
    norms: Vec<f64>,
}

impl Stored {
    fn new(dtype: Dtype, bytes: Vec<u8>, dim: usize) -> Result<Self, Box<dyn Error>> {
        let mut found = Vec::new();
        norms(Rows::from_bytes(&bytes, dtype, dim)?, 0, &mut found)?;
        Ok(Self { dtype, bytes, norms: found })
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [rows, sources, dim, k] = &arguments[..] else { return Err("usage: topk_bench ROWS SOURCES DIM K".into()) };
    let (dim, k): (usize, usize) = (dim.parse()?, k.parse()?);
    let f32_bytes = std::fs::read(rows)?;
    let mut sources_data = Vec::new();
    Dtype::F32.widen(&std::fs::read(sources)?, &mut sources_data);
    let many = Sources::new(&sources_data, dim)?;
    let one = Sources::new(&sources_data[..dim], dim)?;
    // Cut, not rounded: the figures are of time.
    let bf16_bytes = f32_bytes.chunks_exact(4).flat_map(|x| [x[2], x[3]]).collect();
    let stored = [Stored::new(Dtype::F32, f32_bytes, dim)?, Stored::new(Dtype::Bf16, bf16_bytes, dim)?];
    println!("{} on {} threads", kernel_name(), rayon::current_num_threads());

    for line in std::io::stdin().lines() {
        let line = line?;
        let (nanoseconds, ranked) = match Task::parse(&line).ok_or_else(|| format!("no such task: {line}"))? {
            Task::Read => {
                let began = Instant::now();
                black_box(read(&stored[0].bytes));
                (began.elapsed().as_nanos(), Vec::new())
            }
            Task::TopK { many: all, dtype, norms } => {
                let stored = stored.iter().find(|stored| stored.dtype == dtype).ok_or("no rows of that format")?;
                let sources = if all { &many } else { &one };
                let norms = norms.then_some(&stored.norms[..]);
                let rows = Rows::from_bytes(&stored.bytes, dtype, dim)?;
                let began = Instant::now();
                let ranked = top_k_many(sources, rows, norms, k, Threads::Pool)?;
                (began.elapsed().as_nanos(), ranked)
            }
        };
        let positions = |ranked: &Vec<Scored>| ranked.iter().map(|s| s.index.to_string()).collect::<Vec<_>>().join(" ");
        println!("{nanoseconds} {}", ranked.iter().map(positions).collect::<Vec<_>>().join(";"));
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// Adds up all bytes, eight at a time, on all cores.
fn read(bytes: &[u8]) -> u64 {
    /// Places that each thread reads from in turn, since one place alone does not get all that the memory gives.
    const STREAMS: usize = 4;
    const LINE: usize = 64;
    let part = bytes.len().div_ceil(rayon::current_num_threads() * 8).next_multiple_of(STREAMS * LINE);
    let sum = |part: &[u8]| {
        let mut sums = [[0u64; LINE / 8]; STREAMS];
        let stream = part.len() / (STREAMS * LINE) * LINE;
        let streams: [&[[u8; LINE]]; STREAMS] = std::array::from_fn(|s| part[s * stream..][..stream].as_chunks().0);
        for i in 0..stream / LINE {
            for (sums, lines) in sums.iter_mut().zip(streams) {
                for (sum, word) in sums.iter_mut().zip(lines[i].as_chunks::<8>().0) {
                    *sum = sum.wrapping_add(u64::from_le_bytes(*word));
                }
            }
        }
        sums.as_flattened().iter().fold(0u64, |a, &b| a.wrapping_add(b))
    };
    bytes.par_chunks(part).map(sum).reduce(|| 0, u64::wrapping_add)
}
