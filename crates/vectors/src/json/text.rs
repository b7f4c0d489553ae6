//! Strings, validated to the last byte.

use super::cursor::Cursor;
use super::error::{BodyError, invalid, malformed};
use super::number::NumberFault;
use std::borrow::Cow;

/// Parses the string that begins at the cursor (a quote).
pub(crate) fn parse_string<'a>(cursor: &mut Cursor<'a>) -> Result<Cow<'a, str>, BodyError> {
    if cursor.peek() != Some(b'"') {
        return Err(cursor.unexpected("'\"'"));
    }
    cursor.at += 1;
    let mut parsed = String::new();
    loop {
        let plain = plain_text(cursor)?;
        match cursor.peek() {
            Some(b'"') => {
                cursor.at += 1;
                return Ok(if parsed.is_empty() { Cow::Borrowed(plain) } else { Cow::Owned(parsed + plain) });
            }
            Some(b'\\') => {
                parsed.push_str(plain);
                cursor.at += 1;
                parsed.push(parse_escape(cursor)?);
            }
            Some(byte) => return Err(invalid(cursor.at, format_args!("unescaped control character 0x{byte:02x}"))),
            None => return Err(cursor.unexpected("'\"'")),
        }
    }
}

/// The text up to the next quote, backslash or control character, or the end.
pub(crate) fn plain_text<'a>(cursor: &mut Cursor<'a>) -> Result<&'a str, BodyError> {
    let rest = &cursor.bytes[cursor.at..];
    let len = rest.iter().position(|&b| b == b'"' || b == b'\\' || b < 0x20).unwrap_or(rest.len());
    match str::from_utf8(&rest[..len]) {
        Ok(text) => {
            cursor.at += len;
            Ok(text)
        }
        Err(error) => Err(invalid(cursor.at + error.valid_up_to(), "invalid UTF-8")),
    }
}

/// What follows a backslash.
pub(crate) fn parse_escape(cursor: &mut Cursor<'_>) -> Result<char, BodyError> {
    let start = cursor.at;
    let byte = cursor.peek();
    cursor.at += 1;
    Ok(match byte {
        Some(b'"') => '"',
        Some(b'\\') => '\\',
        Some(b'/') => '/',
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'n') => '\n',
        Some(b'r') => '\r',
        Some(b't') => '\t',
        Some(b'u') => {
            let first = parse_hex4(cursor)?;
            let is_pair = (0xD800..0xDC00).contains(&first) && cursor.bytes[cursor.at..].starts_with(b"\\u");
            let code = if is_pair {
                cursor.at += 2;
                let second = parse_hex4(cursor)?;
                if !(0xDC00..0xE000).contains(&second) {
                    return Err(invalid(start - 1, "half of a surrogate pair"));
                }
                0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00)
            } else {
                first
            };
            char::from_u32(code).ok_or_else(|| invalid(start - 1, "half of a surrogate pair"))?
        }
        _ => return Err(malformed(cursor.bytes, start, "an escape")),
    })
}

fn parse_hex4(cursor: &mut Cursor<'_>) -> Result<u32, BodyError> {
    let mut code = 0;
    for _ in 0..4 {
        let digit = cursor.peek().and_then(|b| char::from(b).to_digit(16));
        code = code * 16 + digit.ok_or_else(|| cursor.unexpected("a hexadecimal digit"))?;
        cursor.at += 1;
    }
    Ok(code)
}

/// A number's fault where any JSON value may stand.
pub(crate) fn number_error(cursor: &Cursor<'_>, fault: NumberFault) -> BodyError {
    match fault {
        NumberFault::Malformed { at, expected } => malformed(cursor.bytes, at, expected),
        _ => cursor.unexpected("a value"),
    }
}
