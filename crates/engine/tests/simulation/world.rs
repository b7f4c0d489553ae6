//! The world of a seed: everything that is there, and what happens next.

use super::{
    clients::{self, Client, Embedder, Happened},
    clock::Clock,
    devices::Chip,
    dice::Dice,
    hands::Hand,
    ledger::Ledger,
    plan::Plan,
    reload::{Reload, Wants},
    store::Store,
    texts,
    threads::BlockingThread,
};
use crate::{
    Digests, RerankerInfo, RetrieverInfo, Revision, Role, Slot,
    cached::CachedRetriever,
    devices::Device,
    loaded::{LoadedModel, ModelCopy},
    local::{LocalReranker, LocalRetriever, Tokens},
    queue::Queue,
    replica::Replica,
    replicas::Replicas,
};
use nexus_storage::{CacheKeyBuilder, EmbeddingCache, MemoryCache, TieredCache};
use std::{
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
};

/// Steps after which nothing fails any more, and nobody leaves.
const RESTLESS_STEPS: usize = 1500;
/// Steps after which something hangs.
const STEPS_MAX: usize = RESTLESS_STEPS + 6000;

/// The number of the cross-encoder's only revision; the embedder's count from 1.
const RERANKER: u64 = 1000;

/// What happened, line by line; `None` where nobody will read it.
pub(crate) type Trace = Option<Arc<Mutex<Vec<String>>>>;

pub(crate) struct World {
    pub(super) plan: Plan,
    pub(super) dice: Dice,
    trace: Trace,
    pub(super) steps: usize,
    pub(super) calm: bool,
    pub(super) happened: Happened,
    pub(super) clock: Clock,
    pub(super) queue: Arc<Queue>,
    pub(super) replicas: Arc<Replicas>,
    pub(super) hands: Vec<Hand>,
    chips: Vec<Chip>,
    pub(super) ledger: Ledger,
    pub(super) cache: Arc<TieredCache>,
    pub(super) store: Option<Store>,
    pub(super) embedder: Slot<Embedder>,
    embedder_model: Arc<LoadedModel>,
    pub(super) reranker: Option<Arc<LocalReranker>>,
    reload: Option<Reload>,
    pub(super) common: Vec<Vec<u32>>,
    pub(super) clients: Vec<Client>,
    /// The revision and the tokens of everything that was ever asked.
    pub(super) asked: Vec<(u64, Vec<Vec<u32>>)>,
    pub(super) requests: usize,
    /// Whether the thread that may block may have something to do.
    threads_have_work: bool,
    pub(super) threads: BlockingThread,
}

#[derive(Clone, Copy)]
enum Event {
    Request,
    Poll(usize),
    Leave(usize),
    Replica(usize),
    Threads,
    Read(u64),
    Write,
    Damage,
    Time,
    NewRevision,
    Reload,
    Shutdown,
}

