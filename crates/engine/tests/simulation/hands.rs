//! Replicas, led by the hand: what their threads do, one step at a time.

use super::{
    devices::Chip,
    dice::Dice,
    ledger::{self, End, Ledger},
    plan::Plan,
};
use crate::{
    loaded::ModelCopy,
    queue::{Job, Task},
    replica::{Batch, Failure, Replica, Stopped},
};
use nexus_compute::ComputeError;
use std::{sync::atomic::Ordering, task::Poll};

pub(crate) struct Hand {
    pub(crate) replica: Replica,
    chip: Chip,
    doing: Doing,
    passes: usize,
}

enum Doing {
    /// It looks for something to do.
    Looks,
    /// It waits until it is woken again.
    Sleeps {
        wakes: u64,
    },
    Proves,
    Has(Batch),
    Runs {
        batch: Batch,
        copy: ModelCopy,
        jobs: Vec<Job>,
        steps: usize,
    },
    Ran {
        batch: Batch,
        jobs: Vec<Job>,
        rows: Result<Vec<Vec<f32>>, Stopped>,
    },
    Over,
}

/// What a step did, for the trace and for the counts.
pub(crate) struct Did {
    pub(crate) what: String,
    pub(crate) failed: Option<bool>,
}

impl Did {
    fn so(what: impl Into<String>) -> Self {
        Self { what: what.into(), failed: None }
    }
}

impl Hand {
    pub(crate) fn new(replica: Replica, chip: Chip) -> Self {
        Self { replica, chip, doing: Doing::Looks, passes: 0 }
    }

    fn wakes(&self) -> u64 {
        self.replica.queue.wakes.load(Ordering::SeqCst)
    }

