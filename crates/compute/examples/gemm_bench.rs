//! Prints how fast the CPU backend multiplies and attends, beside what its multiply-add units could do at best.
//!
//! `cargo run --release -p nexus-compute --example gemm_bench [isa] [threads]`. Times are the best of many, so that
//! other work on the machine disturbs them little.

#![deny(unsafe_code)]
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use nexus_compute::cpu::{Cpu, CpuOptions, CpuWeights, Isa};
use nexus_compute::{Activation, Backend, DType, Heads, Mask, Norm, NormKind, PackedBatch, TensorView};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// `[in, out]` of the layers of both model families and of small models.
const SHAPES: [(usize, usize, &str); 12] = [
    (256, 768, "small qkv"),
    (256, 256, "small out"),
    (384, 1152, "small qkv"),
    (384, 384, "small out"),
    (768, 2304, "base qkv, Wi"),
    (768, 768, "base Wo"),
    (1152, 768, "base MLP Wo"),
    (1024, 4096, "0.6B qkv"),
    (2048, 1024, "0.6B o"),
    (1024, 6144, "0.6B gate, up"),
    (3072, 1024, "0.6B down"),
    (4096, 6144, "8B qkv"),
];

fn main() {
    let mut args = std::env::args().skip(1);
    let isa = match args.next().as_deref() {
        Some("portable") => Some(Isa::Portable),
        Some("avx2") => Some(Isa::Avx2),
        Some("avx512") => Some(Isa::Avx512),
        _ => None,
    };
    let threads = args.next().and_then(|n| n.parse().ok());
    let cpu =
        Cpu::new(CpuOptions { isa, threads, ..CpuOptions::default() }).expect("this machine has the instruction set");
    let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    ALONE.store(threads == 1, Relaxed);
    let peak = peak_gflops(isa.unwrap_or_else(|| Isa::detect(CpuWeights::Stored)), threads);
    println!("{}: peak {peak:.0} GFLOP/s (multiply-adds in registers, measured)", cpu.name());
    let int8 = Cpu::new(CpuOptions { isa, threads: Some(threads), weights: CpuWeights::Int8 }).expect("as before");
    rows(&cpu);
    attention(&cpu);
    linear([(&cpu, DType::Bf16, "bf16"), (&cpu, DType::F32, "f32"), (&int8, DType::Bf16, "int8")], peak);
}

/// The shortest of as many runs as fit a fraction of a second, or their mean time on a core where that is shorter: a
/// long run rarely has a shared machine to itself.
fn best(mut f: impl FnMut()) -> f64 {
    let mut best = f64::MAX;
    let on_core = on_core_seconds();
    let mut runs = 0.0;
    let deadline = Instant::now() + Duration::from_millis(150);
    for run in 0.. {
        if run >= 5 && Instant::now() > deadline {
            break;
        }
        let start = Instant::now();
        f();
        best = best.min(start.elapsed().as_secs_f64());
        runs += 1.0;
    }
    match (on_core, on_core_seconds()) {
        (Some(before), Some(after)) if after - before > 0.05 => best.min((after - before) / runs),
        _ => best,
    }
}

/// Seconds that this thread has had a core, where the system says it and no other thread helps.
fn on_core_seconds() -> Option<f64> {
    if !ALONE.load(Relaxed) {
        return None;
    }
    let times = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(times.split(' ').next()?.parse::<f64>().ok()? / 1e9)
}

/// Whether the backend works on the calling thread only.
static ALONE: AtomicBool = AtomicBool::new(false);

fn linear(kinds: [(&Cpu, DType, &str); 3], peak: f64) {
    for (in_columns, out_columns, name) in SHAPES {
        for (cpu, dtype, kind) in kinds {
            let shape = [out_columns, in_columns];
            let bytes = vec![0x3c; out_columns * in_columns * dtype.size_bytes()];
            let view = TensorView::new(dtype, &shape, &bytes).expect("the bytes fit the shape");
            let start = Instant::now();
            let weight = cpu.prepare_linear(&[view], &[]).expect("the shape is a matrix");
            let packed = bytes.len() as f64 / start.elapsed().as_secs_f64() / 1e9;
            print!("{in_columns:5} x {out_columns:5} {name:14} {kind:5} packed {packed:4.1} GB/s");
            for rows in [1, 4, 16, 64, 512] {
                let x = activations(cpu, rows, in_columns);
                let seconds = best(|| drop(black_box(cpu.linear(&x, &weight).expect("the shapes fit"))));
                let gflops = 2.0 * (rows * in_columns * out_columns) as f64 / seconds / 1e9;
                print!("  {rows:4} rows {gflops:5.0} ({:3.0} %)", 100.0 * gflops / peak);
            }
            println!();
        }
    }
}

fn attention(cpu: &Cpu) {
    let cases = [
        ("base global", Heads { query: 12, key_value: 12, dim: 64 }, Mask::Full),
        ("base local", Heads { query: 12, key_value: 12, dim: 64 }, Mask::Window(64)),
        ("0.6B", Heads { query: 16, key_value: 8, dim: 128 }, Mask::Causal),
        ("small", Heads { query: 8, key_value: 8, dim: 32 }, Mask::Full),
    ];
    for (name, heads, mask) in cases {
        print!("attention {name:12}");
        for (count, tokens) in [(1, 10), (4, 60), (1, 128), (1, 512), (1, 2048)] {
            let rows = count * tokens;
            let qkv = activations(cpu, rows, heads.fused_columns());
            let batch = PackedBatch::new(&vec![vec![0; tokens]; count]).expect("no sequence is empty");
            let batch = cpu.upload(&batch).expect("the batch fits memory");
            let seconds = best(|| drop(black_box(cpu.attention(&qkv, heads, mask, &batch).expect("the shapes fit"))));
            let keys: usize = (0..tokens).map(|i| seen(mask, i, tokens)).sum();
            let gflops = 4.0 * (count * keys * heads.query * heads.dim) as f64 / seconds / 1e9;
            print!("  {count}x{tokens:<4} {:8.1} us ({gflops:4.0} GFLOP/s)", seconds * 1e6);
        }
        println!();
    }
}

