//! What the process takes of the machine. Linux only; elsewhere nothing is known.

use std::fs;

/// What it takes, now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Process {
    /// Memory that is there for it alone or with others.
    pub resident_bytes: Option<u64>,
    /// Files and sockets that it has open.
    pub open_fds: Option<u64>,
    /// Time of processors, since its start.
    pub cpu_seconds: Option<f64>,
}

impl Process {
    /// What it takes now.
    pub fn now() -> Self {
        Self {
            resident_bytes: fs::read_to_string("/proc/self/status").ok().and_then(|text| resident_bytes(&text)),
            // The one that is read with is among them.
            open_fds: fs::read_dir("/proc/self/fd").ok().map(|list| (list.count() as u64).saturating_sub(1)),
            cpu_seconds: cpu_seconds(),
        }
    }
}

fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(unix)]
fn cpu_seconds() -> Option<f64> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Some(time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)
}

#[cfg(not(unix))]
fn cpu_seconds() -> Option<f64> {
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_file_more_and_memory_more() {
        let before = Process::now();
        let file = fs::File::open("/proc/self/status").expect("a file");
        let bytes = vec![1u8; 64 << 20];
        let after = Process::now();
        // Other tests of this process open and close files, too.
        assert!(after.open_fds.is_some_and(|fds| fds > 3));
        assert!(after.resident_bytes > before.resident_bytes.map(|bytes| bytes + (32 << 20)), "{before:?} {after:?}");
        assert!(after.cpu_seconds >= before.cpu_seconds && after.cpu_seconds > Some(0.0));
        drop((file, bytes));
    }
}
