//! A kernel's launch.

#![allow(unsafe_code)]

use nexus_compute::cuda::Arg;
use nexus_compute::cuda::kernels::Kernel;
use std::ffi::{CString, c_char, c_int, c_uint, c_void};

unsafe extern "C" {
    #[allow(clippy::too_many_arguments, reason = "a C function")]
    fn nexus_emulator_launch(
        name: *const c_char,
        grid_x: c_uint,
        grid_y: c_uint,
        threads: c_uint,
        shared_bytes: usize,
        arguments: *const *const c_void,
        count: usize,
        message: *mut c_char,
        message_bytes: usize,
    ) -> c_int;
}

/// A kernel with all that it is run with.
#[derive(Clone, Debug)]
pub(crate) struct Launched {
    name: String,
    threads: u32,
    shared_bytes: u32,
    grid: [u32; 3],
    args: Vec<Arg>,
}

impl Launched {
    pub(crate) fn new(kernel: Kernel, grid: [u32; 3], args: &[Arg]) -> Self {
        let (threads, shared_bytes) = (kernel.threads(), kernel.shared_bytes());
        Self::by_name(kernel.name(), threads, shared_bytes, grid, args)
    }

    pub(crate) fn by_name(name: &str, threads: u32, shared_bytes: u32, grid: [u32; 3], args: &[Arg]) -> Self {
        Self { name: name.to_owned(), threads, shared_bytes, grid, args: args.to_vec() }
    }

    /// Runs it; what it did wrong.
    ///
    /// # Safety
    ///
    /// The arguments are those of the kernel's signature, and addresses among them are of memory that nobody else uses.
    pub(crate) unsafe fn run(&self) -> Result<(), String> {
        let [x, y, z] = self.grid;
        if x == 0 || y == 0 || z != 1 || x > i32::MAX as u32 || y > 65_535 {
            return Err(format!("a grid of {x} x {y} x {z} blocks"));
        }
        let pointers: Vec<*const c_void> = self
            .args
            .iter()
            .map(|arg| match arg {
                Arg::Address(address) => (&raw const address.0).cast(),
                Arg::I32(value) => (&raw const *value).cast(),
                Arg::F32(value) => (&raw const *value).cast(),
            })
            .collect();
        let name = CString::new(self.name.as_str()).map_err(|_| "a name with a zero byte".to_owned())?;
        let mut message = vec![0u8; 512];
        // SAFETY: the pointers are of values that live until it returns; what they point at is the caller's promise.
        let code = unsafe {
            nexus_emulator_launch(
                name.as_ptr(),
                x,
                y,
                self.threads,
                self.shared_bytes as usize,
                pointers.as_ptr(),
                pointers.len(),
                message.as_mut_ptr().cast(),
                message.len(),
            )
        };
        if code == 0 {
            return Ok(());
        }
        let end = message.iter().position(|&byte| byte == 0).unwrap_or(message.len());
        Err(format!("kernel {}: {}", self.name, String::from_utf8_lossy(&message[..end])))
    }
}