impl World {
    pub(crate) fn new(seed: u64, trace: Trace) -> Self {
        let mut dice = Dice::new(seed);
        let plan = Plan::draw(&mut dice);
        let (queue, replicas) = (Arc::new(Queue::new(plan.queue_tokens_max)), Arc::new(Replicas::default()));
        let chips: Vec<Chip> = plan.rooms.iter().enumerate().map(|(n, &room)| Chip::new(n, room)).collect();
        let devices: Vec<Arc<dyn Device>> = chips.iter().map(|chip| Arc::new(chip.clone()) as _).collect();
        replicas.open(&devices);
        let hand = |(n, chip): (usize, &Chip)| {
            let (queue, replicas) = (queue.clone(), replicas.clone());
            Hand::new(Replica { replica: n, tokens_max: plan.batch_tokens_max, queue, replicas }, chip.clone())
        };
        let hands = chips.iter().enumerate().map(hand).collect();
        let common = (0..plan.common_texts).map(|_| {
            let length = dice.within(1..9);
            clients::draw_words(&mut dice, length)
        });
        let common = common.collect();
        let store = plan.store.is_some().then(Store::default);
        let behind = store.clone().map(|store| Arc::new(store) as Arc<dyn EmbeddingCache>);
        let cache = Arc::new(TieredCache::new(MemoryCache::new(plan.memory_bytes), behind));
        let requests = plan.requests;
        let copies = |number, columns| chips.iter().map(|chip| Some(chip.copy(number, columns))).collect();
        let (embedder_model, reranker_model) =
            (model(Role::Retriever, copies(1, texts::COLUMNS)), model(Role::Reranker, copies(RERANKER, 1)));
        let mut world = Self {
            dice,
            trace,
            steps: 0,
            calm: false,
            happened: Happened::default(),
            clock: Clock::default(),
            queue,
            replicas,
            hands,
            chips,
            ledger: Ledger::default(),
            cache,
            store,
            embedder: Slot::default(),
            embedder_model,
            reranker: None,
            reload: None,
            common,
            clients: Vec::new(),
            asked: Vec::new(),
            requests,
            threads_have_work: false,
            threads: BlockingThread::new(),
            plan,
        };
        world.note(|world| format!("{:?}", world.plan));
        world.ledger.know(&reranker_model, RERANKER);
        world.replicas.adopt(&reranker_model);
        world.replicas.serves(&reranker_model);
        let revision = Revision::of(&digests(RERANKER), "", texts::WINDOW_TOKENS, "f32");
        let info = RerankerInfo { model: "pairs".into(), revision, window_tokens: texts::WINDOW_TOKENS };
        world.reranker = Some(Arc::new(LocalReranker { info, tokens: world.tokens(reranker_model) }));
        world.serve_embedder(1, world.embedder_model.clone());
        world
    }

    fn tokens(&self, model: Arc<LoadedModel>) -> Tokens {
        Tokens::with_threads(texts::tokenizer(), model, self.queue.clone(), self.plan.tokenizer_threads)
    }

    /// Has revision `number` of the embedder serve.
    fn serve_embedder(&mut self, number: u64, model: Arc<LoadedModel>) {
        self.ledger.know(&model, number);
        self.replicas.adopt(&model);
        self.replicas.serves(&model);
        let digests = digests(number);
        let revision = Revision::of(&digests, "last", texts::WINDOW_TOKENS, "f32");
        let (dimensions, window_tokens) = (texts::COLUMNS, texts::WINDOW_TOKENS);
        let info = RetrieverInfo { model: "texts".into(), revision, dimensions, window_tokens };
        let local = Arc::new(LocalRetriever { info, instruct: clients::instruct, tokens: self.tokens(model.clone()) });
        let keys = CacheKeyBuilder::new(&digests.model, &digests.tokenizer, "last", window_tokens, "f32");
        let clock = self.clock.clone();
        let pause = Box::new(move |time| clock.sleep(time));
        let cached = CachedRetriever::with_pause(local.clone(), self.cache.clone(), keys.clone(), pause);
        self.embedder.ready(Arc::new(Embedder { number, cached, local, keys }));
        self.embedder_model = model;
    }

