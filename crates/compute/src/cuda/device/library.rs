//! NVIDIA's libraries as tables of functions: every symbol that is ever called is looked up when a library is opened, and
//! nothing is called before all of them are there.
//!
//! cudarc's bindings give the types, and the compiler checks each signature here against theirs. Their own loading is not
//! used: it panics where a library or a symbol is missing, and reads status codes as an enum, which is undefined behaviour
//! for a code that a newer library adds. Here a code is a number.
//!
//! Deliberately absent: what is called, and what codes mean.

#![allow(unsafe_code)]

use cudarc::cublaslt::sys as lt;
use cudarc::driver::sys as cu;
use cudarc::nvrtc::sys as rtc;
use libloading::Library;
use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_void};
use std::sync::OnceLock;

/// Why a library can not be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// None of the names could be opened; `detail` is what the loader says where a file is there that it refuses.
    Library {
        /// The names tried.
        names: Vec<String>,
        /// What the loader says.
        detail: Option<String>,
    },
    /// A library was opened and lacks a function.
    Symbol {
        /// The name by which it was opened.
        library: String,
        /// The first function that it lacks.
        symbol: &'static str,
    },
}

/// Opens the first of `names` in which `table` finds all it needs. The library stays open for the life of the process.
fn open<T>(
    names: Vec<String>,
    table: impl Fn(&'static Library, &str) -> Result<T, &'static str>,
) -> Result<T, Missing> {
    let mut lacking = None;
    let mut refused = None;
    for name in &names {
        // SAFETY: the initializers of NVIDIA's libraries have no preconditions, and these names are theirs.
        let library = match unsafe { Library::new(name) } {
            Ok(library) => library,
            Err(error) => {
                let mut detail = error.to_string();
                if let Some(source) = std::error::Error::source(&error) {
                    detail = format!("{detail}: {source}");
                }
                // That a file is not there is no news; that one is there and does not open is.
                if !detail.contains(&format!("{name}: cannot open shared object file: No such file")) {
                    refused.get_or_insert(detail);
                }
                continue;
            }
        };
        // Closing a library of CUDA's while its threads run is not safe; it is kept, also where it lacks something.
        let library: &'static Library = Box::leak(Box::new(library));
        match table(library, name) {
            Ok(table) => return Ok(table),
            Err(symbol) => {
                lacking.get_or_insert(Missing::Symbol { library: name.clone(), symbol });
            }
        }
    }
    Err(lacking.unwrap_or(Missing::Library { names, detail: refused }))
}

macro_rules! library {
    (
        $(#[$doc:meta])* $table:ident of $sys:ident, $status:ident;
        $(fn $function:ident($($argument:ty),* $(,)?);)+
        unchecked: $(fn $other:ident($($other_argument:ty),* $(,)?) -> $result:ty;)+
        used by others: $($others:literal)*
    ) => {
        $(#[$doc])*
        #[allow(non_snake_case)]
        pub(super) struct $table {
            /// The name by which it was opened.
            pub(super) library: String,
            $(pub(super) $function: unsafe extern "C" fn($($argument),*) -> u32,)+
            $(pub(super) $other: unsafe extern "C" fn($($other_argument),*) -> $result,)+
        }

        // The arguments are those of cudarc's bindings, or this does not compile.
        $(const _: unsafe fn($($argument),*) -> $sys::$status = $sys::$function;)+

        impl $table {
            fn open(names: Vec<String>) -> Result<Self, Missing> {
                open(names, |library, name| {
                    $(
                        // SAFETY: only looked up; never called.
                        unsafe { library.get::<unsafe extern "C" fn()>($others) }.map_err(|_| $others)?;
                    )*
                    Ok(Self {
                        library: name.to_owned(),
                        $($function: {
                            let name = concat!(stringify!($function), "\0");
                            // SAFETY: the signature is that of the bindings, checked above; a status is 32 bits wide.
                            *unsafe { library.get(name.as_bytes()) }.map_err(|_| stringify!($function))?
                        },)+
                        $($other: {
                            let name = concat!(stringify!($other), "\0");
                            // SAFETY: the signature is that of NVIDIA's documentation, with numbers for enums.
                            *unsafe { library.get(name.as_bytes()) }.map_err(|_| stringify!($other))?
                        },)+
                    })
                })
            }
        }
    };
}

library! {
    /// The driver, libcuda.
    Driver of cu, CUresult;
    fn cuInit(c_uint);
    fn cuDriverGetVersion(*mut c_int);
    fn cuDeviceGetCount(*mut c_int);
    fn cuDeviceGet(*mut cu::CUdevice, c_int);
    fn cuDeviceGetName(*mut c_char, c_int, cu::CUdevice);
    fn cuDeviceGetAttribute(*mut c_int, cu::CUdevice_attribute, cu::CUdevice);
    fn cuDeviceTotalMem_v2(*mut usize, cu::CUdevice);
    fn cuDevicePrimaryCtxRetain(*mut cu::CUcontext, cu::CUdevice);
    fn cuDevicePrimaryCtxRelease_v2(cu::CUdevice);
    fn cuCtxSetCurrent(cu::CUcontext);
    fn cuMemGetInfo_v2(*mut usize, *mut usize);
    fn cuMemAlloc_v2(*mut cu::CUdeviceptr, usize);
    fn cuMemFree_v2(cu::CUdeviceptr);
    fn cuMemHostAlloc(*mut *mut c_void, usize, c_uint);
    fn cuMemFreeHost(*mut c_void);
    fn cuMemcpyHtoDAsync_v2(cu::CUdeviceptr, *const c_void, usize, cu::CUstream);
    fn cuMemcpyDtoHAsync_v2(*mut c_void, cu::CUdeviceptr, usize, cu::CUstream);
    fn cuStreamCreate(*mut cu::CUstream, c_uint);
    fn cuStreamDestroy_v2(cu::CUstream);
    fn cuStreamSynchronize(cu::CUstream);
    fn cuStreamBeginCapture_v2(cu::CUstream, cu::CUstreamCaptureMode);
    fn cuStreamEndCapture(cu::CUstream, *mut cu::CUgraph);
    fn cuEventCreate(*mut cu::CUevent, c_uint);
    fn cuEventRecord(cu::CUevent, cu::CUstream);
    fn cuEventSynchronize(cu::CUevent);
    fn cuEventDestroy_v2(cu::CUevent);
    fn cuModuleLoadData(*mut cu::CUmodule, *const c_void);
    fn cuModuleUnload(cu::CUmodule);
    fn cuModuleGetFunction(*mut cu::CUfunction, cu::CUmodule, *const c_char);
    fn cuFuncSetAttribute(cu::CUfunction, cu::CUfunction_attribute, c_int);
    fn cuFuncGetAttribute(*mut c_int, cu::CUfunction_attribute, cu::CUfunction);
    fn cuLaunchKernel(
        cu::CUfunction, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, cu::CUstream, *mut *mut c_void,
        *mut *mut c_void,
    );
    fn cuGraphInstantiateWithFlags(*mut cu::CUgraphExec, cu::CUgraph, c_ulonglong);
    fn cuGraphUpload(cu::CUgraphExec, cu::CUstream);
    fn cuGraphLaunch(cu::CUgraphExec, cu::CUstream);
    fn cuGraphExecDestroy(cu::CUgraphExec);
    fn cuGraphDestroy(cu::CUgraph);
    unchecked:
    fn cuGetErrorName(u32, *mut *const c_char) -> u32;
    // The bindings have `_v2`, which drivers before 12.8 lack; the arguments are the same, and no driver lacks this one.
    fn cuEventElapsedTime(*mut f32, cu::CUevent, cu::CUevent) -> u32;
    // NVRTC calls it where it finds a driver, without looking whether it is there, and the process crashes.
    used by others: "cuGetExportTable"
}

library! {
    /// The compiler, libnvrtc.
    Nvrtc of rtc, nvrtcResult;
    fn nvrtcVersion(*mut c_int, *mut c_int);
    fn nvrtcCreateProgram(
        *mut rtc::nvrtcProgram, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char,
    );
    fn nvrtcCompileProgram(rtc::nvrtcProgram, c_int, *const *const c_char);
    fn nvrtcGetProgramLogSize(rtc::nvrtcProgram, *mut usize);
    fn nvrtcGetProgramLog(rtc::nvrtcProgram, *mut c_char);
    fn nvrtcGetCUBINSize(rtc::nvrtcProgram, *mut usize);
    fn nvrtcGetCUBIN(rtc::nvrtcProgram, *mut c_char);
    fn nvrtcDestroyProgram(*mut rtc::nvrtcProgram);
    unchecked:
    fn nvrtcGetErrorString(u32) -> *const c_char;
    used by others:
}

library! {
    /// Matrix products, libcublasLt.
    CublasLt of lt, cublasStatus_t;
    fn cublasLtCreate(*mut lt::cublasLtHandle_t);
    fn cublasLtDestroy(lt::cublasLtHandle_t);
    fn cublasLtMatmulDescCreate(*mut lt::cublasLtMatmulDesc_t, lt::cublasComputeType_t, lt::cudaDataType_t);
    fn cublasLtMatmulDescDestroy(lt::cublasLtMatmulDesc_t);
    fn cublasLtMatmulDescSetAttribute(
        lt::cublasLtMatmulDesc_t, lt::cublasLtMatmulDescAttributes_t, *const c_void, usize,
    );
    fn cublasLtMatrixLayoutCreate(*mut lt::cublasLtMatrixLayout_t, lt::cudaDataType, u64, u64, i64);
    fn cublasLtMatrixLayoutDestroy(lt::cublasLtMatrixLayout_t);
    fn cublasLtMatmulPreferenceCreate(*mut lt::cublasLtMatmulPreference_t);
    fn cublasLtMatmulPreferenceDestroy(lt::cublasLtMatmulPreference_t);
    fn cublasLtMatmulPreferenceSetAttribute(
        lt::cublasLtMatmulPreference_t, lt::cublasLtMatmulPreferenceAttributes_t, *const c_void, usize,
    );
    fn cublasLtMatmulAlgoGetHeuristic(
        lt::cublasLtHandle_t, lt::cublasLtMatmulDesc_t, lt::cublasLtMatrixLayout_t, lt::cublasLtMatrixLayout_t,
        lt::cublasLtMatrixLayout_t, lt::cublasLtMatrixLayout_t, lt::cublasLtMatmulPreference_t, c_int,
        *mut lt::cublasLtMatmulHeuristicResult_t, *mut c_int,
    );
    fn cublasLtMatmulAlgoConfigGetAttribute(
        *const lt::cublasLtMatmulAlgo_t, lt::cublasLtMatmulAlgoConfigAttributes_t, *mut c_void, usize, *mut usize,
    );
    fn cublasLtMatmul(
        lt::cublasLtHandle_t, lt::cublasLtMatmulDesc_t, *const c_void, *const c_void, lt::cublasLtMatrixLayout_t,
        *const c_void, lt::cublasLtMatrixLayout_t, *const c_void, *const c_void, lt::cublasLtMatrixLayout_t,
        *mut c_void, lt::cublasLtMatrixLayout_t, *const lt::cublasLtMatmulAlgo_t, *mut c_void, usize, lt::cudaStream_t,
    );
    unchecked:
    fn cublasLtGetVersion() -> usize;
    fn cublasLtGetStatusName(u32) -> *const c_char;
    used by others:
}

/// The newest major version of the toolkit that is looked for where the driver's is not known.
const MAJOR_NEWEST: u32 = 13;

/// The oldest: its libraries know every architecture up to 9.0.
const MAJOR_OLDEST: u32 = 12;

/// File names of a toolkit's library: the versions that a driver of `major` runs, newest first.
fn toolkit_names(stem: &str, major: u32) -> Vec<String> {
    let versions = (MAJOR_OLDEST..=major.max(MAJOR_OLDEST)).rev();
    versions.map(|major| format!("lib{stem}.so.{major}")).chain([format!("lib{stem}.so")]).collect()
}

/// The driver.
pub(super) fn driver() -> Result<&'static Driver, Missing> {
    static DRIVER: OnceLock<Result<Driver, Missing>> = OnceLock::new();
    DRIVER.get_or_init(|| Driver::open(vec!["libcuda.so.1".into(), "libcuda.so".into()])).as_ref().map_err(Clone::clone)
}

/// The compiler; the first call decides for the process. `driver_major` is the toolkit's version that the driver is of, if
/// there is a driver.
pub(super) fn nvrtc(driver_major: Option<u32>) -> Result<&'static Nvrtc, Missing> {
    static NVRTC: OnceLock<Result<Nvrtc, Missing>> = OnceLock::new();
    let names = || toolkit_names("nvrtc", driver_major.unwrap_or(MAJOR_NEWEST));
    NVRTC.get_or_init(|| Nvrtc::open(names())).as_ref().map_err(Clone::clone)
}

/// Matrix products; the first call decides for the process.
pub(super) fn cublaslt(driver_major: u32) -> Result<&'static CublasLt, Missing> {
    static CUBLASLT: OnceLock<Result<CublasLt, Missing>> = OnceLock::new();
    CUBLASLT.get_or_init(|| CublasLt::open(toolkit_names("cublasLt", driver_major))).as_ref().map_err(Clone::clone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_looked_for_in_the_versions_that_a_driver_runs() {
        assert_eq!(toolkit_names("nvrtc", 12), ["libnvrtc.so.12", "libnvrtc.so"]);
        assert_eq!(toolkit_names("nvrtc", 13), ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]);
        assert_eq!(toolkit_names("nvrtc", 11), ["libnvrtc.so.12", "libnvrtc.so"]);
    }

    #[test]
    fn what_is_not_there_and_what_lacks_a_function_are_told_apart() {
        let missing = Nvrtc::open(vec!["libnothing-of-this-name.so.1".into()]).err();
        let names = vec!["libnothing-of-this-name.so.1".to_owned()];
        assert_eq!(missing, Some(Missing::Library { names, detail: None }));
        let lacking = Nvrtc::open(vec!["libc.so.6".into()]).err();
        assert_eq!(lacking, Some(Missing::Symbol { library: "libc.so.6".into(), symbol: "nvrtcVersion" }));
    }
}
