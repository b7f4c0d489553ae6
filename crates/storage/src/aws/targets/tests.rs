//! Shared target sets on an S3 in this process: replicas that agree, and what S3 may do to them.

mod double;
mod faults;

use super::known::KNOWN_MAX;
use super::*;
use crate::aws::aws_config;
use crate::targets::SetDtype;
use aws_sdk_s3::config::{Credentials, SharedCredentialsProvider};
use double::{Double, Object};
use std::net::SocketAddr;
use tempfile::{TempDir, tempdir};

const DIMENSIONS: usize = 8;
const ROOM: u64 = 1 << 20;
/// A file of 4096 bytes and 40 a row, in parts of 16 KiB and ranges of 4 KiB: several of each.
const ROWS: usize = 1000;
/// Tells a hang from an answer.
const LIMIT: Duration = Duration::from_secs(30);

async fn bucket_at(address: SocketAddr) -> Bucket {
    let sdk = aws_config("us-east-1").await.sdk.into_builder();
    let credentials = Credentials::new("id", "secret", None, None, "test");
    let sdk = sdk.endpoint_url(format!("http://{address}"));
    let sdk = sdk.credentials_provider(SharedCredentialsProvider::new(credentials)).build();
    Bucket::new(&AwsConfig { sdk }, "bucket", "/some/prefix/")
}

/// A replica and its disk.
struct Replica {
    targets: SharedTargets,
    folder: TempDir,
}

impl Replica {
    async fn new(double: &Double) -> Self {
        Self::with_room(double, ROOM).await
    }

    async fn with_room(double: &Double, bytes_max: u64) -> Self {
        let folder = tempdir().unwrap();
        let targets = open(double.address, folder.path(), bytes_max).await;
        Self { targets, folder }
    }

    /// Every row is `fill`, in all components.
    async fn put(&self, name: &str, fill: u8, rows: usize) -> Result<(SetInfo, bool), TargetError> {
        let name = SetName::parse(name).unwrap();
        let mut writer = self.targets.begin(&name).await?;
        writer.set_shape(SetDtype::F32, DIMENSIONS)?;
        let row = f32::from(fill).to_le_bytes().repeat(DIMENSIONS);
        writer.push(&row.repeat(rows), &vec![f64::from(fill); rows])?;
        self.targets.finish(writer).await
    }

    /// What all rows of a set are.
    async fn fill(&self, name: &str) -> Option<u8> {
        let set = tokio::time::timeout(LIMIT, self.targets.get(name)).await.unwrap().unwrap()?;
        Some(fill(&set))
    }

