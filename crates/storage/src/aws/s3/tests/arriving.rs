//! Models that are used while they are fetched.

use super::*;

const FIRST: &str = "model-1.safetensors";
const LAST: &str = "model-2.safetensors";

/// A fetch that has all but the last shard, which is held back.
fn arriving(server: &Double, store: &Arc<S3Models>, running: &tokio::runtime::Runtime) -> Arriving {
    server.faults().hold = Some(LAST);
    match running.block_on(store.fetch_arriving(PATH, &|_| {})).unwrap() {
        Fetched::Arriving(arriving) => arriving,
        Fetched::Complete(folder) => panic!("{} is complete", folder.display()),
    }
}

fn complete(store: &Arc<S3Models>, running: &tokio::runtime::Runtime) -> PathBuf {
    match running.block_on(store.fetch_arriving(PATH, &|_| {})).unwrap() {
        Fetched::Complete(folder) => folder,
        Fetched::Arriving(_) => panic!("it is not complete"),
    }
}

#[test]
fn files_are_there_as_they_complete_and_the_folder_stays() {
    let (server, folder) = setup();
    let (store, running) = (Arc::new(store(&server, options(folder.path()))), runtime());
    let arriving = arriving(&server, &store, &running);
    let names: BTreeSet<&str> = arriving.names().collect();
    assert_eq!(names, FILES.iter().map(|(name, _)| *name).collect());
    for (name, size) in FILES.iter().filter(|(name, _)| *name != LAST) {
        arriving.wait(name).unwrap();
        let found = fs::read(arriving.folder().join(name)).unwrap();
        assert!(found == content(&format!("{PATH}{name}"), 0, *size), "{name}");
    }
    assert!(!arriving.folder().join(LAST).exists());
    let progress = arriving.progress().unwrap();
    assert!(progress.bytes_total == TOTAL && progress.bytes_done < TOTAL, "{progress:?}");
    // Who waits gets it as soon as it is there.
    let (waiting, path) = (arriving.clone(), arriving.folder().join(LAST));
    let reader = std::thread::spawn(move || {
        waiting.wait(LAST).unwrap();
        fs::read(path).unwrap()
    });
    server.faults().hold = None;
    assert!(reader.join().unwrap() == content(&format!("{PATH}{LAST}"), 0, 2_000_001));
    assert!(arriving.finished().unwrap());
    assert_eq!(arriving.progress(), None);
    assert_is(arriving.folder(), |_| 0);
    assert_eq!(server.take_served_bytes(), TOTAL);
    assert_eq!(complete(&store, &running), arriving.folder());
    assert_eq!(server.take_served_bytes(), 0);
}

#[test]
fn an_error_of_the_fetch_reaches_who_waits() {
    let (server, folder) = setup();
    let (store, running) = (Arc::new(store(&server, options(folder.path()))), runtime());
    let arriving = arriving(&server, &store, &running);
    let waiting = arriving.clone();
    let reader = std::thread::spawn(move || waiting.wait(LAST).unwrap_err());
    server.faults().refuse = Some((403, "AccessDenied", ""));
    server.faults().hold = None;
    let error = reader.join().unwrap();
    assert!(matches!(&*error, ModelStoreError::Denied { .. }), "{error:?}");
    assert_eq!(arriving.finished().unwrap_err().to_string(), error.to_string());
    assert!(arriving.wait("config.json").is_err());
    // And who has not begun to.
    let error = running.block_on(store.fetch_arriving(PATH, &|_| {})).map(drop).unwrap_err();
    assert!(matches!(&*error, ModelStoreError::Denied { .. }), "{error:?}");

    // The runtime ends before the fetch does.
    *server.faults() = Default::default();
    let arriving = self::arriving(&server, &store, &running);
    let waiting = arriving.clone();
    let reader = std::thread::spawn(move || waiting.wait(LAST).unwrap_err().to_string());
    running.shutdown_background();
    let error = reader.join().unwrap();
    assert!(error.contains("models/m"), "{error}");
}

#[test]
fn a_change_midway_ends_in_the_new_revision_only() {
    for (changed, size) in [(FIRST, 3_000_000), (LAST, 2_000_001), ("config.json", 300)] {
        let (server, folder) = setup();
        let (store, running) = (Arc::new(store(&server, options(folder.path()))), runtime());
        let arriving = arriving(&server, &store, &running);
        arriving.wait(FIRST).unwrap();
        server.put(&format!("{PATH}{changed}"), 1, size);
        server.faults().hold = None;
        assert!(!arriving.finished().unwrap(), "{changed}");
        let error = arriving.wait(LAST).unwrap_err();
        assert!(matches!(&*error, ModelStoreError::Superseded { .. }), "{error:?}");
        // What it is now is here already.
        server.take_served_bytes();
        let found = complete(&store, &running);
        assert_is(&found, |name| u64::from(name == changed));
        assert_eq!(server.take_served_bytes(), 0);
        assert!(found != arriving.folder() && !arriving.folder().exists());
    }
}

#[test]
fn with_the_last_who_cares_the_fetch_ends_and_what_came_is_kept() {
    let (server, folder) = setup();
    let (store, running) = (Arc::new(store(&server, options(folder.path()))), runtime());
    let arriving = arriving(&server, &store, &running);
    arriving.wait(FIRST).unwrap();
    let begun = arriving.folder().to_owned();
    drop(arriving);
    server.faults().hold = None;
    server.take_served_bytes();
    // It waits for the folder, which the first one gives back.
    let found = match running.block_on(store.fetch_arriving(PATH, &|_| {})).unwrap() {
        Fetched::Complete(found) => found,
        Fetched::Arriving(arriving) => {
            assert!(arriving.finished().unwrap());
            arriving.folder().to_owned()
        }
    };
    assert_eq!(found, begun);
    assert_is(&found, |_| 0);
    // Requests that were held may be answered to nobody.
    let served = server.take_served_bytes();
    assert!(served < 3_000_000, "{served}");
}

#[test]
fn where_a_file_can_not_be_linked_the_model_is_used_when_it_is_complete() {
    let (server, folder) = setup();
    let (store, running) = (Arc::new(store(&server, options(folder.path()))), runtime());
    let arriving = arriving(&server, &store, &running);
    // Something in the way does what a file system without links would.
    fs::write(arriving.folder().join(LAST), "in the way").unwrap();
    server.faults().hold = None;
    let error = arriving.wait(LAST).unwrap_err();
    assert!(matches!(&*error, ModelStoreError::Superseded { .. }), "{error:?}");
    assert!(!arriving.finished().unwrap());
    let found = complete(&store, &running);
    assert_is(&found, |_| 0);
    assert_eq!(server.take_served_bytes(), TOTAL);
}
