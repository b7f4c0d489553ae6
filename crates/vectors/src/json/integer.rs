//! `top_k` and its like: an integer, as leniently as pydantic takes one.
//!
//! `5`, `5.0`, `5e0` and `"5"` are 5. Booleans are refused, and so is what is not finite (`1e999`, `NaN`).

use super::cursor::Cursor;
use super::error::{BodyError, ErrorKind, Loc};
use super::number::{NumberFault, skip_number};
use super::text::{number_error, parse_string};

/// Parses the integer at the cursor, which must be at least 1. What is beyond 64 bits becomes the largest there is.
pub(crate) fn parse_positive(cursor: &mut Cursor<'_>, loc: &[Loc]) -> Result<usize, BodyError> {
    let value = match cursor.peek() {
        Some(b'"') => {
            let text = parse_string(cursor)?;
            parse_integer(&text).ok_or_else(|| {
                let msg = "Input should be a valid integer, unable to parse string as an integer";
                BodyError::new(loc, ErrorKind::IntParsing, msg)
            })?
        }
        Some(b't' | b'f' | b'n' | b'[' | b'{') => {
            return Err(BodyError::new(loc, ErrorKind::IntType, "Input should be a valid integer"));
        }
        _ => {
            let start = cursor.at;
            cursor.at = skip_number(cursor.bytes, start).map_err(|fault| match fault {
                NumberFault::NonFiniteLiteral => not_finite(loc),
                fault => number_error(cursor, fault),
            })?;
            parse_token(&cursor.bytes[start..cursor.at], loc)?
        }
    };
    match usize::try_from(value) {
        Ok(value @ 1..) => Ok(value),
        Ok(_) => Err(too_small(loc)),
        Err(_) if value > 0 => Ok(usize::MAX),
        Err(_) => Err(too_small(loc)),
    }
}

fn too_small(loc: &[Loc]) -> BodyError {
    BodyError::new(loc, ErrorKind::GreaterThanEqual, "Input should be greater than or equal to 1")
}

fn not_finite(loc: &[Loc]) -> BodyError {
    BodyError::new(loc, ErrorKind::FiniteNumber, "Input should be a finite number")
}

/// A JSON number without a fractional part, saturating. Digits alone are never infinite, however many; with a point or
/// an exponent they are a float, as in Python, and a float can be.
fn parse_token(token: &[u8], loc: &[Loc]) -> Result<i64, BodyError> {
    let text = str::from_utf8(token).unwrap_or_default();
    let value = if text.contains(['.', 'e', 'E']) {
        match text.parse::<f64>() {
            Ok(value) if value.is_infinite() => return Err(not_finite(loc)),
            // Numbers beyond 2^53 have no fraction left; the cast saturates.
            Ok(value) if value.fract() == 0.0 => Some(value as i64),
            _ => None,
        }
    } else {
        parse_digits(text)
    };
    value.ok_or_else(|| {
        let msg = "Input should be a valid integer, got a number with a fractional part";
        BodyError::new(loc, ErrorKind::IntFromFloat, msg)
    })
}

/// The integer that a string holds, as leniently as pydantic takes one: `5`, `+5`, `-5`, `5.00`, with white space
/// around it. Saturating.
pub fn parse_integer(text: &str) -> Option<i64> {
    let text = text.trim();
    match text.split_once('.') {
        Some((integer, zeros)) if zeros.bytes().all(|b| b == b'0') => parse_digits(integer),
        Some(_) => None,
        None => parse_digits(text),
    }
}

/// Digits with an optional sign, saturating.
fn parse_digits(text: &str) -> Option<i64> {
    let negative = text.starts_with('-');
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    // Only too many digits can make it fail now.
    let magnitude = digits.parse().unwrap_or(i64::MAX);
    Some(if negative { -magnitude } else { magnitude })
}
