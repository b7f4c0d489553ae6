//! Numbers: each is the one that `str::parse` gives, or is refused where JSON refuses it.

#![forbid(unsafe_code)]
#![no_main]

mod feed;

use feed::outcome;
use libfuzzer_sys::fuzz_target;
use nexus_vectors::{Form, Purpose};

fuzz_target!(|data: &[u8]| {
    // The bytes as characters of numbers, so that most inputs are some.
    const CHARACTERS: &[u8; 16] = b"0123456789.-eE,+";
    let text: String = data.iter().take(400).map(|&byte| char::from(CHARACTERS[usize::from(byte) % 16])).collect();
    let tokens: Vec<&str> = text.split(',').take(40).collect();
    let row = tokens.join(", ");
    for body in [
        format!("{{\"target_embeddings\": [[1, {row}]]}}"),
        format!("{{\"target_embeddings\":[[1,{}]]}}", tokens.join(",")),
    ] {
        let found = outcome(Form::Json, Purpose::Keep, body.as_bytes(), &[]);
        let values: Option<Vec<f32>> = tokens.iter().map(|token| expected(token)).collect();
        match values {
            Some(values) => {
                let bytes: Vec<u8> = [1.0].iter().chain(&values).flat_map(|x: &f32| x.to_le_bytes()).collect();
                assert_eq!(found, Ok(format!("None Some({}) {bytes:?}", values.len() + 1)), "{body}");
            }
            None => assert!(found.is_err(), "{body}"),
        }
    }
});

/// The value of a JSON number that is finite as `f32`.
fn expected(token: &str) -> Option<f32> {
    let unsigned = token.strip_prefix('-').unwrap_or(token);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent.strip_prefix(['+', '-']).unwrap_or(exponent))),
        None => (unsigned, None),
    };
    let (integer, fraction) = match mantissa.split_once('.') {
        Some((integer, fraction)) => (integer, Some(fraction)),
        None => (mantissa, None),
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let json = digits(integer)
        && (integer == "0" || !integer.starts_with('0'))
        && fraction.is_none_or(digits)
        && exponent.is_none_or(digits);
    token.parse::<f32>().ok().filter(|value| json && value.is_finite())
}