fn rows(cpu: &Cpu) {
    const ROWS: usize = 64;
    const COLUMNS: usize = 1024;
    let ones: Vec<u8> = (0..COLUMNS).flat_map(|_| 1.0f32.to_le_bytes()).collect();
    let ones = cpu.prepare_vector(&TensorView::new(DType::F32, &[COLUMNS], &ones).expect("the bytes fit the shape"));
    let norm = Norm { kind: NormKind::Layer, weight: ones.expect("it is a vector"), bias: None, eps: 1e-5 };
    let heads = Heads { query: 8, key_value: 4, dim: 64 };
    let rope = cpu.prepare_rope(10_000.0, heads.dim, ROWS).expect("the head can be rotated");
    let batch = PackedBatch::new(&[vec![0; ROWS]]).expect("no sequence is empty");
    let batch = cpu.upload(&batch).expect("the batch fits memory");
    let mut x = activations(cpu, ROWS, COLUMNS);
    let floats = (ROWS * COLUMNS) as f64;
    let mut print = |name: &str, f: &mut dyn FnMut(&mut <Cpu as Backend>::Tensor)| {
        println!("{name:15} {:6.3} ns a float read", best(|| f(&mut x)) * 1e9 / floats);
    };
    print("layer norm", &mut |x| drop(black_box(cpu.norm(x, &norm).expect("the shapes fit"))));
    print("rope", &mut |x| cpu.qk_norm_rope(x, heads, None, &rope, &batch).expect("the shapes fit"));
    print("gated silu", &mut |x| drop(black_box(cpu.gated_act(x, Activation::Silu).expect("the shapes fit"))));
    print("gated gelu", &mut |x| drop(black_box(cpu.gated_act(x, Activation::Gelu).expect("the shapes fit"))));
}

/// Keys that query `i` sees.
fn seen(mask: Mask, i: usize, tokens: usize) -> usize {
    match mask {
        Mask::Causal => i + 1,
        Mask::Full => tokens,
        Mask::Window(n) => (i + n).min(tokens - 1) + 1 - i.saturating_sub(n),
    }
}

fn activations(cpu: &Cpu, rows: usize, columns: usize) -> <Cpu as Backend>::Tensor {
    let values: Vec<u8> = (0..rows * columns).flat_map(|i| ((i % 17) as f32 / 17.0 - 0.5).to_le_bytes()).collect();
    let shape = [rows, columns];
    let table = TensorView::new(DType::F32, &shape, &values).expect("the bytes fit the shape");
    let table = cpu.prepare_table(&table).expect("the shape is a matrix");
    let tokens: Vec<u32> = (0u32..).take(rows).collect();
    let batch = cpu.upload(&PackedBatch::new(&[tokens]).expect("rows is positive")).expect("the batch fits memory");
    cpu.embed(&table, None, &batch).expect("all tokens are in the table")
}

/// The most multiply-adds that `threads` threads do together, by doing nothing else, in GFLOP/s.
fn peak_gflops(isa: Isa, threads: usize) -> f64 {
    let mut most = 0.0f64;
    for _ in 0..10 {
        let total: f64 = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(move || multiply_adds(isa))).collect();
            workers.into_iter().map(|worker| worker.join().expect("arithmetic does not panic")).sum()
        });
        most = most.max(total);
    }
    most
}

/// GFLOP/s of one thread.
#[allow(unsafe_code)]
fn multiply_adds(isa: Isa) -> f64 {
    const STEPS: usize = 2_000_000;
    let start = Instant::now();
    let flops = match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the backend was made with this instruction set, so the CPU has it.
        Isa::Avx512 => unsafe { x86::avx512(STEPS) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the backend was made with this instruction set, so the CPU has it.
        Isa::Avx2 => unsafe { x86::avx2(STEPS) },
        _ => portable(STEPS),
    };
    flops / start.elapsed().as_secs_f64() / 1e9
}

fn portable(steps: usize) -> f64 {
    let mut sums = black_box([[0.5f32; 4]; 10]);
    let (a, b) = black_box((0.5, 0.25));
    for _ in 0..steps {
        for sum in &mut sums {
            for x in sum {
                *x = *x * a + b;
            }
        }
    }
    black_box(sums);
    (2 * 40 * steps) as f64
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    #[target_feature(enable = "avx512f")]
    pub(super) fn avx512(steps: usize) -> f64 {
        let mut sums = [_mm512_set1_ps(0.5); 16];
        let (a, b) = black_box((_mm512_set1_ps(0.5), _mm512_set1_ps(0.25)));
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
        (2 * 16 * 16 * steps) as f64
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2(steps: usize) -> f64 {
        let mut sums = [_mm256_set1_ps(0.5); 12];
        let (a, b) = black_box((_mm256_set1_ps(0.5), _mm256_set1_ps(0.25)));
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
        (2 * 12 * 8 * steps) as f64
    }
}