    pub(super) fn note(&self, line: impl FnOnce(&Self) -> String) {
        if let Some(trace) = &self.trace {
            let line = format!("{:4} {}", self.steps, line(self));
            trace.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
    }

    /// Goes on until everybody has an answer or has left.
    pub(super) fn until_quiet(&mut self) {
        while self.requests > 0 || !self.clients.is_empty() || self.reload.is_some() {
            self.step();
        }
    }

    pub(super) fn step(&mut self) {
        self.steps += 1;
        if self.steps > RESTLESS_STEPS && !self.calm {
            self.be_calm();
        }
        assert!(self.steps < STEPS_MAX, "it does not end: {} clients wait", self.clients.len());
        let events = self.possible();
        let total: usize = events.iter().map(|(weight, _)| weight).sum();
        assert!(total > 0, "nothing can happen any more, and {} clients wait", self.clients.len());
        let mut at = self.dice.below(total);
        let event = events.into_iter().find(|(weight, _)| {
            let found = at < *weight;
            at = at.wrapping_sub(*weight);
            found
        });
        let event = event.expect("weights sum up").1;
        self.happen(event);
        if !matches!(
            event,
            Event::Request | Event::Threads | Event::Read(_) | Event::Write | Event::Damage | Event::Time
        ) {
            self.look();
        }
    }

    pub(super) fn be_calm(&mut self) {
        self.note(|_| "calm".to_owned());
        self.calm = true;
    }

    /// Everything that could happen now, with its weight.
    fn possible(&mut self) -> Vec<(usize, Event)> {
        let mut events = Vec::new();
        if self.requests > 0 {
            events.push((3, Event::Request));
        }
        for (at, client) in self.clients.iter().enumerate() {
            if client.is_woken() {
                events.push((4, Event::Poll(at)));
            }
            if !self.calm && !client.is_quiet {
                let late = client.deadline_ms.is_some_and(|deadline_ms| deadline_ms <= self.clock.now_ms());
                events.push((if late { 6 } else { self.plan.leaving.div_ceil(4) }, Event::Leave(at)));
            }
        }
        let hands = self.hands.iter().enumerate().filter(|(_, hand)| hand.can_step());
        events.extend(hands.map(|(n, _)| (4, Event::Replica(n))));
        if self.threads_have_work {
            events.push((3, Event::Threads));
        }
        if let (Some(store), Some(plan)) = (&self.store, &self.plan.store) {
            events.extend(store.answerable(&mut self.dice, plan, self.calm).into_iter().map(|id| (3, Event::Read(id))));
            if store.has_writes() {
                events.push((2, Event::Write));
            }
            events.push((if self.calm { 0 } else { plan.damage }, Event::Damage));
        }
        if self.clock.is_awaited() || self.clients.iter().any(|client| client.deadline_ms.is_some()) {
            events.push((1, Event::Time));
        }
        if self.reload.is_some() {
            events.push((2, Event::Reload));
        } else if self.plan.reload_at.is_some_and(|at| at <= self.steps) {
            events.push((4, Event::NewRevision));
        }
        if self.plan.shutdown_at.is_some_and(|(at, _)| at <= self.steps) && !self.calm {
            events.push((4, Event::Shutdown));
        }
        let only_harm = |(weight, event): &(usize, Event)| *weight == 0 || matches!(event, Event::Damage);
        if events.iter().all(only_harm) && !self.calm {
            // Reads that hang are all that is left.
            self.be_calm();
            return self.possible();
        }
        events
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Request => self.request(),
            Event::Poll(at) => self.poll(at),
            Event::Leave(at) => {
                let client = self.clients.remove(at);
                self.note(|_| format!("client {} leaves", client.id));
            }
            Event::Replica(n) => self.step_replica(n),
            Event::Threads => {
                self.threads_have_work = false;
                self.threads.run();
                self.note(|_| "threads that may block have done their work".to_owned());
            }
            Event::Read(id) => {
                let (Some(store), Some(plan)) = (&self.store, &self.plan.store) else { return };
                let how = store.answer(id, &mut self.dice, plan, self.calm);
                self.note(|_| format!("read {id} {how}"));
            }
            Event::Write => {
                let (Some(store), Some(plan)) = (&self.store, &self.plan.store) else { return };
                let count = store.write(&mut self.dice, plan, self.calm);
                self.note(|_| format!("{count} vectors are written"));
            }
            Event::Damage => {
                let Some(store) = &self.store else { return };
                let what = store.damage(&mut self.dice);
                self.note(|_| format!("{what} of a record is damaged"));
            }
            Event::Time => {
                let ms = self.dice.within(1..25) as u64;
                self.clock.advance(ms);
                self.note(|world| format!("it is {} ms", world.clock.now_ms()));
            }
            Event::NewRevision => self.new_revision(),
            Event::Reload => self.step_reload(),
            Event::Shutdown => {
                let at_once = self.plan.shutdown_at.take().is_some_and(|(_, at_once)| at_once);
                self.happened.shutdown = true;
                if at_once {
                    self.queue.abandon()
                } else {
                    self.queue.close()
                }
                self.note(|_| format!("shuts down, at once: {at_once}"));
            }
        }
    }

