//! How an embedding lies in an item, and how a damaged one is told.
//!
//! | attribute | type | |
//! |---|---|---|
//! | `k` | B | the [`CacheKey`], 32 bytes: the partition key; there is no sort key |
//! | `version` | N | of this layout: 1 |
//! | `dimensions` | N | number of components |
//! | `dtype` | S | `f32` or `bf16` |
//! | `unit` | BOOL | `bf16` only: the vector had unit length before it was rounded |
//! | `vector` | B | components, little-endian |
//! | `checksum` | B | first 16 bytes of the SHA-256 over what is below |
//! | `revision` | S | the model revision, for people and for purging; absent where it is not known |
//! | `created` | N | seconds since 1970 |
//! | `expires` | N | seconds since 1970, the table's TTL attribute; absent where items stay |
//!
//! The checksum is over `nexus item`, then version, dimensions, dtype (0 for `f32`, 1 for `bf16`) and unit (0 or 1), each
//! as `u32`, little-endian, then the key and the vector's bytes. It covers all that the vector depends on, so that an
//! item under another's key is damaged, too; it leaves out what people may change, such as when an item expires.
//!
//! A vector in `f32` is read bit for bit as it was put. In `bf16`, components are rounded to nearest, ties to even. That
//! changes a vector's length by up to one part in 256, and clients take dot products for cosines, so a vector that had
//! unit length is scaled back to it (in f64) after reading. Any other length is left as it is.
//!
//! TTL deletes late, by days: an item beyond `expires` is a miss. Both dtypes can be in one table, and are read whatever
//! new items are written as.

use super::ItemDtype;
use crate::record::all_finite;
use crate::{CacheKey, Vector};
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use half::bf16;
use sha2::{Digest, Sha256};
use std::collections::HashMap;

pub(super) type Item = HashMap<String, AttributeValue>;

pub(super) const KEY: &str = "k";
pub(super) const VERSION: &str = "version";
pub(super) const DIMENSIONS: &str = "dimensions";
pub(super) const DTYPE: &str = "dtype";
const UNIT: &str = "unit";
const VECTOR: &str = "vector";
const CHECKSUM: &str = "checksum";
pub(super) const REVISION: &str = "revision";
const CREATED: &str = "created";
pub(super) const EXPIRES: &str = "expires";

const FORMAT_VERSION: u32 = 1;
const CHECKSUM_BYTES: usize = 16;

/// Bytes of a revision that are kept: with any more, an item would cost another write unit.
pub(super) const REVISION_BYTES_MAX: usize = 128;

/// What DynamoDB takes.
const ITEM_BYTES_MAX: usize = 400 << 10;

/// More than anything beside the vector takes: names, key, numbers, checksum, revision.
const OVERHEAD_BYTES_MAX: usize = 512;

/// How far from 1 the length of a vector may be that was scaled to unit length and rounded to `f32`.
const UNIT_TOLERANCE: f64 = 1e-4;

/// Why there is no vector in an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is past its time, and not deleted yet.
    Expired,
    /// It is not what was put. Which attribute tells.
    Damaged(&'static str),
}

/// The item of a vector, or `None` if that may not be kept: not finite (or not once rounded), or too large.
///
/// `expires` and `now` are seconds since 1970.
pub(super) fn encode(
    key: &CacheKey,
    vector: &[f32],
    dtype: ItemDtype,
    revision: &str,
    now: u64,
    expires: Option<u64>,
) -> Option<Item> {
    if !all_finite(vector) || vector.len() * dtype.bytes() > ITEM_BYTES_MAX - OVERHEAD_BYTES_MAX {
        return None;
    }
    let (bytes, unit): (Vec<u8>, bool) = match dtype {
        ItemDtype::F32 => (vector.iter().flat_map(|x| x.to_le_bytes()).collect(), false),
        ItemDtype::Bf16 => {
            let rounded: Vec<bf16> = vector.iter().map(|&x| bf16::from_f32(x)).collect();
            if !rounded.iter().all(|x| x.is_finite()) {
                return None;
            }
            let unit = (length(vector) - 1.0).abs() <= UNIT_TOLERANCE;
            (rounded.iter().flat_map(|x| x.to_le_bytes()).collect(), unit)
        }
    };
    let dimensions = u32::try_from(vector.len()).ok()?;
    let checksum = checksum(dimensions, dtype, unit, key, &bytes);
    let mut item = key_of(key);
    let mut set = |name: &str, value| item.insert(name.to_owned(), value);
    set(VERSION, number(FORMAT_VERSION.into()));
    set(DIMENSIONS, number(dimensions.into()));
    set(DTYPE, AttributeValue::S(dtype.name().to_owned()));
    if dtype == ItemDtype::Bf16 {
        set(UNIT, AttributeValue::Bool(unit));
    }
    set(VECTOR, AttributeValue::B(Blob::new(bytes)));
    set(CHECKSUM, AttributeValue::B(Blob::new(checksum)));
    if !revision.is_empty() {
        set(REVISION, AttributeValue::S(revision.to_owned()));
    }
    set(CREATED, number(now));
    if let Some(expires) = expires {
        set(EXPIRES, number(expires));
    }
    Some(item)
}

