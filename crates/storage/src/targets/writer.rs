//! Writing a set: rows into a temporary file as they come, everything else at the end.

use super::error::TargetError;
use super::layout::{self, DATA_AT};
use super::name::{SetName, temporary_file};
use super::set::{OpenFault, SetDtype, SetInfo, TargetSet};
use super::{Shared, folder};
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

const BUFFER_BYTES: usize = 256 << 10;
/// Bytes that [`SetWriter::measure`] hands out at once, about.
const MEASURED_BYTES: usize = 1 << 20;

/// A set on its way into the folder. Nobody sees it before [`SetWriter::finish`]; dropped before that, it leaves nothing.
///
/// Rows come in order, by [`SetWriter::push`] or, while their shape or their norms are not known, by
/// [`SetWriter::push_bytes`] and then [`SetWriter::measure`]. Ids come in order, before or after. Rows go to the file at
/// once; norms (8 bytes a row) and ids (their bytes and 8 each) stay in memory until the end.
///
/// Everything here blocks on the disk. After an error from the disk, only dropping is left.
pub struct SetWriter {
    name: SetName,
    shape: Option<(SetDtype, usize)>,
    file: BufWriter<File>,
    rows_bytes: u64,
    norms: Vec<f64>,
    ids: String,
    id_ends: Vec<u64>,
    /// Whether the file has exactly what was pushed.
    whole: bool,
    /// Last, so that the file is closed when it is removed.
    temporary: Temporary,
}

/// A file that goes when this is dropped, and what it is charged for.
pub(super) struct Temporary {
    shared: Arc<Shared>,
    pub(super) path: PathBuf,
    /// Bytes of the bound that are held for the set.
    pub(super) reserved_bytes: u64,
    /// Whether the file is to stay.
    pub(super) kept: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.kept {
            folder::remove(&self.path);
        }
        self.shared.state().writing_bytes -= self.reserved_bytes;
    }
}

impl Temporary {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        let path = shared.folder.join(temporary_file(shared.next_sequence()));
        Self { shared: Arc::clone(shared), path, reserved_bytes: 0, kept: false }
    }

    #[cfg(feature = "aws")]
    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(super) fn reserve(&mut self, name: &SetName, bytes: u64) -> Result<(), TargetError> {
        self.shared.reserve(name.as_str(), self.reserved_bytes, bytes)?;
        self.reserved_bytes += bytes;
        Ok(())
    }
}

/// A set in a temporary file: complete, durable, mapped. Dropped before [`Sealed::commit`], it leaves nothing.
pub(crate) struct Sealed {
    pub(super) set: Arc<TargetSet>,
    pub(super) temporary: Temporary,
}

impl Sealed {
    /// Opens the file, which has to be what was written.
    pub(super) fn open(temporary: Temporary, info: &SetInfo, sequence: u64) -> Result<Self, TargetError> {
        let path = &temporary.path;
        let set = TargetSet::open(path, |found| found.info == *info && found.sequence == sequence);
        let set = set.map_err(|fault| match fault {
            OpenFault::Io(error) => error,
            other => TargetError::io("write", path, io::Error::other(format!("it is not what was written: {other:?}"))),
        })?;
        Ok(Self { set: Arc::new(set), temporary })
    }

    /// The set.
    #[cfg(feature = "aws")]
    pub(crate) fn set(&self) -> &Arc<TargetSet> {
        &self.set
    }

    /// Puts the set in its place, with the ETag of what it is a copy of, if it is one. Blocks on the disk. Returns what is
    /// known of it, and whether it replaced another.
    ///
    /// # Errors
    ///
    /// [`TargetError::TooMany`]; what the disk and the index say.
    pub(crate) fn commit(self, etag: Option<&str>) -> Result<(SetInfo, bool), TargetError> {
        if let Some(etag) = etag {
            self.set.set_etag(etag);
        }
        let (info, shared) = (self.set.info().clone(), Arc::clone(&self.temporary.shared));
        let replaced = shared.commit(self)?;
        Ok((info, replaced))
    }
}

impl SetWriter {
    pub(super) fn begin(shared: &Arc<Shared>, name: &SetName) -> Result<Self, TargetError> {
        let temporary = Temporary::new(shared);
        let create = || {
            let mut file = File::options().create_new(true).read(true).write(true).open(&temporary.path)?;
            // The header comes last.
            file.seek(SeekFrom::Start(DATA_AT as u64))?;
            Ok(file)
        };
        let file = create().map_err(|error| TargetError::io("create", &temporary.path, error))?;
        let mut writer = Self {
            name: name.clone(),
            shape: None,
            file: BufWriter::with_capacity(BUFFER_BYTES, file),
            rows_bytes: 0,
            norms: Vec::new(),
            ids: String::new(),
            id_ends: Vec::new(),
            whole: true,
            temporary,
        };
        // With the largest padding, so that a set that was let in is not refused at its end.
        writer.reserve(DATA_AT as u64 + layout::PADDING_BYTES_MAX)?;
        Ok(writer)
    }

