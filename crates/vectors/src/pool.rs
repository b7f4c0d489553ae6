//! The threads that computing is spread over: one for each core, however many requests there are.
//!
//! Deliberately absent: priorities, and a bound on what waits (whoever hands work out has one).

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Makes the threads now, and not when they are first needed: how they are scheduled they have from the thread that does so.
pub fn start_threads() {
    rayon::current_num_threads();
}

/// Runs `work` on the pool that [`crate::Threads::Pool`] names, soon. A panic in it is logged by the panic hook and ends
/// nothing else; whoever waits for a result has to notice that none comes.
pub fn spawn(work: impl FnOnce() + Send + 'static) {
    rayon::spawn(move || {
        let _ = catch_unwind(AssertUnwindSafe(work));
    });
}
