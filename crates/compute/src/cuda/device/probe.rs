//! Which GPUs there are, and why none can be used. Never panics, whatever is installed.

#![allow(unsafe_code)]

use super::error::{NO_DEVICE, code_name};
use super::library::{self, Driver, Missing, Nvrtc};
use crate::Result;
use cudarc::driver::sys::CUdevice_attribute as Attribute;
use std::ffi::{c_char, c_int};
use thiserror::Error;

/// The oldest driver that the kernels are meant for, as `cuDriverGetVersion` tells it: 12.0, driver 525.
const DRIVER_VERSION_MIN: u32 = 12_000;

/// Why no GPU can be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Absent {
    /// There is no driver: a machine without an NVIDIA GPU, or a container that was not given one. Nothing is wrong.
    #[error(
        "no NVIDIA driver: libcuda.so.1 is not installed; a container gets it from the host: docker run --gpus all with the \
         NVIDIA container toolkit, or on ECS a resource requirement of type GPU"
    )]
    NoDriver,
    /// A driver, and no GPU that this process may see.
    #[error(
        "the NVIDIA driver is there and shows no GPU: see nvidia-smi, whether the container was given one (--gpus), and \
         whether CUDA_VISIBLE_DEVICES hides it"
    )]
    NoDevice,
    /// A library that is needed beside the driver is missing, or can not be opened.
    #[error("{library} can not be opened (tried {}{}): {advice}", names.join(", "), detail.as_ref().map_or(String::new(), |d| format!("; {d}")))]
    Library {
        /// What it is called.
        library: &'static str,
        /// The file names tried.
        names: Vec<String>,
        /// What the loader says, where it refused a file.
        detail: Option<String>,
        /// What to do.
        advice: &'static str,
    },
    /// A library lacks a function.
    #[error("{library} lacks {symbol}: {advice}")]
    Symbol {
        /// The library's file name.
        library: String,
        /// The function.
        symbol: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// A call failed.
    #[error(
        "{call} of {library} failed: {code}: see nvidia-smi; where it fails too, restart the machine or its driver"
    )]
    Call {
        /// The library's file name.
        library: String,
        /// The function.
        call: &'static str,
        /// Its code, by name and number.
        code: String,
    },
    /// The driver is too old for what it has to run.
    #[error(
        "the NVIDIA driver runs CUDA {driver} at most, and {needs} needs {needed}: update the driver, or install a version of that library for CUDA {driver}"
    )]
    DriverTooOld {
        /// The newest CUDA that the driver runs.
        driver: String,
        /// What needs more.
        needs: String,
        /// What it needs.
        needed: String,
    },
}

impl Absent {
    /// Whether this is a machine without a driver, of which nothing need be said, and not one whose GPUs are unusable.
    pub fn is_ordinary(&self) -> bool {
        matches!(self, Self::NoDriver)
    }

    fn of(missing: Missing, library: &'static str, advice: &'static str) -> Self {
        match missing {
            Missing::Library { names, detail } => Self::Library { library, names, detail, advice },
            Missing::Symbol { library, symbol } => Self::Symbol { library, symbol, advice },
        }
    }
}

/// A GPU that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its number, as `NEXUS_DEVICE=cuda:0` names it.
    pub ordinal: usize,
    /// Its name, by its driver: `NVIDIA A10G`.
    pub name: String,
    /// Compute capability, major and minor: `(8, 6)`.
    pub capability: (u32, u32),
    /// Bytes of its memory.
    pub memory_bytes: u64,
}

impl Found {
    /// Whether the kernels run on it: compute capability 8.0 or newer.
    pub fn is_supported(&self) -> bool {
        self.capability >= (8, 0)
    }
}

/// The driver, initialized, with the major version of CUDA that it runs.
pub(super) fn driver() -> Result<(&'static Driver, u32), Absent> {
    const ADVICE: &str = "the NVIDIA driver is damaged or too old: install 525 or newer";
    let driver = library::driver().map_err(|missing| match missing {
        Missing::Library { detail: None, .. } => Absent::NoDriver,
        missing => Absent::of(missing, "the NVIDIA driver", ADVICE),
    })?;
    // SAFETY: the call has no preconditions, and may be repeated.
    let status = unsafe { (driver.cuInit)(0) };
    if status == NO_DEVICE {
        return Err(Absent::NoDevice);
    }
    check(driver, "cuInit", status)?;
    let mut version = 0;
    // SAFETY: writes an int.
    check(driver, "cuDriverGetVersion", unsafe { (driver.cuDriverGetVersion)(&mut version) })?;
    let version = u32::try_from(version).unwrap_or(0);
    if version < DRIVER_VERSION_MIN {
        return Err(Absent::DriverTooOld {
            driver: version_text(version),
            needs: "this service".into(),
            needed: version_text(DRIVER_VERSION_MIN),
        });
    }
    Ok((driver, version / 1000))
}