    /// Says what the rows are. To be called once, before [`SetWriter::push`] and [`SetWriter::measure`]; a set without
    /// rows may do without, and then has none of `F32`.
    ///
    /// # Errors
    ///
    /// [`TargetError::Shape`] when the set has another shape already.
    pub fn set_shape(&mut self, dtype: SetDtype, dimensions: usize) -> Result<(), TargetError> {
        if *self.shape.get_or_insert((dtype, dimensions)) == (dtype, dimensions) {
            Ok(())
        } else {
            Err(TargetError::Shape)
        }
    }

    /// Adds rows: their components, little-endian, and one norm each.
    ///
    /// # Errors
    ///
    /// [`TargetError::Rows`] when these are no whole rows with a norm each, or rows before them have no norms yet;
    /// [`TargetError::Shape`] without a shape; [`TargetError::TooLarge`]; what the disk says.
    pub fn push(&mut self, rows: &[u8], norms: &[f64]) -> Result<(), TargetError> {
        let row_bytes = self.row_bytes()?;
        let is = |bytes: u64, norms: usize| Some(bytes) == row_bytes.checked_mul(norms as u64);
        if !is(rows.len() as u64, norms.len()) || (row_bytes == 0 && !norms.is_empty()) {
            return Err(self.not_rows(rows.len() as u64, norms.len()));
        }
        if !is(self.rows_bytes, self.norms.len()) {
            return Err(self.not_rows(self.rows_bytes, self.norms.len()));
        }
        self.reserve((rows.len() + size_of_val(norms)) as u64)?;
        self.append(rows)?;
        self.norms.extend_from_slice(norms);
        Ok(())
    }

    /// Adds bytes of rows, little-endian, of which it is not known yet where rows begin. They may end inside a row, and
    /// even inside a component. [`SetWriter::measure`] has to follow.
    ///
    /// # Errors
    ///
    /// [`TargetError::TooLarge`]; what the disk says.
    pub fn push_bytes(&mut self, bytes: &[u8]) -> Result<(), TargetError> {
        self.reserve(bytes.len() as u64)?;
        self.append(bytes)
    }

    /// Gives norms to the rows of [`SetWriter::push_bytes`]: `norms_of` is handed them again, some whole rows at a time
    /// and in order, and adds one norm for each to the vector, which is empty when it is called.
    ///
    /// # Errors
    ///
    /// [`TargetError::Rows`] when what was pushed are no whole rows, or `norms_of` gives another number of norms;
    /// [`TargetError::Shape`] without a shape; [`TargetError::TooLarge`]; what the disk says; what `norms_of` says.
    pub fn measure<E: From<TargetError>>(
        &mut self,
        mut norms_of: impl FnMut(&[u8], &mut Vec<f64>) -> Result<(), E>,
    ) -> Result<(), E> {
        let row_bytes = self.row_bytes()?;
        let mut at = self.norms.len() as u64 * row_bytes;
        let bytes = self.rows_bytes - at;
        if bytes == 0 {
            return Ok(());
        }
        if row_bytes == 0 || !bytes.is_multiple_of(row_bytes) {
            return Err(self.not_rows(self.rows_bytes, self.norms.len()).into());
        }
        // Before it is known that it works: the file's position is elsewhere until the end.
        self.whole = false;
        self.seek(at)?;
        let rows_at_once = (MEASURED_BYTES as u64 / row_bytes).max(1);
        let (mut rows, mut norms) = (Vec::new(), Vec::new());
        while at < self.rows_bytes {
            let count = rows_at_once.min((self.rows_bytes - at) / row_bytes);
            rows.resize((count * row_bytes) as usize, 0);
            self.file.get_mut().read_exact(&mut rows).map_err(|error| self.io("read", error))?;
            norms.clear();
            norms_of(&rows, &mut norms)?;
            if norms.len() as u64 != count {
                return Err(self.not_rows(rows.len() as u64, norms.len()).into());
            }
            self.reserve(size_of_val(&norms[..]) as u64)?;
            self.norms.extend_from_slice(&norms);
            at += count * row_bytes;
        }
        self.seek(at)?;
        self.whole = true;
        Ok(())
    }

