//! `Authorization: Bearer`: what a client shows, and the comparison of secrets.
//!
//! Secrets are compared by their digests, which are of one length, byte for byte to the end: how long it takes tells nothing
//! of how much of a guess is right.

use axum::http::{HeaderMap, header};
use std::hint::black_box;

const SCHEME: &[u8] = b"Bearer ";

/// The token that a request comes with, without the space around it; `None` where there is none, an empty one, or another
/// scheme.
pub(super) fn token(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.as_bytes().split_at_checked(SCHEME.len())?;
    let token = token.trim_ascii();
    (scheme.eq_ignore_ascii_case(SCHEME) && !token.is_empty()).then_some(token)
}

/// Whether two digests are the same. Looks at all bytes, whichever differ.
pub(super) fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    let difference = a.iter().zip(b).fold(0, |difference, (a, b)| black_box(difference | (a ^ b)));
    difference == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_token_of_the_scheme_counts() {
        let of = |value: &str| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().expect("a header"))]);
            token(&headers).map(<[u8]>::to_vec)
        };
        assert_eq!(of("Bearer abc"), Some(b"abc".to_vec()));
        assert_eq!(of("bearer   abc  "), Some(b"abc".to_vec()));
        for none in ["Bearer", "Bearer ", "Basic abc", "abc", ""] {
            assert_eq!(of(none), None, "{none:?}");
        }
        assert_eq!(token(&HeaderMap::new()), None);
    }

    #[test]
    fn one_bit_makes_a_difference_wherever_it_is() {
        let one = [7; 32];
        assert!(same(&one, &one));
        for at in 0..32 {
            let mut other = one;
            other[at] ^= 1;
            assert!(!same(&one, &other));
        }
    }
}