/// The key attributes of an item.
pub(super) fn key_of(key: &CacheKey) -> Item {
    HashMap::from([(KEY.to_owned(), AttributeValue::B(Blob::new(key.as_bytes())))])
}

/// The key that an item is under, if it is one of ours.
pub(super) fn key_in(item: &Item) -> Option<CacheKey> {
    Some(CacheKey::from_bytes(item.get(KEY)?.as_b().ok()?.as_ref().try_into().ok()?))
}

/// The vector of an item that was read under `key`, at `now`, in seconds since 1970.
pub(super) fn decode(key: &CacheKey, item: &Item, now: u64) -> Result<Vector, Refusal> {
    let bad = Refusal::Damaged;
    if read_number(item, VERSION) != Some(FORMAT_VERSION.into()) {
        return Err(bad(VERSION));
    }
    match item.get(EXPIRES) {
        None => {}
        Some(_) if read_number(item, EXPIRES).ok_or(bad(EXPIRES))? <= now => return Err(Refusal::Expired),
        Some(_) => {}
    }
    let dtype = item.get(DTYPE).and_then(|name| ItemDtype::named(name.as_s().ok()?)).ok_or(bad(DTYPE))?;
    let unit = match item.get(UNIT) {
        None => false,
        Some(unit) => *unit.as_bool().map_err(|_| bad(UNIT))?,
    };
    let dimensions = read_number(item, DIMENSIONS).and_then(|n| u32::try_from(n).ok()).ok_or(bad(DIMENSIONS))?;
    let bytes = item.get(VECTOR).and_then(|bytes| bytes.as_b().ok()).ok_or(bad(VECTOR))?.as_ref();
    if bytes.len() as u64 != u64::from(dimensions) * dtype.bytes() as u64 {
        return Err(bad(DIMENSIONS));
    }
    let found = item.get(CHECKSUM).and_then(|sum| sum.as_b().ok()).ok_or(bad(CHECKSUM))?.as_ref();
    if found != checksum(dimensions, dtype, unit, key, bytes) {
        return Err(bad(CHECKSUM));
    }
    let vector: Vector = match dtype {
        ItemDtype::F32 => bytes.as_chunks::<4>().0.iter().map(|&c| f32::from_le_bytes(c)).collect(),
        ItemDtype::Bf16 => {
            let read: Vec<f32> = bytes.as_chunks::<2>().0.iter().map(|&c| bf16::from_le_bytes(c).to_f32()).collect();
            if unit { scaled(&read) } else { read.into() }
        }
    };
    // No version of this code wrote it; the promise is worth the nanoseconds.
    if all_finite(&vector) { Ok(vector) } else { Err(bad(VECTOR)) }
}

fn scaled(vector: &[f32]) -> Vector {
    let scale = 1.0 / length(vector);
    vector.iter().map(|&x| (f64::from(x) * scale) as f32).collect()
}

fn length(vector: &[f32]) -> f64 {
    vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}

fn number(n: u64) -> AttributeValue {
    AttributeValue::N(n.to_string())
}

fn read_number(item: &Item, name: &str) -> Option<u64> {
    item.get(name)?.as_n().ok()?.parse().ok()
}

