//! A run of bytes that comes in any pieces, cut into blocks of whole steps. Only what a piece's end has cut is copied.

use bytes::{Bytes, BytesMut};

/// Bytes of a block, about.
pub(super) const BLOCK_BYTES: usize = 256 << 10;

#[derive(Debug)]
pub(super) struct Cutter {
    /// Blocks are a multiple of so many bytes, all but the last.
    step: usize,
    /// Less than a step.
    pending: BytesMut,
}

impl Cutter {
    /// For things of `unit` bytes, several of which make a step where they are small: an eager client's tiny pieces are
    /// not to become tiny blocks.
    pub(super) fn new(unit: usize) -> Self {
        let unit = unit.max(1);
        Self { step: unit * (BLOCK_BYTES / 4 / unit).max(1), pending: BytesMut::new() }
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.pending.len()
    }

    /// Takes the next bytes, and calls `emit` with each block that is whole.
    pub(super) fn push(&mut self, mut run: Bytes, mut emit: impl FnMut(Bytes)) {
        if !self.pending.is_empty() || run.len() < self.step {
            let wanted = self.step - self.pending.len();
            self.pending.extend_from_slice(&run.split_to(run.len().min(wanted)));
            if self.pending.len() < self.step {
                return;
            }
            emit(self.pending.split().freeze());
        }
        while run.len() >= self.step {
            let len = run.len().min(BLOCK_BYTES.max(self.step)) / self.step * self.step;
            emit(run.split_to(len));
        }
        self.pending.extend_from_slice(&run);
    }

    /// The rest, if there is one: less than a step.
    pub(super) fn finish(&mut self) -> Option<Bytes> {
        (!self.pending.is_empty()).then(|| self.pending.split().freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_however_the_bytes_come() {
        let all: Vec<u8> = (0..1_000_000u32).map(|i| (i * 7 % 251) as u8).collect();
        for unit in [1, 12, 16_384, 300_000] {
            for piece in [1_000, 65_536, 400_000, 1_000_000] {
                let mut cutter = Cutter::new(unit);
                let mut cut = Vec::new();
                for run in all.chunks(piece) {
                    cutter.push(Bytes::copy_from_slice(run), |block| {
                        assert!(block.len().is_multiple_of(unit) && block.len() <= BLOCK_BYTES.max(unit));
                        cut.extend_from_slice(&block);
                    });
                }
                if let Some(rest) = cutter.finish() {
                    cut.extend_from_slice(&rest);
                }
                assert!(cut == all, "{unit} {piece}");
            }
        }
    }
}
