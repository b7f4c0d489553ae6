//! The list of cases, and what each is allowed to differ by.

use super::attention::{AttentionCase, IndependenceCase, Op, RopeCase};
use super::linear::LinearCase;
use super::misuse::Misuse;
use super::rows::{ActivationCase, EmbedCase, NormCase, PoolCase};
use super::{Case, Check};
use crate::{Activation, DType, Heads, Mask, NormKind, Pooling};

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];
const ACTIVATIONS: [Activation; 2] = [Activation::Silu, Activation::Gelu];
const POOLINGS: [Pooling; 3] = [Pooling::First, Pooling::Last, Pooling::Mean];

/// Some of [`cases`], every op among them: what a device has to do right before it is let near a request. They take the
/// reference a fraction of a second.
pub fn start_up_cases() -> Vec<Case> {
    let mut cases = cases();
    cases.retain(|case| START_UP.contains(&case.name()));
    cases
}

/// What [`start_up_cases`] takes: the shapes of published models before others.
const START_UP: [&str; 22] = [
    "linear 12x384x[384, 128, 128] [Bf16]",
    "linear 12x384x[384, 128, 128] [Bf16] add",
    "linear 70x256x[512] [Bf16]",
    "linear 70x256x[512] [F32] bias add",
    "linear 257x768x[264] [Bf16] add",
    "linear 100x384x[1] [Bf16] bias",
    "linear 97x257x[96] [Bf16]",
    "embed Bf16 100",
    "embed F32 64 Layer",
    "norm Rms 384",
    "norm Layer 1024 bias",
    "gated Silu 384",
    "gated Gelu 384",
    "Gelu 384",
    "pool First [1, 7, 700, 2]x64",
    "pool Last [1, 7, 700, 2]x64",
    "pool Mean [1, 7, 700, 2]x64",
    "qk_norm_rope 6/2x128 [1, 7, 33] norms",
    "qk_norm_rope 3/3x64 [1, 7, 33]",
    "attention 2/1x128 [129, 300, 64, 1] Causal magnitude 1",
    "attention 2/1x64 [129, 300, 64, 1] Full magnitude 1",
    "attention 2/1x64 [129, 300, 64, 1] Window(64) magnitude 1",
];

/// Every case.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    linear(&mut cases);
    rows(&mut cases);
    rope(&mut cases);
    attention(&mut cases);
    independence(&mut cases);
    cases.extend(Misuse::ALL.map(|misuse| case(format!("misuse {misuse:?}"), Check::Misuse(misuse), 0.0)));
    cases
}

fn case(name: String, check: Check, tolerance: f32) -> Case {
    Case { name, check, tolerance }
}

fn linear(cases: &mut Vec<Case>) {
    // Columns that are multiples of 8 are what matrix instructions take. Rows around the heights of register tiles and blocks; columns around panels; depths around the blocks, and at
    // multiples of 1024, where rows that are a power of two apart contend for the same cache sets.
    let shapes: [(usize, usize, &[usize]); 17] = [
        (1, 1, &[1]),
        (1, 17, &[64]),
        (1, 1024, &[1024]),
        (2, 384, &[100]),
        (3, 64, &[17]),
        (4, 256, &[33]),
        (5, 100, &[100, 17, 1]),
        (12, 384, &[384, 128, 128]),
        (13, 1024, &[64]),
        (16, 1024, &[100]),
        (33, 2048, &[65]),
        (97, 257, &[96]),
        (100, 384, &[1]),
        (193, 64, &[130]),
        (1, 512, &[256, 64, 64]),
        (70, 256, &[512]),
        (257, 768, &[264]),
    ];
    let mut add_case = |rows, in_columns, parts: &[usize], dtypes: &[DType], bias, add| {
        let bias_name = if bias { " bias" } else { "" };
        let add_name = if add { " add" } else { "" };
        let name = format!("linear {rows}x{in_columns}x{parts:?} {dtypes:?}{bias_name}{add_name}");
        let (parts, dtypes) = (parts.to_vec(), dtypes.to_vec());
        cases.push(case(name, Check::Linear(LinearCase { rows, in_columns, parts, dtypes, bias, add }), 2e-6));
    };
    for (rows, in_columns, parts) in shapes {
        for dtype in DTYPES {
            for (bias, add) in [(false, false), (true, false), (false, true), (true, true)] {
                add_case(rows, in_columns, parts, &[dtype], bias, add);
            }
        }
    }
    add_case(6, 48, &[20, 30], &[DType::Bf16, DType::F32], true, false);
    // Longer than a copied block, so that the output is read and written again.
    add_case(90, 4100, &[40], &[DType::Bf16], true, true);
}

