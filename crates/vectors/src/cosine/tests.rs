//! Every kernel of this machine, for every format, against `f64`.

use super::*;

/// The requirement, less nothing.
const WITHIN: f64 = 1e-6;

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

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

/// As bytes of a format, at an odd address, behind one byte that is not part of them.
fn stored(values: &[f32], dtype: Dtype) -> Vec<u8> {
    let component = |&x: &f32| match dtype {
        Dtype::F32 => x.to_le_bytes().to_vec(),
        Dtype::F16 => half::f16::from_f32(x).to_le_bytes().to_vec(),
        Dtype::Bf16 => half::bf16::from_f32(x).to_le_bytes().to_vec(),
    };
    [0xAA].into_iter().chain(values.iter().flat_map(component)).collect()
}

fn reference(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    dot(a, b) / dot(a, a).sqrt() / dot(b, b).sqrt()
}

type Table = Result<Vec<Vec<f32>>, (usize, VectorFault)>;

/// `[rows, sources]`
fn table(kernel: Kernel, sources: &[f32], rows: Rows<'_>, norms: Option<&[f64]>) -> Table {
    let sources = Sources::new(sources, rows.dim()).unwrap();
    let mut found = vec![vec![f32::NAN; sources.len()]; rows.len()];
    similarities_by(kernel, &sources, rows, norms, |row, source, similarity| found[row][source] = similarity)?;
    Ok(found)
}

/// All kernels: each source alone and all together, with norms and without, for all rows that have a direction.
#[track_caller]
fn check(sources: &[f32], rows: &[f32], dim: usize) {
    for dtype in DTYPES {
        let mut bytes = vec![0];
        let mut widened = Vec::new();
        for row in rows.chunks(dim) {
            let row = &stored(row, dtype)[1..];
            let before = widened.len();
            dtype.widen(row, &mut widened);
            if exact_norm(&widened[before..]).is_ok() { bytes.extend(row) } else { widened.truncate(before) }
        }
        let rows = Rows::from_bytes(&bytes[1..], dtype, dim).unwrap();
        for kernel in kernels(dtype) {
            let mut norms = Vec::new();
            norms_by(kernel, rows, &mut norms).unwrap();
            let together = table(kernel, sources, rows, None).unwrap();
            assert_eq!(together, table(kernel, sources, rows, Some(&norms)).unwrap(), "{} {dtype:?}", kernel.name);
            for (s, source) in sources.chunks(dim).enumerate() {
                let alone = table(kernel, source, rows, None).unwrap();
                assert_eq!(alone, table(kernel, source, rows, Some(&norms)).unwrap(), "{} {dtype:?}", kernel.name);
                for (i, row) in widened.chunks(dim).enumerate() {
                    let expected = reference(source, row);
                    let cosine = together[i][s];
                    assert!(
                        (f64::from(cosine) - expected).abs() < WITHIN && (-1.0..=1.0).contains(&cosine),
                        "{} {dtype:?}, {dim} components, source {s}, row {i}: {cosine} and not {expected}",
                        kernel.name
                    );
                    assert_eq!(alone[i][0].to_bits(), cosine.to_bits(), "{} {dtype:?}: alone", kernel.name);
                }
            }
        }
    }
}

#[test]
fn there_is_always_a_kernel() {
    for dtype in DTYPES {
        assert_eq!(kernels(dtype).last().unwrap().name, "portable");
        assert_eq!(kernels(dtype).next().unwrap().name, kernel_name());
    }
}

#[test]
fn every_length() {
    for dim in (1..=150).chain([255, 256, 257, 300, 511, 768, 1023, 1024, 1025, 4096, 5000]) {
        check(&vector(1, 2 * dim, 1.0), &vector(dim as u32 + 2, 2 * dim, 1.0), dim);
    }
}

#[test]
fn every_number_of_sources_and_rows() {
    let dim = 83;
    for sources in (1..=9).chain([15, 16, 17, 20, 33]) {
        check(&vector(1, sources * dim, 1.0), &vector(2, 13 * dim, 1.0), dim);
    }
    for rows in 0..=27 {
        check(&vector(3, 5 * dim, 1.0), &vector(4, rows * dim, 1.0), dim);
    }
}

#[test]
fn every_magnitude() {
    let sources: Vec<f32> = (-149..=127)
        .step_by(12)
        .flat_map(|exponent| vector(7, 100, 1.0).into_iter().map(move |x| x * 2f32.powi(exponent)))
        .collect();
    let sources: Vec<f32> = sources.chunks(100).filter(|v| v.iter().any(|&x| x != 0.0)).flatten().copied().collect();
    let rows: Vec<f32> = (-149..=127)
        .flat_map(|exponent| vector(8, 100, 1.0).into_iter().map(move |x| x * 2f32.powi(exponent)))
        .collect();
    check(&sources, &rows, 100);
}

