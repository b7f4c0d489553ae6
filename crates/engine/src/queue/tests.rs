//! What is taken, by whom, in which order, and what is refused.

use super::*;
use nexus_compute::{ComputeError, PackedBatch};
use nexus_models::PackedModel;

pub(super) type Reply = oneshot::Receiver<Result<Vec<f32>, EngineError>>;

pub(super) struct Nothing;

impl PackedModel for Nothing {
    fn output_columns(&self) -> usize {
        1
    }

    fn forward(&self, _: &PackedBatch) -> Result<Vec<f32>, ComputeError> {
        Ok(Vec::new())
    }
}

fn model_on(role: Role, replicas: &[usize]) -> Arc<LoadedModel> {
    let model = LoadedModel::new(role, Vec::new(), Vec::new());
    replicas.iter().for_each(|&replica| model.insert(replica, Arc::new(Nothing)));
    Arc::new(model)
}

pub(super) fn model(role: Role) -> Arc<LoadedModel> {
    model_on(role, &[0])
}

fn job(model: &Arc<LoadedModel>, tokens: usize) -> (Job, Reply) {
    let (reply, receiver) = oneshot::channel();
    (Job::new(model.clone(), vec![7; tokens], reply), receiver)
}

pub(super) fn embed(tokens: usize) -> (Job, Reply) {
    job(&model(Role::Retriever), tokens)
}

pub(super) fn take(queue: &Queue, replica: usize) -> Option<Work> {
    take_of(queue, replica, 10)
}

fn take_of(queue: &Queue, replica: usize, tokens_max: usize) -> Option<Work> {
    match queue.take(replica, tokens_max)? {
        Task::Run(work) => Some(work),
        Task::Prove => panic!("nothing failed"),
    }
}

fn lengths(work: Option<Work>) -> (Role, Vec<usize>) {
    let work = work.expect("work");
    assert!(work.jobs.iter().all(|job| Arc::ptr_eq(&job.model, &work.model)));
    (work.model.role(), work.jobs.iter().map(|job| job.tokens.len()).collect())
}

#[test]
fn packs_in_order_and_takes_turns() {
    let queue = Queue::new(1000);
    let (reranker, retriever) = (model(Role::Reranker), model(Role::Retriever));
    let (rerank, _r): (Vec<_>, Vec<_>) = [6, 6, 6].map(|tokens| job(&reranker, tokens)).into_iter().unzip();
    let (embed, _e): (Vec<_>, Vec<_>) = [4, 4, 4].map(|tokens| job(&retriever, tokens)).into_iter().unzip();
    queue.push(rerank).unwrap();
    queue.push(embed).unwrap();
    assert_eq!(lengths(take(&queue, 0)), (Role::Reranker, vec![6]));
    assert_eq!(lengths(take(&queue, 0)), (Role::Retriever, vec![4, 4]));
    assert_eq!(lengths(take(&queue, 0)), (Role::Reranker, vec![6]));
    assert_eq!(lengths(take(&queue, 0)), (Role::Retriever, vec![4]));
    assert_eq!(lengths(take(&queue, 0)), (Role::Reranker, vec![6]));
}

#[test]
fn what_only_one_replica_can_take_is_passed_over_once() {
    let queue = Queue::new(1000);
    let (old, new) = (model_on(Role::Retriever, &[0]), model_on(Role::Retriever, &[1]));
    let reranker = model_on(Role::Reranker, &[0]);
    let push = |model, tokens| {
        let (job, reply) = job(model, tokens);
        queue.push(vec![job]).unwrap();
        reply
    };
    let _replies = [push(&reranker, 10), push(&old, 1), push(&reranker, 10), push(&reranker, 10), push(&new, 2)];
    assert_eq!(lengths(take(&queue, 0)), (Role::Reranker, vec![10]));
    // The embedder's lane had its turn with that, and its first job is still there.
    assert_eq!(lengths(take(&queue, 1)), (Role::Retriever, vec![2]));
    assert_eq!(lengths(take(&queue, 0)), (Role::Retriever, vec![1]));
    assert_eq!(lengths(take(&queue, 0)), (Role::Reranker, vec![10]));
}

