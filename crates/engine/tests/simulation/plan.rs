//! What a seed stands for: how large everything is, and which faults there will be.
//!
//! Most faults are absent from most seeds: where everything fails at once, little is reached.

use super::dice::Dice;

#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) replicas: usize,
    pub(crate) batch_tokens_max: usize,
    pub(crate) queue_tokens_max: usize,
    pub(crate) tokenizer_threads: usize,
    pub(crate) requests: usize,
    /// Texts that several clients may have.
    pub(crate) common_texts: usize,
    /// Of a hundred requests, how many rerank.
    pub(crate) reranks_percent: usize,
    /// Of a hundred texts, how many no model can do.
    pub(crate) harmful_percent: usize,
    /// Weight of a client that leaves.
    pub(crate) leaving: usize,
    /// Of a hundred clients, how many have a deadline.
    pub(crate) deadline_percent: usize,
    /// Tokens that each device has room for.
    pub(crate) rooms: Vec<usize>,
    /// After how many passes a device dies.
    pub(crate) dies_after: Vec<Option<usize>>,
    /// Of a hundred failures of a device, how many may be of the process.
    pub(crate) process_percent: usize,
    /// Of a hundred passes, how many find no memory, whatever their size.
    pub(crate) out_of_memory_percent: usize,
    /// Steps that a pass takes, at most, by device.
    pub(crate) steps_max: Vec<usize>,
    pub(crate) memory_bytes: usize,
    pub(crate) store: Option<StorePlan>,
    /// In which step a new revision comes.
    pub(crate) reload_at: Option<usize>,
    /// Whether it takes the old one's place on one replica after another.
    pub(crate) one_by_one: bool,
    /// In which step the process is told to end, and whether at once.
    pub(crate) shutdown_at: Option<(usize, bool)>,
}

/// The faults of the store behind the memory; of a hundred each.
#[derive(Debug)]
pub(crate) struct StorePlan {
    pub(crate) hangs_percent: usize,
    pub(crate) fails_percent: usize,
    pub(crate) lies_percent: usize,
    pub(crate) loses_percent: usize,
    /// Weight of damage to what is kept.
    pub(crate) damage: usize,
}

impl Plan {
    pub(crate) fn draw(dice: &mut Dice) -> Self {
        let replicas = dice.pick(&[1, 1, 2, 2, 3, 4]);
        let batch_tokens_max = dice.within(12..80);
        // A large queue now and then, so that batches are shared out.
        let queue_tokens_max = if dice.percent(25) { 5000 } else { dice.within(30..400) };
        let batch_tokens_max = if dice.percent(10) { 400 } else { batch_tokens_max };
        let rooms_differ = dice.percent(35);
        let mortal_percent = dice.pick(&[0, 0, 40, 100]);
        let slow_percent = dice.pick(&[0, 30, 60]);
        let rare = |dice: &mut Dice, chances, most| if dice.percent(chances) { dice.within(1..most) } else { 0 };
        Self {
            replicas,
            batch_tokens_max,
            queue_tokens_max,
            tokenizer_threads: dice.within(1..4),
            requests: dice.within(4..20),
            common_texts: dice.within(2..12),
            reranks_percent: dice.pick(&[0, 20, 50, 80]),
            harmful_percent: rare(dice, 30, 8),
            leaving: rare(dice, 60, 6),
            deadline_percent: rare(dice, 30, 60),
            rooms: (0..replicas).map(|_| if rooms_differ { dice.within(6..60) } else { usize::MAX }).collect(),
            dies_after: (0..replicas).map(|_| dice.percent(mortal_percent).then(|| dice.below(12))).collect(),
            process_percent: dice.pick(&[0, 0, 50, 100]),
            out_of_memory_percent: rare(dice, 20, 30),
            steps_max: (0..replicas).map(|_| if dice.percent(slow_percent) { 20 } else { 2 }).collect(),
            memory_bytes: dice.pick(&[0, 2000, 6000, 1 << 20]),
            store: dice.percent(70).then(|| StorePlan {
                hangs_percent: rare(dice, 30, 40),
                fails_percent: rare(dice, 30, 60),
                lies_percent: rare(dice, 30, 60),
                loses_percent: rare(dice, 30, 60),
                damage: rare(dice, 40, 4),
            }),
            reload_at: dice.percent(35).then(|| dice.within(10..200)),
            one_by_one: dice.percent(60),
            shutdown_at: dice.percent(12).then(|| (dice.within(10..300), dice.percent(50))),
        }
    }
}
