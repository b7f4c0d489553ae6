//! Tensors by name, out of one safetensors file or a sharded set.
//!
//! Format: <https://huggingface.co/docs/safetensors>. Headers are parsed and checked by the `safetensors` crate; this
//! module knows which file holds which tensor, checks shapes and types against what a model asks for, and remembers
//! what has been taken.

use crate::{LoadError, ModelFiles};
use nexus_compute::{DType, TensorView};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The tensors of a model, borrowed from its files.
pub struct Weights<'a> {
    files: &'a ModelFiles,
    tensors: BTreeMap<String, Entry>,
    prefix: &'static str,
    taken: RefCell<BTreeSet<String>>,
    bytes_taken: Cell<u64>,
    progress: &'a dyn Fn(u64, u64),
}

struct Entry {
    file: String,
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl<'a> Weights<'a> {
    /// Reads the headers of `model.safetensors`, or of the shards that `model.safetensors.index.json` names.
    ///
    /// `progress` is called with bytes taken and bytes in all, whenever a tensor is taken.
    pub fn open(files: &'a ModelFiles, progress: &'a dyn Fn(u64, u64)) -> Result<Self, LoadError> {
        let mut tensors = BTreeMap::new();
        if let Some(index) = files.get(INDEX) {
            let index: Index =
                serde_json::from_slice(index).map_err(|e| LoadError::malformed(files.describe(INDEX), e))?;
            let shards: BTreeSet<&String> = index.weight_map.values().collect();
            for shard in shards {
                read_header(files, shard, &mut tensors)?;
            }
            for (tensor, shard) in &index.weight_map {
                if tensors.get(tensor).is_none_or(|entry| entry.file != *shard) {
                    return Err(LoadError::MissingTensor { file: files.describe(shard), tensor: tensor.clone() });
                }
            }
        } else {
            read_header(files, SINGLE, &mut tensors)?;
        }
        Ok(Self { files, tensors, prefix: "", taken: RefCell::default(), bytes_taken: Cell::new(0), progress })
    }

    /// Chooses the prefix of all names: the one of `candidates` under which `probe` exists, else the first.
    pub fn with_prefix(mut self, candidates: &[&'static str], probe: &str) -> Self {
        let fits = |prefix: &&&str| self.tensors.contains_key(&format!("{prefix}{probe}"));
        self.prefix = candidates.iter().find(fits).or(candidates.first()).copied().unwrap_or_default();
        self
    }

    /// The tensor `prefix + name`, which must have `shape`.
    pub fn take(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>, LoadError> {
        self.take_exact(&format!("{}{name}", self.prefix), shape)
    }

    /// The tensor with exactly this name, which must have `shape`.
    pub fn take_exact(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>, LoadError> {
        let Some(entry) = self.tensors.get(name) else {
            return Err(LoadError::MissingTensor { file: self.main_file(), tensor: name.to_owned() });
        };
        let file = || self.files.describe(&entry.file);
        if entry.shape != shape {
            return Err(LoadError::Shape {
                file: file(),
                tensor: name.to_owned(),
                found: entry.shape.clone(),
                expected: shape.to_owned(),
            });
        }
        let dtype = match entry.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::Bf16,
            other => {
                return Err(LoadError::DType { file: file(), tensor: name.to_owned(), found: format!("{other:?}") });
            }
        };
        let view = self
            .files
            .get(&entry.file)
            .and_then(|bytes| bytes.get(entry.range.clone()))
            .and_then(|bytes| TensorView::new(dtype, &entry.shape, bytes))
            .ok_or_else(|| LoadError::malformed(file(), format!("tensor {name} reaches beyond the end of the file")))?;
        if self.taken.borrow_mut().insert(name.to_owned()) {
            self.bytes_taken.set(self.bytes_taken.get() + view.bytes().len() as u64);
            (self.progress)(self.bytes_taken.get(), self.bytes_total());
        }
        Ok(view)
    }

    /// Refuses tensors that were not taken, unless `ignored` says that they may be there (`lm_head.weight`): a layer too
    /// many, or a bias that the configuration does not mention, means that configuration and weights do not belong
    /// together.
    pub fn finish(self, ignored: impl Fn(&str) -> bool) -> Result<(), LoadError> {
        let taken = self.taken.borrow();
        match self.tensors.iter().find(|(name, _)| !taken.contains(*name) && !ignored(name)) {
            None => Ok(()),
            Some((name, entry)) => {
                Err(LoadError::UnusedTensor { file: self.files.describe(&entry.file), tensor: name.clone() })
            }
        }
    }

    /// Bytes that the tensors will take on a device, about: bf16 and f32 stay as they are, f16 is widened to f32. Norms
    /// and biases that a backend widens, and what it pads, are too little to matter.
    pub fn device_bytes(&self) -> u64 {
        let widened = |entry: &Entry| entry.range.len() as u64 * if entry.dtype == Dtype::F16 { 2 } else { 1 };
        self.tensors.values().map(widened).sum()
    }

    fn bytes_total(&self) -> u64 {
        self.tensors.values().map(|e| e.range.len() as u64).sum()
    }

    fn main_file(&self) -> String {
        self.files.describe(if self.files.get(INDEX).is_some() { INDEX } else { SINGLE })
    }
}

fn read_header(files: &ModelFiles, name: &str, tensors: &mut BTreeMap<String, Entry>) -> Result<(), LoadError> {
    let bytes = files.require(
        name,
        "the weights are read from model.safetensors, or from the shards that model.safetensors.index.json names",
    )?;
    let (header_bytes, metadata) =
        SafeTensors::read_metadata(bytes).map_err(|e| LoadError::malformed(files.describe(name), e))?;
    // Offsets in the header count from its end: 8 bytes of length, then the header itself.
    let start = 8 + header_bytes;
    let infos: HashMap<_, _> = metadata.tensors();
    for (tensor, info) in infos {
        let (begin, end) = info.data_offsets;
        let entry = Entry {
            file: name.to_owned(),
            dtype: info.dtype,
            shape: info.shape.clone(),
            range: start + begin..start + end,
        };
        if tensors.insert(tensor.clone(), entry).is_some() {
            return Err(LoadError::malformed(
                files.describe(name),
                format!("tensor {tensor} is in more than one shard"),
            ));
        }
    }
    Ok(())
}
