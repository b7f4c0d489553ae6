//! Numbers: JSON's grammar, and the `f32` nearest to what is written, always the one that `str::parse` gives.
//!
//! The fast path takes up to 19 significant digits as an integer, eight at a time, and multiplies by a power of ten in
//! `f64`. That is off by a few units in the last place of an `f64`, which matters for the `f32` only next to
//! the middle between two of them: a pattern of the low 29 bits that is checked for. What is too near to it, too long, or
//! outside the normal range goes to `str::parse`, and so do the last bytes of a body; of real bodies that is fewer than
//! one number in a million. Where the CPU can, runs of usual numbers are parsed a register at a time ([`parse_run`]).

#[cfg(target_arch = "x86_64")]
mod avx2;

/// Why there is no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NumberFault {
    /// No number begins here; whatever does is left to the caller.
    NotANumber,
    /// `NaN`, `Infinity` or `-Infinity`, which some writers of JSON produce.
    NonFiniteLiteral,
    /// A number, whose nearest `f32` is infinite.
    Overflow,
    /// Begins as a number and goes on as none.
    Malformed { at: usize, expected: &'static str },
}

/// Parses the number that begins at `start`. Returns it and the position after it. What follows is not looked at.
#[inline]
pub(super) fn parse_f32(bytes: &[u8], start: usize) -> Result<(f32, usize), NumberFault> {
    match parse_quickly(bytes, start) {
        Some(parsed) => Ok(parsed),
        None => parse_carefully(bytes, start),
    }
}

/// Parses the numbers from `start` on, up to the first that is in any way unusual, into `out`, as many as it has room
/// for. Returns where the first one begins that was not parsed, and how many were: none, as often as not, where the CPU
/// lacks what it takes. A parsed number is followed by a comma.
pub(super) fn parse_run(bytes: &[u8], start: usize, out: &mut [f32]) -> (usize, usize) {
    #[cfg(target_arch = "x86_64")]
    if avx2::is_there() {
        return avx2::run(bytes, start, out);
    }
    let _ = (bytes, out);
    (start, 0)
}

/// Steps over the number that begins at `start`, of any size. Returns the position after it.
pub(crate) fn skip_number(bytes: &[u8], start: usize) -> Result<usize, NumberFault> {
    let digits = |from: usize| from + bytes[from..].iter().take_while(|b| b.is_ascii_digit()).count();
    let integer = start + usize::from(bytes.get(start) == Some(&b'-'));
    let mut at = digits(integer);
    if at == integer {
        return Err(not_a_number(bytes, start));
    }
    if bytes[integer] == b'0' && at > integer + 1 {
        return Err(NumberFault::Malformed { at: integer + 1, expected: "no digit after a leading zero" });
    }
    if bytes.get(at) == Some(&b'.') {
        let fraction = at + 1;
        at = digits(fraction);
        if at == fraction {
            return Err(NumberFault::Malformed { at, expected: "a digit" });
        }
    }
    if let Some(b'e' | b'E') = bytes.get(at) {
        let exponent = at + 1 + usize::from(matches!(bytes.get(at + 1), Some(b'-' | b'+')));
        at = digits(exponent);
        if at == exponent {
            return Err(NumberFault::Malformed { at, expected: "a digit" });
        }
    }
    Ok(at)
}

/// All numbers and all faults, as `str::parse` has them.
#[cold]
#[inline(never)]
fn parse_carefully(bytes: &[u8], start: usize) -> Result<(f32, usize), NumberFault> {
    let end = skip_number(bytes, start)?;
    // The grammar was checked; a token is ASCII and what `parse` takes.
    let value: Option<f32> = str::from_utf8(&bytes[start..end]).ok().and_then(|token| token.parse().ok());
    match value {
        Some(value) if value.is_finite() => Ok((value, end)),
        Some(_) => Err(NumberFault::Overflow),
        None => Err(NumberFault::NotANumber),
    }
}

#[cold]
fn not_a_number(bytes: &[u8], start: usize) -> NumberFault {
    let rest = &bytes[start.min(bytes.len())..];
    if [&b"NaN"[..], b"Infinity", b"-Infinity"].iter().any(|literal| rest.starts_with(literal)) {
        NumberFault::NonFiniteLiteral
    } else if rest.first() == Some(&b'-') {
        NumberFault::Malformed { at: start + 1, expected: "a digit" }
    } else {
        NumberFault::NotANumber
    }
}

/// The longest number that the fast path takes, and eight bytes to read behind it.
const WINDOW: usize = 40;

