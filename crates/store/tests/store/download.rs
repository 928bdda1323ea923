//! Downloads where nothing goes wrong, or nothing but the caller.

use std::collections::BTreeSet;
use std::time::Duration;

use m40_store::{FetchError, Phase, Referenced, Request, Secret, Sha256, Token};
use m40_testkit::origin::{Fault, Origin};

use crate::support::{CHUNK, Site, contents, noise};

#[test]
fn a_file_comes_into_the_store_under_its_hash() {
    let site = Site::new();
    let bytes = noise(1, 2 * CHUNK + 12_345);
    site.origin.file("/m.gguf", bytes.clone());
    let store = site.store();
    let pulled = site.pull(&store, Request::new(site.source("/m.gguf"))).unwrap();
    assert_eq!(pulled.files[0].name, "m.gguf");
    assert_eq!(pulled.files[0].blob.sha256, Sha256::of(&bytes));
    assert_eq!(contents(&store, &pulled), bytes);
    assert_eq!(store.list().unwrap()[0].info.sources, [site.source("/m.gguf")]);
    assert_eq!(site.partial(), [""; 0]);
}

#[test]
fn what_is_there_is_not_fetched_again() {
    let site = Site::new();
    let bytes = noise(2, 1000);
    site.origin.file("/m.gguf", bytes.clone());
    let store = site.store();
    site.pull(&store, site.request("/m.gguf", &bytes)).unwrap();
    site.pull(&store, site.request("/m.gguf", &bytes)).unwrap();
    assert_eq!(site.origin.seen().len(), 1);
}

#[test]
fn an_empty_file_and_one_of_unknown_length_are_files() {
    let site = Site::new();
    site.origin.file("/empty", Vec::new());
    let bytes = noise(3, CHUNK + 7);
    site.origin.file("/chunked", bytes.clone());
    site.origin.always("/chunked", Fault::Chunked);
    for connections in [1, 3] {
        let store = site.store_with(site.settings(connections));
        let empty = site.pull(&store, Request::new(site.source("/empty"))).unwrap();
        assert_eq!(contents(&store, &empty), b"");
        let chunked = site.pull(&store, Request::new(site.source("/chunked"))).unwrap();
        assert_eq!(contents(&store, &chunked), bytes);
        store.prune(&Referenced::default(), Duration::ZERO).unwrap();
    }
}

#[test]
fn a_large_file_comes_in_parts_over_several_connections() {
    let site = Site::new();
    let bytes = noise(4, 80 << 20);
    site.origin.file("/m.gguf", bytes.clone());
    let store = site.store_with(site.settings(3));
    let pulled = site.pull(&store, Request::new(site.source("/m.gguf"))).unwrap();
    assert!(contents(&store, &pulled) == bytes);
    let mut starts = site.starts("/m.gguf");
    starts.sort_unstable();
    assert_eq!(starts, [0, 32 << 20, 64 << 20]);
}

#[test]
fn pulls_of_one_file_share_a_download_and_it_outlives_who_asked() {
    let site = Site::new();
    let bytes = noise(5, 3 * CHUNK);
    site.origin.file("/m.gguf", bytes.clone());
    site.origin.fault("/m.gguf", Fault::HoldAfter(CHUNK as u64));
    let store = site.store();
    let first = store.pull(site.request("/m.gguf", &bytes));
    site.origin.wait_for_held(1);
    drop(first);
    let second = store.pull(site.request("/m.gguf", &bytes));
    let mut progress = second.progress();
    // The second is where the first had come to: it joined its download.
    site.wait(progress.wait_for(|progress| progress.done_bytes == CHUNK as u64)).unwrap();
    site.origin.release();
    let pulled = site.wait(second.done()).unwrap();
    assert_eq!(contents(&store, &pulled), bytes);
    assert_eq!(site.origin.seen().len(), 1);
}

#[test]
fn a_cancelled_pull_ends_its_download_unless_another_wants_it() {
    let site = Site::new();
    let bytes = noise(6, 3 * CHUNK);
    site.origin.file("/m.gguf", bytes.clone());
    site.origin.fault("/m.gguf", Fault::HoldAfter(CHUNK as u64));
    let store = site.store();
    let [first, second] = [(); 2].map(|()| {
        let pull = store.pull(site.request("/m.gguf", &bytes));
        let mut progress = pull.progress();
        site.wait(progress.wait_for(|progress| progress.done_bytes == CHUNK as u64)).unwrap();
        pull
    });
    first.cancel();
    assert!(matches!(site.wait(first.done()), Err(FetchError::Cancelled)));
    second.cancel();
    assert!(matches!(site.wait(second.done()), Err(FetchError::Cancelled)));
    // What came is kept, and the next one goes on behind it.
    let pulled = site.pull(&store, site.request("/m.gguf", &bytes)).unwrap();
    assert_eq!(contents(&store, &pulled), bytes);
    assert_eq!(site.starts("/m.gguf"), [0, CHUNK as u64]);
}

