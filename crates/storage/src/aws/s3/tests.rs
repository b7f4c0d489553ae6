//! Downloads from a server that misbehaves.

mod arriving;

use super::double::{BUCKET, Double, content};
use super::*;
use aws_config::BehaviorVersion;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{Credentials, Region};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant as Clock;
use tempfile::TempDir;

const PATH: &str = "models/m/";
const FILES: [(&str, usize); 6] = [
    ("config.json", 300),
    ("empty.json", 0),
    ("model-1.safetensors", 3_000_000),
    ("model-2.safetensors", 2_000_001),
    ("tokenizer.json", 70_000),
    ("1_Pooling/config.json", 200),
];
const TOTAL: u64 = 5_070_501;

fn put_model(server: &Double, revision: u64) {
    for (name, size) in FILES {
        server.put(&format!("{PATH}{name}"), revision, size);
    }
    for name in
        ["pytorch_model.bin", "onnx/model.safetensors", "../evil.json", "/evil.json", "..\\evil.json", ".x.json"]
    {
        server.put(&format!("{PATH}{name}"), revision, 10);
    }
    server.put("models/m2/config.json", revision, 10);
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

async fn config(url: String) -> AwsConfig {
    let sdk = aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(url)
        .credentials_provider(Credentials::new("key", "secret", None, None, "test"))
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().connect_timeout(Duration::from_secs(2)).build())
        .load()
        .await;
    AwsConfig { sdk }
}

fn options(folder: &Path) -> S3Options {
    S3Options {
        range_bytes: 100_000,
        connections_max: 8,
        stall_window: Duration::from_secs(20),
        patience: Duration::from_millis(500),
        checkpoint_bytes: 1,
        spare_bytes: 0,
        ..S3Options::new(folder)
    }
}

fn store(server: &Double, options: S3Options) -> S3Models {
    S3Models::new(config(server.url.clone()), BUCKET, "", options)
}

fn fetch(server: &Double, options: S3Options) -> Result<PathBuf, ModelStoreError> {
    runtime().block_on(store(server, options).fetch(PATH, &|_| {}))
}

/// All files of the model, and no others, of the given revision of each.
fn assert_is(folder: &Path, revision_of: impl Fn(&str) -> u64) {
    for (name, size) in FILES {
        let expected = content(&format!("{PATH}{name}"), revision_of(name), size);
        let found = fs::read(folder.join(name)).unwrap();
        assert!(found == expected, "{name} of {} bytes is not of revision {}", found.len(), revision_of(name));
    }
    let names: BTreeSet<String> = names(folder).into_iter().filter(|name| !name.starts_with('.')).collect();
    let expected =
        ["1_Pooling", "config.json", "empty.json", "model-1.safetensors", "model-2.safetensors", "tokenizer.json"];
    assert!(names.iter().eq(expected.iter()), "{names:?}");
}

