//! The queue beside a plain model of it: two lists, looked at from the front.

use super::tests::{Nothing, Reply};
use super::*;
use proptest::prelude::*;
use std::cmp::Ordering;

const REPLICAS: usize = 3;

#[derive(Clone, Debug)]
enum Op {
    /// Jobs of one of the models, by their tokens.
    Push(usize, Vec<usize>),
    /// A replica that takes at most so many tokens.
    Take(usize, usize),
    /// A caller goes away, whose job waits.
    Leave(usize),
    /// A replica puts what it has back, and goes.
    PutBack(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0..MODELS.len(), prop::collection::vec(1usize..40, 1..8)).prop_map(|(model, tokens)| Op::Push(model, tokens)),
        // Many small ones, so that there is something to share out.
        1 => (0..MODELS.len(), prop::collection::vec(30usize..60, 20..40)).prop_map(|(model, tokens)| Op::Push(model, tokens)),
        5 => (0..REPLICAS, 1usize..600).prop_map(|(replica, tokens_max)| Op::Take(replica, tokens_max)),
        2 => any::<usize>().prop_map(Op::Leave),
        1 => (0..REPLICAS).prop_map(Op::PutBack),
    ]
}

/// Role, and the replicas that have a copy: two revisions of an embedder, one of them on its way out.
const MODELS: [(Role, &[usize]); 3] =
    [(Role::Retriever, &[0, 1, 2]), (Role::Retriever, &[0]), (Role::Reranker, &[0, 1, 2])];

/// A job as the model sees it; its tokens are all its own number.
#[derive(Clone, Debug, PartialEq)]
struct Plain {
    id: u32,
    tokens: usize,
    model: usize,
    passed_over: usize,
}

struct Bench {
    queue: Queue,
    models: Vec<Arc<LoadedModel>>,
    tokens_max: usize,
    lanes: [Vec<Plain>; 2],
    replies: Vec<Option<Reply>>,
    held: [Vec<Job>; REPLICAS],
    idle: BTreeSet<usize>,
    last_served: usize,
}

impl Bench {
    fn new(tokens_max: usize) -> Self {
        let model = |&(role, replicas): &(Role, &[usize])| {
            let model = LoadedModel::new(role, Vec::new(), Vec::new());
            replicas.iter().for_each(|&replica| model.insert(replica, Arc::new(Nothing)));
            Arc::new(model)
        };
        Self {
            queue: Queue::new(tokens_max),
            models: MODELS.iter().map(model).collect(),
            tokens_max,
            lanes: Default::default(),
            replies: Vec::new(),
            held: Default::default(),
            idle: BTreeSet::new(),
            last_served: 0,
        }
    }

    fn is_wanted(&self, job: &Plain) -> bool {
        self.replies[job.id as usize].is_some()
    }

    fn wanted(&self, lane: usize) -> Vec<Plain> {
        self.lanes[lane].iter().filter(|job| self.is_wanted(job)).cloned().collect()
    }

    fn wanted_tokens(&self) -> usize {
        (0..2).flat_map(|lane| self.wanted(lane)).map(|job| job.tokens).sum()
    }

    fn push(&mut self, model: usize, tokens: &[usize]) {
        let (waiting, more) = (self.wanted_tokens(), tokens.iter().sum::<usize>());
        let fits = waiting == 0 || waiting + more <= self.tokens_max;
        let (mut jobs, mut plain) = (Vec::new(), Vec::new());
        let before = self.replies.len();
        for &tokens in tokens {
            let (reply, receiver) = oneshot::channel();
            let id = self.replies.len() as u32;
            jobs.push(Job::new(self.models[model].clone(), vec![id; tokens], reply));
            plain.push(Plain { id, tokens, model, passed_over: 0 });
            self.replies.push(Some(receiver));
        }
        let pushed = self.queue.push(jobs);
        assert_eq!(pushed.is_ok(), fits, "{more} tokens behind {waiting}");
        if fits {
            self.lanes[lane_of(MODELS[model].0)].extend(plain);
        } else {
            assert_eq!(pushed, Err(EngineError::Overloaded { by_client: false, retry_after_s: 1 }));
            self.replies.truncate(before);
        }
    }

    /// The first job of each lane that a replica can take, and those of its model that follow.
    fn runs_for(&self, replica: usize) -> [Vec<Plain>; 2] {
        [0, 1].map(|lane| {
            let wanted = self.wanted(lane);
            let rest = wanted.iter().skip_while(|job| !MODELS[job.model].1.contains(&replica));
            let model = rest.clone().next().map(|job| job.model);
            rest.take_while(|job| Some(job.model) == model).cloned().collect()
        })
    }

