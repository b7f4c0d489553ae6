//! The ranking against one made in `f64`, and its edges.

use nexus_vectors::{Rows, Scored, Threads, TopKError, top_k};
use proptest::prelude::*;

fn reference(source: &[f32], rows: Rows<'_>) -> Vec<(usize, f64)> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let cosine = |row| dot(source, row) / dot(source, source).sqrt() / dot(row, row).sqrt();
    let mut ranked: Vec<_> = (0..rows.len()).map(|i| (i, cosine(rows.row(i)))).collect();
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
    assert_eq!(top_k(&[0.0, 0.0], Rows::new(&[], 2).unwrap(), 5, Threads::Pool), Err(TopKError::ZeroSource));
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
    assert_eq!(fails(&[], &good, 2), TopKError::ZeroSource);
    assert_eq!(fails(&[0.0, -0.0], &good, 2), TopKError::ZeroSource);
    assert_eq!(fails(&[1.0, f32::NAN], &good, 2), TopKError::NonFiniteSource { component: 1 });
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
