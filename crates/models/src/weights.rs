//! Tensors by name, out of one safetensors file or a sharded set.
//!
//! Format: <https://huggingface.co/docs/safetensors>. Headers are parsed and checked by the `safetensors` crate; this
//! module knows which file holds which tensor, checks shapes and types against what a model asks for, and remembers
//! what has been taken.
//!
//! Where files are still on their way, a shard is waited for when the first tensor is taken that the index has in it: the
//! tensors of one shard are prepared while the next comes. A model of a single file has no index, and nothing to do before
//! the file is complete. What takes all headers to know (a tensor twice, a tensor without a place) is checked at once where
//! all files are here, else when the last tensor has been taken.

use crate::{LoadError, ModelFiles, PackedWeights};
use nexus_compute::{Backend, ComputeError, DType, Packed, TensorView};
use safetensors::{Dtype, SafeTensors, tensor::TensorInfo};
use serde::Deserialize;
use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The tensors of a model, borrowed from its files.
pub struct Weights<'a> {
    files: &'a ModelFiles,
    /// The file of each tensor, where there is an index.
    index: BTreeMap<String, String>,
    /// Bytes of all tensors, where the index tells.
    bytes_total: Option<u64>,
    /// All files with tensors, and what is in those that were needed so far.
    shards: BTreeMap<String, OnceCell<Header>>,
    prefix: &'static str,
    taken: RefCell<BTreeSet<String>>,
    bytes_taken: Cell<u64>,
    progress: &'a dyn Fn(u64, u64),
    packed_weights: Option<&'a PackedWeights>,
    /// How far the bytes of each file were asked for.
    asked: RefCell<BTreeMap<String, usize>>,
}

/// The tensors of one file by name.
type Header = BTreeMap<String, Entry>;

struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
    /// Whatever tools write there; `total_size` is an integer from some, and a float from others.
    #[serde(default)]
    metadata: serde_json::Value,
}

impl<'a> Weights<'a> {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names. Headers are read at once if all
    /// files are here.
    ///
    /// `progress` is called with bytes taken and bytes in all (0: not known yet), whenever a tensor is taken.
    pub fn open(files: &'a ModelFiles, progress: &'a dyn Fn(u64, u64)) -> Result<Self, LoadError> {
        let (mut index, mut bytes_total) = (BTreeMap::new(), None);
        if let Some(json) = files.get(INDEX) {
            let parsed: Index =
                serde_json::from_slice(json).map_err(|e| LoadError::malformed(files.describe(INDEX), e))?;
            index = parsed.weight_map;
            bytes_total = parsed.metadata["total_size"].as_f64().map(|bytes| bytes as u64);
        }
        let mut shards: BTreeMap<String, OnceCell<Header>> =
            index.values().map(|shard| (shard.clone(), OnceCell::new())).collect();
        if files.get(INDEX).is_none() {
            shards.insert(SINGLE.to_owned(), OnceCell::new());
        }
        let (taken, bytes_taken) = Default::default();
        let weights = Self {
            files,
            index,
            bytes_total,
            shards,
            prefix: "",
            taken,
            bytes_taken,
            progress,
            packed_weights: None,
            asked: RefCell::default(),
        };
        if !files.may_arrive() {
            weights.check_headers()?;
        }
        Ok(weights)
    }

