//! How much memory this process could still take: what the machine has left, or what its control group allows.
//!
//! Linux only. Elsewhere, and wherever a file is missing or cannot be read, nothing is known. Control groups:
//! <https://docs.kernel.org/admin-guide/cgroup-v2.html> (`memory.max`, `memory.current`, `memory.stat`), and version 1
//! under its older names.

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes that could still be taken, as far as anybody knows: the smallest of what the machine and each control group
/// around this process have left.
pub(super) fn bytes_free() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let left = groups.lines().filter_map(|line| group_left(&|path| fs::read_to_string(path).ok(), line));
    machine.into_iter().chain(left).min()
}

/// `MemAvailable` of `/proc/meminfo`, which counts what the page cache would give back.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The files of one version of control groups.
struct Names {
    limit: &'static str,
    used: &'static str,
    /// In `memory.stat`: page cache that counts as used, and is given back when it is wanted.
    cached: [&'static str; 2],
}

const V1: Names = Names {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    cached: ["total_inactive_file ", "total_active_file "],
};
const V2: Names = Names { limit: "memory.max", used: "memory.current", cached: ["inactive_file ", "active_file "] };

/// Where groups are seen as folders.
const MOUNT: &str = "/sys/fs/cgroup";

/// What is left in the group that a line of `/proc/self/cgroup` names, and in those around it. `read` gives a file's text.
fn group_left(read: &dyn Fn(&Path) -> Option<String>, line: &str) -> Option<u64> {
    let mut fields = line.splitn(3, ':');
    let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let (root, names) = if controllers.is_empty() {
        (PathBuf::from(MOUNT), V2)
    } else if controllers.split(',').any(|controller| controller == "memory") {
        (Path::new(MOUNT).join("memory"), V1)
    } else {
        return None;
    };
    // In a container, the mount may show the group itself at its root: folders that are not there are passed over.
    let mut folder: PathBuf = root.join(path.trim_start_matches('/'));
    let mut least = None;
    loop {
        if let Some(left) = folder_left(read, &folder, &names) {
            least = Some(least.map_or(left, |least: u64| least.min(left)));
        }
        if folder == root || !folder.pop() || !folder.starts_with(&root) {
            return least;
        }
    }
}

fn folder_left(read: &dyn Fn(&Path) -> Option<String>, folder: &Path, names: &Names) -> Option<u64> {
    let read = |name: &str| read(&folder.join(name));
    // `max`, of a group without a limit, is no number.
    let limit: u64 = read(names.limit)?.trim().parse().ok()?;
    let used: u64 = read(names.used)?.trim().parse().ok()?;
    let stat = read("memory.stat").unwrap_or_default();
    let cached = |name: &str| stat.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    let cached: u64 = names.cached.into_iter().filter_map(cached).sum();
    Some(limit.saturating_sub(used.saturating_sub(cached)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_machine_has() {
        assert_eq!(available("MemTotal:  100 kB\nMemAvailable:   64 kB\n"), Some(65_536));
        assert_eq!(available("MemTotal:  100 kB\n"), None);
        assert_eq!(available("MemAvailable: much\n"), None);
        #[cfg(target_os = "linux")]
        assert!(bytes_free().is_some_and(|bytes| bytes > 0));
    }

    #[test]
    fn the_tightest_group_counts_and_page_cache_is_free() {
        let files = [
            ("/sys/fs/cgroup/a/memory.max", "1000\n"),
            ("/sys/fs/cgroup/a/memory.current", "900\n"),
            ("/sys/fs/cgroup/a/b/memory.max", "800\n"),
            ("/sys/fs/cgroup/a/b/memory.current", "700\n"),
            ("/sys/fs/cgroup/a/b/memory.stat", "anon 100\ninactive_file 300\nactive_file 100\n"),
            ("/sys/fs/cgroup/c/memory.max", "max\n"),
            ("/sys/fs/cgroup/c/memory.current", "700\n"),
            ("/sys/fs/cgroup/memory/x/memory.limit_in_bytes", "500\n"),
            ("/sys/fs/cgroup/memory/x/memory.usage_in_bytes", "400\n"),
            ("/sys/fs/cgroup/memory/x/memory.stat", "inactive_file 1\ntotal_inactive_file 50\n"),
        ];
        let left = |line: &str| {
            let text =
                |path: &Path| files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| (*text).into());
            group_left(&text, line)
        };
        assert_eq!(left("0::/a/b"), Some(100));
        assert_eq!(left("0::/a"), Some(100));
        assert_eq!(left("0::/c"), None);
        assert_eq!(left("0::/"), None);
        assert_eq!(left("4:memory:/x"), Some(150));
        assert_eq!(left("4:memory:/x/deeper"), Some(150));
        assert_eq!(left("5:cpu:/x"), None);
        assert_eq!(left("nonsense"), None);
    }

    #[test]
    fn a_group_is_found_under_a_path_that_only_the_machine_outside_knows() {
        let read = |path: &Path| match path.strip_prefix(MOUNT).ok()?.to_str()? {
            "memory.max" => Some("50".into()),
            "memory.current" => Some("60".into()),
            _ => None,
        };
        assert_eq!(group_left(&read, "0::/docker/0123"), Some(0));
    }
}
