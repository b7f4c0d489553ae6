//! A table that fails.

use super::*;
use aws_credential_types::provider::{ProvideCredentials, future};

const FAILING: [Fault; 5] = [Fault::Throttle, Fault::Server, Fault::Denied, Fault::Missing, Fault::OtherKey];

/// What an answer that never comes would take at least: far more than any limit in use, far less than a hang.
const HANG: Duration = Duration::from_secs(2);

fn impatient(double: &Double, tuning: Tuning) -> DynamoCache {
    let limit = Duration::from_millis(50);
    let options = DynamoOptions { read_timeout: limit, write_timeout: limit, ..DynamoOptions::new(TABLE) };
    DynamoCache::with(double.client(), "eu-west-1", options, tuning)
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_is_a_miss() {
    for fault in FAILING.into_iter().chain([Fault::Close]) {
        let double = Double::start();
        let cache = cache(&double);
        cache.put(vec![numbered(1)]);
        cache.flush().await;
        double.always(Kind::Read, fault);
        assert_eq!(cache.get(&keys(0..3)).await, [None, None, None], "{fault:?}");
        let stats = cache.stats();
        assert_eq!((stats.misses, stats.read_failures, stats.read_timeouts), (3, 1, 0), "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_is_asked_for_again_within_the_time() {
    for fault in [Fault::Throttle, Fault::Server, Fault::Close] {
        let double = Double::start();
        let cache = cache(&double);
        cache.put(vec![numbered(1)]);
        cache.flush().await;
        double.next(Kind::Read, &[fault, fault]);
        assert_eq!(hits(&cache, 1..2).await, 1, "{fault:?}");
        assert_eq!(double.calls(Kind::Read).len(), 3);
        assert_eq!(cache.stats().read_failures, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_hangs_ends_at_its_limit_with_what_arrived() {
    let double = Double::start();
    let (filling, cache) = (cache(&double), impatient(&double, eager()));
    filling.put((0..60).map(numbered).collect());
    filling.flush().await;
    let began = Instant::now();
    while hits(&cache, 0..1).await == 0 {
        assert!(began.elapsed() < PATIENCE, "no connection");
    }
    // Three requests of 25, 25 and 10: one of them does not come back.
    double.next(Kind::Read, &[Fault::Hang]);
    let began = Instant::now();
    let found = hits(&cache, 0..60).await;
    assert!(began.elapsed() < HANG);
    assert!(found <= 50, "{found}");
    assert!(cache.stats().read_timeouts >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_list_has_time_as_long_as_answers_come() {
    let double = Double::start();
    let limit = Duration::from_millis(1500);
    let options = DynamoOptions { read_timeout: limit, ..options() };
    let cache = DynamoCache::with(double.client(), "eu-west-1", options, tuning());
    cache.put((0..900).map(numbered).collect());
    cache.flush().await;
    // Eight requests, and one more after the first of them is back: longer than the limit in all.
    double.always(Kind::Read, Fault::Late(limit * 2 / 3));
    assert_eq!(hits(&cache, 0..900).await, 900);
    assert_eq!((double.calls(Kind::Read).len(), cache.stats().read_timeouts), (9, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_that_hang_open_the_breaker_and_cost_nothing_from_then_on() {
    let double = Double::start();
    let cache = impatient(&double, tuning());
    double.always(Kind::Read, Fault::Hang);
    let began = Instant::now();
    for _ in 0..3 {
        assert_eq!(cache.stats().reads, Circuit::Closed);
        assert_eq!(cache.get(&keys(0..250)).await, vec![None; 250]);
    }
    assert!(began.elapsed() < 3 * HANG);
    let asked = double.calls(Kind::Read).len();
    for _ in 0..1000 {
        assert_eq!(cache.get(&keys(0..2)).await, [None, None]);
    }
    let stats = cache.stats();
    assert_eq!((stats.read_timeouts, stats.read_skips, stats.reads), (3, 1000, Circuit::Open));
    assert_eq!(stats.misses, 3 * 250 + 2000);
    assert!(double.calls(Kind::Read).len() - asked <= 24, "no more than what was under way");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_listens_and_nobody_answers() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("http://{}", listener.local_addr().unwrap());
    for (endpoint, what) in [(silent.as_str(), "silent"), ("http://127.0.0.1:1", "closed")] {
        let options = DynamoOptions { read_timeout: Duration::from_millis(50), ..DynamoOptions::new(TABLE) };
        let cache = DynamoCache::with(double::client(endpoint), "eu-west-1", options, tuning());
        let began = Instant::now();
        for _ in 0..5 {
            assert_eq!(cache.get(&[key(1)]).await, [None]);
        }
        assert!(began.elapsed() < 5 * HANG, "{what}");
        assert_eq!(cache.stats().reads, Circuit::Open, "{what}");
    }
}

/// Credentials that are looked for and never found.
#[derive(Debug)]
struct Never;

impl ProvideCredentials for Never {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(std::future::pending())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_never_come() {
    let double = Double::start();
    let config = double.client().config().to_builder().credentials_provider(Never).build();
    let options = DynamoOptions { read_timeout: Duration::from_millis(50), ..DynamoOptions::new(TABLE) };
    let cache = DynamoCache::with(aws_sdk_dynamodb::Client::from_conf(config), "eu-west-1", options, tuning());
    let began = Instant::now();
    assert_eq!(cache.get(&[key(1)]).await, [None]);
    assert!(began.elapsed() < HANG);
    assert!(double.calls(Kind::Read).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_missing_is_found_when_it_is_there() {
    for fault in [Fault::Missing, Fault::Denied] {
        let double = Double::start();
        let cache = DynamoCache::with(double.client(), "eu-west-1", options(), eager());
        double.next(Kind::Read, &[fault]);
        assert_eq!(cache.get(&[key(1)]).await, [None]);
        assert_eq!(cache.stats().reads, Circuit::Open, "at once");
        double.next(Kind::Write, &[fault]);
        cache.put(vec![numbered(1)]);
        cache.flush().await;
        assert_eq!((cache.stats().writes, cache.stats().dropped), (Circuit::Open, 1), "at once");

        tokio::time::sleep(Duration::from_millis(10)).await;
        cache.put(vec![numbered(1)]);
        cache.flush().await;
        assert_eq!(hits(&cache, 1..2).await, 1);
        assert_eq!((cache.stats().reads, cache.stats().writes), (Circuit::Closed, Circuit::Closed));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_is_found_before_the_first_text_comes() {
    let double = Double::start();
    double.always(Kind::Read, Fault::Denied);
    let cache = DynamoCache::with(double.client(), "eu-west-1", options(), Tuning { cold: false, ..tuning() });
    let began = Instant::now();
    while cache.stats().reads == Circuit::Closed {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(cache.get(&[key(1)]).await, [None]);
    assert_eq!(double.calls(Kind::Read), [1], "the one in advance");
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_fail_in_passing_are_written_in_the_end() {
    for fault in [Fault::Throttle, Fault::Server, Fault::Close] {
        let double = Double::start();
        let cache = cache(&double);
        double.next(Kind::Write, &[fault, fault]);
        cache.put(vec![numbered(1)]);
        cache.flush().await;
        assert_eq!((double.items().len(), cache.stats().dropped, cache.stats().write_failures), (1, 0, 2), "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_go_on_failing_are_given_up_and_counted() {
    for fault in FAILING.into_iter().chain([Fault::Hang, Fault::Close, Fault::Partial(0)]) {
        let double = Double::start();
        let hangs = matches!(fault, Fault::Hang);
        let cache = if hangs { impatient(&double, tuning()) } else { cache(&double) };
        double.always(Kind::Write, fault);
        cache.put((0..30).map(numbered).collect());
        let began = Instant::now();
        cache.flush().await;
        assert!(began.elapsed() < 5 * HANG, "{fault:?}");
        let stats = cache.stats();
        assert_eq!((stats.dropped, stats.waiting, double.items().len()), (30, 0, 0), "{fault:?}");
        let busy = matches!(fault, Fault::Throttle | Fault::Partial(_));
        assert_eq!(stats.writes, if busy { Circuit::Closed } else { Circuit::Open }, "{fault:?}");
        // While it is open, nothing waits.
        cache.put(vec![numbered(1)]);
        assert_eq!(cache.stats().waiting, u64::from(busy));
        assert_eq!(cache.stats().reads, Circuit::Closed, "reads are another matter");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_takes_a_part_of_everything_has_it_all_soon() {
    // Pauses that doubled with each answer would take a minute or more.
    for (fault, texts) in [(Fault::Partial(20), 1000), (Fault::Leave(5), 110), (Fault::Partial(1), 110)] {
        let double = Double::start();
        // As it is set in use.
        let tuning = Tuning { cold: true, ..Tuning::default() };
        let cache = DynamoCache::with(double.client(), "eu-west-1", options(), tuning);
        double.always(Kind::Write, fault);
        let began = Instant::now();
        cache.put((0..texts).map(numbered).collect());
        cache.flush().await;
        assert!(began.elapsed() < PATIENCE, "{fault:?}");
        let stats = cache.stats();
        assert_eq!((double.items().len() as u64, stats.dropped, stats.waiting), (texts, 0, 0), "{fault:?}");
        assert_eq!((stats.write_failures, stats.writes), (0, Circuit::Closed), "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_busy_has_it_all_soon_after() {
    let double = Double::start();
    let tuning = Tuning { cold: true, ..Tuning::default() };
    let cache = DynamoCache::with(double.client(), "eu-west-1", options(), tuning);
    double
        .next(Kind::Write, &[Fault::Throttle, Fault::Partial(0), Fault::Throttle, Fault::Partial(0), Fault::Throttle]);
    double.always(Kind::Write, Fault::Partial(20));
    cache.put((0..500).map(numbered).collect());
    cache.flush().await;
    let stats = cache.stats();
    assert_eq!((double.items().len(), stats.dropped, stats.waiting, stats.write_failures), (500, 0, 0, 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn more_is_written_at_once_as_long_as_the_table_takes_it() {
    let double = Double::start();
    let cache = cache(&double);
    // So that requests overlap on any machine.
    double.always(Kind::Write, Fault::Late(Duration::from_millis(100)));
    cache.put((0..500).map(numbered).collect());
    cache.flush().await;
    assert_eq!(double.items().len(), 500);
    // How many, of four at most, depends on how long the machine takes to send one.
    assert!((2..=4).contains(&double.at_once_max()), "{}", double.at_once_max());
    assert_eq!(cache.stats().waiting, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_the_queue_is_dropped_and_counted() {
    let double = Double::start();
    double.always(Kind::Write, Fault::Hang);
    for (queue_entries_max, queue_bytes_max) in [(10, usize::MAX), (usize::MAX, 80)] {
        let options = DynamoOptions { queue_entries_max, queue_bytes_max, ..options() };
        let cache = DynamoCache::with(double.client(), "eu-west-1", options, tuning());
        cache.put((0..100).map(numbered).collect());
        assert_eq!((cache.stats().dropped, cache.stats().waiting), (90, 10));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_given_up_leaves_nothing_behind() {
    let double = Double::start();
    let cache = DynamoCache::with(double.client(), "eu-west-1", options(), eager());
    double.next(Kind::Read, &[Fault::Missing, Fault::Hang]);
    assert_eq!(cache.get(&[key(1)]).await, [None]);
    tokio::time::sleep(Duration::from_millis(10)).await;
    // It is the one that finds out for all, and its caller goes away.
    let given_up = tokio::time::timeout(Duration::from_millis(100), cache.get(&[key(1)])).await;
    assert!(given_up.is_err());
    cache.put(vec![numbered(1)]);
    cache.flush().await;
    assert_eq!(hits(&cache, 1..2).await, 1, "the next one finds out");
}
