//! The kernels of a device, ready to be launched: from the cache or the compiler, loaded, and allowed the shared memory that
//! they take.

#![allow(unsafe_code)]

use super::cache::Cache;
use super::compile::{Compiler, sources};
use super::context::Context;
use crate::cuda::kernels::{Kernel, Source};
use crate::{ComputeError, Result};
use cudarc::driver::sys;
use std::collections::HashMap;
use std::ffi::CString;
use std::path::Path;
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, PoisonError};

/// Dynamic shared memory that a kernel has without being allowed it.
const SHARED_BYTES_PLAIN: u32 = 48 << 10;

/// Machine code by file name and key.
type Images = HashMap<(&'static str, String), Arc<Vec<u8>>>;

/// A file name and its machine code.
type Image = (&'static str, Arc<Vec<u8>>);

/// Loaded modules and the functions in them.
pub(super) struct Functions {
    context: Arc<Context>,
    modules: Vec<sys::CUmodule>,
    /// By the number of the kernel.
    functions: Vec<sys::CUfunction>,
}

// SAFETY: handles, used from any thread in which their context is current.
unsafe impl Send for Functions {}
// SAFETY: as above; nothing changes after `load`.
unsafe impl Sync for Functions {}

impl Functions {
    pub(super) fn load(
        context: &Arc<Context>,
        compiler: Compiler,
        folder: Option<&Path>,
        notes: &mut Vec<String>,
    ) -> Result<Self> {
        let images = images(context, compiler, folder, notes)?;
        context.enter()?;
        let mut loaded = Self { context: context.clone(), modules: Vec::new(), functions: Vec::new() };
        let mut module_of = HashMap::new();
        for (file, image) in &images {
            let mut module = null_mut();
            // SAFETY: a whole CUBIN, which the driver copies; writes a handle, which `drop` unloads.
            let status = unsafe { (context.driver.cuModuleLoadData)(&mut module, image.as_ptr().cast()) };
            context.check(&format!("cuModuleLoadData of {file}"), status)?;
            loaded.modules.push(module);
            module_of.insert(*file, module);
        }
        for kernel in Kernel::ALL {
            let function = loaded.function(*kernel, module_of[kernel.source().file])?;
            loaded.functions.push(function);
        }
        Ok(loaded)
    }

    fn function(&self, kernel: Kernel, module: sys::CUmodule) -> Result<sys::CUfunction> {
        let (context, driver) = (&self.context, self.context.driver);
        let of = |call: &str| format!("{call} of {} in {}", kernel.name(), kernel.source().file);
        let name = CString::new(kernel.name()).map_err(|_| ComputeError::Device(of("a zero byte in the name")))?;
        let mut function = null_mut();
        // SAFETY: a loaded module and a string; writes a handle that lives as long as the module.
        let status = unsafe { (driver.cuModuleGetFunction)(&mut function, module, name.as_ptr()) };
        context.check(&of("cuModuleGetFunction"), status)?;
        // Asking for an attribute has the function loaded now and not within the first launch, which may be a recorded one.
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK;
        let mut threads = 0;
        // SAFETY: writes an int.
        let status = unsafe { (driver.cuFuncGetAttribute)(&mut threads, attribute, function) };
        context.check(&of("cuFuncGetAttribute"), status)?;
        if u32::try_from(threads).unwrap_or(0) < kernel.threads() {
            let threads = format!("at most {threads} threads a block, {} are needed", kernel.threads());
            return Err(ComputeError::Device(format!("{}: {}: {threads}", context.label, of("registers"))));
        }
        if kernel.shared_bytes() > SHARED_BYTES_PLAIN {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a function that is loaded.
            let status = unsafe { (driver.cuFuncSetAttribute)(function, attribute, kernel.shared_bytes() as i32) };
            context.check(
                &of(&format!("cuFuncSetAttribute to {} bytes of shared memory", kernel.shared_bytes())),
                status,
            )?;
        }
        Ok(function)
    }

    pub(super) fn get(&self, kernel: Kernel) -> sys::CUfunction {
        self.functions[kernel as usize]
    }
}

impl Drop for Functions {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            for module in &self.modules {
                // SAFETY: loaded once, unloaded once; the device waits for its work first.
                unsafe { (self.context.driver.cuModuleUnload)(*module) };
            }
        }
    }
}

/// Machine code of every source for this device. Devices of one process that are opened at once wait for each other: the
/// first compiles, the others take what it compiled.
fn images(context: &Context, compiler: Compiler, folder: Option<&Path>, notes: &mut Vec<String>) -> Result<Vec<Image>> {
    static IMAGES: Mutex<Option<Images>> = Mutex::new(None);
    let mut guard = IMAGES.lock().unwrap_or_else(PoisonError::into_inner);
    let images = guard.get_or_insert_default();
    let capability = context.found.capability;
    let keys: Vec<(Source, String)> =
        sources().into_iter().map(|source| (source, compiler.key(source, capability))).collect();
    let cache = folder.map(|folder| Cache { folder });
    let mut missing = Vec::new();
    for (source, key) in &keys {
        if images.contains_key(&(source.file, key.clone())) {
            continue;
        }
        match cache.as_ref().and_then(|cache| cache.load(&cache_name(source.file, capability), key)) {
            Some(image) => drop(images.insert((source.file, key.clone()), Arc::new(image))),
            None => missing.push((*source, key)),
        }
    }
    if !missing.is_empty() {
        let started = std::time::Instant::now();
        let wanted: Vec<Source> = missing.iter().map(|(source, _)| *source).collect();
        let compiled = compiler.compile_all(&wanted, capability).into_iter().collect::<Result<Vec<_>, _>>();
        let compiled = compiled.map_err(|what| ComputeError::Device(format!("{}: {what}", context.label)))?;
        let seconds = started.elapsed().as_secs_f32();
        notes.push(format!("{}: {} sources of kernels compiled in {seconds:.1} s", context.label, compiled.len()));
        let mut unkept = None;
        for ((source, key), compiled) in missing.into_iter().zip(compiled) {
            if let Some(cache) = &cache {
                let stored = cache.store(&cache_name(source.file, capability), key, &compiled.image);
                unkept = unkept.or(stored.err());
            }
            images.insert((source.file, key.clone()), Arc::new(compiled.image));
        }
        notes.extend(unkept);
    }
    Ok(keys.into_iter().map(|(source, key)| (source.file, images[&(source.file, key)].clone())).collect())
}

fn cache_name(file: &str, capability: (u32, u32)) -> String {
    format!("{}-sm_{}{}", file.trim_end_matches(".cu"), capability.0, capability.1)
}
