//! Which threads the system runs first, where there are more than cores.

/// Makes this thread wait its turn when it wakes up, rather than interrupt the one that runs (Linux, `SCHED_BATCH`). Its part of
/// the processor stays the same, and so does its niceness. A thread that is scheduled in another way than usual is left alone.
///
/// For threads that serve requests beside others that compute: each request is a wake-up, and under overload thousands of
/// interruptions a second cost a model more than a tenth of its speed (`bench/load.sh`). Where a core is free nothing changes;
/// where none is, requests are taken some at a time, some milliseconds late.
///
/// Threads have it from those that start them. What computes is started by the main thread (`wiring`), and is as usual.
#[cfg(target_os = "linux")]
pub(crate) fn wait_for_turn() {
    use thread_priority::NormalThreadSchedulePolicy::{Batch, Other};
    use thread_priority::{ThreadPriority, ThreadSchedulePolicy, unix};
    let niceness = rustix::process::getpriority_process(None).unwrap_or(-1);
    // What is below 0 could be set to 0 by everybody, and not back.
    if niceness < 0 || unix::thread_schedule_policy().ok() != Some(ThreadSchedulePolicy::Normal(Other)) {
        return;
    }
    // Where it may not be done, as in a sandbox, threads are as they were.
    let _ = unix::set_thread_priority_and_policy(
        unix::thread_native_id(),
        ThreadPriority::Os(Default::default()),
        ThreadSchedulePolicy::Normal(Batch),
    );
    // It was set to 0, where that is allowed.
    let _ = rustix::process::setpriority_process(None, niceness);
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn wait_for_turn() {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use rustix::process::{getpriority_process, setpriority_process};
    use thread_priority::{NormalThreadSchedulePolicy::Batch, ThreadSchedulePolicy, unix::thread_schedule_policy};

    #[test]
    fn a_thread_waits_for_its_turn_and_is_as_nice_as_before() {
        std::thread::spawn(|| {
            setpriority_process(None, 19).unwrap();
            wait_for_turn();
            assert_eq!(thread_schedule_policy().unwrap(), ThreadSchedulePolicy::Normal(Batch));
            assert_eq!(getpriority_process(None).unwrap(), 19);
        })
        .join()
        .unwrap();
    }
}
