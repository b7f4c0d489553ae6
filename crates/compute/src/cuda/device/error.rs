//! What the codes of NVIDIA's libraries mean to those who own devices: memory, this device, or the whole process.

#![allow(unsafe_code)]

use super::library::{CublasLt, Driver};
use crate::{ComputeError, Result};
use std::ffi::CStr;

/// Codes of which CUDA's documentation of `CUresult` says that the process is left in an inconsistent state and has to be
/// terminated and launched again, or (710) that the context can not be used any more after a fault of a kernel.
const FATAL_TO_PROCESS: &[u32] = &[
    226, // CONTAINED
    700, // ILLEGAL_ADDRESS
    702, // LAUNCH_TIMEOUT
    710, // ASSERT
    714, // HARDWARE_STACK_ERROR
    715, // ILLEGAL_INSTRUCTION
    716, // MISALIGNED_ADDRESS
    717, // INVALID_ADDRESS_SPACE
    718, // INVALID_PC
    719, // LAUNCH_FAILED
    721, // TENSOR_MEMORY_LEAK
];

/// `CUDA_ERROR_OUT_OF_MEMORY`.
pub(super) const OUT_OF_MEMORY: u32 = 2;

/// `CUDA_ERROR_NO_DEVICE`.
pub(super) const NO_DEVICE: u32 = 100;

/// `CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED` to `CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD`.
const CAPTURE: std::ops::RangeInclusive<u32> = 900..=908;

/// `CUBLAS_STATUS_ALLOC_FAILED`.
const CUBLAS_ALLOC_FAILED: u32 = 3;

/// The driver's name of a code, with the code: `CUDA_ERROR_ILLEGAL_ADDRESS (700)`.
pub(super) fn code_name(driver: &Driver, code: u32) -> String {
    let mut name = std::ptr::null();
    // SAFETY: `name` is written only; on success it is a string that lives as long as the library.
    let status = unsafe { (driver.cuGetErrorName)(code, &mut name) };
    if status != 0 || name.is_null() {
        return format!("error {code}");
    }
    // SAFETY: as above.
    format!("{} ({code})", unsafe { CStr::from_ptr(name) }.to_string_lossy())
}

/// An error of a driver's call. `call` says which, and of what where that helps; `device` is its label.
pub(super) fn driver_error(driver: &Driver, device: &str, call: &str, code: u32) -> ComputeError {
    let text = format!("{device}: {call}: {}", code_name(driver, code));
    match code {
        OUT_OF_MEMORY => ComputeError::OutOfMemory(text),
        code if FATAL_TO_PROCESS.contains(&code) => ComputeError::Process(text),
        // What was recorded did something that can not be recorded: the recording is lost, the device is well.
        code if CAPTURE.contains(&code) => ComputeError::Shape { op: "record", detail: text },
        _ => ComputeError::Device(text),
    }
}

/// The same of cuBLASLt.
pub(super) fn cublaslt_check(lt: &CublasLt, device: &str, call: &str, status: u32) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    // SAFETY: takes any number, and gives a string that lives as long as the library, or null.
    let name = unsafe { (lt.cublasLtGetStatusName)(status) };
    let name = match name.is_null() {
        true => "status".into(),
        // SAFETY: as above.
        false => unsafe { CStr::from_ptr(name) }.to_string_lossy(),
    };
    let text = format!("{device}: {call}: {name} ({status})");
    Err(match status {
        CUBLAS_ALLOC_FAILED => ComputeError::OutOfMemory(text),
        _ => ComputeError::Device(text),
    })
}
