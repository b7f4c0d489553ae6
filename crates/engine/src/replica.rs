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
    loaded::{LoadedModel, ModelCopy},
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
        let it = Replica { replica, tokens_max, queue, replicas };
        it.end(catch_unwind(AssertUnwindSafe(|| it.serve())).unwrap_or_else(|_| {
            Err(Failure { reason: "its thread panicked; the log has the place".into(), of_process: false })
        }));
    })
}

/// What a replica's thread does, in steps that can be taken one by one.
pub(crate) struct Replica {
    pub(crate) replica: usize,
    pub(crate) tokens_max: usize,
    pub(crate) queue: Arc<Queue>,
    pub(crate) replicas: Arc<Replicas>,
}

/// A batch that a replica has taken, in the parts that are still to be run, the next one last.
pub(crate) struct Batch {
    model: Arc<LoadedModel>,
    pub(crate) parts: Vec<Vec<Job>>,
}

impl From<Work> for Batch {
    fn from(Work { model, jobs }: Work) -> Self {
        Self { model, parts: vec![jobs] }
    }
}

impl Replica {
    fn serve(&self) -> Result<(), Failure> {
        while let Some(task) = self.queue.take(self.replica, self.tokens_max) {
            match task {
                Task::Run(work) => self.run(work)?,
                Task::Prove => self.prove()?,
            }
        }
        Ok(())
    }

    /// The replica takes nothing any more, since the queue is closed, or for a failure.
    pub(crate) fn end(&self, outcome: Result<(), Failure>) {
        if let Err(Failure { reason, of_process }) = outcome {
            self.replicas.take_out(&self.queue, self.replica, &reason, of_process);
        }
        self.queue.leave(self.replica);
    }

    /// Runs a batch, in parts where it does not fit.
    fn run(&self, work: Work) -> Result<(), Failure> {
        let mut batch = Batch::from(work);
        while let Some((copy, jobs)) = self.next_part(&mut batch) {
            let rows = self.compute(copy, &jobs);
            self.settle(&mut batch, jobs, rows)?;
        }
        Ok(())
    }

    /// The next part of a batch, and the copy that runs it.
    pub(crate) fn next_part(&self, batch: &mut Batch) -> Option<(ModelCopy, Vec<Job>)> {
        let mut jobs = batch.parts.pop()?;
        if let Some(copy) = batch.model.on(self.replica) {
            return Some((copy, jobs));
        }
        // Drained after the batch was taken: another has it. All parts at once, so that they keep their order.
        jobs.extend(batch.parts.drain(..).rev().flatten());
        self.queue.put_back(jobs);
        self.queue.sweep();
        None
    }

    /// Runs a part. The copy is not held any longer than that: the weights go with the last job.
    pub(crate) fn compute(&self, copy: ModelCopy, jobs: &[Job]) -> Result<Vec<Vec<f32>>, Stopped> {
        let sequences: Vec<&[u32]> = jobs.iter().map(|job| job.tokens.as_slice()).collect();
        let tokens = sequences.iter().map(|tokens| tokens.len()).sum();
        let started = Instant::now();
        let rows = forward(&self.replicas, self.replica, &*copy, &sequences);
        if rows.is_ok()
            && let Some(job) = jobs.first()
        {
            let (role, tokens_max) = (job.model.role(), self.tokens_max);
            let took = started.elapsed();
            self.queue.ran(role, tokens, took);
            self.queue.observer().stage(role, Stage::Compute, took);
            self.queue.observer().ran(RanBatch { role, sequences: sequences.len(), tokens, tokens_max });
        }
        rows
    }

    /// Answers the jobs of a part with what came of it, or has them run again.
    pub(crate) fn settle(
        &self,
        batch: &mut Batch,
        mut jobs: Vec<Job>,
        rows: Result<Vec<Vec<f32>>, Stopped>,
    ) -> Result<(), Failure> {
        let role = batch.model.role().name();
        let stopped = match rows {
            Ok(rows) => {
                jobs.into_iter().zip(rows).for_each(|(job, row)| job.answer(finite(row)));
                return Ok(());
            }
            Err(stopped) => stopped,
        };
        if let Some(failure) = stopped.device_failure() {
            // Out first: whoever takes the batch next has shown that it works, where that is in doubt.
            self.replicas.take_out(&self.queue, self.replica, &failure.reason, failure.of_process);
            jobs.extend(batch.parts.drain(..).rev().flatten());
            let setback = |_: &Job| Setback::Device(failure.reason.clone());
            let twice =
                |_: &Job, detail: &str| EngineError::Device(format!("the {role} met a device failure twice: {detail}"));
            self.set_back(jobs, setback, twice, &failure.reason);
            return Err(failure);
        }
        match stopped {
            Stopped::Compute(ComputeError::OutOfMemory(_)) if jobs.len() > 1 => {
                let second = jobs.split_off(jobs.len() / 2);
                self.replicas.retries();
                batch.parts.extend([second, jobs]);
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
    pub(crate) fn prove(&self) -> Result<(), Failure> {
        for model in self.replicas.models_on(self.replica) {
            let Some(copy) = model.on(self.replica) else { continue };
            let probes: Vec<&[u32]> = model.probes().iter().map(Vec::as_slice).collect();
            if let Err(stopped) = forward(&self.replicas, self.replica, &*copy, &probes)
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