fn names(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// What is on its way in any model's folder.
fn unfinished(folder: &Path) -> usize {
    let objects = fs::read_dir(folder).unwrap().map(|model| model.unwrap().path().join("objects"));
    objects.flat_map(|objects| names(&objects)).filter(|name| name.starts_with('.')).count()
}

fn setup() -> (Double, TempDir) {
    let server = Double::start();
    put_model(&server, 0);
    (server, tempfile::tempdir().unwrap())
}

#[test]
fn a_model_is_fetched_once() {
    let (server, folder) = setup();
    let told = Mutex::new(Vec::new());
    let store = store(&server, options(folder.path()));
    let first = runtime().block_on(store.fetch(PATH, &|progress| told.lock().unwrap().push(progress))).unwrap();
    assert_is(&first, |_| 0);
    assert_eq!(unfinished(folder.path()), 0);
    assert!(!folder.path().join("evil.json").exists());
    let told = told.into_inner().unwrap();
    assert_eq!(told[0], FetchProgress { bytes_done: 0, bytes_total: TOTAL });
    assert_eq!(*told.last().unwrap(), FetchProgress { bytes_done: TOTAL, bytes_total: TOTAL });
    assert!(told.windows(2).all(|pair| pair[0].bytes_done <= pair[1].bytes_done));
    assert_eq!(server.take_served_bytes(), TOTAL);
    let biggest = server.take_served().into_iter().map(|(_, start, end)| end - start).max();
    assert_eq!(biggest, Some(100_000));

    // However the path is written.
    for path in ["models/m", "/models//m/", "./models/m"] {
        assert_eq!(runtime().block_on(store.fetch(path, &|_| {})).unwrap(), first);
    }
    assert_eq!(server.take_served_bytes(), 0);
    // An old revision is not what was asked for.
    drop(server);
    let error = runtime().block_on(store.fetch(PATH, &|_| {})).unwrap_err();
    assert!(matches!(error, ModelStoreError::Unavailable { .. }), "{error:?}");
    assert!(
        error.to_string().starts_with("cannot read s3://models/models/m/: S3 in us-east-1 cannot be reached"),
        "{error}"
    );
}

#[test]
fn what_is_cut_delayed_and_mangled_arrives() {
    let (server, folder) = setup();
    *server.faults() = super::double::Faults { cut_percent: 30, slow_down: 5, wrong_range: 3, ..Default::default() };
    assert_is(&fetch(&server, options(folder.path())).unwrap(), |_| 0);
    // What arrived before a cut was not asked for again.
    let served = server.take_served_bytes();
    assert!(served < TOTAL + TOTAL / 10, "{served} of {TOTAL}");
}

#[test]
fn a_change_halfway_gives_the_new_revision_alone() {
    // Of all files, while connections are cut; of one; of one that is complete by then, and is all that is fetched again.
    for after in [1, 7, 25, 40, 52] {
        let (server, folder) = setup();
        server.faults().change = Some((after, "", 1));
        server.faults().cut_percent = 30;
        assert_is(&fetch(&server, options(folder.path())).unwrap(), |_| 1);
        assert_eq!(unfinished(folder.path()), 0);
    }
    let (server, folder) = setup();
    server.faults().change = Some((35, "model-2.safetensors", 1));
    let found = fetch(&server, options(folder.path())).unwrap();
    assert_is(&found, |name| u64::from(name == "model-2.safetensors"));
    let (server, folder) = setup();
    server.faults().change = Some((30, "m/config.json", 1));
    assert_is(&fetch(&server, options(folder.path())).unwrap(), |name| u64::from(name == "config.json"));
    assert_eq!(server.take_served_bytes(), TOTAL + 300);
}

#[test]
fn a_change_of_the_same_size_is_seen_and_what_is_gone_goes() {
    let (server, folder) = setup();
    server.put(&format!("{PATH}zzz.json"), 0, 10);
    let found = fetch(&server, options(folder.path())).unwrap();
    assert!(found.join("zzz.json").exists());
    server.put(&format!("{PATH}tokenizer.json"), 1, 70_000);
    server.remove(&format!("{PATH}zzz.json"));
    assert_is(&fetch(&server, options(folder.path())).unwrap(), |name| u64::from(name == "tokenizer.json"));
}

#[test]
fn revisions_have_folders_of_their_own_and_the_last_two_stay() {
    let (server, folder) = setup();
    let first = fetch(&server, options(folder.path())).unwrap();
    server.take_served_bytes();
    let mut folders = vec![first];
    for revision in 1..4u64 {
        server.put(&format!("{PATH}model-2.safetensors"), revision, 2_000_001);
        folders.push(fetch(&server, options(folder.path())).unwrap());
        assert_eq!(server.take_served_bytes(), 2_000_001, "only what changed");
    }
    assert_eq!(folders.iter().collect::<BTreeSet<_>>().len(), 4);
    // Read at the next start.
    assert_eq!(fetch(&server, options(folder.path())).unwrap(), folders[3]);
    let there: Vec<bool> = folders.iter().map(|folder| folder.exists()).collect();
    assert_eq!(there, [false, false, true, true]);
    assert_is(&folders[2], |name| if name == "model-2.safetensors" { 2 } else { 0 });
    assert_is(&folders[3], |name| if name == "model-2.safetensors" { 3 } else { 0 });
    // Seven contents: six of one revision and one of the other.
    assert_eq!(names(&folders[3].parent().unwrap().join("objects")).len(), 7);

    // A file that somebody cut short makes the revision incomplete; it is made again.
    fs::remove_file(folders[3].join("config.json")).unwrap();
    fs::write(folders[3].join("config.json"), "{").unwrap();
    assert_is(
        &fetch(&server, options(folder.path())).unwrap(),
        |name| if name == "model-2.safetensors" { 3 } else { 0 },
    );
}

#[test]
fn what_an_ended_download_brought_is_kept_and_dropping_stops_it() {
    let (server, folder) = setup();
    server.faults().bytes_per_s = Some(400_000);
    let last = Mutex::new(FetchProgress::default());
    let store = store(&server, options(folder.path()));
    let running = runtime();
    running.block_on(async {
        let tell = |progress| *last.lock().unwrap() = progress;
        let enough = async {
            while last.lock().unwrap().bytes_done < TOTAL / 3 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            outcome = store.fetch(PATH, &tell) => panic!("{outcome:?}"),
            () = enough => {}
        }
        let began = Clock::now();
        while server.answering() > 0 && began.elapsed() < Duration::from_secs(60) {
            sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(server.answering(), 0);
    });
    server.faults().bytes_per_s = None;
    assert!(server.take_served_bytes() < TOTAL, "it went on");
    let first = Mutex::new(None);
    let tell = |progress| {
        first.lock().unwrap().get_or_insert(progress);
    };
    let found = runtime().block_on(store.fetch(PATH, &tell));
    assert_is(&found.unwrap(), |_| 0);
    let done = first.into_inner().unwrap().unwrap().bytes_done;
    assert_eq!(server.take_served_bytes(), TOTAL - done, "what was there was not fetched again");
    // Eight ranges were under way, at most; all others that were begun are there.
    assert!(done + 8 * 100_000 >= TOTAL / 3, "{done}");
}

#[test]
fn what_was_written_for_another_content_is_not_continued() {
    let (server, folder) = setup();
    let interrupted = S3Options { attempts_max: 1, patience: Duration::ZERO, ..options(folder.path()) };
    server.faults().cut_percent = 8;
    assert!(matches!(fetch(&server, interrupted), Err(ModelStoreError::Unavailable { .. })));
    assert!(unfinished(folder.path()) > 0);
    server.faults().cut_percent = 0;
    put_model(&server, 1);
    assert_is(&fetch(&server, options(folder.path())).unwrap(), |_| 1);
    assert_eq!(unfinished(folder.path()), 0);
}

#[test]
fn a_stalled_range_is_asked_for_again() {
    let (server, folder) = setup();
    server.faults().stall = 3;
    let fast =
        S3Options { stall_window: Duration::from_secs(2), patience: Duration::from_secs(60), ..options(folder.path()) };
    assert_is(&fetch(&server, fast).unwrap(), |_| 0);
    let served = server.take_served_bytes();
    assert_eq!(served, TOTAL, "the half that came was kept");
    assert!(server.gets() > 54);
}

#[test]
fn a_slow_line_is_no_reason_to_give_up() {
    let server = Double::start();
    for (name, size) in [("config.json", 100), ("model.safetensors", 300_000)] {
        server.put(&format!("{PATH}{name}"), 0, size);
    }
    let folder = tempfile::tempdir().unwrap();
    server.faults().bytes_per_s = Some(100_000);
    let impatient =
        S3Options { stall_window: Duration::from_millis(200), bytes_per_s_min: 10_000_000, ..options(folder.path()) };
    let found = fetch(&server, impatient).unwrap();
    assert_eq!(
        fs::read(found.join("model.safetensors")).unwrap(),
        content(&format!("{PATH}model.safetensors"), 0, 300_000)
    );
}

#[test]
fn damaged_bytes_are_found_by_the_checksum() {
    let (server, folder) = setup();
    server.faults().flip = 1;
    assert_is(&fetch(&server, options(folder.path())).unwrap(), |_| 0);
    assert!(server.take_served_bytes() > TOTAL);
    // For good.
    server.put_damaged(&format!("{PATH}tokenizer.json"), 70_000);
    let error = fetch(&server, options(&folder.path().join("other"))).unwrap_err();
    assert!(matches!(&error, ModelStoreError::Damaged { .. }), "{error:?}");
    assert!(error.to_string().starts_with("s3://models/models/m/tokenizer.json arrives damaged"), "{error}");
}

#[test]
fn two_downloads_to_one_folder_share_one() {
    let (server, folder) = setup();
    server.faults().bytes_per_s = Some(2_000_000);
    let (a, b) = (store(&server, options(folder.path())), store(&server, options(folder.path())));
    let (a, b) = runtime().block_on(async { tokio::join!(a.fetch(PATH, &|_| {}), b.fetch(PATH, &|_| {})) });
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!(a, b);
    assert_is(&a, |_| 0);
    assert_eq!(server.take_served_bytes(), TOTAL);
}

#[test]
fn without_space_nothing_is_begun() {
    let (server, folder) = setup();
    let error = fetch(&server, S3Options { spare_bytes: 1 << 60, ..options(folder.path()) }).unwrap_err();
    assert!(
        matches!(error, ModelStoreError::DiskFull { needed_bytes, source: None, .. } if needed_bytes == (1 << 60) + TOTAL)
    );
    assert!(error.to_string().contains(&folder.path().display().to_string()), "{error}");
    assert_eq!((unfinished(folder.path()), server.gets()), (0, 0));
}

#[test]
fn errors_say_what_is_wrong_and_what_to_do_and_are_not_tried_again() {
    let (server, folder) = setup();
    let said = |refuse: (u16, &'static str, &'static str)| {
        server.faults().refuse = Some(refuse);
        fetch(&server, S3Options { patience: Duration::from_secs(600), ..options(folder.path()) })
            .unwrap_err()
            .to_string()
    };
    for (refuse, expected) in [
        ((404, "NoSuchBucket", ""), "bucket models does not exist: check the address; MODEL_BUCKET"),
        (
            (403, "AccessDenied", ""),
            "access to s3://models/models/m/ was denied: the credentials need s3:ListBucket on arn:aws:s3:::models and s3:GetObject on",
        ),
        (
            (301, "PermanentRedirect", "x-amz-bucket-region: eu-west-1"),
            "bucket models is not there: it is in eu-west-1, and us-east-1 was asked: set AWS_REGION=eu-west-1",
        ),
        (
            (400, "AuthorizationHeaderMalformed", "x-amz-bucket-region: eu-west-1"),
            "bucket models is not there: it is in eu-west-1",
        ),
        ((403, "InvalidAccessKeyId", ""), "cannot read s3://models/models/m/: AWS does not take the credentials"),
        ((403, "SignatureDoesNotMatch", ""), "cannot read s3://models/models/m/: AWS does not take the credentials"),
    ] {
        let said = said(refuse);
        assert!(said.starts_with(expected), "{said}");
    }
    server.faults().refuse = None;
    server.faults().no_listing = true;
    let error = fetch(&server, options(folder.path())).unwrap_err();
    assert!(matches!(error, ModelStoreError::Denied { .. }), "{error:?}");
    server.faults().no_listing = false;

    let of = |bucket: &str, path: &str| {
        let store = S3Models::new(config(server.url.clone()), bucket, "", options(folder.path()));
        runtime().block_on(store.fetch(path, &|_| {})).unwrap_err()
    };
    assert!(matches!(of("other", PATH), ModelStoreError::NotFound { place, .. } if place == "bucket other"));
    assert!(
        matches!(of(BUCKET, "models/absent"), ModelStoreError::NotFound { place, .. } if place == "s3://models/models/absent/")
    );
    assert!(matches!(of(BUCKET, "models"), ModelStoreError::NotAModel { file: "config.json", .. }));
    assert!(matches!(of(BUCKET, "models/m2"), ModelStoreError::NotAModel { file: "*.safetensors", .. }));
    assert!(matches!(of(BUCKET, "models/../m"), ModelStoreError::OutsideRoot { .. }));
    assert_eq!(server.gets(), 0);
}

#[test]
fn what_may_pass_is_tried_again_and_not_for_ever() {
    let (server, folder) = setup();
    server.faults().refuse = Some((503, "SlowDown", ""));
    let few = S3Options { attempts_max: 3, ..options(folder.path()) };
    let error = fetch(&server, few.clone()).unwrap_err().to_string();
    assert!(error.contains("S3 asks to slow down"), "{error}");
    server.faults().refuse = Some((500, "InternalError", ""));
    let error = fetch(&server, few).unwrap_err().to_string();
    assert!(error.contains("S3 has an error of its own"), "{error}");
}

/// How fast bytes go from sockets to the disk, checksum included; `cargo test --release ... -- --ignored --nocapture`.
#[test]
#[ignore = "a gigabyte on disk and in memory; a measurement"]
#[expect(clippy::print_stdout, reason = "it is what this is for")]
fn a_gigabyte() {
    let server = Double::start();
    server.put(&format!("{PATH}config.json"), 0, 10);
    for shard in 0..4 {
        server.put(&format!("{PATH}model-{shard}.safetensors"), 0, 256 << 20);
    }
    for cut_percent in [0, 30] {
        let folder = tempfile::tempdir().unwrap();
        server.faults().cut_percent = cut_percent;
        let began = Clock::now();
        let found = fetch(&server, S3Options::new(folder.path())).unwrap();
        let seconds = began.elapsed().as_secs_f64();
        println!("{cut_percent}% cut: {:.0} MB/s", (1u64 << 30) as f64 / 1e6 / seconds);
        for shard in 0..4 {
            let name = format!("model-{shard}.safetensors");
            assert!(fs::read(found.join(&name)).unwrap() == content(&format!("{PATH}{name}"), 0, 256 << 20), "{name}");
        }
    }
}