#[test]
fn magnitudes_mixed() {
    for scale in [1e30, 1e-30, f32::MAX, f32::MIN_POSITIVE, f32::from_bits(1)] {
        let mut row = vector(3, 100, 1.0);
        row[17] = scale;
        let both = [row, vector(4, 100, 1.0)].concat();
        check(&both, &both, 100);
        check(&[scale, scale, scale, 0.0], &[scale, -scale, 0.0, scale], 2);
    }
}

#[test]
fn long_vectors_of_one_sign() {
    // Bad for sums in `f32`: nothing cancels.
    let len = 1 << 18;
    let ones = vec![0.1f32; len];
    let ramp: Vec<f32> = (0..len).map(|i| 1.0 + i as f32 * 4e-6).collect();
    check(&ones, &ramp, len);
    check(&ramp, &ones, len);
}

#[test]
fn the_worst_for_sums_in_f32() {
    // The first product of each lane is large, and all that follow round up against it. Sums of 32 products in a lane
    // are off by 1.7e-6 here.
    let dim = 4096;
    for (lanes, block) in [(8, 64), (16, 64), (32, 64), (16, 128), (32, 1024), (64, 512), (1, 64)] {
        let first = |i: usize| i % block < lanes;
        let source: Vec<f32> = (0..dim).map(|i| if first(i) { 1.0 } else { 0.06 }).collect();
        let row: Vec<f32> = (0..dim).map(|i| if first(i) { 1.0 } else { 1.0005e-6 }).collect();
        check(&source, &row, dim);
        check(&row, &source, dim);
    }
}

#[test]
fn equal_vectors_have_similarity_one() {
    for dim in [1, 3, 64, 100, 384, 4096] {
        for scale in [1.0, 3.0, 1e-3, 1e30, 1e-30] {
            for dtype in [Dtype::F32, Dtype::Bf16] {
                let bytes = stored(&vector(dim as u32, dim, scale), dtype);
                let mut source = Vec::new();
                dtype.widen(&bytes[1..], &mut source);
                let opposite: Vec<f32> = source.iter().map(|x| -x).collect();
                let rows = Rows::from_bytes(&bytes[1..], dtype, dim).unwrap();
                for kernel in kernels(dtype) {
                    let found = table(kernel, &[source.clone(), opposite.clone()].concat(), rows, None);
                    assert_eq!(found, Ok(vec![vec![1.0, -1.0]]), "{} {dim} {scale}", kernel.name);
                    assert_eq!(table(kernel, &source, rows, None), Ok(vec![vec![1.0]]));
                    // Nor does the length of the row matter.
                    let longer: Vec<f32> = source.iter().map(|x| x * 5.0).collect();
                    assert_eq!(table(kernel, &longer, rows, None), Ok(vec![vec![1.0]]), "{} {dim}", kernel.name);
                }
            }
        }
    }
}

#[test]
fn faults() {
    for dim in [1, 7, 64, 1000, 4096] {
        let good = vector(5, dim, 1.0);
        for dtype in DTYPES {
            let with_second = |row: &[f32]| stored(&[&good, row, &vec![0.0; dim]].concat(), dtype);
            let mut cases = vec![(with_second(&vec![0.0; dim]), VectorFault::Zero)];
            cases.push((with_second(&vec![-0.0; dim]), VectorFault::Zero));
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for component in [0, dim / 2, dim - 1] {
                    let mut row = good.clone();
                    row[component] = bad;
                    cases.push((with_second(&row), VectorFault::NonFinite { component }));
                }
            }
            for (bytes, fault) in cases {
                let rows = Rows::from_bytes(&bytes[1..], dtype, dim).unwrap();
                for kernel in kernels(dtype) {
                    let expected = Err((1, fault));
                    assert_eq!(table(kernel, &good, rows, None), expected, "{} {dtype:?}", kernel.name);
                    assert_eq!(table(kernel, &vector(6, 5 * dim, 1.0), rows, None), expected, "{}", kernel.name);
                    assert_eq!(norms_by(kernel, rows, &mut Vec::new()).map(|()| vec![]), expected, "{}", kernel.name);
                }
            }
        }
    }
}

#[test]
fn norms_as_in_f64() {
    let dim = 301;
    let data: Vec<f32> = [1e-40, 1e-12, 1.0, 1e14, 1e38].iter().flat_map(|&scale| vector(9, dim, scale)).collect();
    let rows = Rows::new(&data, dim).unwrap();
    for kernel in kernels(Dtype::F32) {
        let mut norms = Vec::new();
        norms_by(kernel, rows, &mut norms).unwrap();
        for (norm, row) in norms.iter().zip(data.chunks(dim)) {
            let expected = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            assert!((norm / expected - 1.0).abs() < 5e-7, "{}: {norm} and not {expected}", kernel.name);
        }
    }
}
