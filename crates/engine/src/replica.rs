//! A replica: one device, and the one thread that runs models on it.
//!
//! What a failure costs:
//!
//! - A batch that the device has no room for is run in halves, down to single texts; a single one is tried once on another
//!   replica.
//! - A device that fails takes its replica out. The batch goes back to the front of the queue and is run once more,
//!   elsewhere; a text that meets a second failure is answered with it.
//! - Anything else, a panic included, is a bug of the model or a kernel: it would be the same on every replica, so that it
//!   costs the requests of its batch and nothing else.

use crate::{
    EngineError, RanBatch, Stage,
    queue::{Job, Queue, Setback, Task, Work, too_large},
    replicas::Replicas,
};
use nexus_compute::{ComputeError, PackedBatch};
use nexus_models::PackedModel;
use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, PoisonError},
    thread::JoinHandle,
    time::Instant,
};

/// What stopped a forward pass.
#[derive(Debug)]
pub(crate) enum Stopped {
    /// The device, or the model.
    Compute(ComputeError),
    /// A mistake in the program.
    Bug(String),
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stopped::Compute(error) => error.fmt(f),
            Stopped::Bug(detail) => f.write_str(detail),
        }
    }
}

impl Stopped {
    /// The device's failure, if it is one.
    pub(crate) fn device_failure(&self) -> Option<Failure> {
        match self {
            Stopped::Compute(error) if error.is_device_failure() => {
                Some(Failure { reason: error.to_string(), of_process: matches!(error, ComputeError::Process(_)) })
            }
            _ => None,
        }
    }
}

/// Why a replica is taken out.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) reason: String,
    pub(crate) of_process: bool,
}

/// Starts the thread of replica number `replica`, which serves `queue` until that is closed and empty, or its device fails.
pub(crate) fn spawn(
    replica: usize,
    tokens_max: usize,
    queue: Arc<Queue>,
    replicas: Arc<Replicas>,
) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(format!("replica-{replica}")).spawn(move || {
        let it = Replica { replica, tokens_max, queue: &queue, replicas: &replicas };
        let failure = catch_unwind(AssertUnwindSafe(|| it.serve())).unwrap_or_else(|_| {
            Err(Failure { reason: "its thread panicked; the log has the place".into(), of_process: false })
        });
        if let Err(Failure { reason, of_process }) = failure {
            replicas.take_out(&queue, replica, &reason, of_process);
        }
        queue.leave(replica);
    })
}

struct Replica<'a> {
    replica: usize,
    tokens_max: usize,
    queue: &'a Queue,
    replicas: &'a Replicas,
}

