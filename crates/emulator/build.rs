//! Compiles the kernels' sources as C++, with the emulator's prelude in front of them.

#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

fn main() {
    let kernels = Path::new("../compute/src/cuda/kernels");
    let wrong = Path::new("tests/wrong");
    let mut text = String::from("#include \"prelude.hpp\"\n#include \"common.cuh\"\n");
    for folder in [kernels, wrong] {
        println!("cargo::rerun-if-changed={}", folder.display());
        let mut sources: Vec<_> = fs::read_dir(folder)
            .expect("the folder of kernels is there")
            .map(|entry| entry.expect("it can be listed").path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
            .collect();
        sources.sort();
        for source in sources {
            let name = source.file_stem().and_then(|name| name.to_str()).expect("a name in ASCII").to_owned();
            let place = fs::canonicalize(&source).expect("it was just listed");
            // Kernels of one file may have helpers of the same names as those of another.
            writeln!(text, "namespace in_{name} {{\n#include \"{}\"\n}}", place.display()).expect("strings take all");
        }
    }
    // In one piece with what is called: a linker leaves out objects that nobody names, and kernels name themselves.
    text.push_str("#include \"emulate.cpp\"\n");
    let all = Path::new(&env::var_os("OUT_DIR").expect("cargo sets it")).join("kernels.cpp");
    fs::write(&all, text).expect("the build's folder can be written");
    println!("cargo::rerun-if-changed=cpp");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        // Whatever the profile: a kernel is thousands of threads.
        .opt_level(2)
        .flag_if_supported("-ffp-contract=off")
        .warnings(false)
        .include("cpp")
        .include(kernels)
        .file(all)
        .compile("nexus_emulator_kernels");
}
