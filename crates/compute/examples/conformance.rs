//! Runs the conformance cases on every CPU backend of this machine and prints, for each kind of case, how close the
//! worst one came to what is allowed.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use nexus_compute::Backend;
use nexus_compute::conformance::{Precision, cases, run};
use nexus_compute::cpu::{Cpu, CpuOptions, Isa};
use std::collections::BTreeMap;
use std::time::Instant;

fn main() {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        let cpu =
            Cpu::new(CpuOptions { isa: Some(isa), ..CpuOptions::default() }).expect("the instruction set is available");
        println!("{}", cpu.name());
        let mut kinds: BTreeMap<String, (usize, f64, String, f64)> = BTreeMap::new();
        for case in cases() {
            let kind = case.name().split(' ').next().unwrap_or_default().to_owned();
            let start = Instant::now();
            let result = run(&cpu, &case, Precision::F32);
            let seconds = start.elapsed().as_secs_f64();
            let entry = kinds.entry(kind).or_default();
            entry.0 += 1;
            entry.3 += seconds;
            match result {
                Ok(report) if report.worst >= entry.1 => (entry.1, entry.2) = (report.worst, case.name().to_owned()),
                Ok(_) => {}
                Err(failure) => println!("  FAILED {}: {failure}", case.name()),
            }
        }
        for (kind, (count, worst, name, seconds)) in kinds {
            println!("  {kind:13} {count:4} cases, {seconds:6.2} s, worst at {worst:.3} of what is allowed: {name}");
        }
    }
}
