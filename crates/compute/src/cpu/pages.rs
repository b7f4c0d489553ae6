//! Memory for prepared weights: whole pages, large ones where the system has them.
//!
//! A product of few rows reads every weight once. With pages of 4 KiB it waits for a page table every 4 KiB, and gigabytes
//! take seconds just to be zeroed page by page.

use crate::{ComputeError, Result};
use memmap2::MmapMut;

/// The size of a large page on x86-64 and most of aarch64; what is smaller has no use for one.
const LARGE_PAGE_BYTES: usize = 2 << 20;

/// Zeroed memory, aligned to a page.
#[derive(Debug)]
pub(crate) struct Pages(Option<MmapMut>);

impl Pages {
    pub(crate) fn zeroed(bytes: usize) -> Result<Self> {
        if bytes == 0 {
            return Ok(Self(None));
        }
        let map = MmapMut::map_anon(bytes)
            .map_err(|error| ComputeError::OutOfMemory(format!("{bytes} bytes for weights: {error}")))?;
        #[cfg(target_os = "linux")]
        if bytes >= LARGE_PAGE_BYTES {
            // A wish: without it the memory is as good, and slower.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Ok(Self(Some(map)))
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        self.0.as_deref_mut().unwrap_or_default()
    }
}

impl AsRef<[u8]> for Pages {
    fn as_ref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_zeroed_and_there_may_be_none() {
        for bytes in [0, 1, 5_000, LARGE_PAGE_BYTES + 1] {
            let mut pages = Pages::zeroed(bytes).unwrap();
            assert_eq!(pages.as_ref().len(), bytes);
            assert!(pages.as_ref().iter().all(|&byte| byte == 0));
            pages.as_mut_slice().fill(1);
            assert!(pages.as_ref().iter().all(|&byte| byte == 1));
        }
    }
}
