//! A matrix in one base64 string, cut into blocks as it comes.
//!
//! Three bytes are four characters, and a row of `dim` floats is `4 dim` bytes: three rows are `16 dim` characters,
//! always. Blocks are cut at multiples of that, or at a multiple of three floats where `dim` is not known.

use super::block::{Block, Content, Job};
use super::cutter::Cutter;
use bytes::Bytes;

/// Characters of three floats.
const UNIT: usize = 16;

#[derive(Debug)]
pub(super) struct Matrix {
    dim: Option<usize>,
    cutter: Cutter,
    /// Characters in blocks.
    characters: usize,
    /// Whether the last block ended in padding.
    padded: bool,
}

impl Matrix {
    pub(super) fn new(dim: Option<usize>) -> Self {
        Self { dim, cutter: Cutter::new(UNIT * dim.unwrap_or(1)), characters: 0, padded: false }
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.cutter.held_bytes()
    }

    /// Components in blocks so far, but for the last block.
    pub(super) fn components(&self) -> usize {
        self.characters / UNIT * 3
    }

    /// Takes the next characters of the string.
    pub(super) fn push(&mut self, run: Bytes, job: &Job, blocks: &mut Vec<Block>) {
        let Self { dim, cutter, characters, padded } = self;
        cutter.push(run, |text| blocks.push(block(*dim, characters, padded, text, job)));
    }

    /// The string is over.
    pub(super) fn finish(&mut self, job: &Job, blocks: &mut Vec<Block>) {
        let rest = self.cutter.finish();
        blocks.extend(rest.map(|text| block(self.dim, &mut self.characters, &mut self.padded, text, job)));
    }
}

fn block(dim: Option<usize>, characters: &mut usize, padded: &mut bool, text: Bytes, job: &Job) -> Block {
    let after_padding = std::mem::replace(padded, text.ends_with(b"="));
    let characters_before = *characters;
    *characters += text.len();
    let first_row = dim.map_or(0, |dim| characters_before / (UNIT * dim) * 3);
    Block { content: Content::Matrix { text, characters_before, dim, after_padding }, first_row, job: job.clone() }
}