    /// Adds ids, any texts. A set has one for each row or none at all.
    ///
    /// # Errors
    ///
    /// [`TargetError::TooLarge`].
    pub fn push_ids(&mut self, ids: impl IntoIterator<Item = impl AsRef<str>>) -> Result<(), TargetError> {
        for id in ids {
            let id = id.as_ref();
            self.reserve((id.len() + size_of::<u64>()) as u64)?;
            self.ids.push_str(id);
            self.id_ends.push(self.ids.len() as u64);
        }
        Ok(())
    }

    /// Bytes of the rows pushed so far.
    pub fn rows_bytes(&self) -> u64 {
        self.rows_bytes
    }

    /// Bytes that the set's file will have, with what was pushed so far.
    pub fn bytes(&self) -> u64 {
        self.temporary.reserved_bytes - layout::PADDING_BYTES_MAX + layout::padding(self.rows_bytes)
    }

    /// Puts the set in its place, durably: once this has returned it is there after any end of the process, and before
    /// that what was there under its name is. Returns what is known of it, and whether it replaced another.
    ///
    /// # Errors
    ///
    /// [`TargetError::Rows`], [`TargetError::Ids`] and [`TargetError::Shape`] when what was pushed is no set;
    /// [`TargetError::TooLarge`], [`TargetError::TooMany`]; what the disk and the index say.
    pub fn finish(self) -> Result<(SetInfo, bool), TargetError> {
        self.seal()?.commit(None)
    }

    /// The set, complete and durable, that nobody sees yet.
    ///
    /// # Errors
    ///
    /// As [`SetWriter::finish`].
    pub(crate) fn seal(mut self) -> Result<Sealed, TargetError> {
        if self.rows_bytes == 0 {
            self.shape.get_or_insert((SetDtype::F32, 0));
        }
        let (dtype, dimensions) = self.shape.ok_or(TargetError::Shape)?;
        let rows = self.norms.len();
        if Some(self.rows_bytes) != self.row_bytes()?.checked_mul(rows as u64) {
            return Err(self.not_rows(self.rows_bytes, rows));
        }
        let has_ids = !self.id_ends.is_empty();
        if has_ids && self.id_ends.len() != rows {
            return Err(TargetError::Ids { ids: self.id_ends.len(), rows });
        }
        let created_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let (name, bytes) = (self.name.as_str().to_owned(), self.bytes());
        let info = SetInfo { name, rows, dimensions, dtype, bytes, created_unix_s, has_ids };
        let sequence = self.temporary.shared.next_sequence();
        let header = layout::header(&info, sequence, self.ids.len() as u64);
        self.write_rest(&header).map_err(|error| self.io("write", error))?;

        // What is in the file counts, and not what this writer thinks it wrote.
        Sealed::open(self.temporary, &info, sequence)
    }

    fn write_rest(&mut self, header: &[u8]) -> io::Result<()> {
        if !self.whole {
            return Err(interrupted());
        }
        self.file.write_all(&[0; layout::PADDING_BYTES_MAX as usize][..layout::padding(self.rows_bytes) as usize])?;
        self.file.write_all(bytemuck::cast_slice(&self.norms))?;
        self.file.write_all(bytemuck::cast_slice(&self.id_ends))?;
        self.file.write_all(self.ids.as_bytes())?;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(header)?;
        self.file.flush()?;
        self.file.get_ref().sync_all()
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), TargetError> {
        let written = if self.whole { self.file.write_all(bytes) } else { Err(interrupted()) };
        self.whole &= written.is_ok();
        written.map_err(|error| self.io("write", error))?;
        self.rows_bytes += bytes.len() as u64;
        Ok(())
    }

    /// Goes to a byte of the rows, with everything that was pushed in the file.
    fn seek(&mut self, at: u64) -> Result<(), TargetError> {
        self.file.seek(SeekFrom::Start(DATA_AT as u64 + at)).map(drop).map_err(|error| self.io("write", error))
    }

    fn reserve(&mut self, bytes: u64) -> Result<(), TargetError> {
        self.temporary.reserve(&self.name, bytes)
    }

    fn row_bytes(&self) -> Result<u64, TargetError> {
        let (dtype, dimensions) = self.shape.ok_or(TargetError::Shape)?;
        // Whatever saturates is more than any file has.
        Ok((dimensions as u64).saturating_mul(dtype.bytes() as u64))
    }

    fn not_rows(&self, bytes: u64, norms: usize) -> TargetError {
        let (dtype, dimensions) = self.shape.unwrap_or((SetDtype::F32, 0));
        TargetError::Rows { bytes, norms, dimensions, dtype }
    }

    fn io(&self, doing: &'static str, error: io::Error) -> TargetError {
        TargetError::io(doing, self.path(), error)
    }

    fn path(&self) -> &Path {
        &self.temporary.path
    }
}

fn interrupted() -> io::Error {
    io::Error::other("writing it failed before")
}
