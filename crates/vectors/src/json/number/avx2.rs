//! Runs of usual numbers, with AVX2: `d.ddd` and then a comma, up to the first that is anything else.
//!
//! Two loads a number. The first, from where the number begins, tells how many digits follow the point; that is all that
//! the next number waits for. The second ends where the digits end, so that they lie at the same place whatever their
//! count: three multiply-and-add steps make four groups of eight digits of it.
//!
//! Deliberately absent: exponents, integers without a point, any white space but one blank after a comma, and the judging
//! of what is wrong: all of that stops the run and is the scalar parser's.

#![allow(unsafe_code)]

use super::{POWERS, POWERS_FROM, nearest_of_product};
use std::arch::x86_64::*;

/// Bytes that are read from where a number begins: sign, digit, point, up to 24 digits, comma, blank.
const AHEAD: usize = 32;
/// Bytes that are read up to where its digits end.
const BEHIND: usize = 32;

/// Digits after the point that three groups of eight have room for.
const FRACTION_MAX: usize = 24;

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
    let minus = _mm256_set1_epi8(b'-' as i8);
    let tens = _mm256_set1_epi16(0x010A);
    let hundreds = _mm256_set1_epi32(0x0001_0064);
    let ten_thousands = _mm256_set1_epi32(0x0001_2710);
    let weights = _mm256_setr_pd(0.0, 1e16, 1e8, 1.0);
    let mut count = 0;
    // What lies behind the digits is read, too. Only the first numbers of a text have too little before them.
    while at >= BEHIND && count < out.len() && at + AHEAD <= bytes.len() {
        // SAFETY: there are 32 bytes from `at` on. All that is read by `byte` is less than 29 bytes after it, see below.
        let byte = |at: usize| unsafe { *bytes.get_unchecked(at) };
        // SAFETY: as above.
        let ahead = unsafe { _mm256_loadu_si256(bytes.as_ptr().add(at).cast()) };
        let digits = _mm256_sub_epi8(ahead, zero);
        let is_digit = _mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_min_epu8(digits, nine), digits)) as u32;
        // What is first and no digit has to be a sign. Which of the two it is no branch can guess, so that there is none: both
        // are looked up in masks, and the compiler makes no branch of those.
        let negative = (!is_digit & 1) as usize;
        let is_sign = _mm256_movemask_epi8(_mm256_cmpeq_epi8(ahead, minus)) as u32;
        let fraction = at + negative + 2;
        let integer = byte(fraction - 2).wrapping_sub(b'0');
        // The bits shifted in at the top end the count; so many digits are too many anyway.
        let fraction_digits = (!(is_digit >> (negative + 2))).trailing_zeros() as usize;
        if fraction_digits.wrapping_sub(1) >= FRACTION_MAX {
            break;
        }
        // At most 27 bytes after `at`.
        let end = fraction + fraction_digits;
        let usual = (is_digit | is_sign) & 1 == 1
            && integer <= 9
            && byte(fraction - 1) == b'.'
            && byte(end) == b','
            && (!BLANK || byte(end + 1) == b' ');
        if !usual {
            break;
        }
        // SAFETY: 32 <= at < end < bytes.len(), and the table is 24 bytes longer than a window.
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
        // Four groups of eight digits; that each is below 2^27 makes all of this exact but for the sums.
        let groups = _mm256_castsi256_si128(_mm256_permute4x64_epi64::<0b1000>(eights));
        let parts = _mm256_mul_pd(_mm256_cvtepi32_pd(groups), weights);
        let sums = _mm_add_pd(_mm256_castpd256_pd128(parts), _mm256_extractf128_pd::<1>(parts));
        let mut mantissa = _mm_cvtsd_f64(_mm_add_sd(sums, _mm_unpackhi_pd(sums, sums)));
        if integer != 0 {
            let Some(&ten_to) = TEN_TO.get(fraction_digits) else { break };
            mantissa += f64::from(integer) * ten_to;
        }
        let sign = (negative as u32) << 31;
        let bits = match nearest_of_product(mantissa * power(fraction_digits)) {
            Some(magnitude) => magnitude.to_bits() | sign,
            None if mantissa == 0.0 => sign,
            None => break,
        };
        out[count] = f32::from_bits(bits);
        count += 1;
        at = end + 1 + usize::from(BLANK);
    }
    (at, count)
}

/// `10^-digits`, for up to [`FRACTION_MAX`] digits.
#[inline(always)]
fn power(digits: usize) -> f64 {
    POWERS[(-POWERS_FROM) as usize - digits]
}

/// Powers of ten that an `f64` holds exactly, all there are.
#[rustfmt::skip]
const TEN_TO: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20,
    1e21, 1e22,
];
