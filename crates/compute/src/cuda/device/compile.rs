//! Kernels from source to machine code, by NVRTC: for one architecture exactly, since code for a virtual one is refused by a
//! driver older than the compiler. Needs no GPU.
//!
//! Deliberately absent: keeping what was compiled ([`super::cache`]) and loading it.

#![allow(unsafe_code)]

use super::library::Nvrtc;
use super::probe;
use crate::cuda::kernels::{Kernel, PRELUDE, Source};
use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr::{null, null_mut};

/// How kernels are compiled. No `--use_fast_math`: it flushes denormals and shortens divisions and roots. With the two
/// options for the assembler, the log tells registers and spills of each kernel.
const OPTIONS: &[&str] = &["--std=c++17", "-default-device", "--ptxas-options=-v", "--ptxas-options=--warn-on-spills"];

/// `NVRTC_ERROR_INVALID_OPTION`.
const INVALID_OPTION: u32 = 5;

/// A source, compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// The source's file name.
    pub file: &'static str,
    /// Machine code, as an ELF file.
    pub image: Vec<u8>,
    /// What the compiler said.
    pub log: String,
}

/// What a kernel takes of a multiprocessor, by the assembler.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The function.
    pub kernel: String,
    /// Registers a thread.
    pub registers: u32,
    /// Bytes of shared memory a block, dynamic memory not included.
    pub shared_bytes: u32,
    /// Bytes of local memory a thread: arrays that did not become registers, and spills.
    pub stack_bytes: u32,
    /// Bytes stored and loaded because registers did not suffice.
    pub spill_bytes: u32,
}

/// The compiler of this process.
#[derive(Clone, Copy)]
pub struct Compiler {
    nvrtc: &'static Nvrtc,
    version: (u32, u32),
}

impl std::fmt::Debug for Compiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compiler").field("library", &self.nvrtc.library).field("version", &self.version).finish()
    }
}

impl Compiler {
    /// The compiler that is installed; no driver is needed.
    pub fn find() -> Result<Self, probe::Absent> {
        Self::fitting(None)
    }

    pub(super) fn fitting(driver_major: Option<u32>) -> Result<Self, probe::Absent> {
        let (nvrtc, version) = probe::nvrtc(driver_major)?;
        Ok(Self { nvrtc, version })
    }

    /// Its version, major and minor.
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// All that decides what compiling `source` gives, as a text.
    pub(super) fn key(&self, source: Source, capability: (u32, u32)) -> String {
        let ((major, minor), options) = (self.version, options(capability).join(" "));
        format!("NVRTC {major}.{minor} {options} {}\n{}", source.file, text(source))
    }

    /// Compiles one source for a compute capability. An error has the compiler's log.
    pub fn compile(&self, source: Source, capability: (u32, u32)) -> Result<Compiled, String> {
        let (major, minor) = self.version;
        let at = format!("{} for sm_{}{} by NVRTC {major}.{minor}", source.file, capability.0, capability.1);
        let nul = |_| format!("{at}: a zero byte in the source or an option");
        let text = CString::new(text(source)).map_err(nul)?;
        let name = CString::new(source.file).map_err(nul)?;
        let options = options(capability).into_iter().map(CString::new).collect::<Result<Vec<_>, _>>().map_err(nul)?;
        let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect::<Vec<_>>();
        self.program(&text, &name, &options).map_err(|what| format!("{at}: {what}")).map(|(image, log)| Compiled {
            file: source.file,
            image,
            log,
        })
    }

    /// Compiles several sources, each on a thread of its own.
    pub fn compile_all(&self, sources: &[Source], capability: (u32, u32)) -> Vec<Result<Compiled, String>> {
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                sources.iter().map(|source| scope.spawn(|| self.compile(*source, capability))).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Compiled, String>>| {
                thread.join().unwrap_or_else(|_| Err("a thread that compiled kernels panicked".into()))
            };
            threads.into_iter().map(join).collect()
        })
    }

    fn program(&self, text: &CStr, name: &CStr, options: &[*const c_char]) -> Result<(Vec<u8>, String), String> {
        let nvrtc = self.nvrtc;
        let mut program = Program { nvrtc, raw: null_mut() };
        // SAFETY: strings that outlive the call, no headers; the handle is destroyed by `Program`.
        let status =
            unsafe { (nvrtc.nvrtcCreateProgram)(&mut program.raw, text.as_ptr(), name.as_ptr(), 0, null(), null()) };
        check(nvrtc, "nvrtcCreateProgram", status)?;
        // SAFETY: the program is alive; as many options as are told, each a string that outlives the call.
        let status = unsafe { (nvrtc.nvrtcCompileProgram)(program.raw, options.len() as c_int, options.as_ptr()) };
        let log = program.bytes("log", nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog);
        let log = String::from_utf8_lossy(&log.unwrap_or_default()).trim_end_matches('\0').trim().to_owned();
        let advice = match status {
            INVALID_OPTION => "\nThis NVRTC may not know the architecture: install a newer one",
            _ => "",
        };
        check(nvrtc, "nvrtcCompileProgram", status).map_err(|what| format!("{what}\n{log}{advice}"))?;
        let image = program.bytes("CUBIN", nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)?;
        if image.is_empty() {
            return Err("no machine code came out".into());
        }
        Ok((image, log))
    }
}

