//! `nexus bench`: one device against references, and how fast it is. bench/gpu.sh drives it on machines that have a GPU
//! and no Rust.
//!
//! One file a command. What runs here is what serves: the same backends and models; only the tokenizer is left out where
//! models are measured, so that those of random weights need none. Deliberately absent: making models, and judging them
//! against another framework (bench/gpu/, in Python); the speed of queues and HTTP, measured by a client of `nexus serve`.

mod clock;
mod conformance;
mod device;
mod faulty;
mod golden;
mod model;
mod npy;
mod replicas;
mod run;
mod search;
mod stages;
mod time;
mod timed;

use super::Failure;
use clap::{Args, Subcommand};
use nexus_vectors::Dtype;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

#[derive(Args, Debug)]
pub(super) struct BenchArgs {
    /// Device to run on
    #[arg(long, global = true, value_name = "cpu[:N,ISA,int8]|cuda:N", default_value = "cpu", value_parser = device::parse)]
    device: device::Chosen,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Every operation against the scalar reference
    Conformance,
    /// Small models against the golden vectors in their folders
    Golden {
        /// Folders with config.json, model.safetensors and golden.json
        #[arg(required = true, value_name = "FOLDER")]
        folders: Vec<PathBuf>,
    },
    /// Run a model on token ids, and write its rows as a .npy file of f32
    Run {
        /// Folder with config.json and weights
        #[arg(value_name = "MODEL_FOLDER")]
        model: PathBuf,
        /// JSON: {"sequences": [[id, ...], ...], "batches": [[index of a sequence, ...], ...]}
        #[arg(long, value_name = "FILE")]
        tokens: PathBuf,
        /// Where the rows go, those of all batches one after another
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Time a model on token ids; prints a line of JSON for each load
    Time {
        /// Folder with config.json and weights
        #[arg(value_name = "MODEL_FOLDER")]
        model: PathBuf,
        /// JSON: {"sequences": [[id, ...], ...], "loads": [{"name": "...", "batches": [[index, ...], ...]}]}
        #[arg(long, value_name = "FILE")]
        tokens: PathBuf,
        /// Measured repetitions of each load, after two that warm up
        #[arg(long, value_name = "N", default_value = "10")]
        repetitions: NonZeroUsize,
        /// Measure a load once for each line of standard input, which names it, after a run of each that warms up
        #[arg(long)]
        on_request: bool,
    },
    /// How long each kind of operation takes in a model; prints a line of JSON for each load
    Stages {
        /// Folder with config.json and weights
        #[arg(value_name = "MODEL_FOLDER")]
        model: PathBuf,
        /// As for `time`
        #[arg(long, value_name = "FILE")]
        tokens: PathBuf,
        /// Repetitions of each load, after one that warms up
        #[arg(long, value_name = "N", default_value = "3")]
        repetitions: NonZeroUsize,
    },
    /// Two replicas on the device, one of which fails while clients wait: whether all answers come, and are right
    Replicas {
        /// Folder of an embedder, with its tokenizer
        #[arg(value_name = "RETRIEVER_FOLDER")]
        retriever: PathBuf,
        /// Folder of a cross-encoder, with its tokenizer
        #[arg(value_name = "RERANKER_FOLDER")]
        reranker: PathBuf,
        /// Forward passes after which one replica fails
        #[arg(long, value_name = "N", default_value = "5")]
        passes: usize,
    },
    /// Search random rows on the CPU, and on the device if it is another; prints a line of JSON
    Search {
        #[arg(long, value_name = "N", default_value = "10000")]
        rows: NonZeroUsize,
        #[arg(long, value_name = "N", default_value = "4096")]
        columns: NonZeroUsize,
        #[arg(long, value_name = "f32|bf16", default_value = "bf16", value_parser = search::parse_dtype)]
        dtype: Dtype,
        /// Sources of one search
        #[arg(long, value_name = "N", default_value = "1")]
        sources: NonZeroUsize,
        #[arg(long, value_name = "K", default_value = "50")]
        top: NonZeroUsize,
        /// Measured repetitions, after two that warm up
        #[arg(long, value_name = "N", default_value = "10")]
        repetitions: NonZeroUsize,
    },
}

pub(super) fn run(args: &BenchArgs) -> Result<(), Failure> {
    match &args.command {
        Command::Conformance => device::with_backend(args.device, conformance::Conformance),
        Command::Golden { folders } => device::with_backend(args.device, golden::Golden { folders }),
        Command::Run { model, tokens, out } => device::with_backend(args.device, run::Run { model, tokens, out }),
        Command::Time { model, tokens, repetitions, on_request } => {
            let repetitions = (!on_request).then_some(repetitions.get());
            device::with_backend(args.device, time::Time { model, tokens, repetitions })
        }
        Command::Stages { model, tokens, repetitions } => {
            device::with_backend(args.device, stages::Stages { model, tokens, repetitions: repetitions.get() })
        }
        Command::Replicas { retriever, reranker, passes } => {
            device::with_two(args.device, replicas::Replicas { retriever, reranker, passes: *passes })
        }
        &Command::Search { rows, columns, dtype, sources, top, repetitions } => {
            search::run(args.device, search::Search { rows, columns, dtype, sources, top, repetitions })
        }
    }
}

/// Reads a file of JSON.
fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::Run(format!("{}: {error}", path.display()));
    serde_json::from_slice(&std::fs::read(path).map_err(|error| failed(&error))?).map_err(|error| failed(&error))
}
