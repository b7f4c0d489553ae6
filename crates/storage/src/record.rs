//! How an entry of a store lies in bytes, and how a damaged one is told.
//!
//! Little-endian throughout:
//!
//! | bytes | |
//! |---|---|
//! | 0..4 | `nxev` |
//! | 4..8 | format version, `u32` |
//! | 8..12 | number of components, `u32` |
//! | 12..28 | first 16 bytes of the SHA-256 over bytes 0..12, the key, and the components |
//! | 28.. | components, `f32` |
//!
//! The checksum covers the key, so that an entry under another's key is damaged, too. SHA-256 since the crate needs it
//! anyway, and it runs at gigabytes a second on the machines this is for.

use crate::{CacheKey, Vector};
use sha2::{Digest, Sha256};

const MAGIC: [u8; 4] = *b"nxev";
const VERSION: u32 = 1;
const CHECKED_BYTES: usize = 12;
const CHECKSUM_BYTES: usize = 16;

/// Bytes of an entry before its components.
pub(crate) const HEADER_BYTES: usize = CHECKED_BYTES + CHECKSUM_BYTES;

/// Why an entry is not what was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// It ends before its header does.
    Truncated,
    /// It does not begin as an entry does.
    Magic,
    /// It is of a format that this version does not know.
    Version,
    /// It does not hold as many components as it says.
    Length,
    /// It is not what was put under this key.
    Checksum,
    /// A component is not finite.
    NonFinite,
}

/// The bytes of an entry; `None` for a vector that may not be kept: a component is not finite, or there are too many.
pub fn encode(key: &CacheKey, vector: &[f32]) -> Option<Vec<u8>> {
    if !all_finite(vector) {
        return None;
    }
    let count = u32::try_from(vector.len()).ok()?;
    let mut record = Vec::with_capacity(HEADER_BYTES + size_of_val(vector));
    record.extend(MAGIC);
    record.extend(VERSION.to_le_bytes());
    record.extend(count.to_le_bytes());
    record.extend([0; CHECKSUM_BYTES]);
    if cfg!(target_endian = "little") {
        record.extend_from_slice(bytemuck::cast_slice(vector));
    } else {
        record.extend(vector.iter().flat_map(|x| x.to_le_bytes()));
    }
    let checksum = checksum(&record[..CHECKED_BYTES], key, &record[HEADER_BYTES..]);
    record[CHECKED_BYTES..HEADER_BYTES].copy_from_slice(&checksum);
    Some(record)
}

/// The vector of an entry that was put under `key`.
pub fn decode(key: &CacheKey, record: &[u8]) -> Result<Vector, Damage> {
    let (header, payload) = record.split_first_chunk::<HEADER_BYTES>().ok_or(Damage::Truncated)?;
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if header[..4] != MAGIC {
        return Err(Damage::Magic);
    }
    if word(4) != VERSION {
        return Err(Damage::Version);
    }
    let (components, rest) = payload.as_chunks::<4>();
    if !rest.is_empty() || components.len() as u64 != u64::from(word(8)) {
        return Err(Damage::Length);
    }
    if header[CHECKED_BYTES..] != checksum(&header[..CHECKED_BYTES], key, payload) {
        return Err(Damage::Checksum);
    }
    let vector: Vector = components.iter().map(|&c| f32::from_le_bytes(c)).collect();
    // No version of this code wrote it; the promise is worth the nanoseconds.
    if all_finite(&vector) { Ok(vector) } else { Err(Damage::NonFinite) }
}

/// Whether each component is.
pub fn all_finite(vector: &[f32]) -> bool {
    // Without a branch for each component: this is on the path of every put.
    vector.iter().fold(true, |all, x| all & x.is_finite())
}

fn checksum(checked: &[u8], key: &CacheKey, payload: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let digest: [u8; 32] =
        Sha256::new().chain_update(checked).chain_update(key.as_bytes()).chain_update(payload).finalize().into();
    let mut checksum = [0; CHECKSUM_BYTES];
    checksum.copy_from_slice(&digest[..CHECKSUM_BYTES]);
    checksum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{awkward, bits, key};
    use proptest::prelude::*;

    /// A record as `encode` makes it, of a vector that `encode` refuses.
    fn encode_unchecked(key: &CacheKey, vector: &[f32]) -> Vec<u8> {
        let mut record = encode(key, &vec![0.0; vector.len()]).unwrap();
        for (bytes, x) in record[HEADER_BYTES..].chunks_exact_mut(4).zip(vector) {
            bytes.copy_from_slice(&x.to_le_bytes());
        }
        let checksum = checksum(&record[..CHECKED_BYTES], key, &record[HEADER_BYTES..]);
        record[CHECKED_BYTES..HEADER_BYTES].copy_from_slice(&checksum);
        record
    }

    proptest! {
        #[test]
        fn round_trip_is_bit_exact(words in prop::collection::vec(any::<u32>(), 0..100)) {
            let vector: Vec<f32> = words.iter().map(|&w| f32::from_bits(w)).filter(|x| x.is_finite()).collect();
            let record = encode(&key(1), &vector).unwrap();
            prop_assert_eq!(record.len(), HEADER_BYTES + 4 * vector.len());
            prop_assert_eq!(bits(&decode(&key(1), &record).unwrap()), bits(&vector));
        }

        #[test]
        fn any_bytes_are_no_record(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode(&key(1), &bytes).is_err());
        }
    }

    #[test]
    fn the_layout_does_not_change_by_accident() {
        let record = encode(&CacheKey::from_bytes([7; 32]), &[1.0, -2.5]).unwrap();
        let hex: String = record.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "6e7865760100000002000000bc7ec39403f384a8cf80fc3620b9421e0000803f000020c0");
    }

    #[test]
    fn any_flipped_bit_is_damage() {
        let good = encode(&key(1), &awkward()).unwrap();
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut record = good.clone();
                record[at] ^= 1 << bit;
                let damage = decode(&key(1), &record).unwrap_err();
                let expected = match at {
                    0..4 => Damage::Magic,
                    4..8 => Damage::Version,
                    8..12 => Damage::Length,
                    _ => Damage::Checksum,
                };
                assert_eq!(damage, expected, "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn any_other_length_is_damage() {
        let good = encode(&key(1), &awkward()).unwrap();
        for len in 0..good.len() {
            assert!(decode(&key(1), &good[..len]).is_err(), "{len}");
        }
        for extra in 1..20 {
            let longer = [&good[..], &vec![0; extra]].concat();
            assert_eq!(decode(&key(1), &longer), Err(Damage::Length));
        }
    }

    #[test]
    fn another_keys_entry_is_damage() {
        let record = encode(&key(1), &awkward()).unwrap();
        assert_eq!(decode(&key(2), &record), Err(Damage::Checksum));
    }

    #[test]
    fn not_finite_is_refused_both_ways() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(encode(&key(1), &[1.0, bad]), None);
            let record = encode_unchecked(&key(1), &[1.0, bad]);
            assert_eq!(decode(&key(1), &record), Err(Damage::NonFinite));
        }
        // The helper makes what `encode` makes.
        assert_eq!(Some(encode_unchecked(&key(1), &awkward())), encode(&key(1), &awkward()));
    }
}
