//! A body that is a safetensors file: tensors `source_embedding` `[dim]` or `source_embeddings` `[sources, dim]`, and
//! `target_embeddings` `[rows, dim]`, each in F32, F16 or BF16, in any order; in the file's metadata, as strings, `top_k`,
//! `target_ids` (a JSON array of strings) and `targets` (the name of a resident set, in place of the tensor). Other
//! tensors and other metadata are ignored.
//!
//! Rows are handed out as they lie in the chunks, at whatever address.
//!
//! The format: <https://huggingface.co/docs/safetensors>.

use super::block::{Block, Content, Job};
use super::cutter::Cutter;
use super::fields::{
    NAME, SOURCE, SOURCES, TARGET_IDS, TARGETS, TOP_K, check_row, check_sources, missing, refusal, too_long,
};
use super::{Head, Ids, Limits, Purpose};
use crate::json::{BodyError, Cursor, ErrorKind, Loc, open_list, parse_positive, parse_string};
use crate::{Dtype, Sources};
use bytes::{Buf as _, Bytes, BytesMut};
use memchr::memchr_iter;
use safetensors::tensor::{Metadata, TensorInfo};
use std::collections::HashMap;
use std::fmt::Display;
use std::sync::Arc;

/// The longest header. The reference implementation takes six times that; here it comes from anyone.
const HEADER_BYTES_MAX: usize = 16 << 20;

/// The most tensors, told by the braces in the header before it is read: each takes a thousand bytes of memory for the
/// fifty that it may be written in.
const BRACES_MAX: usize = 1 << 16;

const PREFIX_BYTES: usize = 8;

#[derive(Debug)]
pub(super) struct TensorBody {
    purpose: Purpose,
    limits: Limits,
    state: State,
    /// Of the prefix, the header or a source: what came of it.
    held: BytesMut,
    /// The tensors to come, the next one last.
    to_come: Vec<Tensor>,
    head: Head,
}

#[derive(Debug)]
enum State {
    Prefix,
    Header(usize),
    Tensor {
        left_bytes: usize,
    },
    /// After the last tensor.
    End,
}

#[derive(Debug)]
struct Tensor {
    content: Wanted,
    bytes: usize,
}

#[derive(Debug)]
enum Wanted {
    Sources { dtype: Dtype, dim: usize },
    Targets { dtype: Dtype, dim: usize, cutter: Cutter, first_row: usize },
    Nothing,
}

impl TensorBody {
    pub(super) fn new(purpose: Purpose, limits: Limits) -> Self {
        let (held, to_come) = (BytesMut::new(), Vec::new());
        Self { purpose, limits, state: State::Prefix, held, to_come, head: Head::default() }
    }

    pub(super) fn held_bytes(&self) -> usize {
        let cut = |tensor: &Tensor| {
            if let Wanted::Targets { cutter, .. } = &tensor.content { cutter.held_bytes() } else { 0 }
        };
        let sources = self.head.sources.as_ref().map_or(0, |sources| sources.bytes());
        self.held.len() + sources + self.head.ids.as_ref().map_or(0, Ids::bytes) + self.to_come.last().map_or(0, cut)
    }

