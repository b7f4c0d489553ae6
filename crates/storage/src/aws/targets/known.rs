//! What is known of sets in S3, and when S3 is asked again.
//!
//! | what is known | then |
//! |---|---|
//! | asked within [`FRESH`] | it is used |
//! | asked within [`KNOWN_MAX`] | it is used, and S3 is asked meanwhile |
//! | older | S3 is asked, and waited for [`WAIT_MAX`] at most; then what is known is used |
//! | nothing | S3 is asked, and waited for until it answers or the request's own limit ends it |
//!
//! So a set that is in use costs no request a wait, and nobody acts on what was true more than a second ago, while S3
//! answers. While it does not, what is known is used however old it is, nobody waits ([`IMPATIENT`] after the last
//! trouble), and S3 is asked no more than once each [`REST`]: a breaker that one answer closes.
//!
//! One question a name is under way at a time. What it brings is dropped if the set was put or deleted through this
//! replica meanwhile, or if a list has told something newer.
//!
//! A list of S3 decides over everything that was known before S3 was asked for it, from whatever source: S3 lists what it
//! has. What was learned since then, of sets that are put while it lists, is left alone.

use super::bucket::{Bucket, Fault, Said};
use crate::aws::Trouble;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub(super) const FRESH: Duration = Duration::from_millis(500);
pub(super) const KNOWN_MAX: Duration = Duration::from_secs(1);
pub(super) const WAIT_MAX: Duration = Duration::from_millis(300);
const REST: Duration = Duration::from_secs(1);
const IMPATIENT: Duration = Duration::from_secs(5);
const LOG_EVERY: Duration = Duration::from_secs(60);
/// Beyond this many, names that S3 has nothing under are forgotten.
const NAMES_MAX: usize = 10_000;

type Flight = Shared<BoxFuture<'static, ()>>;

/// How to ask S3 for a list.
pub(super) enum Listing {
    /// And wait for it.
    Wait,
    /// And wait [`WAIT_MAX`] at most: there was trouble a moment ago.
    Glance,
    /// Not now, for this reason.
    Not(Fault),
}

pub(super) struct Known {
    bucket: Bucket,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    names: HashMap<String, Entry>,
    /// Nobody asks S3 until then, for this reason.
    resting: Option<(Instant, Fault)>,
    /// Nobody waits for S3 until then.
    impatient_until: Option<Instant>,
    logged: Option<Instant>,
    /// Whether everything that S3 had was known once.
    complete: bool,
}

#[derive(Default)]
struct Entry {
    said: Option<Said>,
    /// When `said` was so, at the earliest: when the question was sent that it answers, or when S3 had taken what was put
    /// or deleted through this replica.
    since: Option<Instant>,
    /// When the question was sent that `said` answers. `None`: it has to be asked again.
    asked: Option<Instant>,
    /// Why the last question had no answer, if it had none.
    refused: Option<(Instant, Fault)>,
    /// Goes on when a set is put or deleted through this replica.
    generation: u64,
    flight: Option<Flight>,
}

impl Known {
    pub(super) fn new(bucket: Bucket) -> Arc<Self> {
        Arc::new(Self { bucket, state: Mutex::default() })
    }

