//! A replica: the models on one device, and the one thread that runs them.

use crate::{
    EngineError, Role,
    queue::{Job, Queue, Work},
};
use nexus_compute::PackedBatch;
use nexus_models::PackedModel;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock},
    thread::JoinHandle,
};

/// The models of a replica, each there once it is loaded.
#[derive(Default)]
pub(crate) struct ReplicaModels {
    retriever: OnceLock<Box<dyn PackedModel>>,
    reranker: OnceLock<Box<dyn PackedModel>>,
}

impl ReplicaModels {
    /// Puts a model in its place. Jobs for it are queued only afterwards.
    pub(crate) fn install(&self, role: Role, model: Box<dyn PackedModel>) {
        // A second install would be a mistake of the loader; the first model stays.
        let _ = self.place(role).set(model);
    }

    fn place(&self, role: Role) -> &OnceLock<Box<dyn PackedModel>> {
        match role {
            Role::Retriever => &self.retriever,
            Role::Reranker => &self.reranker,
        }
    }
}

/// Starts the thread that serves `queue` until it is closed and empty.
pub(crate) fn spawn(name: &str, models: Arc<ReplicaModels>, queue: Arc<Queue>) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        while let Some(Work { role, jobs }) = queue.take() {
            match run(&models, role, &jobs) {
                Ok(rows) => jobs.into_iter().zip(rows).for_each(|(job, row)| reply(job, finite(row))),
                Err(error) => jobs.into_iter().for_each(|job| reply(job, Err(error.clone()))),
            }
        }
    })
}

fn run(models: &ReplicaModels, role: Role, jobs: &[Job]) -> Result<Vec<Vec<f32>>, EngineError> {
    let failed = |detail: String| EngineError::Model(format!("the {} failed: {detail}", role.name()));
    let model = models.place(role).get().ok_or_else(|| failed("it is not loaded".into()))?;
    let sequences: Vec<&[u32]> = jobs.iter().map(|job| job.tokens.as_slice()).collect();
    let batch = PackedBatch::new(&sequences).map_err(|e| failed(e.to_string()))?;
    // A panic in a kernel is a bug, but the requests of this batch are the only ones it may cost.
    let output = catch_unwind(AssertUnwindSafe(|| model.forward(&batch)))
        .map_err(|_| failed("it panicked; the log has the place".into()))?
        .map_err(|e| failed(e.to_string()))?;
    Ok(output.chunks_exact(model.output_columns()).map(<[f32]>::to_vec).collect())
}

fn finite(row: Vec<f32>) -> Result<Vec<f32>, EngineError> {
    if row.iter().all(|x| x.is_finite()) {
        Ok(row)
    } else {
        Err(EngineError::Model("the model's output for this text is not finite".into()))
    }
}

fn reply(job: Job, result: Result<Vec<f32>, EngineError>) {
    // Whoever asked may have gone away meanwhile.
    let _ = job.reply.send(result);
}

#[cfg(test)]
mod tests {
    use super::*;
    use nexus_compute::ComputeError;
    use tokio::sync::oneshot;

    /// Doubles the first token of each sequence; token 13 panics, 14 is a device error, 15 gives NaN for its own row.
    struct Fake;

    impl PackedModel for Fake {
        fn output_columns(&self) -> usize {
            1
        }

        fn forward(&self, batch: &PackedBatch) -> Result<Vec<f32>, ComputeError> {
            let first: Vec<u32> = batch.ranges().map(|range| batch.tokens()[range.start]).collect();
            assert!(!first.contains(&13), "unlucky");
            if first.contains(&14) {
                return Err(ComputeError::Device("gone".into()));
            }
            Ok(first.iter().map(|&t| if t == 15 { f32::NAN } else { 2.0 * t as f32 }).collect())
        }
    }

    /// What each batch of sequences gives, one batch after another through one replica.
    fn answers(batches: &[&[u32]]) -> Vec<Vec<Result<f32, String>>> {
        let queue = Arc::new(Queue::new(1000, 1000));
        let models = Arc::new(ReplicaModels::default());
        models.install(Role::Retriever, Box::new(Fake));
        let replica = spawn("test", models, queue.clone()).unwrap();
        let answers = batches
            .iter()
            .map(|batch| {
                let (jobs, replies): (Vec<_>, Vec<_>) = batch
                    .iter()
                    .map(|&token| {
                        let (reply, receiver) = oneshot::channel();
                        (Job { tokens: vec![token, 1], reply }, receiver)
                    })
                    .unzip();
                queue.push(Role::Retriever, jobs).unwrap();
                let answer = |reply: oneshot::Receiver<Result<Vec<f32>, EngineError>>| {
                    reply.blocking_recv().unwrap().map(|row| row[0]).map_err(|e| e.to_string())
                };
                replies.into_iter().map(answer).collect()
            })
            .collect();
        queue.close();
        replica.join().unwrap();
        answers
    }

    #[test]
    fn a_failing_batch_fails_its_own_requests_and_nothing_else() {
        let answers = answers(&[&[1, 2], &[3, 13], &[4], &[14], &[5, 15, 6]]);
        assert_eq!(answers[0], [Ok(2.0), Ok(4.0)]);
        assert!(answers[1].iter().all(|a| a.as_ref().is_err_and(|e| e.contains("panicked"))), "{:?}", answers[1]);
        assert_eq!(answers[2], [Ok(8.0)]);
        assert_eq!(answers[3], [Err("the retriever failed: device failure: gone".to_owned())]);
        assert_eq!((&answers[4][0], &answers[4][2]), (&Ok(10.0), &Ok(12.0)));
        assert!(answers[4][1].as_ref().is_err_and(|e| e.contains("not finite")));
    }

    #[test]
    fn a_model_that_is_not_there_is_an_error() {
        let queue = Arc::new(Queue::new(1000, 1000));
        let replica = spawn("test", Arc::default(), queue.clone()).unwrap();
        let (reply, receiver) = oneshot::channel();
        queue.push(Role::Reranker, vec![Job { tokens: vec![1], reply }]).unwrap();
        let error = receiver.blocking_recv().unwrap().unwrap_err();
        assert_eq!(error.to_string(), "the reranker failed: it is not loaded");
        queue.close();
        replica.join().unwrap();
    }
}