    /// What a replica has to get, at most: the lane, and its first jobs of one model.
    fn run_for(&self, replica: usize) -> Option<(usize, Vec<Plain>)> {
        let [one, other] = self.runs_for(replica);
        let passed_over = |run: &[Plain]| run.first().map(|job| job.passed_over);
        // Whose turn it is, unless the other has been passed over more often.
        let lane = match passed_over(&one).cmp(&passed_over(&other)) {
            Ordering::Less => 1,
            Ordering::Equal => 1 - self.last_served,
            Ordering::Greater => 0,
        };
        let run = if lane == 0 { one } else { other };
        (!run.is_empty()).then_some((lane, run))
    }

    fn take(&mut self, replica: usize, tokens_max: usize) {
        self.held[replica].clear();
        let expected = self.run_for(replica);
        let Poll::Ready(task) = self.queue.try_take(replica, tokens_max) else {
            assert_eq!(expected, None, "replica {replica} waits");
            self.idle.insert(replica);
            return;
        };
        let Some(Task::Run(Work { model, jobs })) = task else { panic!("nobody closed it, and nothing failed") };
        let (lane, run) = expected.expect("there is nothing to take");
        let taken: Vec<u32> = jobs.iter().map(|job| job.tokens[0]).collect();
        let first: Vec<u32> = run.iter().take(taken.len()).map(|job| job.id).collect();
        assert!(!taken.is_empty() && taken == first, "{taken:?} of {run:?}");
        assert!(jobs.iter().all(|job| Arc::ptr_eq(&job.model, &model)));
        let tokens: usize = jobs.iter().map(|job| job.tokens.len()).sum();
        assert!(tokens <= tokens_max || taken.len() == 1, "{tokens} in a batch of {tokens_max}");

        self.idle.remove(&replica);
        let idle = self.idle.iter().filter(|idle| MODELS[run[0].model].1.contains(idle)).count();
        let all: usize = run.iter().map(|job| job.tokens).sum();
        let share = if idle == 0 { tokens_max } else { (all.div_ceil(idle + 1)).max(SHARE_TOKENS_MIN).min(tokens_max) };
        if let Some(next) = run.get(taken.len()) {
            assert!(tokens + next.tokens > share, "{tokens} tokens leave one of {} out of {share}", next.tokens);
        }
        assert!(tokens <= share || taken.len() == 1, "{tokens} tokens are more than the share, {share}");

        if let Some(other) = self.runs_for(replica)[1 - lane].first().map(|job| job.id) {
            self.lanes[1 - lane].iter_mut().filter(|job| job.id == other).for_each(|job| job.passed_over += 1);
        }
        self.lanes[lane].retain(|job| !taken.contains(&job.id));
        self.last_served = lane;
        self.held[replica] = jobs;
    }

    fn leave(&mut self, nth: usize) {
        let waiting: Vec<u32> = (0..2).flat_map(|lane| self.wanted(lane)).map(|job| job.id).collect();
        if !waiting.is_empty() {
            self.replies[waiting[nth % waiting.len()] as usize] = None;
        }
    }

    fn put_back(&mut self, replica: usize) {
        let jobs = std::mem::take(&mut self.held[replica]);
        for job in jobs.iter().rev() {
            let model = self.models.iter().position(|model| Arc::ptr_eq(model, &job.model)).expect("a model");
            let plain = Plain { id: job.tokens[0], tokens: job.tokens.len(), model, passed_over: 0 };
            self.lanes[lane_of(MODELS[model].0)].insert(0, plain);
        }
        self.queue.put_back(jobs);
        self.queue.leave(replica);
        self.idle.remove(&replica);
    }

    /// Tokens in the queue: of those who are wanted, and of some who left since it looked.
    fn check_tokens(&self) {
        let all: usize = self.lanes.iter().flatten().map(|job| job.tokens).sum();
        let queued = self.queue.queued_tokens();
        assert!((self.wanted_tokens()..=all).contains(&queued), "{queued} tokens");
    }
}

proptest! {
    #[test]
    fn it_does_what_two_lists_do(queue_tokens_max in 1usize..2000, ops in prop::collection::vec(op(), 1..60)) {
        let mut bench = Bench::new(queue_tokens_max);
        for op in ops {
            match op {
                Op::Push(model, tokens) => bench.push(model, &tokens),
                Op::Take(replica, tokens_max) => bench.take(replica, tokens_max),
                Op::Leave(nth) => bench.leave(nth),
                Op::PutBack(replica) => bench.put_back(replica),
            }
            bench.check_tokens();
        }
        // Nothing is lost: the replica that has all models gets the rest.
        while bench.run_for(0).is_some() {
            bench.take(0, 100);
        }
        bench.take(0, 100);
        prop_assert_eq!(bench.wanted_tokens(), 0);
        prop_assert_eq!(bench.queue.queued_tokens(), 0);
    }
}
