//! Compiles every kernel as a device does, for the architectures that are named, and tells what each takes. Needs NVRTC and
//! no GPU; which NVRTC, `LD_LIBRARY_PATH` says.
//!
//!     cargo run -p nexus-compute --example kernels -- sm_80 sm_90
//!     cargo run -p nexus-compute --example kernels -- sm_80 draft.cu
//!
//! Fails where something does not compile, a kernel is missing, or one has registers spilled, an array in local memory, or
//! more registers than its threads leave it. With `.cu` files, those are compiled instead.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout)]

use nexus_compute::cuda::kernels::{Kernel, Source};
use nexus_compute::cuda::{Compiler, Usage};
use std::process::ExitCode;

/// Registers of a multiprocessor, of every architecture from 8.0 on.
const REGISTERS: u32 = 65_536;

fn main() -> ExitCode {
    match check(std::env::args().skip(1).collect()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failures) => {
            println!("{failures} failures");
            ExitCode::FAILURE
        }
        Err(what) => {
            println!("{what}");
            ExitCode::FAILURE
        }
    }
}

fn check(args: Vec<String>) -> Result<usize, String> {
    let (files, architectures): (Vec<String>, Vec<String>) = args.into_iter().partition(|arg| arg.ends_with(".cu"));
    let architectures = architectures.iter().map(|name| capability(name)).collect::<Result<Vec<_>, _>>()?;
    if architectures.is_empty() {
        return Err("no architecture: sm_80, for example".into());
    }
    let sources = match files.is_empty() {
        true => built_in(),
        false => files.into_iter().map(read).collect::<Result<_, _>>()?,
    };
    let compiler = Compiler::find().map_err(|absent| absent.to_string())?;
    let (major, minor) = compiler.version();
    let mut failures = 0;
    for capability in architectures {
        println!("NVRTC {major}.{minor}, sm_{}{}", capability.0, capability.1);
        println!(
            "{:<18} {:<22} {:>9} {:>12} {:>11} {:>11}",
            "file", "kernel", "registers", "shared bytes", "stack bytes", "spill bytes"
        );
        for (source, compiled) in sources.iter().zip(compiler.compile_all(&sources, capability)) {
            let compiled = match compiled {
                Ok(compiled) => compiled,
                Err(what) => {
                    println!("FAILED: {what}");
                    failures += 1;
                    continue;
                }
            };
            let usages = compiled.usage();
            for usage in &usages {
                let Usage { kernel, registers, shared_bytes, stack_bytes, spill_bytes } = usage;
                let file = source.file;
                println!(
                    "{file:<18} {kernel:<22} {registers:>9} {shared_bytes:>12} {stack_bytes:>11} {spill_bytes:>11}"
                );
                failures += complaints(usage).inspect(|what| println!("FAILED: {kernel}: {what}")).count();
            }
            for kernel in Kernel::ALL.iter().filter(|kernel| kernel.source() == *source) {
                if !usages.iter().any(|usage| usage.kernel == kernel.name()) {
                    println!("FAILED: {} has no {}", source.file, kernel.name());
                    failures += 1;
                }
            }
        }
    }
    Ok(failures)
}

fn complaints(usage: &Usage) -> impl Iterator<Item = String> {
    let spills = (usage.spill_bytes > 0).then(|| "registers are spilled".to_owned());
    let stack = (usage.stack_bytes > 0).then(|| "an array is in local memory".to_owned());
    let kernel = Kernel::ALL.iter().find(|kernel| kernel.name() == usage.kernel);
    let threads = kernel.map_or(1, |kernel| kernel.threads());
    // Registers are given out in eights a thread.
    let registers = usage.registers.next_multiple_of(8) * threads;
    let too_many = (registers > REGISTERS).then(|| format!("a block of {threads} threads takes {registers} registers"));
    [spills, stack, too_many].into_iter().flatten()
}

/// `sm_86` as `(8, 6)`.
fn capability(name: &str) -> Result<(u32, u32), String> {
    let number = name.strip_prefix("sm_").and_then(|digits| digits.parse::<u32>().ok()).filter(|number| *number >= 10);
    number
        .map(|number| (number / 10, number % 10))
        .ok_or_else(|| format!("{name} is no architecture: sm_80, for example"))
}

fn built_in() -> Vec<Source> {
    let mut sources: Vec<Source> = Vec::new();
    for kernel in Kernel::ALL {
        if !sources.contains(&kernel.source()) {
            sources.push(kernel.source());
        }
    }
    sources
}

/// A source from a file; it is needed to the end of this process.
fn read(path: String) -> Result<Source, String> {
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    Ok(Source { file: String::leak(path), text: String::leak(text) })
}
