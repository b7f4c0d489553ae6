//! Token sequences packed end to end.

use thiserror::Error;

/// Sequences of token ids laid end to end, with the offsets that part them.
///
/// Invariants, checked by [`PackedBatch::new`]: at least one sequence, no empty sequence, offsets start at 0, rise
/// strictly and end at the number of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedBatch {
    tokens: Vec<u32>,
    offsets: Vec<usize>,
}

/// Why sequences can not form a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BatchError {
    /// There was no sequence at all.
    #[error("a batch needs at least one sequence")]
    NoSequences,
    /// A sequence had no token.
    #[error("sequence {0} of the batch is empty")]
    EmptySequence(usize),
}

impl PackedBatch {
    /// Packs `sequences` in order.
    pub fn new<S: AsRef<[u32]>>(sequences: &[S]) -> Result<Self, BatchError> {
        if sequences.is_empty() {
            return Err(BatchError::NoSequences);
        }
        let mut tokens = Vec::with_capacity(sequences.iter().map(|s| s.as_ref().len()).sum());
        let mut offsets = Vec::with_capacity(sequences.len() + 1);
        offsets.push(0);
        for (i, sequence) in sequences.iter().enumerate() {
            if sequence.as_ref().is_empty() {
                return Err(BatchError::EmptySequence(i));
            }
            tokens.extend_from_slice(sequence.as_ref());
            offsets.push(tokens.len());
        }
        Ok(Self { tokens, offsets })
    }

    /// All token ids, sequence after sequence.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Row at which each sequence starts, and the number of rows as the last entry: `sequences() + 1` entries.
    pub fn offsets(&self) -> &[usize] {
        &self.offsets
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Number of tokens over all sequences.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// The row range of each sequence.
    pub fn ranges(&self) -> impl ExactSizeIterator<Item = std::ops::Range<usize>> + DoubleEndedIterator + '_ {
        self.offsets.windows(2).map(|w| w[0]..w[1])
    }

    /// Length of the longest sequence, in tokens.
    pub fn longest(&self) -> usize {
        self.ranges().map(|r| r.len()).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_in_order() {
        let batch = PackedBatch::new(&[vec![1, 2, 3], vec![4], vec![5, 6]]).unwrap();
        assert_eq!(batch.tokens(), [1, 2, 3, 4, 5, 6]);
        assert_eq!(batch.offsets(), [0, 3, 4, 6]);
        assert_eq!((batch.sequences(), batch.rows(), batch.longest()), (3, 6, 3));
    }

    #[test]
    fn refuses_nothing_and_empty_sequences() {
        assert_eq!(PackedBatch::new::<Vec<u32>>(&[]), Err(BatchError::NoSequences));
        assert_eq!(PackedBatch::new(&[vec![1], vec![]]), Err(BatchError::EmptySequence(1)));
    }
}
