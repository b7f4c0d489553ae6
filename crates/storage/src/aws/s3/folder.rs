//! What is kept of one model (a bucket and a path) on this machine.
//!
//! | in the model's folder | |
//! |---|---|
//! | `lock` | who holds it may write here; says how far they are |
//! | `objects/<digest>` | the content of one object, complete; of another name, size or ETag, another file |
//! | `objects/.fetching-<digest>`, `.ranges-<digest>` | one on its way, and what of it is there |
//! | `<digest>/` | a revision: links to objects by their names, and a manifest of them; complete when that is there |
//!
//! A revision is never written to again, so that a process which has mapped it keeps what it has. The two that were used
//! last stay; what only others refer to is removed.
//!
//! Everything here blocks, and is called on threads for that.

use super::listing::{Listing, Object};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

const LOCK: &str = "lock";
const OBJECTS: &str = "objects";
const MANIFEST: &str = ".nexus-manifest.json";
const NEW_MANIFEST: &str = ".nexus-manifest.new";
const MANIFEST_VERSION: u32 = 1;
const FETCHING: &str = ".fetching-";
const RANGES: &str = ".ranges-";
/// Revisions that stay, the newest included.
const REVISIONS_KEPT: usize = 2;
/// For how long after its last use a model stays where room is needed for another: the other model of the same service
/// was used when that started.
const MODEL_KEPT: Duration = Duration::from_secs(24 * 3600);

pub(super) struct ModelFolder {
    root: PathBuf,
    objects: PathBuf,
    lock: File,
    said: Mutex<Said>,
}

/// What the holder of a folder says of itself: bytes done and total, and a number that changes while it lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) done: u64,
    pub(super) total: u64,
    beats: u64,
}

/// The outcome of an attempt to get hold of a folder.
pub(super) enum Locked {
    Ours(ModelFolder),
    /// Another's, and how far they are, as far as they said.
    Theirs(Said),
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    version: u32,
    bucket: String,
    prefix: String,
    files: Vec<ManifestFile>,
}

#[derive(Serialize, Deserialize, PartialEq, Eq)]
struct ManifestFile {
    name: String,
    key: String,
    etag: String,
    size: u64,
}

impl ManifestFile {
    fn of(object: &Object) -> Self {
        let Object { name, key, etag, size } = object.clone();
        Self { name, key, etag, size }
    }
}

