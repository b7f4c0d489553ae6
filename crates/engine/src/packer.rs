//! How many waiting sequences go into the next batch. Pure: lengths in, a count out.
//!
//! Sequences are packed end to end, so nothing is gained by sorting them by length, and first come stays first served.

/// How many sequences from the front of `lengths` (in tokens) fit a batch of `tokens_max` tokens. At least one, so that
/// a sequence longer than a batch still runs, alone.
pub(crate) fn fitting(lengths: impl IntoIterator<Item = usize>, tokens_max: usize) -> usize {
    let mut tokens = 0usize;
    let mut count = 0;
    for length in lengths {
        tokens = tokens.saturating_add(length);
        if count > 0 && tokens > tokens_max {
            break;
        }
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn takes_what_fits_and_always_one() {
        let check = |lengths: &[usize], tokens_max, expected| {
            assert_eq!(fitting(lengths.iter().copied(), tokens_max), expected, "{lengths:?} into {tokens_max}");
        };
        check(&[], 10, 0);
        check(&[4, 4, 4], 10, 2);
        check(&[4, 4, 2, 1], 10, 3);
        check(&[11], 10, 1);
        check(&[11, 1], 10, 1);
        check(&[1, 11], 10, 1);
    }

    proptest! {
        #[test]
        fn is_the_longest_prefix_within_the_bound(
            lengths in prop::collection::vec(1usize..50, 1..40),
            tokens_max in 1usize..200,
        ) {
            let n = fitting(lengths.iter().copied(), tokens_max);
            let total: usize = lengths[..n].iter().sum();
            prop_assert!(n == 1 || total <= tokens_max);
            prop_assert!(n == lengths.len() || total + lengths[n] > tokens_max);
        }
    }
}
