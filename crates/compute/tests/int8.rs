//! Products with 8-bit weights: exact where nothing is rounded, within what rounding may cost elsewhere, and never finite
//! where they should not be.

#![forbid(unsafe_code)]

use nexus_compute::cpu::{Cpu, CpuOptions, CpuWeights, Isa};
use nexus_compute::{Backend, DType, PackedBatch, TensorView};

const DEPTHS: [usize; 9] = [1, 2, 3, 15, 32, 33, 255, 1024, 2500];
const ROWS: [usize; 6] = [1, 2, 5, 7, 13, 100];
/// The largest integers that activations and weights are rounded to.
const ROW_STEPS: i64 = 16_384;
const WEIGHT_STEPS: i64 = 127;

fn devices() -> impl Iterator<Item = Cpu> {
    let isas = Isa::ALL.into_iter().filter(|isa| isa.is_available());
    isas.flat_map(|isa| [1, 2].map(|threads| cpu(isa, threads, CpuWeights::Int8)))
}

fn cpu(isa: Isa, threads: usize, weights: CpuWeights) -> Cpu {
    Cpu::new(CpuOptions { isa: Some(isa), threads: Some(threads), weights }).unwrap()
}

/// Numbers that look random, of 16 bits.
fn noise(seed: u64) -> impl FnMut() -> i64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as i64 & 0xffff
    }
}

struct Matrix {
    shape: [usize; 2],
    values: Vec<f32>,
}

impl Matrix {
    fn new(rows: usize, columns: usize, mut value: impl FnMut(usize, usize) -> f32) -> Self {
        let values = (0..rows * columns).map(|i| value(i / columns, i % columns)).collect();
        Self { shape: [rows, columns], values }
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.shape[1]..(row + 1) * self.shape[1]]
    }

    fn with_view<R>(&self, f: impl FnOnce(&TensorView<'_>) -> R) -> R {
        let bytes: Vec<u8> = self.values.iter().flat_map(|x| x.to_le_bytes()).collect();
        f(&TensorView::new(DType::F32, &self.shape, &bytes).unwrap())
    }
}

/// `x W^T`, or that and `b` added to `residual`.
fn product(cpu: &Cpu, x: &Matrix, weight: &Matrix, added: Option<(&Matrix, &Matrix)>) -> Vec<f32> {
    let batch = PackedBatch::new(&[(0..x.shape[0] as u32).collect::<Vec<_>>()]).unwrap();
    let batch = cpu.upload(&batch).unwrap();
    let activations = |matrix: &Matrix| {
        let table = matrix.with_view(|view| cpu.prepare_table(view)).unwrap();
        cpu.embed(&table, None, &batch).unwrap()
    };
    let bias: Vec<u8> = added.iter().flat_map(|(_, bias)| &bias.values).flat_map(|x| x.to_le_bytes()).collect();
    let bias_shape = [bias.len() / 4];
    let bias: Vec<_> = added.iter().map(|_| TensorView::new(DType::F32, &bias_shape, &bias).unwrap()).collect();
    let linear = weight.with_view(|view| cpu.prepare_linear(std::slice::from_ref(view), &bias)).unwrap();
    let x = activations(x);
    let out = match added {
        None => cpu.linear(&x, &linear).unwrap(),
        Some((residual, _)) => {
            let mut out = activations(residual);
            cpu.linear_add(&x, &linear, &mut out).unwrap();
            out
        }
    };
    cpu.download(&out).unwrap()
}

/// Integers of which the largest of each row is what rounding takes as its largest step: nothing is rounded.
fn integers(rows: usize, columns: usize, largest: i64, seed: u64) -> Matrix {
    let mut next = noise(seed);
    Matrix::new(rows, columns, |row, column| {
        let value = if column == row % columns { largest } else { next() % (2 * largest + 1) - largest };
        value as f32
    })
}

fn exact(x: &Matrix, weight: &Matrix) -> Vec<f64> {
    let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
    (0..x.shape[0])
        .flat_map(|row| (0..weight.shape[0]).map(move |c| (row, c)))
        .map(|(row, c)| dot(x.row(row), weight.row(c)))
        .collect()
}

#[test]
fn what_needs_no_rounding_is_exact() {
    for cpu in devices() {
        for (depth, rows) in DEPTHS.into_iter().flat_map(|depth| ROWS.map(|rows| (depth, rows))) {
            // Whole panels, and part of one.
            let weight = integers(75, depth, WEIGHT_STEPS, depth as u64);
            let x = integers(rows, depth, ROW_STEPS, rows as u64 + 77);
            // Sums over a block are exact; those of all blocks are rounded as floats.
            let tolerance = 2e-7 * (depth as i64 * ROW_STEPS * WEIGHT_STEPS) as f64;
            for (found, want) in product(&cpu, &x, &weight, None).iter().zip(exact(&x, &weight)) {
                assert!(
                    (f64::from(*found) - want).abs() <= tolerance,
                    "{} {depth} x {rows}: {found} {want}",
                    cpu.name()
                );
            }
        }
    }
}