impl ModelFolder {
    /// Gets hold of the folder, which is made if it is not there.
    pub(super) fn lock(root: &Path) -> io::Result<Locked> {
        let objects = root.join(OBJECTS);
        fs::create_dir_all(&objects)?;
        let mut lock = File::options().create(true).truncate(false).read(true).write(true).open(root.join(LOCK))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut said = String::new();
                lock.read_to_string(&mut said)?;
                let numbers = said.split_whitespace().map(str::parse).collect::<Result<Vec<u64>, _>>();
                return Ok(Locked::Theirs(match numbers.as_deref() {
                    Ok(&[done, total, beats]) => Said { done, total, beats },
                    _ => Said::default(),
                }));
            }
            // Some network file systems have no locks; whoever shares a folder on one is on their own.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
        Ok(Locked::Ours(Self { root: root.to_owned(), objects, lock, said: Mutex::default() }))
    }

    /// Tells whoever waits for the folder how far this process is.
    pub(super) fn tell(&self, done: u64, total: u64) {
        self.say(|said| (said.done, said.total) = (done, total));
    }

    /// Tells them that this process lives: syncing and checking a large file takes minutes without a byte more.
    pub(super) fn beat(&self) {
        self.say(|_| ());
    }

    fn say(&self, change: impl FnOnce(&mut Said)) {
        // Nothing between lock and unlock panics.
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut said);
        said.beats += 1;
        let Said { done, total, beats } = *said;
        // Of one length, so that no reader sees the end of an earlier one.
        let line = format!("{done:>20} {total:>20} {beats:>20}\n");
        let mut lock = &self.lock;
        let _ = lock.rewind().and_then(|()| lock.write_all(line.as_bytes()));
    }

    /// Removes other models' folders until there is `enough` room, those first that were not used for longest: models that
    /// nobody names any more, after a rollout from another path. Those used within [`MODEL_KEPT`] stay, and those that
    /// another process is writing to. A process that has mapped one keeps what it has.
    pub(super) fn make_room(&self, enough: impl Fn() -> bool) {
        let Some(folder) = self.root.parent() else { return };
        let mut others: Vec<_> =
            fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        others.retain(|path| *path != self.root && path.join(OBJECTS).is_dir() && path.join(LOCK).is_file());
        let mut others: Vec<_> = others.into_iter().filter_map(|path| Some((last_use(&path)?, path))).collect();
        others.sort();
        for (used, path) in others {
            if enough() {
                return;
            }
            if used.elapsed().is_ok_and(|age| age > MODEL_KEPT)
                && let Ok(Locked::Ours(_held)) = Self::lock(&path)
            {
                tracing::warn!(folder = %path.display(), "removing a model that was not used for long, to make room");
                if let Err(error) = remove_folder(&path) {
                    tracing::warn!(folder = %path.display(), %error, "cannot remove it");
                }
            }
        }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn objects(&self) -> &Path {
        &self.objects
    }

    pub(super) fn object_path(&self, object: &Object) -> PathBuf {
        self.objects.join(object.digest())
    }

    /// Of the file that is fetched into, and of its journal.
    pub(super) fn part_paths(&self, object: &Object) -> (PathBuf, PathBuf) {
        let of = |kind: &str| self.objects.join(format!("{kind}{}", object.digest()));
        (of(FETCHING), of(RANGES))
    }

    /// Whether the object is here, complete.
    pub(super) fn has(&self, object: &Object) -> bool {
        is_file_of(&self.object_path(object), object.size)
    }

    /// Disk space that fetching the object still takes.
    pub(super) fn needed_bytes(&self, object: &Object) -> u64 {
        let (part, _) = self.part_paths(object);
        object.size.saturating_sub(fs::metadata(part).map_or(0, |metadata| allocated_bytes(&metadata)))
    }

    /// The folder of this revision, if it is here, complete. It counts as used now.
    pub(super) fn revision(&self, listing: &Listing) -> Option<PathBuf> {
        let folder = self.root.join(listing.digest());
        let manifest = read_manifest(&folder)?;
        let expected = listing.objects.iter().map(ManifestFile::of);
        let same = manifest.files.into_iter().eq(expected)
            && listing.objects.iter().all(|object| is_file_of(&folder.join(&object.name), object.size));
        if !same {
            return None;
        }
        // On the folder and not on a file in it: whoever reads the files would take them for changed.
        if let Err(error) = File::open(&folder).and_then(|folder| folder.set_modified(SystemTime::now())) {
            tracing::debug!(folder = %folder.display(), %error, "cannot note the use of a model revision");
        }
        Some(folder)
    }

    /// Makes the revision's folder, empty. It is none before it has its manifest.
    pub(super) fn begin(&self, listing: &Listing) -> io::Result<PathBuf> {
        let folder = self.root.join(listing.digest());
        // One that is there already is not what it should be.
        remove_folder(&folder)?;
        fs::create_dir(&folder)?;
        Ok(folder)
    }

    /// Puts an object, which is here, into a folder that was begun.
    pub(super) fn link(&self, folder: &Path, object: &Object) -> io::Result<()> {
        let to = folder.join(&object.name);
        if let Some(parent) = to.parent().filter(|parent| *parent != folder) {
            fs::create_dir_all(parent)?;
        }
        fs::hard_link(self.object_path(object), to)
    }

    /// Completes the revision's folder, which was begun, out of objects, all of which are here.
    pub(super) fn assemble(&self, listing: &Listing, bucket: &str, prefix: &str) -> io::Result<PathBuf> {
        let folder = self.root.join(listing.digest());
        for object in &listing.objects {
            let to = folder.join(&object.name);
            if !is_file_of(&to, object.size) {
                // Where there are no links, the object has this name alone, and a later revision fetches it again.
                self.link(&folder, object).or_else(|_| fs::rename(self.object_path(object), to))?;
            }
        }
        let files = listing.objects.iter().map(ManifestFile::of).collect();
        let manifest = Manifest { version: MANIFEST_VERSION, bucket: bucket.into(), prefix: prefix.into(), files };
        let temporary = folder.join(NEW_MANIFEST);
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(&manifest)?)?;
        file.sync_all()?;
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                sync_folder(&entry.path())?;
            }
        }
        sync_folder(&folder)?;
        fs::rename(&temporary, folder.join(MANIFEST))?;
        sync_folder(&folder)?;
        sync_folder(&self.root)?;
        Ok(folder)
    }

    /// Removes what neither this revision needs nor one of those that stay. What cannot be removed stays, with a warning.
    pub(super) fn prune(&self, listing: &Listing) {
        if let Err(error) = self.try_prune(listing) {
            tracing::warn!(folder = %self.root.display(), %error, "cannot remove old model revisions");
        }
    }

    fn try_prune(&self, listing: &Listing) -> io::Result<()> {
        let mut revisions = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let path = entry?.path();
            if let Some(manifest) = read_manifest(&path) {
                revisions.push((fs::metadata(&path)?.modified()?, path, manifest));
            } else if path.is_dir() && path != self.objects && path != self.root.join(listing.digest()) {
                // Begun, and not completed.
                remove_folder(&path)?;
            }
        }
        revisions.sort_by(|(a, ..), (b, ..)| b.cmp(a));
        // One that is on its way has its place already.
        let wanted = self.root.join(listing.digest());
        let on_its_way = revisions.iter().all(|(_, path, _)| *path != wanted);
        let stay = REVISIONS_KEPT - usize::from(on_its_way);
        let mut kept: BTreeSet<String> = listing.objects.iter().map(Object::digest).collect();
        for (place, (_, path, manifest)) in revisions.into_iter().enumerate() {
            if place < stay {
                kept.extend(manifest.files.into_iter().map(|file| {
                    let ManifestFile { name, key, etag, size } = file;
                    Object { name, key, etag, size }.digest()
                }));
            } else {
                tracing::info!(folder = %path.display(), "removing an old model revision");
                // Without its manifest it is none, whatever becomes of the rest.
                fs::remove_file(path.join(MANIFEST))?;
                remove_folder(&path)?;
            }
        }
        for entry in fs::read_dir(&self.objects)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let digest = name.strip_prefix(FETCHING).or_else(|| name.strip_prefix(RANGES)).unwrap_or(&name);
            if !kept.contains(digest) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