    fn request(&mut self) {
        self.requests -= 1;
        let id = self.plan.requests - self.requests;
        let (dice, plan) = (&mut self.dice, &self.plan);
        let mut client = if dice.percent(plan.reranks_percent)
            && let Some(reranker) = &self.reranker
        {
            let (length, count) = (dice.within(1..6), dice.within(1..9));
            let source = clients::draw_words(dice, length);
            let candidates: Vec<Vec<u32>> =
                (0..count).map(|_| clients::draw_text(dice, plan, &self.common, true)).collect();
            Client::reranks(id, RERANKER, reranker.clone(), &source, &candidates)
        } else {
            let count = match dice.below(10) {
                0 => dice.within(20..80),
                1..4 => dice.within(2..7),
                _ => 1,
            };
            let mut text = || {
                let words = clients::draw_text(dice, plan, &self.common, count > 10);
                let dimensions = dice.percent(20).then(|| dice.within(1..texts::COLUMNS + 1));
                (words, dice.percent(15), dimensions)
            };
            let texts = (0..count).map(|_| text()).collect();
            let embedder = self.embedder.get().unwrap_or_else(|state| panic!("no embedder: {state:?}"));
            Client::embeds(id, embedder, texts)
        };
        if self.dice.percent(self.plan.deadline_percent) {
            client.deadline_ms = Some(self.clock.now_ms() + self.dice.within(1..150) as u64);
        }
        self.note(|_| {
            let (revision, count, tokens) = (client.revision, client.wanted.len(), client.tokens_at_most());
            format!("client {id} asks revision {revision} for {count}, of {tokens} tokens")
        });
        self.asked.push((client.revision, client.wanted.iter().map(|wanted| wanted.tokens.clone()).collect()));
        self.clients.push(client);
    }

    fn poll(&mut self, at: usize) {
        let polled = self.clients[at].tokens_at_most();
        // Whatever else this one gets into the queue, before it drives the work of another.
        self.note_fullness(polled);
        let entered = self.threads.enter();
        let polled = self.clients[at].poll();
        drop(entered);
        self.threads_have_work = true;
        match polled {
            Poll::Pending => self.note(|world| format!("client {} waits", world.clients[at].id)),
            Poll::Ready(outcome) => {
                let client = self.clients.remove(at);
                let what = outcome.as_ref().err().map_or("its answer".to_owned(), |error| format!("{error:?}"));
                self.note(|_| format!("client {} gets {what}", client.id));
                client.check(&outcome, &self.ledger, self.happened);
                let failed = self.replicas.failure().is_some() || self.happened.shutdown;
                if client.is_quiet && !failed {
                    self.check_quiet(&client, outcome.is_ok());
                }
            }
        }
    }

    /// A client that asks for one text while nothing fails gets it.
    fn check_quiet(&self, client: &Client, answered: bool) {
        let tokens = &client.wanted[0].tokens;
        let room = (self.hands.iter().zip(&self.plan.rooms)).filter(|(hand, _)| !hand.is_over()).map(|(_, room)| *room);
        let fits = room.min().is_some_and(|room| tokens.len() <= room);
        assert!(answered || !fits, "client {} asked while all was well", client.id);
    }

    pub(super) fn step_replica(&mut self, n: usize) {
        let Self { hands, ledger, dice, plan, clients, asked, .. } = self;
        let is_wanted = |revision, tokens: &[u32]| {
            // By whoever asked for it, or has a text in common with who did: that one may have waited for all of it.
            clients.iter().any(|client| client.wants(revision, tokens))
                || (asked.iter().filter(|(of, all)| *of == revision && all.iter().any(|one| one == tokens)))
                    .any(|(_, all)| all.iter().any(|one| clients.iter().any(|client| client.wants(revision, one))))
        };
        let did = hands[n].step(ledger, dice, plan, self.calm, is_wanted);
        if let Some(of_process) = did.failed {
            self.happened.device_failures += 1;
            self.happened.process_failures += usize::from(of_process);
        }
        self.note(|_| format!("replica {n} {}", did.what));
    }