/// Looks for GPUs, and for the libraries that are needed to use them. Never panics, whatever is installed. Without a driver
/// it takes microseconds.
pub fn find() -> Result<Vec<Found>, Absent> {
    let (driver, driver_major) = driver()?;
    let mut count = 0;
    // SAFETY: writes an int.
    check(driver, "cuDeviceGetCount", unsafe { (driver.cuDeviceGetCount)(&mut count) })?;
    let count = usize::try_from(count).unwrap_or(0);
    if count == 0 {
        return Err(Absent::NoDevice);
    }
    let found = (0..count).map(|ordinal| describe(driver, ordinal)).collect::<Result<Vec<_>, _>>()?;
    nvrtc(Some(driver_major))?;
    cublaslt(driver_major)?;
    Ok(found)
}

/// The compiler, and its version; not newer than the driver, if there is one.
pub(super) fn nvrtc(driver_major: Option<u32>) -> Result<(&'static Nvrtc, (u32, u32)), Absent> {
    const ADVICE: &str = "install NVRTC of the CUDA that the driver runs (nvidia-smi tells it), 12.8 or newer (PyPI: \
                          nvidia-cuda-nvrtc-cu12 or nvidia-cuda-nvrtc), and have its folder in LD_LIBRARY_PATH";
    let nvrtc = library::nvrtc(driver_major).map_err(|missing| Absent::of(missing, "NVRTC", ADVICE))?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: writes two ints.
    let status = unsafe { (nvrtc.nvrtcVersion)(&mut major, &mut minor) };
    if status != 0 {
        return Err(Absent::Call {
            library: nvrtc.library.clone(),
            call: "nvrtcVersion",
            code: format!("NVRTC error {status}"),
        });
    }
    let version = (u32::try_from(major).unwrap_or(0), u32::try_from(minor).unwrap_or(0));
    fits(driver_major, version.0, &format!("{} (NVRTC {major}.{minor})", nvrtc.library))?;
    Ok((nvrtc, version))
}

/// Matrix products, not newer than the driver.
pub(super) fn cublaslt(driver_major: u32) -> Result<&'static library::CublasLt, Absent> {
    const ADVICE: &str = "install cuBLAS of the CUDA that the driver runs (nvidia-smi tells it), 12.8 or newer (PyPI: \
                          nvidia-cublas-cu12 or nvidia-cublas), and have its folder in LD_LIBRARY_PATH";
    let lt = library::cublaslt(driver_major).map_err(|missing| Absent::of(missing, "cuBLASLt", ADVICE))?;
    // SAFETY: the call has no preconditions. 12.8.5 is 120805.
    let version = unsafe { (lt.cublasLtGetVersion)() };
    let major = u32::try_from(version / 10_000).unwrap_or(u32::MAX);
    fits(Some(driver_major), major, &format!("{} (cuBLASLt {major}.{})", lt.library, version / 100 % 100))?;
    Ok(lt)
}

/// A driver runs what is of its own major version or older.
fn fits(driver_major: Option<u32>, major: u32, library: &str) -> Result<(), Absent> {
    match driver_major {
        Some(driver_major) if major > driver_major => Err(Absent::DriverTooOld {
            driver: format!("{driver_major}.x"),
            needs: library.to_owned(),
            needed: format!("{major}.0"),
        }),
        _ => Ok(()),
    }
}

/// What the driver says of one GPU.
pub(super) fn describe(driver: &Driver, ordinal: usize) -> Result<Found, Absent> {
    let mut device = 0;
    let number = c_int::try_from(ordinal).map_err(|_| Absent::NoDevice)?;
    // SAFETY: writes a handle, an int.
    check(driver, "cuDeviceGet", unsafe { (driver.cuDeviceGet)(&mut device, number) })?;
    let mut name = [0 as c_char; 256];
    // SAFETY: writes at most the length that is passed, a zero included.
    let status = unsafe { (driver.cuDeviceGetName)(name.as_mut_ptr(), name.len() as c_int, device) };
    check(driver, "cuDeviceGetName", status)?;
    let name: Vec<u8> = name.iter().take_while(|&&c| c != 0).map(|&c| c as u8).collect();
    let attribute = |attribute| {
        let mut value = 0;
        // SAFETY: writes an int.
        check(driver, "cuDeviceGetAttribute", unsafe { (driver.cuDeviceGetAttribute)(&mut value, attribute, device) })
            .map(|()| u32::try_from(value).unwrap_or(0))
    };
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let mut bytes = 0;
    // SAFETY: writes a size.
    check(driver, "cuDeviceTotalMem", unsafe { (driver.cuDeviceTotalMem_v2)(&mut bytes, device) })?;
    let name = String::from_utf8_lossy(&name).into_owned();
    Ok(Found { ordinal, name, capability: (major, minor), memory_bytes: bytes as u64 })
}

fn check(driver: &Driver, call: &'static str, status: u32) -> Result<(), Absent> {
    match status {
        0 => Ok(()),
        status => Err(Absent::Call { library: driver.library.clone(), call, code: code_name(driver, status) }),
    }
}

/// 12080 as `12.8`.
fn version_text(version: u32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}
