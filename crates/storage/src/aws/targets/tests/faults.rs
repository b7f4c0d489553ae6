//! An S3 that is gone, hangs, refuses, fails in the middle, or has something else.

use super::*;
use std::net::TcpListener;

fn reason<T>(result: Result<T, TargetError>) -> String {
    match result {
        Err(TargetError::Unavailable { reason }) => reason,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was answered"),
    }
}

/// Everything that can be served is, and soon; everything else says why not.
async fn serves_what_it_knows(replica: &Replica, why: &str) {
    let started = Instant::now();
    for _ in 0..50 {
        assert_eq!(replica.fill("nist").await, Some(1));
    }
    // 50 that each waited would take 15 s.
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    // The last list, if there was one: what is known without it may be a part only.
    let list = replica.targets.list().await;
    if replica.targets.inner.known.is_complete() {
        assert_eq!(names(&list.unwrap()), ["nist"]);
    } else {
        let reason = reason(list);
        assert!(reason.starts_with("s3://bucket/some/prefix/") && reason.contains(why), "{reason}");
    }
    assert_eq!(replica.targets.info("nist").await.unwrap().unwrap().rows, ROWS);
    for reason in [
        reason(replica.targets.get("unknown").await),
        reason(replica.targets.info("unknown").await),
        reason(replica.put("nist", 2, ROWS).await),
        reason(replica.targets.delete("nist").await),
    ] {
        assert!(reason.starts_with("s3://bucket/some/prefix/") && reason.contains(why), "{reason}");
    }
    assert_eq!(replica.fill("nist").await, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_s3_costs_one_wait_and_is_asked_again() {
    let double = Double::start();
    let (a, b) = (Replica::new(&double).await, Replica::new(&double).await);
    a.put("nist", 1, ROWS).await.unwrap();
    b.knows("nist", Some(1)).await;
    assert_eq!(names(&b.targets.list().await.unwrap()), ["nist"]);
    double.hang(true);
    tokio::time::timeout(LIMIT, serves_what_it_knows(&b, "no answer in")).await.unwrap();
    double.hang(false);
    // What was asked while it hung may still be taken by the double.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let started = Instant::now();
    while a.put("nist", 3, ROWS).await.is_err() {
        assert!(started.elapsed() < LIMIT);
    }
    b.knows("nist", Some(3)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_s3_is_waited_for_once() {
    let double = Double::start();
    let a = Replica::new(&double).await;
    a.put("nist", 1, 3).await.unwrap();
    double.state().delay = Duration::from_millis(600);
    let mut waited = 0;
    for _ in 0..8 {
        let started = Instant::now();
        assert_eq!(a.fill("nist").await, Some(1));
        waited += usize::from(started.elapsed() >= known::WAIT_MAX);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // On a busy machine one more may have taken long.
    assert!(waited <= 3, "{waited} of 8 waited");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_s3_after_a_restart() {
    let double = Double::start();
    let a = Replica::new(&double).await;
    a.put("nist", 1, ROWS).await.unwrap();
    let Replica { targets, folder } = a;
    drop(targets);
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let a = Replica { targets: open(nobody, folder.path(), ROOM).await, folder };
    tokio::time::timeout(LIMIT, serves_what_it_knows(&a, "")).await.unwrap();
    a.targets.greet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_question_says_what_is_needed() {
    let double = Double::start();
    let a = Replica::new(&double).await;
    a.put("nist", 1, ROWS).await.unwrap();
    for kind in ["HEAD", "LIST"] {
        double.refuse(kind, 0, 403, "AccessDenied");
    }
    tokio::time::timeout(LIMIT, serves_what_it_knows(&a, "access denied: sets need s3:GetObject")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_that_fails_leaves_the_old_set_and_nothing_else() {
    let double = Double::start();
    let (a, b) = (Replica::new(&double).await, Replica::new(&double).await);
    a.put("nist", 1, ROWS).await.unwrap();
    let before = double.state().objects[&key("nist")].etag.clone();
    for (kind, after, rows) in [("PART", 2, ROWS), ("COMPLETE", 0, ROWS), ("BEGIN", 0, ROWS), ("PUT", 0, 3)] {
        let aborted = double.count("ABORT");
        double.refuse(kind, after, 500, "InternalError");
        let reason = reason(a.put("nist", 2, rows).await);
        assert!(reason.contains("InternalError"), "{reason}");
        double.state().refusals.clear();
        assert!(double.state().uploads.is_empty(), "{kind} left its parts");
        assert_eq!(double.count("ABORT") - aborted, usize::from(matches!(kind, "PART" | "COMPLETE")));
        assert_eq!(double.state().objects[&key("nist")].etag, before);
        assert_eq!((a.fill("nist").await, b.fill("nist").await, a.files()), (Some(1), Some(1), 1));
    }
    // What passes is tried again.
    let puts = double.count("PUT");
    double.refuse("PUT", 0, 503, "SlowDown");
    let (put, ()) = futures::join!(a.put("nist", 4, 3), async {
        while double.count("PUT") == puts {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        double.state().refusals.clear();
    });
    put.unwrap();
    b.knows("nist", Some(4)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_that_fail_are_asked_for_again_or_the_last_state_serves() {
    let double = Double::start();
    let (a, b) = (Replica::new(&double).await, Replica::new(&double).await);
    a.put("nist", 1, ROWS).await.unwrap();
    b.knows("nist", Some(1)).await;
    a.put("nist", 2, ROWS).await.unwrap();
    double.refuse("GET", 3, 500, "InternalError");
    tokio::time::sleep(KNOWN_MAX).await;
    assert_eq!(b.fill("nist").await, Some(1));
    // A replica that has nothing says why.
    let c = Replica::new(&double).await;
    assert!(reason(c.targets.get("nist").await).contains("InternalError"));
    assert_eq!(c.files(), 0);
    double.state().refusals.clear();
    b.knows("nist", Some(2)).await;
    assert_eq!(b.files(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_not_those_that_were_put_are_no_set() {
    let double = Double::start();
    let a = Replica::new(&double).await;
    a.put("nist", 1, ROWS).await.unwrap();
    let good = double.state().objects[&key("nist")].clone();
    let damaged = |damage: &dyn Fn(&mut Object)| {
        let mut object = good.clone();
        damage(&mut object);
        double.state().objects.insert(key("nist"), object);
    };
    let b = Replica::new(&double).await;
    for (damage, what) in [
        (&(|object: &mut Object| object.bytes[5000] ^= 1) as &dyn Fn(&mut Object), "not those that were put"),
        (&|object| object.bytes.truncate(6000), "no safetensors file"),
        (&|object| object.bytes[..8].fill(0xff), "header is too large"),
    ] {
        damaged(damage);
        b.targets.inner.known.outdated("nist");
        let error = b.targets.get("nist").await.unwrap_err();
        assert!(matches!(error, TargetError::NotASet { .. }) && error.to_string().contains(what), "{error}");
        assert_eq!(b.files(), 0);
    }
    damaged(&|_| ());
    b.knows("nist", Some(1)).await;
    // Of a set under another name.
    let copy = Object { etag: "\"copy\"".to_owned(), ..good.clone() };
    double.state().objects.insert(key("copy"), copy);
    let error = b.targets.get("copy").await.unwrap_err();
    assert!(error.to_string().contains("it is the set \"nist\""), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_missing_is_not_a_bucket_without_sets() {
    let double = Double::start();
    let (a, b) = (Replica::new(&double).await, Replica::new(&double).await);
    a.put("nist", 1, ROWS).await.unwrap();
    b.knows("nist", Some(1)).await;
    assert_eq!(b.fill("unknown").await, None);
    double.state().no_bucket = true;
    tokio::time::sleep(KNOWN_MAX).await;
    for replica in [&a, &b] {
        serves_what_it_knows(replica, "there is no bucket").await;
        assert_eq!(replica.files(), 1);
    }
    // Nothing is known: no set, and not no sets.
    let c = Replica::new(&double).await;
    for reason in [reason(c.targets.get("nist").await), reason(c.targets.list().await)] {
        assert!(
            reason.contains("there is no bucket bucket: create it, or name another in NEXUS_TARGETS_URL"),
            "{reason}"
        );
    }
    // And after a restart.
    let a = a.restarted(&double).await;
    assert_eq!((a.fill("nist").await, a.files()), (Some(1), 1));

    double.state().no_bucket = false;
    // While it was missing, S3 rested.
    tokio::time::sleep(KNOWN_MAX).await;
    c.knows("nist", Some(1)).await;
    assert!(c.targets.delete("nist").await.unwrap());
    a.knows("nist", None).await;
    b.knows("nist", None).await;
    assert_eq!((a.files(), b.files(), c.files()), (0, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_missing_is_asked_for_twice() {
    let double = Double::start();
    let a = Replica::new(&double).await;
    a.put("nist", 1, ROWS).await.unwrap();
    let peeks = double.count("PEEK");
    for _ in 0..3 {
        a.targets.inner.known.outdated("nist");
        assert_eq!(a.fill("nist").await, Some(1));
    }
    a.put("nist", 2, ROWS).await.unwrap();
    a.targets.list().await.unwrap();
    assert_eq!(double.count("PEEK"), peeks);
    assert_eq!(a.fill("unknown").await, None);
    assert_eq!(double.count("PEEK"), peeks + 1);
    // What can not be told apart is not taken for deleted.
    double.refuse("PEEK", 0, 500, "InternalError");
    double.state().objects.clear();
    a.targets.inner.known.outdated("nist");
    assert_eq!((a.fill("nist").await, a.files()), (Some(2), 1));
    assert!(reason(a.targets.delete("nist").await).contains("InternalError"));
    double.state().refusals.clear();
    a.knows("nist", None).await;
    assert_eq!(a.files(), 0);
}
