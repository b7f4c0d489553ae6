//! The ranking against one made in `f64`, and its edges.

#![forbid(unsafe_code)]

use nexus_vectors::{
    Best, Dtype, Rows, Scored, Sources, Threads, TopKError, norms, score, top_k, top_k_among, top_k_many,
};
use proptest::prelude::*;

fn reference(source: &[f32], rows: Rows<'_>) -> Vec<(usize, f64)> {
    let mut data = Vec::new();
    rows.dtype().widen(rows.as_bytes(), &mut data);
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let cosine = |row: &[f32]| dot(source, row) / dot(source, source).sqrt() / dot(row, row).sqrt();
    let mut ranked: Vec<_> = data.chunks(source.len()).map(cosine).enumerate().collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    ranked
}

/// Whether `found` is the reference's ranking but for ties within 1e-6.
fn check(source: &[f32], rows: Rows<'_>, k: usize) {
    let expected = reference(source, rows);
    let similarity_of: std::collections::HashMap<usize, f64> = expected.iter().copied().collect();
    let found = top_k(source, rows, k, Threads::Caller).unwrap();
    assert_eq!(found, top_k(source, rows, k, Threads::Pool).unwrap());
    assert_eq!(found.len(), k.min(rows.len()));
    for (scored, (_, expected)) in found.iter().zip(&expected) {
        let own = similarity_of[&scored.index];
        assert!((f64::from(scored.similarity) - own).abs() < 1e-6);
        assert!((own - expected).abs() < 1e-6, "row {} stands where {expected} belongs, with {own}", scored.index);
    }
    for pair in found.windows(2) {
        let in_order = pair[0].similarity > pair[1].similarity
            || (pair[0].similarity == pair[1].similarity && pair[0].index < pair[1].index);
        assert!(in_order, "{pair:?}");
    }
}

fn component() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => -1.0f32..1.0,
        1 => prop::num::f32::NORMAL | prop::num::f32::SUBNORMAL | prop::num::f32::ZERO,
        1 => Just(0.5f32),
    ]
}

/// Whether many sources get what each gets alone: with norms and without, in one piece and in several.
fn check_many(sources: &[f32], rows: Rows<'_>, k: usize, piece: usize) {
    let dim = rows.dim();
    let prepared = Sources::new(sources, dim).unwrap();
    let expected: Vec<_> = sources.chunks(dim).map(|source| top_k(source, rows, k, Threads::Caller).unwrap()).collect();
    let mut row_norms = Vec::new();
    norms(rows, 0, &mut row_norms).unwrap();
    for threads in [Threads::Caller, Threads::Pool] {
        for norms in [None, Some(&row_norms[..])] {
            assert_eq!(top_k_many(&prepared, rows, norms, k, threads).unwrap(), expected);
        }
    }
    // Any rows may be candidates beside the best, in any order.
    let candidates = |ranking: &Vec<Scored>| {
        let best: Vec<usize> = ranking.iter().map(|scored| scored.index).rev().collect();
        let others = (0..rows.len()).step_by(3).filter(|row| !best.contains(row));
        best.iter().copied().chain(others).collect::<Vec<_>>()
    };
    let candidates: Vec<_> = expected.iter().map(candidates).collect();
    assert_eq!(top_k_among(&prepared, rows, &row_norms, &candidates, k).unwrap(), expected);
    let mut best = Best::new(prepared.len(), k);
    // Last piece first: the order does not matter.
    for first in (0..rows.len()).step_by(piece).collect::<Vec<_>>().into_iter().rev() {
        let part = first..(first + piece).min(rows.len());
        let mut of_part = Best::new(prepared.len(), k);
        score(&prepared, rows.slice(part.clone()), Some(&row_norms[part]), first, &mut of_part).unwrap();
        best.merge(of_part);
    }
    assert_eq!(best.into_ranked(), expected);
}

proptest! {
    #[test]
    fn as_in_f64(
        (source, data) in (1usize..80, 0usize..40).prop_flat_map(|(dim, n)| {
            let vector = move |len| prop::collection::vec(component(), len);
            (vector(dim), vector(n * dim))
        }),
        k in 0usize..60,
    ) {
        let dim = source.len();
        prop_assume!(source.iter().any(|&x| x != 0.0));
        prop_assume!(data.chunks(dim).all(|row| row.iter().any(|&x| x != 0.0)));
        check(&source, Rows::new(&data, dim).unwrap(), k);
    }

    #[test]
    fn bytes_of_every_format(
        dim in 1usize..80,
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
        seed in prop::collection::vec(component(), 80 * 6),
        count in 1usize..6,
        dtype in prop::sample::select(vec![Dtype::F32, Dtype::F16, Dtype::Bf16]),
        k in 0usize..60,
        piece in 1usize..30,
    ) {
        // Whatever the bits say, as long as it is a direction; one byte off any alignment.
        let mut good = vec![0];
        for row in bytes.chunks_exact(dim * dtype.bytes()) {
            let mut widened = Vec::new();
            dtype.widen(row, &mut widened);
            if widened.iter().all(|x| x.is_finite()) && widened.iter().any(|&x| x != 0.0) {
                good.extend_from_slice(row);
            }
        }
        let sources = &seed[..count * dim];
        prop_assume!(sources.chunks(dim).all(|source| source.iter().any(|&x| x != 0.0)));
        let rows = Rows::from_bytes(&good[1..], dtype, dim).unwrap();
        check(&sources[..dim], rows, k);
        check_many(sources, rows, k, piece);
    }
}