    fn new_revision(&mut self) {
        self.plan.reload_at = None;
        self.reload = self.plan.one_by_one.then(|| Reload::begin(&self.replicas, &self.embedder_model)).flatten();
        if self.reload.is_some() {
            self.happened.replaced_one_by_one = true;
            self.note(|_| "a new revision comes, on one replica after another".to_owned());
            return;
        }
        let number = self.embedder.get().map_or(1, |embedder| embedder.number) + 1;
        let copies = self.chips.iter().map(|chip| Some(chip.copy(number, texts::COLUMNS))).collect();
        if !self.replicas.live().is_empty() {
            self.serve_embedder(number, model(Role::Retriever, copies));
            self.note(|_| format!("revision {number} serves"));
        }
    }

    fn step_reload(&mut self) {
        let Some(reload) = &mut self.reload else { return };
        let wants = reload.step(&self.replicas, &self.queue);
        if reload.is_over() {
            self.reload = None;
        }
        let number = self.embedder.get().map_or(1, |embedder| embedder.number);
        match wants {
            Wants::Nothing => {}
            Wants::First(replica) => {
                let number = number + 1;
                let new = model(Role::Retriever, self.copies_on(replica, number));
                self.serve_embedder(number, new.clone());
                if let Some(reload) = &mut self.reload {
                    reload.placed(&new);
                }
                self.note(|_| format!("revision {number} serves, on replica {replica}"));
            }
            Wants::Copy(replica, new) => {
                self.replicas.add_copy(&new, replica, self.chips[replica].copy(number, texts::COLUMNS));
                self.queue.sweep();
                self.note(|_| format!("revision {number} is on replica {replica}"));
            }
        }
    }

    /// Lets the models go that serve.
    pub(super) fn drop_models(&mut self) {
        self.embedder = Slot::default();
        self.embedder_model = model(Role::Retriever, Vec::new());
        self.reranker = None;
    }

    fn copies_on(&self, replica: usize, number: u64) -> Vec<Option<ModelCopy>> {
        let copy = |(n, chip): (usize, &Chip)| (n == replica).then(|| chip.copy(number, texts::COLUMNS));
        self.chips.iter().enumerate().map(copy).collect()
    }

    /// What must hold after whatever can change the queue.
    fn look(&mut self) {
        let mut held = Vec::new();
        self.hands.iter().for_each(|hand| hand.held(&mut held));
        self.ledger.look(&self.queue, held);
        if self.ledger.wanted_tokens > 0 {
            for hand in self.hands.iter().filter(|hand| !hand.can_step() && !hand.is_over()) {
                let seen = self.ledger.seen_by(&self.queue, hand.replica.replica);
                assert!(!Ledger::has_work(&seen), "replica {} sleeps, and there is work for it", hand.replica.replica);
            }
        }
        self.note_fullness(0);
    }

    /// Notes for whom the queue has no room, where somebody else puts `more` tokens there.
    fn note_fullness(&mut self, more: usize) {
        let taken = self.ledger.wanted_tokens + self.queue.reserved_tokens() + more;
        for client in &mut self.clients {
            let tokens = client.tokens_at_most();
            client.met_full |= taken + tokens > self.plan.queue_tokens_max;
            if let Some(name) = &client.name {
                // What is asked for counts twice: as the client's, and as what is not free any more.
                let (held, asked) = (self.queue.tokens_of(name) + more, 2 * tokens);
                client.met_part |= held > 0 && taken + held + asked > self.plan.queue_tokens_max;
            }
        }
    }
}

fn digests(number: u64) -> Digests {
    Digests { model: [number as u8; 32], tokenizer: [0; 32] }
}

fn model(role: Role, copies: Vec<Option<ModelCopy>>) -> Arc<LoadedModel> {
    Arc::new(LoadedModel::new(role, vec![texts::tokens(&[texts::FIRST_WORD])], copies))
}
