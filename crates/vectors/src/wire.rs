//! Vectors as base64: standard alphabet, padded, little-endian `f32`.

#![deny(unsafe_code)]

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Why a text is not a vector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Not base64 of the standard alphabet, with padding.
    #[error("not base64: {0}")]
    Base64(#[from] base64::DecodeError),
    /// Base64, but of a number of bytes that is not a multiple of four.
    #[error("{bytes} bytes are not a whole number of 4-byte floats")]
    Length {
        /// Bytes decoded.
        bytes: usize,
    },
    /// A component is NaN or infinite.
    #[error("component {component} is not finite")]
    NonFinite {
        /// The component's position.
        component: usize,
    },
}

/// `vector` as base64 of its little-endian bytes, 4/3 of their length.
pub fn encode_base64(vector: &[f32]) -> String {
    if cfg!(target_endian = "little") {
        return STANDARD.encode(bytemuck::cast_slice::<f32, u8>(vector));
    }
    STANDARD.encode(vector.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
}

/// The vector whose little-endian bytes `text` is the base64 of.
///
/// # Errors
///
/// See [`WireError`]; components that are not finite are refused.
pub fn decode_base64(text: &str) -> Result<Vec<f32>, WireError> {
    floats_of(&STANDARD.decode(text)?)
}

/// The vector of these little-endian bytes.
pub(crate) fn floats_of(bytes: &[u8]) -> Result<Vec<f32>, WireError> {
    let (components, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(WireError::Length { bytes: bytes.len() });
    }
    let vector: Vec<f32> = components.iter().map(|&c| f32::from_le_bytes(c)).collect();
    match vector.iter().position(|x| !x.is_finite()) {
        Some(component) => Err(WireError::NonFinite { component }),
        None => Ok(vector),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_is_bit_exact() {
        let vector = [0.0, -0.0, 1.0, -1.5, f32::MIN_POSITIVE / 3.0, f32::from_bits(1), f32::MAX, f32::MIN];
        for len in 0..=vector.len() {
            let decoded = decode_base64(&encode_base64(&vector[..len])).unwrap();
            let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&decoded), bits(&vector[..len]));
        }
    }

    #[test]
    fn the_bytes_are_little_endian() {
        // What Python's `base64.b64encode(struct.pack("<2f", 1.0, -2.5))` prints.
        assert_eq!(encode_base64(&[1.0, -2.5]), "AACAPwAAIMA=");
    }

    #[test]
    fn errors_say_what_is_wrong() {
        assert!(matches!(decode_base64("AA*A"), Err(WireError::Base64(_))));
        assert!(matches!(decode_base64("AACAPwAAIMA"), Err(WireError::Base64(_))));
        assert_eq!(decode_base64("AACAPwA="), Err(WireError::Length { bytes: 5 }));
        assert_eq!(decode_base64(&encode_base64(&[1.0, f32::NAN])), Err(WireError::NonFinite { component: 1 }));
        assert_eq!(decode_base64(&encode_base64(&[f32::INFINITY])), Err(WireError::NonFinite { component: 0 }));
    }
}
