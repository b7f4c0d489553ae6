//! Runs of usual numbers, with AVX2: `d.ddd` and then a comma, up to the first that is anything else.
//!
//! Two loads a number. The first, from where the number begins, tells how many digits follow the point; that is all that
//! the next number waits for. The second ends where the digits end, so that they lie at the same place whatever their
//! count: three multiply-and-add steps make four groups of eight digits of it.
//!
//! Deliberately absent: exponents, integers without a point, any white space but one blank after a comma, and the judging
//! of what is wrong: all of that stops the run and is the scalar parser's.

use super::nearest_f32;
use std::arch::x86_64::*;

/// Bytes that are read from where a number begins: sign, digit, point, up to 24 digits, comma, blank.
const AHEAD: usize = 32;
/// Bytes that are read up to where its digits end.
const BEHIND: usize = 32;

/// Digits after the point that three groups of eight have room for.
const FRACTION_MAX: usize = 24;

/// With a value of the first of those groups below this, the three fit into an `i64`.
const TOP_GROUP_MAX: u64 = 900;
/// With a digit other than zero before the point, so many after it do.
const FRACTION_OF_INTEGER_MAX: usize = 17;

/// Whether the CPU has what [`run`] needs.
pub(super) fn is_there() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi1") && is_x86_feature_detected!("bmi2")
}

/// Parses numbers from byte `at` of `bytes` on into `out`, as long as they are usual ones and there is room. Returns
/// where the first one begins that was not parsed, and how many were. To be called only where [`is_there`].
pub(super) fn run(bytes: &[u8], at: usize, out: &mut [f32]) -> (usize, usize) {
    debug_assert!(is_there());
    // Writers either put a blank after each comma or none; a body that changes its mind ends the run.
    let blank = bytes.get(at..).is_some_and(|rest| {
        rest.iter().take(AHEAD).position(|&b| b == b',').is_some_and(|comma| rest.get(comma + 1) == Some(&b' '))
    });
    // SAFETY: the caller has seen `is_there`.
    unsafe { if blank { run_styled::<true>(bytes, at, out) } else { run_styled::<false>(bytes, at, out) } }
}

/// A window that slides over it by `n` bytes sees 0xFF in its last `n` lanes and zeros before.
static LAST_LANES: [u8; BEHIND + FRACTION_MAX] = {
    let mut lanes = [0; BEHIND + FRACTION_MAX];
    let mut i = BEHIND;
    while i < lanes.len() {
        lanes[i] = 0xFF;
        i += 1;
    }
    lanes
};

#[target_feature(enable = "avx2,bmi1,bmi2")]
fn run_styled<const BLANK: bool>(bytes: &[u8], mut at: usize, out: &mut [f32]) -> (usize, usize) {
    let zero = _mm256_set1_epi8(b'0' as i8);
    let nine = _mm256_set1_epi8(9);
    let tens = _mm256_set1_epi16(0x010A);
    let hundreds = _mm256_set1_epi32(0x0001_0064);
    let ten_thousands = _mm256_set1_epi32(0x0001_2710);
    let mut count = 0;
    while count < out.len() && at + AHEAD <= bytes.len() {
        // SAFETY: 32 bytes from `at` on are in `bytes`.
        let ahead = unsafe { _mm256_loadu_si256(bytes.as_ptr().add(at).cast()) };
        let digits = _mm256_sub_epi8(ahead, zero);
        let is_digit = _mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_min_epu8(digits, nine), digits)) as u32;
        let negative = usize::from(bytes[at] == b'-');
        let integer = bytes[at + negative].wrapping_sub(b'0');
        let fraction = at + negative + 2;
        // The bit shifted in at the top ends the count; so many digits are too many anyway.
        let fraction_digits = (!(is_digit >> (negative + 2))).trailing_zeros() as usize;
        let end = fraction + fraction_digits;
        let usual = integer <= 9
            && bytes[fraction - 1] == b'.'
            && fraction_digits.wrapping_sub(1) < FRACTION_MAX
            && end >= BEHIND
            && bytes.get(end) == Some(&b',')
            && (!BLANK || bytes.get(end + 1) == Some(&b' '));
        if !usual {
            break;
        }
        // SAFETY: 32 <= end < bytes.len(), and the table is 24 bytes longer than a window.
        let (behind, lanes) = unsafe {
            (
                _mm256_loadu_si256(bytes.as_ptr().add(end - BEHIND).cast()),
                _mm256_loadu_si256(LAST_LANES.as_ptr().add(fraction_digits).cast()),
            )
        };
        let digits = _mm256_and_si256(_mm256_sub_epi8(behind, zero), lanes);
        let pairs = _mm256_maddubs_epi16(digits, tens);
        let fours = _mm256_madd_epi16(pairs, hundreds);
        let fours = _mm256_packus_epi32(fours, fours);
        let eights = _mm256_madd_epi16(fours, ten_thousands);
        // Four groups of eight digits, of which the first is zero.
        let top = (_mm256_extract_epi64::<0>(eights) as u64) >> 32;
        let low = _mm256_extract_epi64::<2>(eights) as u64;
        let low = (low & 0xFFFF_FFFF) * 100_000_000 + (low >> 32);
        if top >= TOP_GROUP_MAX {
            break;
        }
        let mut mantissa = top * 10_000_000_000_000_000 + low;
        if integer != 0 {
            let Some(&ten_to) = TEN_TO.get(fraction_digits) else { break };
            mantissa += u64::from(integer) * ten_to;
        }
        let Some(magnitude) = nearest_f32(mantissa, -(fraction_digits as i32)) else { break };
        out[count] = f32::from_bits(magnitude.to_bits() | (negative as u32) << 31);
        count += 1;
        at = end + 1 + usize::from(BLANK);
    }
    (at, count)
}

const TEN_TO: [u64; FRACTION_OF_INTEGER_MAX + 1] = {
    let mut powers = [1; FRACTION_OF_INTEGER_MAX + 1];
    let mut i = 1;
    while i < powers.len() {
        powers[i] = powers[i - 1] * 10;
        i += 1;
    }
    powers
};
