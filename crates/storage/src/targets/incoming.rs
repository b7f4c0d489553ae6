//! A set whose file comes from elsewhere, in pieces and in any order.

use super::error::TargetError;
use super::layout::{self, DATA_AT, Fault};
use super::name::SetName;
use super::set::{OpenFault, TargetSet};
use super::writer::{Sealed, Temporary};
use super::{Shared, layout::VERSION};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::sync::{Arc, Mutex, PoisonError};

/// A set's file on its way into the folder. Nobody sees it before it is sealed and committed; dropped before that, it
/// leaves nothing. Everything here blocks on the disk.
pub(crate) struct Incoming {
    name: SetName,
    bytes: u64,
    file: Mutex<File>,
    /// Last, so that the file is closed when it is removed.
    temporary: Temporary,
}

impl Incoming {
    pub(super) fn begin(shared: &Arc<Shared>, name: &SetName, bytes: u64) -> Result<Self, TargetError> {
        let mut temporary = Temporary::new(shared);
        temporary.reserve(name, bytes)?;
        let file = File::options().create_new(true).read(true).write(true).open(&temporary.path);
        let file = file.map_err(|error| TargetError::io("create", &temporary.path, error))?;
        Ok(Self { name: name.clone(), bytes, file: Mutex::new(file), temporary })
    }

    /// Writes a piece where it belongs.
    ///
    /// # Errors
    ///
    /// What the disk says.
    pub(crate) fn write_at(&self, at: u64, piece: &[u8]) -> Result<(), TargetError> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let written = file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(piece));
        written.map_err(|error| TargetError::io("write", &self.temporary.path, error))
    }

    /// Checks that all pieces together are the set of the name, with this SHA-256, and makes them durable. The header
    /// gets a sequence number of this folder.
    ///
    /// # Errors
    ///
    /// [`TargetError::NotASet`], with `place` as where it comes from; what the disk says.
    pub(crate) fn seal(self, place: &str, sha256: Option<[u8; 32]>) -> Result<Sealed, TargetError> {
        let Self { name, bytes, file, temporary } = self;
        let mut file = file.into_inner().unwrap_or_else(PoisonError::into_inner);
        let not_a_set = |damage: String| TargetError::NotASet { place: place.to_owned(), damage };
        let (info, ids_bytes) = {
            let set = TargetSet::open(&temporary.path, |_| true).map_err(|fault| match fault {
                OpenFault::Io(error) => error,
                OpenFault::Missing => not_a_set("its copy is missing".to_owned()),
                OpenFault::File(Fault::Damaged(damage)) => not_a_set(damage),
                OpenFault::File(Fault::Version(found)) => {
                    not_a_set(format!("it is of format {found}; this version reads format {VERSION}"))
                }
            })?;
            let (info, layout) = (set.info().clone(), set.layout());
            if info.bytes != bytes || layout.rows.start != DATA_AT {
                return Err(not_a_set(format!("it has {} bytes and not {bytes}, or another header", info.bytes)));
            }
            if info.name != name.as_str() {
                return Err(not_a_set(format!("it is the set {:?}", info.name)));
            }
            if sha256.is_some_and(|sha256| Sha256::digest(set.file())[..] != sha256) {
                return Err(not_a_set("its bytes are not those that were put".to_owned()));
            }
            (info, layout.ids.as_ref().map_or(0, |ids| ids.text.len() as u64))
        };
        // Only now that it is not mapped any more.
        let sequence = temporary.shared().next_sequence();
        let header = layout::header(&info, sequence, ids_bytes);
        let written =
            file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(&header)).and_then(|()| file.sync_all());
        written.map_err(|error| TargetError::io("write", &temporary.path, error))?;
        Sealed::open(temporary, &info, sequence)
    }
}