/// Any number of this many digits is below 2^64.
const SIGNIFICANT_MAX: usize = 19;

/// The numbers that bodies are made of; `None` for whatever is unusual or wrong.
#[inline(always)]
fn parse_quickly(bytes: &[u8], start: usize) -> Option<(f32, usize)> {
    // One check of bounds for all that follows, but for the last numbers of a body.
    let window = bytes.get(start..)?.first_chunk::<WINDOW>()?;
    let negative = window[0] == b'-';
    let integer = usize::from(negative);
    let (mut mantissa, mut at) = (u64::from(window[integer].wrapping_sub(b'0')), integer + 1);
    // One digit and a point, nearly always: where the next number begins should not wait for a count of digits.
    if mantissa > 9 || window[at] != b'.' {
        (mantissa, at) = digits(window, integer, 0)?;
    }
    let integer_digits = at - integer;
    if integer_digits == 0 || (window[integer] == b'0' && integer_digits > 1) {
        return None;
    }
    // The zero of "0.123" is not significant.
    let mut significant = integer_digits - usize::from(window[integer] == b'0');
    let mut exponent = 0;
    if window[at] == b'.' {
        let fraction = at + 1;
        (mantissa, at) = digits(window, fraction, mantissa)?;
        let fraction_digits = at - fraction;
        if fraction_digits == 0 {
            return None;
        }
        significant += fraction_digits;
        exponent = -(fraction_digits as i32);
    }
    if window[at] | 0x20 == b'e' {
        let written;
        (written, at) = exponent_digits(window, at + 1)?;
        exponent += written;
    }
    if significant > SIGNIFICANT_MAX && significant.saturating_sub(leading_zeros(window, integer)) > SIGNIFICANT_MAX {
        return None;
    }
    let magnitude = nearest_f32(mantissa, exponent)?;
    Some((f32::from_bits(magnitude.to_bits() | u32::from(negative) << 31), start + at))
}

/// Appends the digits from `at` on to `mantissa` (wrapping when there are too many). Returns it and the position after
/// them; `None` when they go on to the end of the window.
#[inline(always)]
fn digits(window: &[u8; WINDOW], mut at: usize, mut mantissa: u64) -> Option<(u64, usize)> {
    loop {
        let chunk = u64::from_le_bytes(*window.get(at..)?.first_chunk::<8>()?);
        let count = digits_at_front(chunk);
        if count < 8 {
            // The digits move to the high end, zeros fill the low one: no loop over what is left, whose length no
            // branch predictor can guess. Two shifts, since `count` may be 0 and a shift by 64 is not one.
            let moved = (chunk << (8 * (7 - count))) << 8;
            let zeros = 0x3030_3030_3030_3030 >> (8 * count);
            mantissa = mantissa.wrapping_mul(TEN_TO[count as usize & 7]).wrapping_add(eight_digits(moved | zeros));
            return Some((mantissa, at + count as usize));
        }
        mantissa = mantissa.wrapping_mul(100_000_000).wrapping_add(eight_digits(chunk));
        at += 8;
    }
}

/// One or two digits with an optional sign.
#[inline(always)]
fn exponent_digits(window: &[u8; WINDOW], mut at: usize) -> Option<(i32, usize)> {
    let negative = *window.get(at)? == b'-';
    at += usize::from(negative || window[at] == b'+');
    let digit = |at: usize| window.get(at).map(|b| b.wrapping_sub(b'0')).filter(|&d| d < 10);
    let mut exponent = i32::from(digit(at)?);
    at += 1;
    if let Some(second) = digit(at) {
        exponent = exponent * 10 + i32::from(second);
        at += 1;
        if digit(at).is_some() {
            return None;
        }
    }
    (at < WINDOW).then_some((if negative { -exponent } else { exponent }, at))
}

const TEN_TO: [u64; 8] = [1, 10, 100, 1000, 10_000, 100_000, 1_000_000, 10_000_000];

/// How many of the bytes, from the low end, are digits before the first that is not.
#[inline(always)]
fn digits_at_front(chunk: u64) -> u32 {
    // A digit has 3 as its high half, and still has it with 6 added. No carry leaves a byte before the first that is
    // no digit, which is all that counts.
    let not_digits = ((chunk & 0xF0F0_F0F0_F0F0_F0F0) ^ 0x3030_3030_3030_3030)
        | ((chunk.wrapping_add(0x0606_0606_0606_0606) & 0xF0F0_F0F0_F0F0_F0F0) ^ 0x3030_3030_3030_3030);
    not_digits.trailing_zeros() / 8
}