fn checksum(dimensions: u32, dtype: ItemDtype, unit: bool, key: &CacheKey, bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = Sha256::new();
    hasher.update(b"nexus item");
    for field in [FORMAT_VERSION, dimensions, dtype as u32, unit.into()] {
        hasher.update(field.to_le_bytes());
    }
    hasher.update(key.as_bytes());
    hasher.update(bytes);
    let digest: [u8; 32] = hasher.finalize().into();
    let mut checksum = [0; CHECKSUM_BYTES];
    checksum.copy_from_slice(&digest[..CHECKSUM_BYTES]);
    checksum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{awkward, bits, key};
    use proptest::prelude::*;

    const NOW: u64 = 1_800_000_000;

    fn item(vector: &[f32], dtype: ItemDtype) -> Item {
        encode(&key(1), vector, dtype, "rev", NOW, Some(NOW + 100)).unwrap()
    }

    fn shown(item: &Item) -> String {
        let mut lines: Vec<_> = item.iter().map(|(name, value)| format!("{name} {}", show(value))).collect();
        lines.sort();
        lines.join("\n")
    }

    fn show(value: &AttributeValue) -> String {
        match value {
            AttributeValue::B(bytes) => bytes.as_ref().iter().map(|b| format!("{b:02x}")).collect(),
            AttributeValue::S(text) => format!("{text:?}"),
            AttributeValue::N(number) => number.clone(),
            other => format!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn f32_is_bit_exact(words in prop::collection::vec(any::<u32>(), 0..100)) {
            let vector: Vec<f32> = words.iter().map(|&w| f32::from_bits(w)).filter(|x| x.is_finite()).collect();
            let read = decode(&key(1), &item(&vector, ItemDtype::F32), NOW).unwrap();
            prop_assert_eq!(bits(&read), bits(&vector));
        }

        #[test]
        fn bf16_is_within_half_of_its_last_bit(vector in prop::collection::vec(-1e30f32..1e30, 1..100)) {
            let read = decode(&key(1), &item(&vector, ItemDtype::Bf16), NOW).unwrap();
            for (x, y) in vector.iter().zip(read.iter()) {
                prop_assert!((x - y).abs() <= x.abs() / 256.0 + f32::MIN_POSITIVE, "{} {}", x, y);
            }
        }

        #[test]
        fn unit_length_survives_bf16(vector in prop::collection::vec(-1f32..1.0, 2..300)) {
            prop_assume!(length(&vector) > 0.1);
            let unit = scaled(&vector);
            let read = decode(&key(1), &item(&unit, ItemDtype::Bf16), NOW).unwrap();
            prop_assert!((length(&read) - 1.0).abs() < 1e-6, "{}", length(&read));
            let cosine: f64 = unit.iter().zip(read.iter()).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
            prop_assert!(cosine > 1.0 - 1e-4, "{}", cosine);
        }
    }

    #[test]
    fn the_layout_does_not_change_by_accident() {
        let key = CacheKey::from_bytes([7; 32]);
        let f32 = encode(&key, &[1.0, -2.5], ItemDtype::F32, "r1", NOW, Some(NOW + 60)).unwrap();
        let k = "07".repeat(32);
        let expected = format!(
            "checksum ac4c6907bff00e8e895aae1bfa6d1284\ncreated 1800000000\ndimensions 2\ndtype \"f32\"\nexpires 1800000060\nk {k}\nrevision \
             \"r1\"\nvector 0000803f000020c0\nversion 1"
        );
        assert_eq!(shown(&f32), expected);
        let bf16 = encode(&key, &[0.6, -0.8], ItemDtype::Bf16, "", NOW, None).unwrap();
        let expected = format!(
            "checksum 7d5a6e7ce1934db6962d38ac533d7fb0\ncreated 1800000000\ndimensions 2\ndtype \"bf16\"\nk {k}\nunit Bool(true)\nvector \
             1a3f4dbf\nversion 1"
        );
        assert_eq!(shown(&bf16), expected);
    }

    #[test]
    fn any_flipped_bit_of_the_vector_or_its_checksum_is_damage() {
        for dtype in [ItemDtype::F32, ItemDtype::Bf16] {
            let good = item(&[0.6, -0.8, 0.0], dtype);
            for name in [VECTOR, CHECKSUM] {
                let bytes = good[name].as_b().unwrap().as_ref().to_vec();
                for at in 0..bytes.len() * 8 {
                    let mut bytes = bytes.clone();
                    bytes[at / 8] ^= 1 << (at % 8);
                    let mut bad = good.clone();
                    bad.insert(name.to_owned(), AttributeValue::B(Blob::new(bytes)));
                    assert_eq!(decode(&key(1), &bad, NOW), Err(Refusal::Damaged(CHECKSUM)), "bit {at} of {name}");
                }
            }
        }
    }

    #[test]
    fn whatever_is_missing_or_of_another_kind_is_damage() {
        for dtype in [ItemDtype::F32, ItemDtype::Bf16] {
            let good = item(&[0.6, -0.8], dtype);
            for name in [VERSION, DIMENSIONS, DTYPE, VECTOR, CHECKSUM] {
                let mut without = good.clone();
                without.remove(name);
                assert_eq!(decode(&key(1), &without, NOW), Err(Refusal::Damaged(name)));
            }
            for name in good.keys().filter(|name| ![KEY, REVISION, CREATED].contains(&name.as_str())) {
                let mut other = good.clone();
                other.insert(name.clone(), AttributeValue::L(vec![]));
                assert!(matches!(decode(&key(1), &other, NOW), Err(Refusal::Damaged(n)) if n == name), "{name}");
            }
            for (name, value) in [
                (VERSION, number(2)),
                (DIMENSIONS, number(3)),
                (DIMENSIONS, number(1)),
                (DIMENSIONS, AttributeValue::N("2.5".into())),
                (DTYPE, AttributeValue::S("f64".into())),
                (UNIT, AttributeValue::Bool(dtype == ItemDtype::F32)),
                (EXPIRES, AttributeValue::N("soon".into())),
            ] {
                let mut other = good.clone();
                other.insert(name.to_owned(), value);
                assert!(matches!(decode(&key(1), &other, NOW), Err(Refusal::Damaged(_))), "{name}");
            }
            assert_eq!(decode(&key(2), &good, NOW), Err(Refusal::Damaged(CHECKSUM)), "another's item");
        }
    }

    #[test]
    fn past_its_time_is_a_miss() {
        let item = item(&[1.0], ItemDtype::F32);
        assert!(decode(&key(1), &item, NOW + 99).is_ok());
        assert_eq!(decode(&key(1), &item, NOW + 100), Err(Refusal::Expired));
    }

    #[test]
    fn what_may_not_be_kept() {
        let kept = |vector: &[f32], dtype| encode(&key(1), vector, dtype, "", NOW, None).is_some();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(!kept(&[1.0, bad], ItemDtype::F32) && !kept(&[1.0, bad], ItemDtype::Bf16));
        }
        assert!(kept(&awkward(), ItemDtype::F32));
        assert!(!kept(&[f32::MAX], ItemDtype::Bf16), "rounds to infinity");
        let largest = (ITEM_BYTES_MAX - OVERHEAD_BYTES_MAX) / 4;
        assert!(kept(&vec![0.0; largest], ItemDtype::F32) && !kept(&vec![0.0; largest + 1], ItemDtype::F32));
        assert!(kept(&vec![0.0; 2 * largest], ItemDtype::Bf16) && !kept(&vec![0.0; 2 * largest + 1], ItemDtype::Bf16));
    }

    #[test]
    fn the_overhead_is_what_it_is_said_to_be_and_4096_floats_cost_17_or_9_write_units() {
        // Names and text in bytes, numbers a byte for two digits and one or two more.
        let size = |item: &Item| -> usize {
            let value = |value: &AttributeValue| match value {
                AttributeValue::B(bytes) => bytes.as_ref().len(),
                AttributeValue::S(text) => text.len(),
                AttributeValue::N(digits) => digits.len().div_ceil(2) + 2,
                _ => 1,
            };
            item.iter().map(|(name, v)| name.len() + value(v)).sum::<usize>()
        };
        let revision = "r".repeat(REVISION_BYTES_MAX);
        for (dtype, units) in [(ItemDtype::F32, 17), (ItemDtype::Bf16, 9)] {
            let item = encode(&key(1), &[0.015625; 4096], dtype, &revision, NOW, Some(NOW)).unwrap();
            assert!(size(&item) - 4096 * dtype.bytes() <= OVERHEAD_BYTES_MAX);
            assert_eq!(size(&item).div_ceil(1024), units);
        }
    }
}