#[test]
fn waits_are_those_of_jobs_that_were_handed_out() {
    let queue = Queue::new(1000);
    let (jobs, _replies): (Vec<_>, Vec<_>) = [6, 6].map(embed).into_iter().unzip();
    queue.push(jobs).unwrap();
    assert_eq!((queue.take_waits().jobs, queue.queued_tokens()), (0, 12));
    std::thread::sleep(std::time::Duration::from_millis(20));
    take(&queue, 0).unwrap();
    let waits = queue.take_waits();
    assert!(waits.jobs == 1 && waits.p50_ms >= 20.0, "{waits:?}");
    assert_eq!((queue.take_waits().jobs, queue.queued_tokens()), (0, 6));
}

#[test]
fn a_batch_is_of_one_revision_and_order_is_kept() {
    let queue = Queue::new(1000);
    let (old, new) = (model(Role::Retriever), model(Role::Retriever));
    // Requests that began before the flip may be queued after those that began later.
    let (jobs, _replies): (Vec<_>, Vec<_>) =
        [(&old, 1), (&old, 2), (&new, 3), (&old, 4), (&new, 5), (&new, 5)].map(|(m, n)| job(m, n)).into_iter().unzip();
    queue.push(jobs).unwrap();
    for (model, expected) in [(&old, vec![1, 2]), (&new, vec![3]), (&old, vec![4]), (&new, vec![5, 5])] {
        let work = take(&queue, 0);
        assert!(work.as_ref().is_some_and(|work| Arc::ptr_eq(&work.model, model)));
        assert_eq!(lengths(work), (Role::Retriever, expected));
    }
}

#[test]
fn refuses_what_does_not_fit_whole() {
    let queue = Queue::new(10);
    let (first, _a) = embed(8);
    queue.push(vec![first]).unwrap();
    let (second, third) = (embed(2), embed(1));
    let refused = queue.push(vec![second.0, third.0]);
    assert_eq!(refused, Err(EngineError::Overloaded { by_client: false, retry_after_s: 1 }));
    assert_eq!(lengths(take(&queue, 0)), (Role::Retriever, vec![8]));
    let (large, _b) = embed(50);
    queue.push(vec![large]).unwrap();
    assert_eq!(lengths(take(&queue, 0)), (Role::Retriever, vec![50]));
}

#[test]
fn forgets_jobs_nobody_waits_for_and_frees_their_place() {
    let queue = Queue::new(10);
    let (gone, receiver) = embed(9);
    queue.push(vec![gone]).unwrap();
    drop(receiver);
    let (wanted, _r) = job(&model(Role::Reranker), 3);
    queue.push(vec![wanted]).unwrap();
    assert_eq!(lengths(take(&queue, 0)), (Role::Reranker, vec![3]));
    let (late, receiver) = embed(2);
    queue.push(vec![late]).unwrap();
    drop(receiver);
    queue.close();
    assert!(take(&queue, 0).is_none());
    let (late, _l) = embed(1);
    assert_eq!(queue.push(vec![late]), Err(EngineError::ShuttingDown));
}

#[test]
fn serves_what_is_queued_after_closing() {
    let queue = Queue::new(10);
    let (wanted, _r) = embed(3);
    queue.push(vec![wanted]).unwrap();
    queue.close();
    assert_eq!(lengths(take(&queue, 0)), (Role::Retriever, vec![3]));
    assert!(take(&queue, 0).is_none());
}

#[test]
fn forgets_what_is_queued_when_abandoned() {
    let queue = Queue::new(10);
    let (unlucky, receiver) = embed(3);
    queue.push(vec![unlucky]).unwrap();
    queue.abandon();
    assert!(receiver.blocking_recv().is_err());
    assert!(take(&queue, 0).is_none());
}

/// As if these replicas waited in `take`.
fn idle(queue: &Queue, replicas: std::ops::Range<usize>) {
    queue.lock().idle = replicas.collect();
}

#[test]
fn what_waits_is_shared_out_between_idle_replicas_in_order() {
    let queue = Queue::new(100_000);
    let retriever = model_on(Role::Retriever, &[0, 1, 2, 3]);
    let (jobs, _replies): (Vec<_>, Vec<_>) = (0..16).map(|n| job(&retriever, 300 + n)).unzip();
    queue.push(jobs).unwrap();
    idle(&queue, 0..4);
    let taken: Vec<_> = (0..4).map(|replica| lengths(take_of(&queue, replica, 4096)).1).collect();
    assert!(taken.iter().all(|taken| (3..=5).contains(&taken.len())), "{taken:?}");
    let in_order: Vec<usize> = taken.concat();
    assert_eq!(in_order, (0..16).map(|n| 300 + n).collect::<Vec<_>>());
    assert_eq!(queue.queued_tokens(), 0);
}