/// The value of eight ASCII digits, the first in the low byte: pairs, then fours, then all.
#[inline(always)]
fn eight_digits(chunk: u64) -> u64 {
    let digits = chunk.wrapping_sub(0x3030_3030_3030_3030);
    let pairs = digits.wrapping_mul(10).wrapping_add(digits >> 8);
    let low = (pairs & 0x0000_00FF_0000_00FF).wrapping_mul(100 + (1_000_000 << 32));
    let high = ((pairs >> 16) & 0x0000_00FF_0000_00FF).wrapping_mul(1 + (10_000 << 32));
    low.wrapping_add(high) >> 32
}

/// Zeros behind the point of `0.000123`, which are not significant. `integer` is where the digits begin. Where there is
/// nothing but zeros, those after the number may be counted, too.
#[inline(never)]
fn leading_zeros(window: &[u8; WINDOW], integer: usize) -> usize {
    let zeros = window[integer..].iter().take_while(|b| matches!(b, b'0' | b'.')).count();
    // Less the integer and the point, where the integer is a zero; any other integer has no zeros in front.
    zeros.saturating_sub(2)
}

/// `mantissa * 10^exponent` as the nearest `f32`; `None` where the fast path cannot be sure of it.
#[inline(always)]
fn nearest_f32(mantissa: u64, exponent: i32) -> Option<f32> {
    if mantissa == 0 {
        return Some(0.0);
    }
    let power = *usize::try_from(exponent - POWERS_FROM).ok().and_then(|i| POWERS.get(i))?;
    // Signed, since that is one instruction everywhere.
    nearest_of_product(i64::try_from(mantissa).ok()? as f64 * power)
}

/// The `f32` nearest to what `value`, a product of a mantissa and a power of ten in `f64`, stands for; `None` where that
/// can not be told from it.
#[inline(always)]
fn nearest_of_product(value: f64) -> Option<f32> {
    // The spacing of `f32` changes below its normal range, and with it the pattern to look for. Bits of positive numbers
    // are in the order of the numbers.
    const NORMAL_FROM: u64 = (f32::MIN_POSITIVE as f64).to_bits();
    const NORMAL_TO: u64 = (f32::MAX as f64).to_bits();
    // Mantissas are off by two units at most (five roundings: a group of digits times its weight and two sums, in units
    // of the fraction, which is the smaller part of a number with a digit before the point; that digit times its weight,
    // and the sum of both), powers by half a unit. In the product's unit those may count double, and its own rounding is
    // half of one: off by less than 6.
    const OFF_BY_MAX: u64 = 6;
    const LOW_BITS: u64 = (1 << 29) - 1;
    const MIDDLE: u64 = 1 << 28;
    let bits = value.to_bits();
    let normal = bits.wrapping_sub(NORMAL_FROM) <= NORMAL_TO - NORMAL_FROM;
    let near_middle = (bits & LOW_BITS).wrapping_sub(MIDDLE - OFF_BY_MAX) <= 2 * OFF_BY_MAX;
    (normal && !near_middle).then_some(value as f32)
}

/// The exponent of the first of [`POWERS`].
const POWERS_FROM: i32 = -64;

/// Powers of ten, each the nearest `f64`.
#[rustfmt::skip]
const POWERS: [f64; 103] = [
    1e-64, 1e-63, 1e-62, 1e-61, 1e-60, 1e-59, 1e-58, 1e-57, 1e-56, 1e-55, 1e-54, 1e-53, 1e-52, 1e-51, 1e-50, 1e-49,
    1e-48, 1e-47, 1e-46, 1e-45, 1e-44, 1e-43, 1e-42, 1e-41, 1e-40, 1e-39, 1e-38, 1e-37, 1e-36, 1e-35, 1e-34, 1e-33,
    1e-32, 1e-31, 1e-30, 1e-29, 1e-28, 1e-27, 1e-26, 1e-25, 1e-24, 1e-23, 1e-22, 1e-21, 1e-20, 1e-19, 1e-18, 1e-17,
    1e-16, 1e-15, 1e-14, 1e-13, 1e-12, 1e-11, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1e0, 1e1,
    1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21,
    1e22, 1e23, 1e24, 1e25, 1e26, 1e27, 1e28, 1e29, 1e30, 1e31, 1e32, 1e33, 1e34, 1e35, 1e36, 1e37, 1e38,
];

#[cfg(test)]
mod tests;
