//! `nexus bench conformance`: every operation of a device against the scalar reference.

use super::Failure;
use super::device::{Job, precision};
use nexus_compute::Backend;
use nexus_compute::conformance::{cases, run};
use std::fmt::Write as _;
use std::sync::Arc;

pub(super) struct Conformance;

impl Job for Conformance {
    fn run<B: Backend>(self, backend: Arc<B>) -> Result<(), Failure> {
        let precision = precision(&*backend)?;
        let cases = cases();
        let (mut failures, mut report) = (0_usize, String::new());
        let mut worst = (0.0_f64, "no case");
        for case in &cases {
            match run(&*backend, case, precision) {
                Ok(found) if found.worst > worst.0 => worst = (found.worst, case.name()),
                Ok(_) => {}
                Err(failure) => {
                    failures += 1;
                    let _ = writeln!(report, "FAILED {}: {failure}", case.name());
                }
            }
        }
        let (passed, count) = (cases.len() - failures, cases.len());
        let summary = format!(
            "conformance on {}: {passed} of {count} cases passed; the worst error is {:.2} of what is allowed, in {}",
            backend.name(),
            worst.0,
            worst.1
        );
        super::super::print(&format!("{report}{summary}\n"))?;
        if failures > 0 { Err(Failure::Run(format!("{failures} of {count} conformance cases failed"))) } else { Ok(()) }
    }
}