fn rows(cases: &mut Vec<Case>) {
    for (dtype, columns) in [(DType::F32, 64), (DType::F16, 17), (DType::Bf16, 100)] {
        for norm in [None, Some(NormKind::Rms), Some(NormKind::Layer)] {
            let name = format!("embed {dtype:?} {columns}{}", norm.map_or(String::new(), |kind| format!(" {kind:?}")));
            let tolerance = if norm.is_some() { 2e-6 } else { 0.0 };
            cases.push(case(name, Check::Embed(EmbedCase { dtype, columns, norm }), tolerance));
        }
    }
    for kind in [NormKind::Rms, NormKind::Layer] {
        for (columns, bias) in [(1, false), (17, true), (64, false), (100, true), (384, false), (1024, true)] {
            let name = format!("norm {kind:?} {columns}{}", if bias { " bias" } else { "" });
            cases.push(case(name, Check::Norm(NormCase { kind, columns, bias }), 2e-6));
        }
    }
    for activation in ACTIVATIONS {
        for (gated, columns) in [(false, 1), (false, 100), (false, 384), (true, 1), (true, 17), (true, 384)] {
            let name = format!("{}{activation:?} {columns}", if gated { "gated " } else { "" });
            let check = Check::Activation(ActivationCase { activation, gated, columns });
            cases.push(case(name, check, 2e-6));
        }
    }
    for pooling in POOLINGS {
        for (lengths, columns) in [([1, 7, 700, 2].as_slice(), 64), (&[1], 17), (&[9, 9, 9], 100)] {
            let name = format!("pool {pooling:?} {lengths:?}x{columns}");
            let check = Check::Pool(PoolCase { pooling, lengths: lengths.to_vec(), columns });
            cases.push(case(name, check, if pooling == Pooling::Mean { 1e-6 } else { 0.0 }));
        }
    }
}

const fn heads(query: usize, key_value: usize, dim: usize) -> Heads {
    Heads { query, key_value, dim }
}

fn rope(cases: &mut Vec<Case>) {
    for heads in [heads(4, 4, 16), heads(4, 2, 32), heads(3, 3, 64), heads(6, 2, 128), heads(2, 1, 20)] {
        for norms in [false, true] {
            for (lengths, theta) in [([1, 7, 33].as_slice(), 10_000.0), (&[700], 1e6)] {
                let Heads { query, key_value, dim } = heads;
                let norms_name = if norms { " norms" } else { "" };
                let name = format!("qk_norm_rope {query}/{key_value}x{dim} {lengths:?}{norms_name}");
                let check = Check::Rope(RopeCase { heads, lengths: lengths.to_vec(), norms, theta });
                cases.push(case(name, check, 2e-6));
            }
        }
    }
}

fn attention(cases: &mut Vec<Case>) {
    let mut add_case = |heads: Heads, lengths: &[usize], mask, magnitude, tolerance| {
        let Heads { query, key_value, dim } = heads;
        let name = format!("attention {query}/{key_value}x{dim} {lengths:?} {mask:?} magnitude {magnitude}");
        let check = Check::Attention(AttentionCase { heads, lengths: lengths.to_vec(), mask, magnitude });
        cases.push(case(name, check, tolerance));
    };
    const RAGGED: [usize; 6] = [1, 7, 33, 64, 3, 130];
    for heads in [heads(4, 4, 16), heads(4, 2, 32), heads(3, 3, 64), heads(6, 2, 128), heads(2, 1, 20)] {
        for mask in [Mask::Causal, Mask::Full, Mask::Window(0), Mask::Window(5), Mask::Window(64)] {
            add_case(heads, &RAGGED, mask, 1.0, 2e-6);
        }
    }
    // Longer than a block of keys, and windows smaller than, as large as and larger than the sequence.
    for n in [64, 299, 699, usize::MAX] {
        add_case(heads(1, 1, 16), &[700], Mask::Window(n), 1.0, 2e-6);
    }
    for mask in [Mask::Causal, Mask::Full, Mask::Window(299)] {
        add_case(heads(2, 1, 16), &[700], mask, 1.0, 2e-6);
        // Logits beyond 80, where the exponential overflows without the maximum. Their own rounding shows in the weights.
        add_case(heads(2, 1, 32), &[330, 2], mask, 12.0, 5e-5);
    }
    // The heads of published models, over several tiles of queries and of keys.
    for dim in [64, 128] {
        for mask in [Mask::Causal, Mask::Full, Mask::Window(64)] {
            add_case(heads(2, 1, dim), &[129, 300, 64, 1], mask, 1.0, 2e-6);
            add_case(heads(2, 1, dim), &[200, 2], mask, 12.0, 5e-5);
        }
    }
    add_case(heads(2, 2, 32), &[1], Mask::Causal, 1.0, 2e-6);
    add_case(heads(2, 2, 32), &[33, 33, 33], Mask::Causal, 1.0, 2e-6);
    add_case(heads(1, 1, 256), &[33], Mask::Full, 1.0, 2e-6);
    add_case(heads(16, 1, 32), &[40, 90], Mask::Causal, 1.0, 2e-6);
    add_case(heads(100, 1, 16), &[9], Mask::Full, 1.0, 2e-6);
}

fn independence(cases: &mut Vec<Case>) {
    let masks = [Mask::Causal, Mask::Full, Mask::Window(8)];
    let ops = masks.map(Op::Attention).into_iter().chain([Op::QkNormRope]).chain(POOLINGS.map(Op::Pool));
    for op in ops {
        cases.push(case(format!("independence {op:?}"), Check::Independence(IndependenceCase { op }), 1e-6));
    }
}