#[test]
fn little_work_is_not_shared_out_nor_is_any_with_replicas_that_can_not_take_it() {
    let queue = Queue::new(100_000);
    for on in [&[0, 1, 2, 3][..], &[0]] {
        let retriever = model_on(Role::Retriever, on);
        let size = if on.len() > 1 { SHARE_TOKENS_MIN / 8 } else { 1000 };
        let (jobs, _replies): (Vec<_>, Vec<_>) = (0..8).map(|_| job(&retriever, size)).unzip();
        queue.push(jobs).unwrap();
        idle(&queue, 0..4);
        assert_eq!(lengths(take_of(&queue, 0, 8000)).1, [size; 8]);
    }
}

#[test]
fn a_replica_takes_what_it_has_a_copy_for() {
    let queue = Queue::new(1000);
    let (old, new) = (model_on(Role::Retriever, &[0]), model_on(Role::Retriever, &[1]));
    let (jobs, _replies): (Vec<_>, Vec<_>) =
        [(&old, 1), (&new, 2), (&new, 3), (&old, 4)].map(|(m, n)| job(m, n)).into_iter().unzip();
    queue.push(jobs).unwrap();
    assert_eq!(lengths(take(&queue, 1)), (Role::Retriever, vec![2, 3]));
    assert_eq!(lengths(take(&queue, 0)), (Role::Retriever, vec![1, 4]));
    let (nowhere, _r) = job(&model_on(Role::Reranker, &[]), 1);
    assert!(matches!(queue.push(vec![nowhere]), Err(EngineError::Device(_))));
}

#[test]
fn what_comes_back_is_first_and_what_has_no_place_is_answered() {
    let queue = Queue::new(1000);
    let retriever = model_on(Role::Retriever, &[0, 1]);
    let (jobs, replies): (Vec<_>, Vec<_>) = [1, 2, 3].map(|n| job(&retriever, n)).into_iter().unzip();
    queue.push(jobs).unwrap();
    let work = take_of(&queue, 0, 3).unwrap();
    assert_eq!(queue.queued_tokens(), 3);
    queue.put_back(work.jobs);
    assert_eq!(lengths(take(&queue, 1)), (Role::Retriever, vec![1, 2, 3]));

    let (mut full, reply) = job(&retriever, 5);
    full.setback = Some(Setback::Memory(0, "full".into()));
    queue.put_back(vec![full]);
    retriever.remove(1);
    queue.sweep();
    let error = reply.blocking_recv().unwrap().unwrap_err().to_string();
    assert!(error.contains("5 tokens, alone") && error.contains("full"), "{error}");
    assert_eq!(queue.queued_tokens(), 0);
    drop(replies);
}

#[test]
fn a_closed_queue_waits_for_what_may_come_back() {
    let queue = Arc::new(Queue::new(1000));
    let retriever = model_on(Role::Retriever, &[0, 1]);
    let (wanted, _r) = job(&retriever, 3);
    queue.push(vec![wanted]).unwrap();
    let work = take(&queue, 0).unwrap();
    queue.close();
    let other = std::thread::spawn({
        let queue = queue.clone();
        move || take(&queue, 1).map(|work| work.jobs.len())
    });
    queue.put_back(work.jobs);
    queue.leave(0);
    assert_eq!(other.join().unwrap(), Some(1));
    assert!(take(&queue, 1).is_none());
}

#[test]
fn a_failed_queue_says_why() {
    let queue = Queue::new(1000);
    let retriever = model_on(Role::Retriever, &[0]);
    let (waits, reply) = job(&retriever, 3);
    queue.push(vec![waits]).unwrap();
    queue.fail("all gone");
    assert_eq!(reply.blocking_recv().unwrap(), Err(EngineError::Device("all gone".into())));
    let (late, _r) = job(&retriever, 3);
    assert_eq!(queue.push(vec![late]), Err(EngineError::Device("all gone".into())));
    let (late, reply) = job(&retriever, 3);
    queue.put_back(vec![late]);
    assert_eq!(reply.blocking_recv().unwrap(), Err(EngineError::Device("all gone".into())));
    assert!(take(&queue, 0).is_none());
}