#[test]
fn prune_leaves_a_download_alone_that_runs_and_removes_one_that_nobody_goes_on_with() {
    let site = Site::new();
    let bytes = noise(10, 2 * CHUNK);
    site.origin.file("/m.gguf", bytes.clone());
    site.origin.fault("/m.gguf", Fault::HoldAfter(CHUNK as u64));
    let store = site.store();
    let pull = store.pull(site.request("/m.gguf", &bytes));
    site.origin.wait_for_held(1);
    let pruned = store.prune(&Referenced::default(), Duration::ZERO).unwrap();
    assert!(pruned.leftovers.is_empty(), "{pruned:?}");
    pull.cancel();
    let _ = site.wait(pull.done());
    // It waits to be tried again.
    let sources = BTreeSet::from([site.source("/m.gguf")]);
    let waiting = Referenced { sources, ..Referenced::default() };
    let pruned = store.prune(&waiting, Duration::ZERO).unwrap();
    assert!(pruned.leftovers.is_empty(), "{pruned:?}");
    let pruned = store.prune(&Referenced::default(), Duration::ZERO).unwrap();
    assert_eq!(pruned.leftovers.len(), 1);
    assert_eq!(site.partial(), [""; 0]);
}

#[test]
fn progress_counts_what_is_on_disk_and_never_goes_back() {
    let site = Site::new();
    let bytes = noise(7, 5 * CHUNK + 99);
    site.origin.file("/m.gguf", bytes.clone());
    site.origin.fault("/m.gguf", Fault::ResetAfter(2 * CHUNK as u64 + 5));
    site.origin.fault("/m.gguf", Fault::IgnoreRange);
    let store = site.store();
    let pull = store.pull(site.request("/m.gguf", &bytes));
    let mut progress = pull.progress();
    let watched = site.wait(async {
        let mut done = std::pin::pin!(pull.done());
        let mut seen = Vec::new();
        loop {
            seen.push(*progress.borrow_and_update());
            tokio::select! {
                result = &mut done => break result.map(|_| seen),
                _ = progress.changed() => {}
            }
        }
    });
    let seen = watched.unwrap();
    assert!(seen.windows(2).all(|pair| pair[0].done_bytes <= pair[1].done_bytes), "{seen:?}");
    let last = *pull.progress().borrow();
    assert_eq!((last.done_bytes, last.total_bytes), (bytes.len() as u64, Some(bytes.len() as u64)));
    assert_eq!(last.phase, Phase::Downloading);
}

#[test]
fn a_rate_limit_spreads_the_bytes_over_time() {
    let site = Site::new();
    let bytes = noise(8, 3_000_000);
    site.origin.file("/m.gguf", bytes.clone());
    let mut settings = site.settings(1);
    settings.bytes_per_s_max = Some(100_000);
    let store = site.store_with(settings);
    site.pull(&store, site.request("/m.gguf", &bytes)).unwrap();
    let longest = site.stage.slept.lock().unwrap().iter().copied().max().unwrap();
    // This machine does not sleep, so the last byte is told to wait for all before it.
    assert!(longest > Duration::from_secs(1) && longest < Duration::from_secs(30), "{longest:?}");
}

#[test]
fn a_token_goes_to_its_host_and_to_no_other() {
    let site = Site::new();
    let elsewhere = Origin::start();
    let bytes = noise(9, 5000);
    elsewhere.file("/m.gguf", bytes.clone());
    site.origin.always("/m.gguf", Fault::Redirect(elsewhere.url("/m.gguf")));
    let mut settings = site.settings(1);
    let token = |host: String, secret: &str| Token { host, secret: Secret::new(secret) };
    settings.tokens = vec![
        token(site.origin.address().to_string(), "ours"),
        // It has one of its own, which it gets when it is asked itself and not by a redirect.
        token(elsewhere.address().to_string(), "theirs"),
    ];
    assert!(!format!("{settings:?}").contains("ours"));
    let store = site.store_with(settings);
    site.pull(&store, site.request("/m.gguf", &bytes)).unwrap();
    assert_eq!(site.origin.seen()[0].header("authorization"), Some("Bearer ours"));
    assert_eq!(elsewhere.seen()[0].header("authorization"), None);
}

#[test]
fn redirects_have_an_end() {
    let site = Site::new();
    site.origin.always("/m.gguf", Fault::Redirect("/m.gguf?key=secret".to_owned()));
    let store = site.store();
    let error = site.pull(&store, Request::new(site.source("/m.gguf"))).unwrap_err().to_string();
    assert!(error.contains("redirects") && !error.contains("secret"), "{error}");
}