/// When a revision of this model was used last.
fn last_use(model: &Path) -> Option<SystemTime> {
    let folders = fs::read_dir(model).ok()?.flatten().filter(|entry| entry.path().is_dir());
    folders.filter_map(|entry| entry.metadata().ok()?.modified().ok()).max()
}

fn read_manifest(folder: &Path) -> Option<Manifest> {
    let manifest: Manifest = serde_json::from_slice(&fs::read(folder.join(MANIFEST)).ok()?).ok()?;
    (manifest.version == MANIFEST_VERSION).then_some(manifest)
}

fn is_file_of(path: &Path, size: u64) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() == size)
}

fn remove_folder(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes the names in a folder durable.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    #[cfg(unix)]
    File::open(folder)?.sync_all()?;
    let _ = folder;
    Ok(())
}

/// Bytes that are free for this user where `folder` is; `None` where that cannot be known.
pub(super) fn free_bytes(folder: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let state = rustix::fs::statvfs(folder).ok()?;
        Some(state.f_bavail.saturating_mul(state.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        None
    }
}

fn allocated_bytes(metadata: &fs::Metadata) -> u64 {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        metadata.blocks().saturating_mul(512)
    }
    #[cfg(not(unix))]
    {
        let _ = metadata;
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(root: &Path) -> ModelFolder {
        match ModelFolder::lock(root).unwrap() {
            Locked::Ours(folder) => folder,
            Locked::Theirs(said) => panic!("{said:?}"),
        }
    }

    #[test]
    fn room_is_made_of_models_that_nobody_used_for_long() {
        let models = tempfile::tempdir().unwrap();
        let ours = lock(&models.path().join("ours"));
        let age = |name: &str, days: u64| {
            let revision = models.path().join(name).join("revision");
            fs::create_dir_all(&revision).unwrap();
            drop(lock(&models.path().join(name)));
            for folder in [revision, models.path().join(name).join(OBJECTS)] {
                let used = SystemTime::now() - Duration::from_secs(days * 24 * 3600 + 60);
                File::open(folder).unwrap().set_modified(used).unwrap();
            }
        };
        for (name, days) in [("fresh", 0), ("older", 3), ("oldest", 9), ("busy", 5)] {
            age(name, days);
        }
        fs::create_dir(models.path().join("something-else")).unwrap();
        let busy = lock(&models.path().join("busy"));
        let there = || {
            let names = fs::read_dir(models.path()).unwrap().map(|entry| entry.unwrap().file_name());
            names.map(|name| name.into_string().unwrap()).collect::<BTreeSet<_>>()
        };
        ours.make_room(|| true);
        assert_eq!(there().len(), 6, "there was room");
        ours.make_room(|| !there().contains("oldest"));
        assert_eq!(there().len(), 5, "one was enough");
        ours.make_room(|| false);
        assert_eq!(there().iter().map(String::as_str).collect::<Vec<_>>(), ["busy", "fresh", "ours", "something-else"]);
        drop(busy);
    }

    #[test]
    fn who_waits_sees_that_the_other_lives() {
        let models = tempfile::tempdir().unwrap();
        let holder = lock(models.path());
        let said = || match ModelFolder::lock(models.path()).unwrap() {
            Locked::Theirs(said) => said,
            Locked::Ours(_) => panic!("it is held"),
        };
        holder.tell(1 << 40, 2 << 40);
        let before = said();
        assert_eq!((before.done, before.total), (1 << 40, 2 << 40));
        holder.beat();
        assert_ne!(said(), before);
        assert_eq!((said().done, said().total), (1 << 40, 2 << 40));
    }
}
