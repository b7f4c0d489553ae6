//! What the tests of several modules need.

use crate::{CacheKey, Vector};

/// A key that is unlike any other's.
pub(crate) fn key(i: u64) -> CacheKey {
    crate::CacheKeyBuilder::new(&[1; 32], &[2; 32], "last", 512, "f32").key(None, 4, &i.to_string())
}

pub(crate) fn vector(components: &[f32]) -> Vector {
    components.into()
}

pub(crate) fn bits(vector: &[f32]) -> Vec<u32> {
    vector.iter().map(|x| x.to_bits()).collect()
}

/// Finite, and as awkward as finite gets.
pub(crate) fn awkward() -> Vector {
    let subnormal = f32::from_bits(1);
    vector(&[0.0, -0.0, 1.0, -1.5, subnormal, -subnormal, f32::MIN_POSITIVE, f32::MAX, f32::MIN, f32::EPSILON])
}
