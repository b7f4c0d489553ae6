//! `nexus bench golden`: small models against vectors that `transformers` made of them in f32.
//!
//! What bf16 may cost is measured: PyTorch itself, in bf16 on a CPU, is off from these vectors by up to 1.5e-3 as a
//! cosine, and by up to 0.058 of the root mean square of a folder's logits, which is their scale. About two and a half
//! times that is allowed here. Most mistakes listed in MISTAKES.md, beside the vectors, are beyond it.

use super::device::{Job, precision};
use super::{Failure, model, read_json};
use nexus_compute::Backend;
use nexus_compute::conformance::Precision;
use serde::Deserialize;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A hundred times what the CPU's f32 is off by.
const F32: Allowed = Allowed { cosine_error: 1e-6, logit_error: 1e-3 };
const BF16: Allowed = Allowed { cosine_error: 4e-3, logit_error: 0.15 };

#[derive(Clone, Copy)]
struct Allowed {
    /// One minus the cosine.
    cosine_error: f64,
    /// Relative to the root mean square of all logits, or to 1 where that is less.
    logit_error: f64,
}

pub(super) struct Golden<'a> {
    pub(super) folders: &'a [PathBuf],
}

#[derive(Deserialize)]
struct Expected {
    sequences: Vec<Vec<u32>>,
    #[serde(default)]
    vectors: Vec<Vec<f32>>,
    #[serde(default)]
    logits: Vec<f32>,
    batches: Vec<Vec<usize>>,
}

impl Job for Golden<'_> {
    fn run<B: Backend>(self, backend: Arc<B>) -> Result<(), Failure> {
        let allowed = if precision(&*backend)? == Precision::F32 { F32 } else { BF16 };
        let mut wrong = Vec::new();
        let mut report = String::new();
        for folder in self.folders {
            let (worst, limit, what) = check(&backend, folder, allowed)?;
            // Not-a-number is wrong too.
            let passed = worst <= limit;
            let verdict = if passed { "passed" } else { "FAILED" };
            let shown = folder.display();
            let _ = writeln!(report, "{verdict} {shown}: worst {what} {worst:.2e}, allowed {limit:.2e}");
            if !passed {
                wrong.push(shown.to_string());
            }
        }
        super::super::print(&format!("{report}golden on {}: {} folders\n", backend.name(), self.folders.len()))?;
        if wrong.is_empty() {
            Ok(())
        } else {
            Err(Failure::Run(format!("golden vectors differ: {}", wrong.join(", "))))
        }
    }
}

/// The largest error over all batches, what is allowed, and what it is an error of.
fn check<B: Backend>(backend: &Arc<B>, folder: &Path, allowed: Allowed) -> Result<(f64, f64, &'static str), Failure> {
    let expected: Expected = read_json(&folder.join("golden.json"))?;
    let loaded = model::load(backend, folder, model::longest(&expected.sequences))?;
    let columns = loaded.output_columns();
    let rows: Vec<&[f32]> = match expected.vectors.is_empty() {
        true => expected.logits.chunks(1).collect(),
        false => expected.vectors.iter().map(Vec::as_slice).collect(),
    };
    if rows.len() != expected.sequences.len()
        || expected.batches.is_empty()
        || rows.iter().any(|row| row.len() != columns)
    {
        let shown = folder.display();
        return Err(Failure::Run(format!(
            "{shown}/golden.json: expected {columns} floats for each sequence, and batches"
        )));
    }
    let mut worst = 0.0_f64;
    for batch in &expected.batches {
        let packed = model::pack(&expected.sequences, batch)?;
        let output = loaded.forward(&packed).map_err(|error| Failure::Run(format!("{}: {error}", folder.display())))?;
        for (row, &index) in output.chunks_exact(columns).zip(batch) {
            let error = if columns == 1 {
                (f64::from(row[0]) - f64::from(rows[index][0])).abs()
            } else {
                1.0 - cosine(row, rows[index])
            };
            // `max` would drop not-a-number.
            worst = if error.is_nan() { f64::NAN } else { worst.max(error) };
            if worst.is_nan() {
                return Ok((f64::NAN, 0.0, "error"));
            }
        }
    }
    if columns > 1 {
        return Ok((worst, allowed.cosine_error, "cosine error"));
    }
    let mean_square = expected.logits.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / rows.len() as f64;
    Ok((worst, allowed.logit_error * mean_square.sqrt().max(1.0), "logit error"))
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