    pub(super) fn feed(&mut self, mut chunk: Bytes, blocks: &mut Vec<Block>) -> Result<(), BodyError> {
        while !chunk.is_empty() {
            match self.state {
                State::Prefix => {
                    if self.hold(&mut chunk, PREFIX_BYTES) {
                        let length = self.held.split().get_u64_le();
                        let length = usize::try_from(length).ok().filter(|&length| length <= HEADER_BYTES_MAX);
                        let length = length.ok_or_else(|| no_file("its header is too long"))?;
                        self.state = State::Header(length);
                    }
                }
                State::Header(length) => {
                    if self.hold(&mut chunk, length) {
                        let header = self.held.split();
                        self.header(&header)?;
                        self.next(blocks)?;
                    }
                }
                State::Tensor { left_bytes } => {
                    let piece = chunk.split_to(chunk.len().min(left_bytes));
                    let left_bytes = left_bytes - piece.len();
                    self.state = State::Tensor { left_bytes };
                    self.tensor(piece, blocks);
                    if left_bytes == 0 {
                        self.done(blocks)?;
                        self.next(blocks)?;
                    }
                }
                State::End => return Err(no_file("there are bytes after its tensors")),
            }
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<Head, BodyError> {
        match self.state {
            State::Prefix if self.held.is_empty() => {
                return Err(BodyError::new(&[], ErrorKind::Missing, "Field required"));
            }
            State::Prefix | State::Header(_) => return Err(no_file("it ends within its header")),
            State::Tensor { left_bytes } => {
                let to_come: usize = self.to_come.iter().rev().skip(1).map(|tensor| tensor.bytes).sum();
                return Err(no_file(format_args!("{} bytes are missing at its end", left_bytes + to_come)));
            }
            State::End => {}
        }
        let of_sources = self.head.sources.as_ref().map(|sources| sources.dim());
        self.head.dim = self.head.dim.or(of_sources);
        Ok(self.head)
    }

    /// Moves bytes of `chunk` to those held, up to `length` of them. Whether they are all there.
    fn hold(&mut self, chunk: &mut Bytes, length: usize) -> bool {
        let wanted = length - self.held.len();
        self.held.extend_from_slice(&chunk.split_to(chunk.len().min(wanted)));
        self.held.len() == length
    }

    fn header(&mut self, header: &[u8]) -> Result<(), BodyError> {
        if memchr_iter(b'{', header).count() > BRACES_MAX {
            return Err(no_file("it has too many tensors"));
        }
        // That tensors lie one after the other and fit their shapes is checked by this.
        let metadata: Metadata = serde_json::from_slice(header).map_err(no_file)?;
        let mut tensors: Vec<(String, &TensorInfo)> = metadata.tensors().into_iter().collect();
        tensors.sort_by_key(|(_, info)| info.data_offsets);
        let strings = metadata.metadata().clone().unwrap_or_default();
        let named: HashMap<&str, &TensorInfo> = tensors.iter().map(|(name, info)| (name.as_str(), *info)).collect();
        self.strings(&strings)?;
        self.check_presence(&named)?;
        for (name, info) in tensors.iter().rev() {
            let content = self.wanted(name, info)?;
            self.to_come.push(Tensor { content, bytes: info.data_offsets.1 - info.data_offsets.0 });
        }
        Ok(())
    }

    fn strings(&mut self, strings: &HashMap<String, String>) -> Result<(), BodyError> {
        if let Some(text) = strings.get(TARGET_IDS) {
            self.head.ids = Some(self.ids(text)?);
        }
        if self.purpose == Purpose::Retrieve {
            if let Some(text) = strings.get(TOP_K) {
                // In quotes, so that it is read as the string that it is.
                let quoted = serde_json::Value::from(text.as_str()).to_string();
                let mut cursor = Cursor::new(quoted.as_bytes());
                self.head.top_k = Some(parse_positive(&mut cursor, &[Loc::Key(TOP_K)])?);
            }
            self.head.targets = strings.get(NAME).cloned();
        }
        Ok(())
    }

    fn ids(&self, text: &str) -> Result<Ids, BodyError> {
        let loc = [Loc::Key(TARGET_IDS)];
        let no_list =
            |error: BodyError| BodyError::value(&loc, format_args!("not a JSON array of strings: {}", error.msg));
        let mut ids = Ids::default();
        let mut cursor = Cursor::new(text.as_bytes());
        cursor.skip_whitespace();
        open_list(&mut cursor, &loc).map_err(no_list)?;
        let mut more = !cursor.take(b']');
        while more {
            if ids.len() == self.limits.rows_max {
                return Err(too_long(&loc, "ids", self.limits.rows_max));
            }
            cursor.skip_whitespace();
            ids.push(&parse_string(&mut cursor).map_err(no_list)?);
            more = cursor.another(b']').map_err(no_list)?;
        }
        cursor.skip_whitespace();
        if cursor.peek().is_some() {
            return Err(no_list(cursor.unexpected("nothing after the list")));
        }
        Ok(ids)
    }

    fn check_presence(&self, named: &HashMap<&str, &TensorInfo>) -> Result<(), BodyError> {
        let rivals = |one: &'static str, other: &str| {
            let problem = format_args!("{other} is given, too: only one of the two can be");
            BodyError::value(&[Loc::Key(one)], problem)
        };
        let has = |name| named.contains_key(name);
        if self.purpose == Purpose::Retrieve {
            match (has(SOURCE), has(SOURCES)) {
                (true, true) => return Err(rivals(SOURCES, SOURCE)),
                (false, false) => return Err(missing(SOURCE)),
                _ => {}
            }
        }
        match (has(TARGETS), self.head.targets.is_some()) {
            (true, true) => Err(rivals(NAME, TARGETS)),
            (false, false) => Err(missing(TARGETS)),
            (false, true) if self.head.ids.is_some() => {
                let problem = "the targets of a resident set have names of their own";
                Err(BodyError::value(&[Loc::Key(TARGET_IDS)], problem))
            }
            _ => Ok(()),
        }
    }

    /// What is to be done with a tensor.
    fn wanted(&mut self, name: &str, info: &TensorInfo) -> Result<Wanted, BodyError> {
        let retrieve = self.purpose == Purpose::Retrieve;
        let (key, rank) = match name {
            SOURCE if retrieve => (SOURCE, 1),
            SOURCES if retrieve => (SOURCES, 2),
            TARGETS => (TARGETS, 2),
            _ => return Ok(Wanted::Nothing),
        };
        let loc = [Loc::Key(key)];
        let format = format!("{:?}", info.dtype).to_uppercase();
        let Some(dtype) = Dtype::parse(&format) else {
            return Err(BodyError::value(&loc, format_args!("the tensor is of {format}, not of F32, F16 or BF16")));
        };
        let [.., dim] = *info.shape.as_slice() else {
            return Err(BodyError::value(&loc, format_args!("the tensor has no dimensions, expected {rank}")));
        };
        if info.shape.len() != rank {
            let problem = format_args!("the tensor has {} dimensions, expected {rank}", info.shape.len());
            return Err(BodyError::value(&loc, problem));
        }
        if dim == 0 {
            return Err(BodyError::value(&loc, "the vectors have no components"));
        }
        if dim > self.limits.dim_max {
            return Err(too_long(&loc, "components in a vector", self.limits.dim_max));
        }
        let rows = if rank == 2 { info.shape[0] } else { 1 };
        if key == TARGETS {
            if rows > 0 {
                check_row(rows - 1, dim, &self.limits)?;
            }
            self.head.dim = Some(dim);
            return Ok(Wanted::Targets { dtype, dim, cutter: Cutter::new(dim * dtype.bytes()), first_row: 0 });
        }
        if rows == 0 {
            return Err(BodyError::value(&loc, "there are no vectors"));
        }
        check_sources(rows, dim, &self.limits)?;
        self.head.many = key == SOURCES;
        Ok(Wanted::Sources { dtype, dim })
    }

    /// Begins with the next tensor, and steps over those without bytes.
    fn next(&mut self, blocks: &mut Vec<Block>) -> Result<(), BodyError> {
        loop {
            match self.to_come.last() {
                None => self.state = State::End,
                Some(tensor) if tensor.bytes == 0 => {
                    self.done(blocks)?;
                    continue;
                }
                Some(tensor) => self.state = State::Tensor { left_bytes: tensor.bytes },
            }
            return Ok(());
        }
    }

    fn tensor(&mut self, piece: Bytes, blocks: &mut Vec<Block>) {
        let job = self.job();
        match self.to_come.last_mut().map(|tensor| &mut tensor.content) {
            Some(Wanted::Sources { .. }) => self.held.extend_from_slice(&piece),
            Some(Wanted::Targets { dtype, dim, cutter, first_row }) => {
                cutter.push(piece, |bytes| blocks.push(block(bytes, *dtype, *dim, first_row, &job)));
            }
            Some(Wanted::Nothing) | None => {}
        }
    }

    /// A tensor is over.
    fn done(&mut self, blocks: &mut Vec<Block>) -> Result<(), BodyError> {
        let job = self.job();
        match self.to_come.pop().map(|tensor| tensor.content) {
            Some(Wanted::Sources { dtype, dim }) => {
                let mut sources = Vec::new();
                dtype.widen(&self.held.split(), &mut sources);
                let sources = Sources::new(&sources, dim).map_err(|error| of_one(refusal(error), self.head.many))?;
                self.head.sources = Some(Arc::new(sources));
            }
            Some(Wanted::Targets { dtype, dim, mut cutter, mut first_row }) => {
                blocks.extend(cutter.finish().map(|bytes| block(bytes, dtype, dim, &mut first_row, &job)));
            }
            Some(Wanted::Nothing) | None => {}
        }
        Ok(())
    }

    fn job(&self) -> Job {
        // Another length is told when all is there, with the first row.
        let sources = self.head.sources.clone().filter(|sources| self.head.dim == Some(sources.dim()));
        Job { purpose: self.purpose, sources, k: self.head.top_k }
    }
}

fn block(bytes: Bytes, dtype: Dtype, dim: usize, first_row: &mut usize, job: &Job) -> Block {
    let rows = bytes.len() / (dim * dtype.bytes());
    let block = Block { content: Content::Binary { bytes, dtype, dim }, first_row: *first_row, job: job.clone() };
    *first_row += rows;
    block
}

/// An error in a list of sources, told of the one source where there is no list.
fn of_one(mut error: BodyError, many: bool) -> BodyError {
    if !many && error.loc.get(1) == Some(&Loc::Key(SOURCES)) {
        error.loc[1] = Loc::Key(SOURCE);
        error.loc.remove(2);
    }
    error
}

fn no_file(problem: impl Display) -> BodyError {
    BodyError::value(&[], format_args!("not a safetensors file: {problem}"))
}
