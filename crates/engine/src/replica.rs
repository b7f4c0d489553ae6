//! A replica: one device, and the one thread that runs models on it.

use crate::{
    EngineError,
    loaded::LoadedModel,
    queue::{Job, Queue, Work},
};
use nexus_compute::PackedBatch;
use nexus_models::PackedModel;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::JoinHandle,
};

/// Starts the thread of replica number `replica`, which serves `queue` until it is closed and empty.
pub(crate) fn spawn(replica: usize, queue: Arc<Queue>) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(format!("replica-{replica}")).spawn(move || {
        while let Some(Work { model, jobs }) = queue.take() {
            let answer = on(&model, replica).and_then(|copy| {
                let sequences: Vec<&[u32]> = jobs.iter().map(|job| job.tokens.as_slice()).collect();
                forward(copy, &sequences)
            });
            match answer {
                Ok(rows) => jobs.into_iter().zip(rows).for_each(|(job, row)| reply(job, finite(row))),
                Err(detail) => {
                    let error = EngineError::Model(format!("the {} failed: {detail}", model.role().name()));
                    jobs.into_iter().for_each(|job| reply(job, Err(error.clone())));
                }
            }
        }
    })
}

fn on(model: &LoadedModel, replica: usize) -> Result<&dyn PackedModel, String> {
    model.on(replica).ok_or_else(|| format!("it has no copy on replica {replica}"))
}

/// One row a sequence; or what stopped the model.
pub(crate) fn forward(model: &dyn PackedModel, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>, String> {
    let batch = PackedBatch::new(sequences).map_err(|e| e.to_string())?;
    // A panic in a kernel is a bug, but the requests of this batch are the only ones it may cost.
    let output = catch_unwind(AssertUnwindSafe(|| model.forward(&batch)))
        .map_err(|_| "it panicked; the log has the place".to_owned())?
        .map_err(|e| e.to_string())?;
    Ok(output.chunks_exact(model.output_columns()).map(<[f32]>::to_vec).collect())
}

pub(crate) fn finite(row: Vec<f32>) -> Result<Vec<f32>, EngineError> {
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
    use crate::Role;
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
        let model = Arc::new(LoadedModel::new(Role::Retriever, vec![Box::new(Fake)]));
        let replica = spawn(0, queue.clone()).unwrap();
        let answers = batches
            .iter()
            .map(|batch| {
                let (jobs, replies): (Vec<_>, Vec<_>) = batch
                    .iter()
                    .map(|&token| {
                        let (reply, receiver) = oneshot::channel();
                        (Job { model: model.clone(), tokens: vec![token, 1], reply }, receiver)
                    })
                    .unzip();
                queue.push(jobs).unwrap();
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
    fn a_model_without_a_copy_is_an_error() {
        let queue = Arc::new(Queue::new(1000, 1000));
        let replica = spawn(0, queue.clone()).unwrap();
        let model = Arc::new(LoadedModel::new(Role::Reranker, Vec::new()));
        let (reply, receiver) = oneshot::channel();
        queue.push(vec![Job { model, tokens: vec![1], reply }]).unwrap();
        let error = receiver.blocking_recv().unwrap().unwrap_err();
        assert_eq!(error.to_string(), "the reranker failed: it has no copy on replica 0");
        queue.close();
        replica.join().unwrap();
    }

    /// Waits in `forward` until it is told to go on.
    struct Held(std::sync::Mutex<std::sync::mpsc::Receiver<()>>);

    impl PackedModel for Held {
        fn output_columns(&self) -> usize {
            1
        }

        fn forward(&self, batch: &PackedBatch) -> Result<Vec<f32>, ComputeError> {
            self.0.lock().unwrap().recv().unwrap();
            Ok(vec![1.0; batch.ranges().count()])
        }
    }

    #[test]
    fn the_weights_go_with_the_last_job_and_not_before() {
        let queue = Arc::new(Queue::new(1000, 1));
        let replica = spawn(0, queue.clone()).unwrap();
        let (go_on, held) = std::sync::mpsc::channel();
        let model = Arc::new(LoadedModel::new(Role::Retriever, vec![Box::new(Held(held.into()))]));
        let alive = model.alive();
        let (jobs, replies): (Vec<_>, Vec<_>) = (0..2)
            .map(|_| {
                let (reply, receiver) = oneshot::channel();
                (Job { model: model.clone(), tokens: vec![1], reply }, receiver)
            })
            .unzip();
        queue.push(jobs).unwrap();
        // From here on, only the jobs hold it.
        drop(model);
        for reply in replies {
            assert!(alive.upgrade().is_some());
            go_on.send(()).unwrap();
            assert_eq!(reply.blocking_recv().unwrap(), Ok(vec![1.0]));
        }
        let started = std::time::Instant::now();
        while alive.upgrade().is_some() {
            assert!(started.elapsed() < std::time::Duration::from_secs(60), "the weights are still held");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        queue.close();
        replica.join().unwrap();
    }
}
