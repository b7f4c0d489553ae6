//! The end of a world: nothing fails any more, everything is given back, and every replica ends.

use super::{
    clients::{self, Client},
    texts::{self, Nature},
    world::World,
};
use nexus_storage::EmbeddingCache;

impl World {
    /// Runs a world from its beginning to its end.
    pub(crate) fn run(mut self) {
        self.until_quiet();
        if !self.calm {
            self.be_calm();
        }
        assert!(self.ledger.computed_twice(&self.asked).is_none(), "a text of one client is computed once");
        self.plan.reload_at = None;
        self.ask_once_more();
        self.check_cache();
        self.give_back();
    }

    /// Asks for each of the common texts, one after the other: twice, so that what is cached is seen, too.
    fn ask_once_more(&mut self) {
        for at in 0..2 * self.common.len() {
            let words = self.common[at % self.common.len()].clone();
            let embedder = self.embedder.get().unwrap_or_else(|state| panic!("no embedder: {state:?}"));
            let mut client = Client::embeds(1000 + at, embedder, vec![(words, false, None)]);
            client.is_quiet = true;
            self.clients.push(client);
            self.until_quiet();
        }
    }

    /// Whatever the cache has is right.
    fn check_cache(&mut self) {
        let Ok(embedder) = self.embedder.get() else { return };
        for words in &self.common {
            let (text, tokens) = (texts::text(words), texts::tokens(words));
            let key = embedder.keys.key(None, texts::COLUMNS, &text);
            let found = self.cache.get_now(&[key]).into_iter().flatten().next();
            // A store may lie about the length, which nobody believes.
            let Some(found) = found.filter(|found| found.len() == texts::COLUMNS) else { continue };
            assert_eq!(texts::nature(&tokens), Nature::Good);
            assert_eq!(
                *found,
                texts::embedding(embedder.number, &tokens, texts::COLUMNS),
                "what is cached of {words:?}"
            );
        }
        assert_eq!(embedder.cached.keys_in_flight(), 0, "flights that are over are off the register");
        self.threads.run();
        let free = embedder.local.tokens.threads_free();
        assert_eq!(free, self.plan.tokenizer_threads, "permits come back");
        assert_eq!(self.store.as_ref().map_or(0, |store| store.reads_open()), 0, "reads that nobody waits for");
    }

    /// Lets everything go: the replicas end, and nothing is left.
    fn give_back(&mut self) {
        if !self.happened.shutdown {
            self.queue.close();
        }
        while let Some(n) = self.hands.iter().position(|hand| hand.can_step()) {
            self.step_replica(n);
        }
        assert!(self.hands.iter().all(|hand| hand.is_over()), "a replica does not end");
        assert_eq!((self.queue.queued_tokens(), self.queue.reserved_tokens()), (0, 0));
        assert!(
            clients::NAMES.iter().flatten().all(|name| self.queue.tokens_of(name) == 0),
            "a client has tokens still"
        );
        self.drop_models();
        assert_eq!(self.ledger.models_held(), 0, "somebody holds a model still");
    }
}