#[test]
fn the_largest_sums_do_not_overflow() {
    for cpu in devices() {
        for depth in [1024, 4097] {
            for sign in [1.0, -1.0] {
                let weight = Matrix::new(40, depth, |_, _| WEIGHT_STEPS as f32);
                let x = Matrix::new(3, depth, |_, _| sign * ROW_STEPS as f32);
                let want = sign * (depth as i64 * WEIGHT_STEPS * ROW_STEPS) as f32;
                let found = product(&cpu, &x, &weight, None);
                assert!(
                    found.iter().all(|x| (x - want).abs() <= 1e-6 * want.abs()),
                    "{}: {}, {want}",
                    cpu.name(),
                    found[0]
                );
            }
        }
    }
}

#[test]
fn rounding_costs_no_more_than_half_a_step_of_each() {
    for cpu in devices() {
        let mut next = noise(5);
        // Sizes of channels and tokens differ by much, and one activation in a hundred is an outlier.
        let mut value = |scale: f32| (next() as f32 / 32_768.0 - 1.0) * scale;
        let weight = Matrix::new(50, 333, |row, _| value(10f32.powi(row as i32 % 7 - 3)));
        let x = Matrix::new(9, 333, |row, column| {
            value(10f32.powi(row as i32 - 4) * if column % 100 == 3 { 50.0 } else { 1.0 })
        });
        let largest = |row: &[f32]| f64::from(row.iter().fold(0.0f32, |m, x| m.max(x.abs())));
        let size = |row: &[f32]| row.iter().map(|x| f64::from(x.abs())).sum::<f64>();
        let found = product(&cpu, &x, &weight, None);
        for (i, (found, want)) in found.iter().zip(exact(&x, &weight)).enumerate() {
            let (x, w) = (x.row(i / 50), weight.row(i % 50));
            let steps = (largest(w) / WEIGHT_STEPS as f64, largest(x) / ROW_STEPS as f64);
            let bound = 0.5 * (steps.0 * size(x) + steps.1 * size(w)) * 1.01 + 1e-6 * want.abs();
            assert!((f64::from(*found) - want).abs() <= bound, "{} {i}: {found} {want} {bound}", cpu.name());
        }
    }
}

#[test]
fn bias_and_residual_are_added() {
    for cpu in devices() {
        let (weight, x) = (integers(37, 65, WEIGHT_STEPS, 3), integers(4, 65, ROW_STEPS, 4));
        let (bias, residual) = (integers(1, 37, 1_000_000, 5), integers(4, 37, 1_000_000, 6));
        let found = product(&cpu, &x, &weight, Some((&residual, &bias)));
        for (i, (found, want)) in found.iter().zip(exact(&x, &weight)).enumerate() {
            let want = want + f64::from(bias.values[i % 37]) + f64::from(residual.values[i]);
            assert!((f64::from(*found) - want).abs() <= 4.0 + 1e-6 * want.abs(), "{}: {found} {want}", cpu.name());
        }
    }
}

#[test]
fn what_is_not_finite_stays_so_and_touches_nothing_else() {
    for cpu in devices() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = integers(3, 70, ROW_STEPS, 1);
            let mut weight = integers(40, 70, WEIGHT_STEPS, 2);
            let clean = product(&cpu, &x, &weight, None);
            x.values[70 + 69] = bad;
            weight.values[5 * 70 + 11] = bad;
            for (i, (found, clean)) in product(&cpu, &x, &weight, None).iter().zip(clean).enumerate() {
                if i / 40 == 1 || i % 40 == 5 {
                    assert!(!found.is_finite(), "{} {bad} {i}: {found}", cpu.name());
                } else {
                    assert_eq!(*found, clean, "{} {bad} {i}", cpu.name());
                }
            }
        }
    }
}

#[test]
fn zeros_and_tiny_numbers_give_zeros_or_tiny_numbers() {
    for cpu in devices() {
        for size in [0.0, 1e-44, 1e-37, 1e-30] {
            let x = Matrix::new(2, 40, |row, _| if row == 0 { 1.0 } else { size });
            let weight = Matrix::new(33, 40, |row, _| if row == 0 { size } else { 1.0 });
            for (i, found) in product(&cpu, &x, &weight, None).iter().enumerate() {
                let tiny = i / 33 == 1 || i % 33 == 0;
                let want = if tiny { 0.0 } else { 40.0 };
                assert!((found - want).abs() <= 1e-4 * want + 50.0 * size, "{} {size} {i}: {found}", cpu.name());
            }
        }
    }
}

#[test]
fn layers_of_less_than_a_panel_are_as_stored() {
    let x = Matrix::new(3, 100, |row, column| ((row * 31 + column * 17) % 101) as f32 / 7.0);
    let weight = Matrix::new(1, 100, |_, column| ((column * 29) % 97) as f32 / 3.0);
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        let [stored, int8] = [CpuWeights::Stored, CpuWeights::Int8].map(|weights| cpu(isa, 1, weights));
        assert_eq!(product(&int8, &x, &weight, None), product(&stored, &x, &weight, None));
        assert_ne!(int8.numeric_format(), stored.numeric_format());
        assert_ne!(int8.packed_layout(), stored.packed_layout());
    }
}
