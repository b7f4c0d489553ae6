//! Compiled kernels on disk, so that only the first start on a kind of GPU compiles.
//!
//! A file is named by a hash of what decides its content, holds that as a whole, and is believed only where it is equal and
//! the machine code has its own hash. What can not be read or written costs a note, never a start.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

const MAGIC: &[u8] = b"nexus kernel 1\n";

/// FNV-1a of 128 bits (Fowler, Noll, Vo: <http://www.isthe.com/chongo/tech/comp/fnv/>): tells texts apart, and damage; no
/// guard against malice, which who can write to the folder has no need of.
fn fnv(bytes: &[u8]) -> u128 {
    const PRIME: u128 = (1 << 88) + 0x13b;
    bytes
        .iter()
        .fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |hash, &byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME))
}

/// A folder with compiled kernels.
pub(super) struct Cache<'a> {
    pub(super) folder: &'a Path,
}

impl Cache<'_> {
    fn path(&self, name: &str, key: &str) -> PathBuf {
        self.folder.join(format!("{name}-{:032x}.cubin", fnv(key.as_bytes())))
    }

    /// What was stored under this key; nothing where it is missing, of another key or damaged.
    pub(super) fn load(&self, name: &str, key: &str) -> Option<Vec<u8>> {
        let file = fs::read(self.path(name, key)).ok()?;
        let rest = file.strip_prefix(MAGIC)?.strip_prefix(&(key.len() as u64).to_le_bytes())?;
        let (hash, image) = rest.strip_prefix(key.as_bytes())?.split_at_checked(16)?;
        (fnv(image).to_le_bytes() == hash && !image.is_empty()).then(|| image.to_vec())
    }

    /// Stores under a name of its own first: others who start at once see all of a file or none of it.
    pub(super) fn store(&self, name: &str, key: &str, image: &[u8]) -> Result<(), String> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let path = self.path(name, key);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let unfinished = path.with_extension(format!("{}-{number}.unfinished", std::process::id()));
        let file =
            [MAGIC, &(key.len() as u64).to_le_bytes(), key.as_bytes(), &fnv(image).to_le_bytes(), image].concat();
        fs::create_dir_all(self.folder)
            .and_then(|()| fs::write(&unfinished, file))
            .and_then(|()| fs::rename(&unfinished, &path))
            .map_err(|error| {
                drop(fs::remove_file(&unfinished));
                let folder = self.folder.display();
                format!("compiled kernels can not be kept in {folder}: {error}: the next start compiles them again")
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("nexus-kernel-cache-{name}-{}", std::process::id()));
        drop(fs::remove_dir_all(&folder));
        folder
    }

    #[test]
    fn the_hash_is_fnv_1a_of_128_bits() {
        // The offset basis, and the value published for "a".
        assert_eq!(fnv(b""), 0x6c62272e07bb014262b821756295c58d);
        assert_eq!(fnv(b"a"), 0xd228cb696f1a8caf78912b704e4a8964);
    }

    #[test]
    fn what_was_stored_is_loaded_and_nothing_else() {
        let folder = folder("stored");
        let cache = Cache { folder: &folder };
        assert_eq!(cache.load("norm", "key"), None);
        cache.store("norm", "key", b"image").unwrap();
        assert_eq!(cache.load("norm", "key").as_deref(), Some(&b"image"[..]));
        assert_eq!(cache.load("norm", "another"), None);
        // A file of another key in this one's place, as a collision would have it.
        fs::rename(cache.path("norm", "key"), cache.path("norm", "another")).unwrap();
        assert_eq!(cache.load("norm", "another"), None);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "nothing unfinished is left");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_damaged_file_is_not_believed() {
        let folder = folder("damaged");
        let cache = Cache { folder: &folder };
        cache.store("norm", "key", b"image").unwrap();
        let whole = fs::read(cache.path("norm", "key")).unwrap();
        for length in 0..whole.len() {
            fs::write(cache.path("norm", "key"), &whole[..length]).unwrap();
            assert_eq!(cache.load("norm", "key"), None, "cut to {length} bytes");
        }
        for index in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[index] ^= 1;
            fs::write(cache.path("norm", "key"), damaged).unwrap();
            assert_eq!(cache.load("norm", "key"), None, "byte {index} changed");
        }
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_folder_that_can_not_be_is_told_and_survived() {
        let folder = folder("unwritable");
        fs::write(&folder, "a file").unwrap();
        let cache = Cache { folder: &folder.join("inside") };
        assert_eq!(cache.load("norm", "key"), None);
        assert!(cache.store("norm", "key", b"image").unwrap_err().contains("unwritable"));
        fs::remove_file(folder).unwrap();
    }
}
