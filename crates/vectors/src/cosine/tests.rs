//! Every kernel of this machine against `f64`.

use super::*;

const WITHIN: f64 = 1e-6;

fn vector(seed: u32, len: usize, scale: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next() * scale).collect()
}

fn reference(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    dot(a, b) / dot(a, a).sqrt() / dot(b, b).sqrt()
}

#[track_caller]
fn check(source: &[f32], row: &[f32]) {
    let expected = reference(source, row);
    for (name, kernel) in kernels() {
        let cosine = Source::with_kernel(source, kernel).unwrap().similarity(row).unwrap();
        assert!(
            (f64::from(cosine) - expected).abs() < WITHIN,
            "{name}, {} components: {cosine} and not {expected}",
            row.len()
        );
        assert!((-1.0..=1.0).contains(&cosine));
    }
}

#[test]
fn there_is_always_a_kernel() {
    assert_eq!(kernels().last().unwrap().0, "portable");
    assert_eq!(kernels().next().unwrap().0, kernel_name());
}

#[test]
fn every_length() {
    for len in (1..=300).chain([511, 512, 768, 1023, 1024, 1025, 2048, 4095, 4096, 4097, 10_000]) {
        check(&vector(1, len, 1.0), &vector(len as u32 + 2, len, 1.0));
    }
}

#[test]
fn every_magnitude() {
    for source_exponent in (-149..=127).step_by(12) {
        for row_exponent in -149..=127 {
            let source = vector(7, 200, 1.0).iter().map(|x| x * 2f32.powi(source_exponent)).collect::<Vec<_>>();
            let row = vector(8, 200, 1.0).iter().map(|x| x * 2f32.powi(row_exponent)).collect::<Vec<_>>();
            if source.iter().any(|&x| x != 0.0) && row.iter().any(|&x| x != 0.0) {
                check(&source, &row);
            }
        }
    }
}

#[test]
fn magnitudes_mixed() {
    for scale in [1e30, 1e-30, f32::MAX, f32::MIN_POSITIVE, f32::from_bits(1)] {
        let mut row = vector(3, 100, 1.0);
        row[17] = scale;
        check(&vector(4, 100, 1.0), &row);
        check(&row, &vector(4, 100, 1.0));
        check(&row, &row);
        check(&[scale, scale], &[scale, -scale]);
        check(&[scale, 0.0], &[0.0, scale]);
    }
}

#[test]
fn long_vectors_of_one_sign() {
    // The worst for sums in `f32`: nothing cancels.
    let ones = vec![0.1f32; 1 << 20];
    let ramp: Vec<f32> = (0..1 << 20).map(|i| 1.0 + i as f32 * 1e-6).collect();
    check(&ones, &ramp);
    check(&ramp, &ones);
}

#[test]
fn equal_vectors_have_similarity_one() {
    for len in [1, 3, 64, 100, 384, 4096] {
        for scale in [1.0, 3.0, 1e-3, 1e30, 1e-30] {
            let source = vector(len as u32, len, scale);
            let opposite: Vec<f32> = source.iter().map(|x| -x).collect();
            for (name, kernel) in kernels() {
                let prepared = Source::with_kernel(&source, kernel).unwrap();
                assert_eq!(prepared.similarity(&source), Ok(1.0), "{name} {len} {scale}");
                assert_eq!(prepared.similarity(&opposite), Ok(-1.0), "{name} {len} {scale}");
            }
        }
    }
}

#[test]
fn faults() {
    for len in [1, 7, 64, 1000, 4096] {
        for (name, kernel) in kernels() {
            let good = vector(5, len, 1.0);
            let source = Source::with_kernel(&good, kernel).unwrap();
            assert_eq!(source.similarity(&vec![0.0; len]), Err(VectorFault::Zero), "{name}");
            assert_eq!(source.similarity(&vec![-0.0; len]), Err(VectorFault::Zero), "{name}");
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for component in [0, len / 2, len - 1] {
                    let mut row = good.clone();
                    row[component] = bad;
                    let fault = VectorFault::NonFinite { component };
                    assert_eq!(source.similarity(&row), Err(fault), "{name}");
                    assert_eq!(Source::with_kernel(&row, kernel).err(), Some(fault), "{name}");
                }
            }
        }
    }
    assert_eq!(Source::new(&[]).err(), Some(VectorFault::Zero));
    assert_eq!(Source::new(&[0.0, -0.0]).err(), Some(VectorFault::Zero));
}