/// A program, destroyed when dropped.
struct Program {
    nvrtc: &'static Nvrtc,
    raw: cudarc::nvrtc::sys::nvrtcProgram,
}

impl Program {
    fn bytes(
        &self,
        what: &str,
        size: unsafe extern "C" fn(cudarc::nvrtc::sys::nvrtcProgram, *mut usize) -> u32,
        get: unsafe extern "C" fn(cudarc::nvrtc::sys::nvrtcProgram, *mut c_char) -> u32,
    ) -> Result<Vec<u8>, String> {
        let mut count = 0;
        // SAFETY: the program is alive; writes a size.
        check(self.nvrtc, &format!("size of the {what}"), unsafe { size(self.raw, &mut count) })?;
        let mut bytes = vec![0u8; count];
        // SAFETY: the program is alive; writes as many bytes as it said.
        check(self.nvrtc, what, unsafe { get(self.raw, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: created once, destroyed once.
            unsafe { (self.nvrtc.nvrtcDestroyProgram)(&mut self.raw) };
        }
    }
}

fn check(nvrtc: &Nvrtc, call: &str, status: u32) -> Result<(), String> {
    if status == 0 {
        return Ok(());
    }
    // SAFETY: takes any number, and gives a string that lives as long as the library.
    let name = unsafe { (nvrtc.nvrtcGetErrorString)(status) };
    let name = match name.is_null() {
        true => "error".into(),
        // SAFETY: as above.
        false => unsafe { CStr::from_ptr(name) }.to_string_lossy(),
    };
    Err(format!("{call}: {name} ({status})"))
}

fn options(capability: (u32, u32)) -> Vec<String> {
    let architecture = format!("--gpu-architecture=sm_{}{}", capability.0, capability.1);
    std::iter::once(architecture).chain(OPTIONS.iter().map(|&option| option.to_owned())).collect()
}

/// What the compiler gets: the prelude, and the source with its own line numbers.
fn text(source: Source) -> String {
    format!("{PRELUDE}\n#line 1 \"{}\"\n{}", source.file, source.text)
}

/// Every source, once.
pub(super) fn sources() -> Vec<Source> {
    let mut sources: Vec<Source> = Vec::new();
    for kernel in Kernel::ALL {
        if sources.last() != Some(&kernel.source()) {
            sources.push(kernel.source());
        }
    }
    sources
}

impl Compiled {
    /// What each kernel takes, read from the assembler's words in the log.
    pub fn usage(&self) -> Vec<Usage> {
        let mut usage = Vec::new();
        let mut current = Usage::default();
        for line in self.log.lines() {
            if let Some(name) = line.split("Compiling entry function '").nth(1) {
                current = Usage { kernel: name.split('\'').next().unwrap_or_default().to_owned(), ..Usage::default() };
            } else if line.contains("bytes stack frame") {
                // Of several functions, called and calling, the worst.
                current.stack_bytes = current.stack_bytes.max(before(line, " bytes stack frame"));
                let spills = before(line, " bytes spill stores") + before(line, " bytes spill loads");
                current.spill_bytes = current.spill_bytes.max(spills);
            } else if line.contains("Used ") && line.contains(" registers") {
                current.registers = before(line, " registers");
                current.shared_bytes = before(line, " bytes smem");
                usage.push(std::mem::take(&mut current));
            }
        }
        usage
    }
}

/// The number that stands before `unit` in `line`; 0 where there is none.
fn before(line: &str, unit: &str) -> u32 {
    let Some(end) = line.find(unit) else { return 0 };
    let digits = line[..end].rfind(|c: char| !c.is_ascii_digit()).map_or(0, |index| index + 1);
    line[digits..end].parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_assembler_is_understood() {
        let log = "ptxas info    : 0 bytes gmem\n\
                   ptxas info    : Compiling entry function 'norm_f32' for 'sm_80'\n\
                   ptxas info    : Function properties for norm_f32\n    \
                   16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads\n\
                   ptxas info    : Used 32 registers, used 1 barriers, 128 bytes smem, 400 bytes cmem[0]\n\
                   ptxas info    : Compiling entry function 'norm_bf16' for 'sm_80'\n\
                   ptxas info    : Function properties for norm_bf16\n    \
                   0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
                   ptxas info    : Used 168 registers, 400 bytes cmem[0]\n";
        let compiled = Compiled { file: "norm.cu", image: Vec::new(), log: log.into() };
        let first =
            Usage { kernel: "norm_f32".into(), registers: 32, shared_bytes: 128, stack_bytes: 16, spill_bytes: 12 };
        let second = Usage { kernel: "norm_bf16".into(), registers: 168, ..Usage::default() };
        assert_eq!(compiled.usage(), [first, second]);
    }

    #[test]
    fn every_source_is_compiled_once() {
        let files: Vec<&str> = sources().iter().map(|source| source.file).collect();
        let mut unique = files.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(files.len(), unique.len());
        assert!(Kernel::ALL.iter().all(|kernel| files.contains(&kernel.source().file)));
    }
}