#[test]
fn large_enough_for_many_parts() {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let dim = 1000;
    let source: Vec<f32> = (0..dim).map(|_| next()).collect();
    let data: Vec<f32> = (0..2000 * dim).map(|_| next()).collect();
    let rows = Rows::new(&data, dim).unwrap();
    for k in [1, 50, 1999, 2000, 5000] {
        check(&source, rows, k);
    }
    let sources: Vec<f32> = (0..18 * dim).map(|_| next()).collect();
    check_many(&sources, rows, 50, 333);
}

#[test]
fn ties_go_by_position_whatever_the_split() {
    let dim = 512;
    let data = vec![0.25f32; 4000 * dim];
    let rows = Rows::new(&data, dim).unwrap();
    let found = top_k(&data[..dim], rows, 7, Threads::Pool).unwrap();
    let expected: Vec<_> = (0..7).map(|index| Scored { index, similarity: 1.0 }).collect();
    assert_eq!(found, expected);
    // Rows of one direction tie whatever their lengths are.
    let data = [3.0, 3.0, 1.0, 1.0, -2.0, -2.0, 0.1, 0.1];
    let found = top_k(&[5.0, 5.0], Rows::new(&data, 2).unwrap(), 4, Threads::Caller).unwrap();
    assert_eq!(found.iter().map(|scored| scored.index).collect::<Vec<_>>(), [0, 1, 3, 2]);
}

#[test]
fn edges() {
    let data = [1.0, 0.0, 0.0, 1.0];
    let rows = Rows::new(&data, 2).unwrap();
    assert_eq!(top_k(&[1.0, 0.0], rows, 0, Threads::Pool), Ok(vec![]));
    assert_eq!(top_k(&[1.0, 0.0], rows, usize::MAX, Threads::Pool).unwrap().len(), 2);
    assert_eq!(top_k(&[1.0, 0.0], Rows::new(&[], 2).unwrap(), 5, Threads::Pool), Ok(vec![]));
    assert_eq!(top_k(&[1.0, 0.0], Rows::new(&[], 9).unwrap(), 5, Threads::Pool), Ok(vec![]));
    assert_eq!(
        top_k(&[0.0, 0.0], Rows::new(&[], 2).unwrap(), 5, Threads::Pool),
        Err(TopKError::ZeroSource { index: 0 })
    );
}

#[test]
fn errors_name_the_place() {
    let fails = |source: &[f32], data: &[f32], dim| {
        let rows = Rows::new(data, dim).unwrap();
        let error = top_k(source, rows, 1, Threads::Caller).unwrap_err();
        assert_eq!(top_k(source, rows, 0, Threads::Pool).unwrap_err(), error);
        error
    };
    let good = [1.0; 6];
    assert_eq!(fails(&[1.0; 3], &good, 2), TopKError::Dimensions { source_dim: 3, rows_dim: 2 });
    assert_eq!(fails(&[], &good, 2), TopKError::ZeroSource { index: 0 });
    assert_eq!(fails(&[0.0, -0.0], &good, 2), TopKError::ZeroSource { index: 0 });
    assert_eq!(fails(&[1.0, f32::NAN], &good, 2), TopKError::NonFiniteSource { index: 0, component: 1 });
    assert_eq!(fails(&[1.0; 2], &[1.0, 1.0, 0.0, 0.0, 0.0, 0.0], 2), TopKError::ZeroRow { row: 1 });
    assert_eq!(
        fails(&[1.0; 2], &[1.0, 1.0, 1.0, f32::NEG_INFINITY], 2),
        TopKError::NonFiniteRow { row: 1, component: 1 }
    );
    // The first of several, however the rows are split.
    let mut data = vec![1.0f32; 3000 * 400];
    data[2999 * 400] = f32::NAN;
    data[700 * 400 + 3] = f32::NAN;
    assert_eq!(
        top_k(&[1.0; 400], Rows::new(&data, 400).unwrap(), 1, Threads::Pool),
        Err(TopKError::NonFiniteRow { row: 700, component: 3 })
    );
}

#[test]
fn errors_of_pieces_name_the_place_among_all() {
    let data = [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, f32::NAN, 1.0];
    let rows = Rows::new(&data, 2).unwrap();
    let sources = Sources::new(&[1.0, 0.0, 0.0, 1.0], 2).unwrap();
    let mut best = Best::new(2, 3);
    assert_eq!(score(&sources, rows, None, 100, &mut best), Err(TopKError::ZeroRow { row: 102 }));
    assert_eq!(norms(rows, 100, &mut Vec::new()), Err(TopKError::ZeroRow { row: 102 }));
    let fault = TopKError::NonFiniteRow { row: 103, component: 0 };
    assert_eq!(score(&sources, rows.slice(3..4), None, 103, &mut best), Err(fault));
    assert_eq!(
        top_k_many(&sources, Rows::new(&data, 4).unwrap(), None, 1, Threads::Caller).unwrap_err(),
        TopKError::Dimensions { source_dim: 2, rows_dim: 4 }
    );
}

#[test]
fn edges_of_many() {
    let data = [1.0, 0.0, 0.0, 1.0];
    let rows = Rows::new(&data, 2).unwrap();
    let none = Sources::new(&[], 2).unwrap();
    assert_eq!(top_k_many(&none, rows, None, 3, Threads::Pool), Ok(vec![]));
    let two = Sources::new(&data, 2).unwrap();
    assert_eq!(top_k_many(&two, Rows::new(&[], 7).unwrap(), Some(&[]), 3, Threads::Pool), Ok(vec![vec![], vec![]]));
    // Nothing is set aside for rows that do not come.
    let ranked = top_k_many(&two, rows, None, usize::MAX, Threads::Pool).unwrap();
    assert_eq!(ranked.iter().map(|ranked| ranked[0].index).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(ranked[0].len(), 2);
}