    /// Whether its thread would go on.
    pub(crate) fn can_step(&self) -> bool {
        match self.doing {
            Doing::Over => false,
            Doing::Sleeps { wakes } => self.wakes() != wakes,
            _ => true,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(self.doing, Doing::Over)
    }

    /// The addresses of the jobs that it has, in the order in which they are to run.
    pub(crate) fn held(&self, into: &mut Vec<usize>) {
        let (batch, jobs): (_, &[Job]) = match &self.doing {
            Doing::Has(batch) => (batch, &[]),
            Doing::Runs { batch, jobs, .. } | Doing::Ran { batch, jobs, .. } => (batch, jobs),
            _ => return,
        };
        into.extend(jobs.iter().chain(batch.parts.iter().rev().flatten()).map(ledger::address));
    }

    pub(crate) fn step(
        &mut self,
        ledger: &mut Ledger,
        dice: &mut Dice,
        plan: &Plan,
        calm: bool,
        is_wanted: impl Fn(u64, &[u32]) -> bool,
    ) -> Did {
        match std::mem::replace(&mut self.doing, Doing::Looks) {
            Doing::Looks | Doing::Sleeps { .. } => self.look(ledger, plan, is_wanted),
            Doing::Proves => {
                self.draw_fate(dice, plan, calm);
                match self.replica.prove() {
                    Ok(()) => Did::so("has proven itself"),
                    Err(failure) => self.end(failure),
                }
            }
            Doing::Has(mut batch) => match self.replica.next_part(&mut batch) {
                None => Did::so("has done its batch"),
                Some((copy, jobs)) => {
                    let steps = dice.below(plan.steps_max[self.replica.replica]);
                    let what = format!("runs {:?}", jobs.iter().map(|job| ledger.id(job)).collect::<Vec<_>>());
                    self.doing = Doing::Runs { batch, copy, jobs, steps };
                    Did::so(what)
                }
            },
            Doing::Runs { batch, copy, jobs, steps } if steps > 0 && !calm => {
                self.doing = Doing::Runs { batch, copy, jobs, steps: steps - 1 };
                Did::so("goes on running")
            }
            Doing::Runs { batch, copy, jobs, .. } => {
                self.draw_fate(dice, plan, calm);
                let rows = self.replica.compute(copy, &jobs);
                let what = match &rows {
                    Ok(_) => "ran it".to_owned(),
                    Err(stopped) => format!("was stopped: {stopped}"),
                };
                self.doing = Doing::Ran { batch, jobs, rows };
                Did::so(what)
            }
            Doing::Ran { batch, jobs, rows } => self.settle(ledger, batch, jobs, rows),
            Doing::Over => unreachable!("it takes no step any more"),
        }
    }

    fn look(&mut self, ledger: &mut Ledger, plan: &Plan, is_wanted: impl Fn(u64, &[u32]) -> bool) -> Did {
        let (queue, replica) = (self.replica.queue.clone(), self.replica.replica);
        let before = ledger.seen_by(&queue, replica);
        let taken = queue.try_take(replica, self.replica.tokens_max);
        match taken {
            Poll::Pending => {
                assert!(!Ledger::has_work(&before), "there is something to do, and it waits");
                self.doing = Doing::Sleeps { wakes: self.wakes() };
                Did::so("waits")
            }
            Poll::Ready(None) => {
                assert!(!Ledger::has_work(&before), "there is something to do, and it ends");
                self.replica.end(Ok(()));
                self.doing = Doing::Over;
                Did::so("ends")
            }
            Poll::Ready(Some(Task::Prove)) => {
                self.doing = Doing::Proves;
                Did::so("has to prove itself")
            }
            Poll::Ready(Some(Task::Run(work))) => {
                ledger.taken(&before, &work, replica, self.replica.tokens_max, plan.replicas, is_wanted);
                let what = format!("takes {:?}", work.jobs.iter().map(|job| ledger.id(job)).collect::<Vec<_>>());
                self.doing = Doing::Has(Batch::from(work));
                Did::so(what)
            }
        }
    }

    fn settle(
        &mut self,
        ledger: &mut Ledger,
        mut batch: Batch,
        jobs: Vec<Job>,
        rows: Result<Vec<Vec<f32>>, Stopped>,
    ) -> Did {
        match &rows {
            Ok(rows) => {
                assert_eq!(rows.len(), jobs.len(), "one row a job");
                jobs.iter().for_each(|job| ledger.ended(job, End::Answered));
            }
            Err(Stopped::Compute(ComputeError::OutOfMemory(_))) => {
                if let [job] = &jobs[..] {
                    let record = ledger.record(job);
                    record.too_large += 1;
                    record.too_large_on.get_or_insert(self.replica.replica);
                }
            }
            Err(Stopped::Compute(error)) if error.is_device_failure() => {
                for job in &jobs {
                    ledger.record(job).device_failures += 1;
                    assert!(ledger.record(job).device_failures <= 2, "job {} failed two devices", ledger.id(job));
                }
                jobs.iter().chain(batch.parts.iter().flatten()).for_each(|job| ledger.record(job).setbacks += 1);
            }
            Err(Stopped::Compute(_)) => jobs.iter().for_each(|job| ledger.ended(job, End::Misshapen)),
            Err(Stopped::Bug(_)) => jobs.iter().for_each(|job| ledger.ended(job, End::Panicked)),
        }
        match self.replica.settle(&mut batch, jobs, rows) {
            Ok(()) => {
                self.doing = Doing::Has(batch);
                Did::so("has settled it")
            }
            Err(failure) => self.end(failure),
        }
    }

    fn end(&mut self, failure: Failure) -> Did {
        let (what, failed) = (format!("fails: {}", failure.reason), Some(failure.of_process));
        self.replica.end(Err(failure));
        self.doing = Doing::Over;
        Did { what, failed }
    }

    /// Draws how the next pass ends.
    fn draw_fate(&mut self, dice: &mut Dice, plan: &Plan, calm: bool) {
        self.passes += 1;
        let dies = plan.dies_after[self.replica.replica].is_some_and(|passes| self.passes > passes);
        let error = if calm {
            None
        } else if dies && dice.percent(plan.process_percent) {
            Some(ComputeError::Process("illegal address".into()))
        } else if dies {
            Some(ComputeError::Device("fell off the bus".into()))
        } else if dice.percent(plan.out_of_memory_percent) {
            Some(ComputeError::OutOfMemory("somebody else has it".into()))
        } else {
            None
        };
        self.chip.next_pass(error);
    }
}