    /// Chooses the prefix of all names: the one of `candidates` under which `probe` exists, else the first.
    pub fn with_prefix(mut self, candidates: &[&'static str], probe: &str) -> Result<Self, LoadError> {
        let name = |prefix: &str| format!("{prefix}{probe}");
        // The index answers without a file being waited for.
        let mut chosen = candidates.iter().find(|prefix| self.index.contains_key(&name(prefix))).copied();
        for prefix in candidates {
            if chosen.is_none() && self.find(&name(prefix))?.is_some() {
                chosen = Some(prefix);
            }
        }
        let chosen = chosen.or(candidates.first().copied());
        self.prefix = chosen.unwrap_or_default();
        Ok(self)
    }

    /// Takes linear layers and tables from `packed_weights` where it has them, and puts there what is prepared.
    pub fn with_packed(self, packed_weights: Option<&'a PackedWeights>) -> Self {
        Self { packed_weights, ..self }
    }

    /// A prepared vector of `columns`.
    pub(crate) fn vector<B: Backend>(&self, backend: &B, name: &str, columns: usize) -> Result<B::Vector, LoadError> {
        backend.prepare_vector(&self.take(name, &[columns])?).map_err(prepare(name))
    }

    /// A prepared table of `shape`.
    pub(crate) fn table<B: Backend>(&self, backend: &B, name: &str, shape: [usize; 2]) -> Result<B::Table, LoadError> {
        let tensor = self.take(name, &shape)?;
        if let Some(kept) = self.kept(name, shape) {
            return backend.table_from(kept).map_err(prepare(name));
        }
        let table = backend.prepare_table(&tensor).map_err(prepare(name))?;
        self.keep(name, || backend.packed_table(&table));
        self.was_read(&[name]);
        Ok(table)
    }

    /// A prepared linear layer of `columns` inputs: weights of the given names and numbers of outputs, one under the other,
    /// with a bias each where it is `biased`. Names are without `.weight` and `.bias`.
    pub(crate) fn linear<B: Backend>(
        &self,
        backend: &B,
        parts: &[(String, usize)],
        columns: usize,
        biased: bool,
    ) -> Result<B::Linear, LoadError> {
        let names: Vec<String> = parts.iter().map(|(part, _)| format!("{part}.weight")).collect();
        let (mut tensors, mut biases) = (Vec::with_capacity(parts.len()), Vec::new());
        for ((part, rows), name) in parts.iter().zip(&names) {
            tensors.push(self.take(name, &[*rows, columns])?);
            if biased {
                biases.push(self.take(&format!("{part}.bias"), &[*rows])?);
            }
        }
        let (key, first) = (names.join(" "), names.first().map_or("", String::as_str));
        if let Some(kept) = self.kept(&key, [parts.iter().map(|(_, rows)| rows).sum(), columns]) {
            return backend.linear_from(kept, &biases).map_err(prepare(first));
        }
        let linear = backend.prepare_linear(&tensors, &biases).map_err(prepare(first))?;
        self.keep(&key, || backend.packed_linear(&linear));
        self.was_read(&names.iter().map(String::as_str).collect::<Vec<_>>());
        Ok(linear)
    }

    fn kept(&self, key: &str, shape: [usize; 2]) -> Option<&Packed> {
        self.packed_weights?.take(key, shape)
    }

    fn keep(&self, key: &str, packed: impl FnOnce() -> Option<Packed>) {
        if let Some(packed_weights) = self.packed_weights
            && let Some(packed) = packed()
        {
            packed_weights.put(key, packed);
        }
    }

    /// Asks for what will be taken soon. A model's tensors lie in its file in about the order in which they are taken.
    fn read_ahead(&self, shard: &str, range: &Range<usize>) {
        // What comes from a packed file is not read here.
        if !self.packed_weights.is_none_or(PackedWeights::collects) {
            return;
        }
        let mut asked = self.asked.borrow_mut();
        let asked = asked.entry(shard.to_owned()).or_insert(0);
        // Asking costs a look at each page: not for every tensor.
        if range.end + AHEAD_BYTES / 2 > *asked {
            let end = range.end + AHEAD_BYTES;
            self.files.will_read(shard, range.start.max(*asked)..end);
            *asked = end;
        }
    }

    /// The bytes of these tensors are in a device's hands now.
    fn was_read(&self, names: &[&str]) {
        for name in names {
            if let Ok(Some((shard, entry))) = self.find(&format!("{}{name}", self.prefix)) {
                self.files.was_read(shard, entry.range.clone());
            }
        }
    }

    /// The tensor `prefix + name`, which must have `shape`.
    pub fn take(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>, LoadError> {
        self.take_exact(&format!("{}{name}", self.prefix), shape)
    }

    /// The tensor with exactly this name, which must have `shape`.
    pub fn take_exact(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>, LoadError> {
        let Some((shard, entry)) = self.find(name)? else {
            return Err(LoadError::MissingTensor { file: self.main_file(), tensor: name.to_owned() });
        };
        let file = || self.files.describe(shard);
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
            .get(shard)
            .and_then(|bytes| bytes.get(entry.range.clone()))
            .and_then(|bytes| TensorView::new(dtype, &entry.shape, bytes))
            .ok_or_else(|| LoadError::malformed(file(), format!("tensor {name} reaches beyond the end of the file")))?;
        self.read_ahead(shard, &entry.range);
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
        self.check_headers()?;
        let taken = self.taken.borrow();
        // The first by name, whichever file it is in.
        let unused = self.entries().filter(|(_, name, _)| !taken.contains(*name) && !ignored(name));
        match unused.min_by_key(|(_, name, _)| *name) {
            None => Ok(()),
            Some((shard, name, _)) => {
                Err(LoadError::UnusedTensor { file: self.files.describe(shard), tensor: name.to_owned() })
            }
        }
    }

    /// Bytes that the tensors will take on a device, about: bf16 and f32 stay as they are, f16 is widened to f32. Norms
    /// and biases that a backend widens, and what it pads, are too little to matter. Waits for all files.
    pub fn device_bytes(&self) -> Result<u64, LoadError> {
        self.check_headers()?;
        let widened = |entry: &Entry| entry.range.len() as u64 * if entry.dtype == Dtype::F16 { 2 } else { 1 };
        Ok(self.entries().map(|(_, _, entry)| widened(entry)).sum())
    }

    /// [`Self::device_bytes`] where all files are here, else what the index says of them; `None` where nobody tells yet.
    pub fn bytes_expected(&self) -> Option<u64> {
        let all_read = self.shards.values().all(|cell| cell.get().is_some());
        if all_read { self.device_bytes().ok() } else { self.bytes_total }
    }

    /// The tensors of a file; reads its header, and waits for it, the first time.
    fn shard(&self, shard: &str) -> Result<&Header, LoadError> {
        let missing = || LoadError::malformed(self.main_file(), format!("{shard} is not one of its shards"));
        let cell = self.shards.get(shard).ok_or_else(missing)?;
        match cell.get() {
            Some(header) => Ok(header),
            None => {
                let header = read_header(self.files, shard)?;
                Ok(cell.get_or_init(|| header))
            }
        }
    }

    /// A tensor and its file. What the index does not mention may be in any of them.
    fn find(&self, name: &str) -> Result<Option<(&str, &Entry)>, LoadError> {
        if let Some(shard) = self.index.get(name) {
            let missing = || LoadError::MissingTensor { file: self.files.describe(shard), tensor: name.to_owned() };
            return Ok(Some((shard, self.shard(shard)?.get(name).ok_or_else(missing)?)));
        }
        for shard in self.shards.keys() {
            if let Some(entry) = self.shard(shard)?.get(name) {
                return Ok(Some((shard, entry)));
            }
        }
        Ok(None)
    }

    /// Reads all headers, and checks what one alone does not tell.
    fn check_headers(&self) -> Result<(), LoadError> {
        let mut names = BTreeSet::new();
        for shard in self.shards.keys() {
            if let Some(twice) = self.shard(shard)?.keys().find(|name| !names.insert(name.as_str())) {
                let detail = format!("tensor {twice} is in more than one shard");
                return Err(LoadError::malformed(self.files.describe(shard), detail));
            }
        }
        self.index.keys().try_for_each(|name| self.find(name).map(drop))
    }

    /// File, name and place of each tensor whose header was read.
    fn entries(&self) -> impl Iterator<Item = (&str, &str, &Entry)> {
        self.shards.iter().flat_map(|(shard, cell)| {
            cell.get().into_iter().flatten().map(move |(name, entry)| (shard.as_str(), name.as_str(), entry))
        })
    }

    fn bytes_total(&self) -> u64 {
        let all_read = self.shards.values().all(|cell| cell.get().is_some());
        if all_read {
            self.entries().map(|(_, _, entry)| entry.range.len() as u64).sum()
        } else {
            self.bytes_total.unwrap_or(0)
        }
    }

    fn main_file(&self) -> String {
        self.files.describe(if self.files.get(INDEX).is_some() { INDEX } else { SINGLE })
    }
}

/// What comes from the disk while a tensor is prepared.
const AHEAD_BYTES: usize = 256 << 20;

fn prepare(tensor: &str) -> impl FnOnce(ComputeError) -> LoadError {
    let tensor = tensor.to_owned();
    move |source| LoadError::Prepare { tensor, source }
}

fn read_header(files: &ModelFiles, name: &str) -> Result<Header, LoadError> {
    let bytes = files.require(
        name,
        "the weights are read from model.safetensors, or from the shards that model.safetensors.index.json names",
    )?;
    let (header_bytes, metadata) =
        SafeTensors::read_metadata(bytes).map_err(|e| LoadError::malformed(files.describe(name), e))?;
    // Offsets in the header count from its end: 8 bytes of length, then the header itself.
    let start = 8 + header_bytes;
    let infos: HashMap<_, _> = metadata.tensors();
    let entry = |(tensor, info): (String, &TensorInfo)| {
        let (begin, end) = info.data_offsets;
        (tensor, Entry { dtype: info.dtype, shape: info.shape.clone(), range: start + begin..start + end })
    };
    Ok(infos.into_iter().map(entry).collect())
}