    /// What S3 has under a name, as the table above says.
    pub(super) async fn of(self: &Arc<Self>, name: &str) -> Result<Said, Fault> {
        let now = Instant::now();
        let (last, flight) = {
            let state = &mut *self.state();
            let patient = state.impatient_until.is_none_or(|until| now >= until);
            let resting = state.resting.as_ref().filter(|(until, _)| now < *until).map(|(_, fault)| fault.clone());
            let entry = state.entry(name);
            let age = entry.asked.map(|asked| now.saturating_duration_since(asked));
            let last = entry.said.clone();
            match (&last, age) {
                (Some(last), Some(age)) if age < FRESH => return Ok(last.clone()),
                _ => {}
            }
            let refused = entry.refused.as_ref().filter(|(at, _)| now.saturating_duration_since(*at) < REST);
            if let Some(fault) = resting.or_else(|| refused.map(|(_, fault)| fault.clone())) {
                return instead(last, fault);
            }
            let flight = match &entry.flight {
                Some(flight) => flight.clone(),
                None => {
                    let flight = self.ask(name, entry.generation);
                    entry.flight = Some(flight.clone());
                    flight
                }
            };
            match &last {
                Some(last) if !patient || age.is_some_and(|age| age < KNOWN_MAX) => return Ok(last.clone()),
                _ => (last, flight),
            }
        };
        match last {
            None => flight.await,
            Some(last) => {
                if tokio::time::timeout(WAIT_MAX, flight).await.is_err() {
                    let message = format!("{}: no answer in {WAIT_MAX:?}", self.bucket.place(name));
                    self.slow(&message);
                    return Ok(last);
                }
            }
        }
        let mut state = self.state();
        let entry = state.entry(name);
        match (&entry.said, &entry.refused) {
            (said, Some((_, fault))) => instead(said.clone(), fault.clone()),
            (Some(said), None) => Ok(said.clone()),
            (None, None) => Err(Fault {
                trouble: Trouble::Other,
                message: format!("{}: the question was dropped", self.bucket.place(name)),
            }),
        }
    }

    /// Asks S3, beside whoever waits for it: somebody else may, too.
    fn ask(self: &Arc<Self>, name: &str, generation: u64) -> Flight {
        let (known, name) = (Arc::clone(self), name.to_owned());
        let asking = tokio::spawn(async move {
            let asked = Instant::now();
            let outcome = known.bucket.head(&name).await;
            if let Err(fault) = &outcome {
                known.trouble(fault);
            }
            let state = &mut *known.state();
            if outcome.is_ok() {
                state.resting = None;
                if asked.elapsed() < WAIT_MAX {
                    state.impatient_until = None;
                }
            }
            let entry = state.entry(&name);
            entry.flight = None;
            match outcome {
                Ok(said) if entry.generation == generation && entry.since.is_none_or(|since| since <= asked) => {
                    (entry.said, entry.since, entry.asked, entry.refused) =
                        (Some(said), Some(asked), Some(asked), None);
                }
                Ok(_) => entry.refused = None,
                Err(fault) => entry.refused = Some((Instant::now(), fault)),
            }
        });
        async move { drop(asking.await) }.boxed().shared()
    }

    /// An answer did not come in [`WAIT_MAX`]: nobody waits for those about sets that are known, for a while. Others are
    /// still asked for; this one may come yet.
    fn slow(&self, message: &str) {
        let mut state = self.state();
        state.impatient_until = Some(Instant::now() + IMPATIENT);
        self.complain(state, message);
    }

    fn complain(&self, mut state: MutexGuard<'_, State>, message: &str) {
        let now = Instant::now();
        if state.logged.is_none_or(|logged| now.saturating_duration_since(logged) >= LOG_EVERY) {
            state.logged = Some(now);
            drop(state);
            tracing::warn!(
                reason = message,
                "shared target sets can not be asked for; those known here are served as they were last"
            );
        }
    }

    /// Takes note of what is wrong with S3, and says so once a minute.
    pub(super) fn trouble(&self, fault: &Fault) {
        let now = Instant::now();
        let mut state = self.state();
        // What is denied for one set may be allowed for another, and is told at once.
        let of_all = fault.trouble.is_transient()
            || matches!(
                fault.trouble,
                Trouble::NoCredentials
                    | Trouble::CredentialsRefused
                    | Trouble::BadCredentials
                    | Trouble::WrongRegion(_)
                    | Trouble::NoContainer
            );
        if of_all {
            // Who says that there is no bucket says so at once.
            if fault.trouble != Trouble::NoContainer {
                state.impatient_until = Some(now + IMPATIENT);
            }
            state.resting = Some((now + REST, fault.clone()));
        }
        self.complain(state, &fault.message);
    }

    /// Whether S3 is to be asked for a list now. While there is trouble, one caller each [`REST`] is told to.
    pub(super) fn listing(&self) -> Listing {
        let now = Instant::now();
        let mut state = self.state();
        let impatient = state.impatient_until.is_some_and(|until| now < until);
        match &mut state.resting {
            Some((until, fault)) if now < *until => Listing::Not(fault.clone()),
            Some((until, _)) if impatient => {
                *until = now + REST;
                Listing::Glance
            }
            _ => Listing::Wait,
        }
    }