    /// Waits until a set is as another replica has put it.
    async fn knows(&self, name: &str, expected: Option<u8>) {
        let started = Instant::now();
        while self.fill(name).await != expected {
            assert!(started.elapsed() < LIMIT, "{name} never became {expected:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn restarted(self, double: &Double) -> Self {
        let Self { targets, folder } = self;
        drop(targets);
        // What asked S3 last may hold the folder for a moment.
        let targets = open(double.address, folder.path(), ROOM).await;
        Self { targets, folder }
    }

    fn files(&self) -> usize {
        let names = std::fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_str().unwrap().ends_with(".safetensors")).count()
    }
}

async fn open(address: SocketAddr, folder: &Path, bytes_max: u64) -> SharedTargets {
    let transfers =
        Transfers { part_bytes: 16 << 10, parts_at_once: 3, range_bytes: 4 << 10, connections: 3, sets_at_once: 2 };
    SharedTargets::new(bucket_at(address).await, folder, bytes_max, transfers).unwrap()
}

fn fill(set: &TargetSet) -> u8 {
    let fill = set.norms()[0] as u8;
    assert!(set.norms().iter().all(|&norm| norm == f64::from(fill)));
    let component = f32::from(fill).to_le_bytes();
    assert!(set.rows().chunks_exact(4).all(|bytes| bytes == component), "a mixed set");
    assert_eq!(set.rows().len(), set.info().rows * DIMENSIONS * 4);
    fill
}

fn key(name: &str) -> String {
    format!("some/prefix/{name}.safetensors")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_replica_puts_all_have() {
    let double = Double::start();
    let (a, b) = (Replica::new(&double).await, Replica::new(&double).await);
    assert_eq!(a.fill("nist").await, None);
    let (info, replaced) = a.put("nist", 1, ROWS).await.unwrap();
    assert!(!replaced && double.count("PART") > 1 && double.count("COMPLETE") == 1);
    assert_eq!(a.fill("nist").await, Some(1));
    // Never asked for here: S3 is asked at once.
    assert_eq!(b.targets.info("nist").await.unwrap(), Some(info.clone()));
    assert_eq!(double.count("GET"), 0);
    // So that ranges overlap on any machine.
    double.state().delay = Duration::from_millis(100);
    assert_eq!(b.fill("nist").await, Some(1));
    double.state().delay = Duration::ZERO;
    assert!(double.count("GET") > 1 && double.state().at_once_max > 1);
    assert_eq!(b.targets.get("nist").await.unwrap().unwrap().info(), &info);

    // A small one is put as a whole.
    let (second, replaced) = b.put("nist", 2, 3).await.unwrap();
    assert!(replaced && double.count("PUT") == 1);
    assert_eq!(b.fill("nist").await, Some(2));
    a.knows("nist", Some(2)).await;
    assert_eq!(a.targets.info("nist").await.unwrap(), Some(second));

    assert!(a.targets.delete("nist").await.unwrap());
    assert_eq!(a.fill("nist").await, None);
    b.knows("nist", None).await;
    assert_eq!((a.files(), b.files()), (0, 0));
    assert!(!b.targets.delete("nist").await.unwrap());
    for none in ["../nist", ".nist", ""] {
        assert!(b.targets.get(none).await.unwrap().is_none() && !b.targets.delete(none).await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_has_everything_and_downloads_nothing() {
    let double = Double::start();
    let (a, b) = (Replica::new(&double).await, Replica::new(&double).await);
    let mut expected = Vec::new();
    for name in ["b", "a", "a.b", "a-b", "Z"] {
        expected.push(a.put(name, 7, 3).await.unwrap().0);
    }
    expected.sort_by(|one, other| one.name.cmp(&other.name));
    let of_others =
        ["some/prefix/deeper/x.safetensors", "some/prefix/x.txt", "some/prefix/.x.safetensors", "some/other"];
    for key in of_others.into_iter().chain(["some/prefix/foreign.safetensors"]) {
        double.state().store(key.to_owned(), b"x".to_vec(), Default::default());
    }
    let bytes = expected.iter().map(|info| info.bytes).sum();
    let list = SetList { sets: expected, bytes, bytes_max: ROOM };
    assert_eq!(b.targets.list().await.unwrap(), list);
    assert_eq!(a.targets.list().await.unwrap(), list);
    assert_eq!(double.count("GET"), 0);
    // What is known by its ETag is not asked for again.
    let heads = double.count("HEAD");
    assert_eq!(b.targets.list().await.unwrap(), list);
    assert_eq!(double.count("HEAD"), heads);
    assert!(matches!(b.targets.get("foreign").await, Err(TargetError::NotASet { .. })));

    a.targets.delete("a").await.unwrap();
    a.put("b", 8, 4).await.unwrap();
    let sets = b.targets.list().await.unwrap().sets;
    assert_eq!(
        sets.iter().map(|info| (&*info.name, info.rows)).collect::<Vec<_>>(),
        [("Z", 3), ("a-b", 3), ("a.b", 3), ("b", 4)]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_in_use_is_asked_for_twice_a_second() {
    let double = Double::start();
    let a = Replica::new(&double).await;
    a.put("nist", 1, 3).await.unwrap();
    let (started, before) = (Instant::now(), double.count("HEAD"));
    let mut gets = 0;
    while started.elapsed() < Duration::from_millis(1200) {
        assert!(a.targets.get("nist").await.unwrap().is_some());
        gets += 1;
    }
    let heads = double.count("HEAD") - before;
    let most = started.elapsed().as_millis() / 500 + 1;
    assert!((1..=most).contains(&(heads as u128)) && gets > heads, "{heads} questions for {gets} uses");
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_see_whole_sets_in_order_while_they_are_replaced() {
    let double = Double::start();
    let (a, b) = (Replica::new(&double).await, Arc::new(Replica::new(&double).await));
    a.put("nist", 1, ROWS).await.unwrap();
    let last = 6;
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let b = Arc::clone(&b);
            tokio::spawn(async move {
                let (started, mut seen) = (Instant::now(), 0);
                while seen < last {
                    let now = b.fill("nist").await.unwrap();
                    assert!(now >= seen, "{now} after {seen}");
                    seen = now;
                    assert!(started.elapsed() < LIMIT);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            })
        })
        .collect();
    for version in 2..=last {
        tokio::time::sleep(Duration::from_millis(250)).await;
        assert!(a.put("nist", version, ROWS - usize::from(version)).await.unwrap().1);
    }
    for reader in readers {
        reader.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_are_put_at_once_all_have_the_same() {
    let double = Double::start();
    let (a, b) = (Replica::new(&double).await, Replica::new(&double).await);
    for round in 0..5 {
        let (one, other) = futures::join!(a.put("nist", 1, ROWS + round), b.put("nist", 2, ROWS + round));
        one.unwrap();
        other.unwrap();
        let in_s3 = double.state().objects[&key("nist")].bytes.clone();
        let winner = f32::from_le_bytes(in_s3[4096..4100].try_into().unwrap()) as u8;
        a.knows("nist", Some(winner)).await;
        b.knows("nist", Some(winner)).await;
        tokio::time::sleep(KNOWN_MAX).await;
        assert_eq!((a.fill("nist").await, b.fill("nist").await), (Some(winner), Some(winner)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_that_is_replaced_while_it_is_fetched_is_not_mixed() {
    let double = Double::start();
    let (a, b) = (Replica::new(&double).await, Replica::new(&double).await);
    a.put("nist", 1, ROWS).await.unwrap();
    let first = double.state().objects[&key("nist")].clone();
    a.put("nist", 2, ROWS).await.unwrap();
    {
        let mut state = double.state();
        let second = state.objects.insert(key("nist"), first).unwrap();
        state.replace_after = Some((2, key("nist"), second));
    }
    assert_eq!(b.fill("nist").await, Some(2));
    assert_eq!(b.files(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_make_room_for_each_other_and_stay_in_s3() {
    let double = Double::start();
    let bytes = |rows: usize| 4096 + rows as u64 * 40;
    let a = Replica::with_room(&double, bytes(10) * 2 + 100).await;
    for (fill, name) in (1..).zip(["one", "two", "three"]) {
        a.put(name, fill, 10).await.unwrap();
    }
    assert_eq!((a.files(), a.targets.list().await.unwrap().sets.len()), (2, 3));
    assert_eq!((a.targets.inner.local.get("one").is_none(), double.count("GET")), (true, 0));
    let held = a.targets.get("two").await.unwrap().unwrap();
    assert_eq!(a.fill("three").await, Some(3));
    assert_eq!(a.fill("one").await, Some(1));
    // The one that was not asked for longest went, and who holds it keeps it.
    assert!(a.targets.inner.local.get("two").is_none() && fill(&held) == 2);
    assert_eq!(a.files(), 2);

    // One larger than all the room is not taken; while its size is not known it may cost others their place.
    let large = |error| matches!(error, TargetError::TooLarge { .. });
    assert!(large(a.put("large", 4, 1000).await.unwrap_err()));
    let b = Replica::new(&double).await;
    b.put("large", 4, 1000).await.unwrap();
    assert_eq!((a.fill("three").await, a.fill("one").await, a.files()), (Some(3), Some(1), 2));
    assert!(large(a.targets.get("large").await.unwrap_err()));
    assert_eq!(a.targets.info("large").await.unwrap().unwrap().rows, 1000);
    assert_eq!(a.files(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_are_used_again_after_a_restart() {
    let double = Double::start();
    let (a, b) = (Replica::new(&double).await, Replica::new(&double).await);
    a.put("nist", 1, ROWS).await.unwrap();
    a.put("soc", 2, ROWS).await.unwrap();
    assert_eq!((b.fill("nist").await, b.fill("soc").await), (Some(1), Some(2)));
    let sent = double.state().bytes_sent;
    let (a, b) = (a.restarted(&double).await, b.restarted(&double).await);
    for replica in [&a, &b] {
        assert_eq!((replica.fill("nist").await, replica.fill("soc").await), (Some(1), Some(2)));
    }
    assert_eq!(double.state().bytes_sent, sent);
    // Replaced and deleted while it is down.
    let Replica { targets, folder } = b;
    drop(targets);
    a.put("nist", 3, ROWS).await.unwrap();
    a.targets.delete("soc").await.unwrap();
    let b = Replica { targets: open(double.address, folder.path(), ROOM).await, folder };
    assert_eq!((b.fill("nist").await, b.fill("soc").await), (Some(3), None));
    assert_eq!(b.files(), 1);
}

fn names(list: &SetList) -> Vec<&str> {
    list.sets.iter().map(|info| &*info.name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_of_the_bucket_whoever_put_the_sets() {
    let double = Double::start();
    let (a, b) = (Replica::new(&double).await, Replica::new(&double).await);
    a.put("one", 1, 3).await.unwrap();
    b.put("two", 2, 3).await.unwrap();
    for replica in [&a, &b] {
        assert_eq!(names(&replica.targets.list().await.unwrap()), ["one", "two"]);
    }
    // Deleted by the other, and nobody asks for it by its name.
    b.targets.delete("one").await.unwrap();
    assert_eq!(names(&a.targets.list().await.unwrap()), ["two"]);
    // Put here last, deleted there, and in no list between.
    a.put("two", 3, 3).await.unwrap();
    b.targets.delete("two").await.unwrap();
    a.put("three", 3, 3).await.unwrap();
    assert_eq!(names(&a.targets.list().await.unwrap()), ["three"]);
    // Of what is on the disk only.
    let Replica { targets, folder } = a;
    drop(targets);
    b.targets.delete("three").await.unwrap();
    b.put("four", 4, 3).await.unwrap();
    let a = Replica { targets: open(double.address, folder.path(), ROOM).await, folder };
    assert_eq!(names(&a.targets.list().await.unwrap()), ["four"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_put_while_sets_are_listed_is_not_missing() {
    let double = Double::start();
    let a = Arc::new(Replica::new(&double).await);
    for name in ["b", "c", "d", "e", "f", "g"] {
        a.put(name, 1, 3).await.unwrap();
    }
    // Three pages: that of the new set has been told when it comes.
    double.state().list_delay = Duration::from_millis(300);
    let listing = tokio::spawn({
        let a = Arc::clone(&a);
        async move { a.targets.list().await.unwrap() }
    });
    while double.count("LIST") < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    a.put("a", 1, 3).await.unwrap();
    a.targets.delete("g").await.unwrap();
    assert_eq!(names(&listing.await.unwrap()), ["a", "b", "c", "d", "e", "f"]);
    double.state().list_delay = Duration::ZERO;
    // However many are put and listed at once: what was put before is in the list.
    let putting = async {
        for i in 0..20 {
            let name = format!("new-{i}");
            a.put(&name, 1, 3).await.unwrap();
            assert!(names(&a.targets.list().await.unwrap()).contains(&&*name), "{name}");
        }
    };
    let listing = async {
        for _ in 0..20 {
            assert!(a.targets.list().await.unwrap().sets.len() >= 6);
        }
    };
    futures::join!(putting, listing);
    assert_eq!(a.targets.list().await.unwrap().sets.len(), 26);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_of_the_bucket_soon_after_trouble() {
    let double = Double::start();
    let (a, b) = (Replica::new(&double).await, Replica::new(&double).await);
    a.put("one", 1, 3).await.unwrap();
    for kind in ["HEAD", "LIST"] {
        double.refuse(kind, 0, 500, "InternalError");
    }
    assert!(a.targets.list().await.is_err(), "nobody knows what else there is");
    double.state().refusals.clear();
    while a.targets.list().await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for kind in ["HEAD", "LIST"] {
        double.refuse(kind, 0, 500, "InternalError");
    }
    assert_eq!(names(&a.targets.list().await.unwrap()), ["one"]);
    double.state().refusals.clear();
    b.targets.delete("one").await.unwrap();
    // S3 is asked again a second later, though nobody would wait long for it.
    let (started, lists) = (Instant::now(), double.count("LIST"));
    while !a.targets.list().await.unwrap().sets.is_empty() {
        assert!(started.elapsed() < Duration::from_secs(4), "{} questions", double.count("LIST") - lists);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