impl Replica<'_> {
    fn serve(&self) -> Result<(), Failure> {
        while let Some(task) = self.queue.take(self.replica, self.tokens_max) {
            match task {
                Task::Run(work) => self.run(work)?,
                Task::Prove => self.prove()?,
            }
        }
        Ok(())
    }

    /// Runs a batch, in parts where it does not fit.
    fn run(&self, Work { model, jobs }: Work) -> Result<(), Failure> {
        let role = model.role().name();
        let mut parts = vec![jobs];
        while let Some(mut jobs) = parts.pop() {
            let Some(copy) = model.on(self.replica) else {
                // Drained after the batch was taken: another has it.
                self.queue.put_back(jobs);
                self.queue.sweep();
                continue;
            };
            let sequences: Vec<&[u32]> = jobs.iter().map(|job| job.tokens.as_slice()).collect();
            let tokens = sequences.iter().map(|tokens| tokens.len()).sum();
            let batch =
                RanBatch { role: model.role(), sequences: sequences.len(), tokens, tokens_max: self.tokens_max };
            let started = Instant::now();
            let answer = forward(self.replicas, self.replica, &*copy, &sequences);
            if answer.is_ok() {
                self.queue.observer().stage(batch.role, Stage::Compute, started.elapsed());
                self.queue.observer().ran(batch);
            }
            // Not held any longer than it runs: the weights go with the last job.
            drop(copy);
            let stopped = match answer {
                Ok(rows) => {
                    jobs.into_iter().zip(rows).for_each(|(job, row)| job.answer(finite(row)));
                    continue;
                }
                Err(stopped) => stopped,
            };
            if let Some(failure) = stopped.device_failure() {
                // Out first: whoever takes the batch next has shown that it works, where that is in doubt.
                self.replicas.take_out(self.queue, self.replica, &failure.reason, failure.of_process);
                jobs.extend(parts.into_iter().rev().flatten());
                let setback = |_: &Job| Setback::Device(failure.reason.clone());
                let twice = |_: &Job, detail: &str| {
                    EngineError::Device(format!("the {role} met a device failure twice: {detail}"))
                };
                self.set_back(jobs, setback, twice, &failure.reason);
                return Err(failure);
            }
            match stopped {
                Stopped::Compute(ComputeError::OutOfMemory(_)) if jobs.len() > 1 => {
                    let second = jobs.split_off(jobs.len() / 2);
                    self.replicas.retries();
                    parts.extend([second, jobs]);
                }
                Stopped::Compute(ComputeError::OutOfMemory(detail)) => {
                    let setback = |_: &Job| Setback::Memory(self.replica, detail.clone());
                    self.set_back(jobs, setback, |job, detail| too_large(role, job.tokens.len(), detail), &detail);
                }
                stopped => {
                    let error = EngineError::Model(format!("the {role} failed: {stopped}"));
                    jobs.into_iter().for_each(|job| job.answer(Err(error.clone())));
                }
            }
        }
        Ok(())
    }

    /// Jobs that failed for the first time go back to the queue; the others are answered.
    fn set_back(
        &self,
        jobs: Vec<Job>,
        setback: impl Fn(&Job) -> Setback,
        error: impl Fn(&Job, &str) -> EngineError,
        detail: &str,
    ) {
        let (first, second): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(|job| job.setback.is_none());
        for job in second {
            let error = error(&job, detail);
            job.answer(Err(error));
        }
        if !first.is_empty() {
            self.replicas.retries();
            self.queue.put_back(first.into_iter().map(|job| Job { setback: Some(setback(&job)), ..job }).collect());
            // There may be no other that could run them.
            self.queue.sweep();
        }
    }

    /// Runs what each model on it is checked with; only a failure of the device counts.
    fn prove(&self) -> Result<(), Failure> {
        for model in self.replicas.models_on(self.replica) {
            let Some(copy) = model.on(self.replica) else { continue };
            let probes: Vec<&[u32]> = model.probes().iter().map(Vec::as_slice).collect();
            if let Err(stopped) = forward(self.replicas, self.replica, &*copy, &probes)
                && let Some(failure) = stopped.device_failure()
            {
                return Err(failure);
            }
        }
        self.replicas.proven(self.replica);
        Ok(())
    }
}

/// One row a sequence, by a copy that is on `replica`; or what stopped it. Waits for its turn on the device.
pub(crate) fn forward(
    replicas: &Replicas,
    replica: usize,
    model: &dyn PackedModel,
    sequences: &[&[u32]],
) -> Result<Vec<Vec<f32>>, Stopped> {
    let batch = PackedBatch::new(sequences).map_err(|e| Stopped::Bug(e.to_string()))?;
    let turn = replicas.turn(replica);
    let held = turn.lock().unwrap_or_else(PoisonError::into_inner);
    let started = Instant::now();
    let output = catch_unwind(AssertUnwindSafe(|| model.forward(&batch)))
        .map_err(|_| Stopped::Bug("it panicked; the log has the place".to_owned()))?
        .map_err(Stopped::Compute)?;
    drop(held);
    replicas.ran(replica, batch.tokens().len(), started.elapsed());
    Ok(output.chunks_exact(model.output_columns()).map(<[f32]>::to_vec).collect())
}

pub(crate) fn finite(row: Vec<f32>) -> Result<Vec<f32>, EngineError> {
    if row.iter().all(|x| x.is_finite()) {
        Ok(row)
    } else {
        Err(EngineError::Model("the model's output for this text is not finite".into()))
    }
}

#[cfg(test)]
mod tests;