    /// A set was put through this replica, or is on its disk from an earlier run: what counts until S3 has been asked.
    pub(super) fn put(&self, name: &str, said: Said) {
        let mut state = self.state();
        let entry = state.entry(name);
        entry.generation += 1;
        (entry.said, entry.since, entry.asked, entry.refused) = (Some(said), Some(Instant::now()), None, None);
    }

    /// S3 was found to have something else than what is known: it has to be asked.
    pub(super) fn outdated(&self, name: &str) {
        self.state().entry(name).asked = None;
    }

    /// A set was deleted through this replica.
    pub(super) fn deleted(&self, name: &str) {
        self.put(name, Said::Absent);
    }

    /// Takes note of what S3 has listed, by names and ETags, when it was `asked`. The names that it has to be asked for:
    /// nothing is known of them, or of another state.
    pub(super) fn listed(&self, asked: Instant, found: &[(String, String)]) -> Vec<String> {
        let mut state = self.state();
        state.resting = None;
        let listed: HashMap<&str, &str> = found.iter().map(|(name, etag)| (name.as_str(), etag.as_str())).collect();
        for (name, entry) in &mut state.names {
            // What was learned while S3 listed may be newer, and is left alone.
            let older = entry.since.is_some_and(|since| since < asked);
            if older && !listed.contains_key(name.as_str()) {
                (entry.said, entry.since, entry.asked) = (Some(Said::Absent), Some(asked), Some(asked));
            }
        }
        let unknown = found.iter().filter(|(name, etag)| {
            let entry = state.names.get(name);
            !entry.and_then(|entry| entry.said.as_ref()).is_some_and(|said| match said {
                Said::Present(remote) => remote.etag == *etag && remote.sha256.is_some(),
                Said::Foreign { etag: known, .. } => known == etag,
                Said::Absent => false,
            })
        });
        unknown.map(|(name, _)| name.clone()).collect()
    }

    /// Asks S3 for a set that it has listed, unless something newer than that list is known by then, and waits for the
    /// answer. Why there is none, if there is none.
    pub(super) async fn again(self: &Arc<Self>, name: &str, listed: Instant) -> Result<(), Fault> {
        // A question that was under way before may bring an older answer, and is not counted; one more may end then.
        for _ in 0..3 {
            let flight = {
                let mut state = self.state();
                let entry = state.entry(name);
                if entry.since.is_some_and(|since| since >= listed) {
                    return Ok(());
                }
                let flight = entry.flight.take().unwrap_or_else(|| self.ask(name, entry.generation));
                entry.flight = Some(flight.clone());
                flight
            };
            flight.await;
            if let Some((_, fault)) = &self.state().entry(name).refused {
                return Err(fault.clone());
            }
        }
        Ok(())
    }

    /// Everything that S3 listed is known.
    pub(super) fn completed(&self) {
        self.state().complete = true;
    }

    /// Whether everything was known once, so that what is known is a list that was true.
    pub(super) fn is_complete(&self) -> bool {
        self.state().complete
    }

    /// Everything that is known.
    pub(super) fn all(&self) -> Vec<(String, Said)> {
        let state = self.state();
        state.names.iter().filter_map(|(name, entry)| Some((name.clone(), entry.said.clone()?))).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is used when S3 can not be asked.
fn instead(last: Option<Said>, fault: Fault) -> Result<Said, Fault> {
    match last {
        // Without a bucket, nobody says of a set that it is not there.
        Some(Said::Absent) if fault.trouble == Trouble::NoContainer => Err(fault),
        Some(last) => Ok(last),
        None => Err(fault),
    }
}

impl State {
    fn entry(&mut self, name: &str) -> &mut Entry {
        if self.names.len() >= NAMES_MAX && !self.names.contains_key(name) {
            self.names.retain(|_, entry| {
                entry.flight.is_some() || matches!(entry.said, Some(Said::Present(_) | Said::Foreign { .. }))
            });
        }
        self.names.entry(name.to_owned()).or_default()
    }
}
