//! How many files the process may have open: a connection is one.

/// Files that are not connections: models, the embedding store, target sets, and what comes and goes.
const OTHER_FILES: u64 = 256;

/// Raises the limit of open files as far as it goes without being asked, and says how many of `wanted` connections fit.
#[cfg(unix)]
pub(crate) fn connections(wanted: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let needed = wanted as u64 + OTHER_FILES;
    let raised = maximum.map_or(needed, |maximum| maximum.min(needed));
    let mut files = current.unwrap_or(u64::MAX);
    if files < needed && setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum }).is_ok() {
        files = raised;
    }
    if files >= needed {
        return wanted;
    }
    let fit = files.saturating_sub(OTHER_FILES).max(files / 2).max(1) as usize;
    tracing::warn!(
        files_max = files,
        connections_max = fit,
        "NEXUS_CONNECTIONS_MAX={wanted} needs more open files than this process may have; `ulimit -n` raises that"
    );
    fit.min(wanted)
}

#[cfg(not(unix))]
pub(crate) fn connections(wanted: usize) -> usize {
    wanted
}
