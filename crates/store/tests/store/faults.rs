//! Origins that break, lie and change their minds, and disks that do too.

use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use m40_store::{FetchError, Phase, Referenced, Request, Sha256, StoreError};
use m40_testkit::origin::{Fault, Origin};
use proptest::prelude::*;

use crate::support::{CHUNK, Site, contents, noise};

/// Pulls a file through these faults, and it must be right in the end.
fn survives(connections: usize, length: usize, faults: &[Fault]) -> Site {
    let site = Site::new();
    let bytes = noise(length as u64, length);
    site.origin.file("/m.gguf", bytes.clone());
    for fault in faults {
        site.origin.fault("/m.gguf", fault.clone());
    }
    let store = site.store_with(site.settings(connections));
    let pulled = site.pull(&store, site.request("/m.gguf", &bytes));
    let pulled = pulled.unwrap_or_else(|error| panic!("{faults:?}: {error}"));
    assert!(contents(&store, &pulled) == bytes, "{faults:?}");
    assert_eq!(site.partial(), [""; 0]);
    site
}

#[test]
fn a_broken_connection_is_taken_up_where_it_broke() {
    let at = 2 * CHUNK as u64 + 77;
    let site = survives(1, 4 * CHUNK, &[Fault::ResetAfter(at), Fault::ResetAfter(0)]);
    let starts = site.starts("/m.gguf");
    assert_eq!(starts.len(), 3);
    assert!(starts[1] > CHUNK as u64 && starts[1] <= at, "{starts:?}");
    assert_eq!(starts[1], starts[2]);
}

#[test]
fn a_stalled_connection_is_given_up_and_taken_up_again() {
    let site = Site::new();
    let bytes = noise(19, 3 * CHUNK);
    site.origin.file("/m.gguf", bytes.clone());
    site.origin.fault("/m.gguf", Fault::HoldAfter(CHUNK as u64));
    let mut settings = site.settings(1);
    settings.stall_timeout = Duration::from_secs(1);
    let store = site.store_with(settings);
    let pulled = site.pull(&store, site.request("/m.gguf", &bytes)).unwrap();
    assert!(contents(&store, &pulled) == bytes);
    assert_eq!(site.starts("/m.gguf")[..2], [0, CHUNK as u64]);
}

#[test]
fn one_of_several_connections_may_break() {
    let length = 70 << 20;
    let site = survives(3, length, &[Fault::Nothing, Fault::ResetAfter(9 << 20), Fault::Nothing]);
    // Each byte is fetched once but for what was on its way.
    assert!(site.starts("/m.gguf").len() <= 8);
}

#[test]
fn an_origin_that_ignores_ranges_is_taken_from_the_start() {
    for connections in [1, 3] {
        survives(connections, 3 * CHUNK, &[Fault::IgnoreRange]);
        let faults = [Fault::ResetAfter(2 * CHUNK as u64), Fault::IgnoreRange];
        survives(connections, 3 * CHUNK, &faults);
    }
}

#[test]
fn an_origin_that_sends_other_ranges_is_asked_for_none() {
    let lies = [Fault::ResetAfter(2 * CHUNK as u64), Fault::LieAboutRange, Fault::LieAboutRange];
    survives(1, 3 * CHUNK, &lies);
}

#[test]
fn wrong_bytes_are_found_and_only_they_are_replaced() {
    let lies = [Fault::ResetAfter(CHUNK as u64), Fault::LieAboutBytes];
    survives(1, 3 * CHUNK, &lies);
    let site = survives(1, 3 * CHUNK, &[Fault::Corrupt(CHUNK as u64 + 5)]);
    // The download, and one more look at all of it.
    assert_eq!(site.starts("/m.gguf"), [0, 0]);
    // The second look may be the wrong one.
    let twice = [Fault::Corrupt(5), Fault::Corrupt(2 * CHUNK as u64)];
    survives(1, 3 * CHUNK, &twice);
}

#[test]
fn what_is_not_this_file_is_not_compared_with_it() {
    let length = 2 * CHUNK as u64;
    for fault in [Fault::LieAboutRange, Fault::Html, Fault::Short(length - 1)] {
        let site = Site::new();
        let bytes = noise(18, length as usize);
        site.origin.file("/m.gguf", bytes.clone());
        site.origin.fault("/m.gguf", Fault::Corrupt(7));
        site.origin.fault("/m.gguf", fault.clone());
        let store = site.store();
        let mirrors = vec![site.origin.url("/m.gguf?mirror").parse().unwrap()];
        let request = Request { mirrors, ..site.request("/m.gguf", &bytes) };
        let pulled = site.pull(&store, request).unwrap_or_else(|e| panic!("{fault:?}: {e}"));
        assert!(contents(&store, &pulled) == bytes);
    }
}

#[test]
fn where_memory_was_wrong_and_the_disk_is_right_nothing_is_fetched_again() {
    let site = Site::new();
    let bytes = noise(17, 3 * CHUNK);
    site.origin.file("/m.gguf", bytes.clone());
    site.origin.fault("/m.gguf", Fault::HoldAfter(2 * CHUNK as u64));
    site.stage.spoils_at.store(100, Ordering::Relaxed);
    let store = site.store();
    let pull = store.pull(site.request("/m.gguf", &bytes));
    let mut progress = pull.progress();
    site.wait(progress.wait_for(|progress| progress.done_bytes == 2 * CHUNK as u64)).unwrap();
    // The wrong byte is hashed by now.
    let [key] = site.partial().try_into().unwrap();
    let data = site.root.path().join("state/partial").join(key).join("data");
    let data = fs::File::options().write(true).open(data).unwrap();
    data.write_all_at(&bytes[100..101], 100).unwrap();
    site.origin.release();
    let pulled = site.wait(pull.done()).unwrap();
    assert!(contents(&store, &pulled) == bytes);
    assert_eq!(site.origin.seen().len(), 1);
}

#[test]
fn a_disk_that_spoils_a_byte_is_found_out() {
    let site = Site::new();
    let bytes = noise(16, 3 * CHUNK);
    site.origin.file("/m.gguf", bytes.clone());
    site.stage.spoils_at.store(CHUNK as u64 + 100, Ordering::Relaxed);
    let store = site.store();
    let error = site.pull(&store, site.request("/m.gguf", &bytes)).unwrap_err();
    assert!(matches!(error, FetchError::Inconsistent { .. }), "{error}");
    assert!(store.list().unwrap().is_empty());
    site.stage.spoils_at.store(u64::MAX, Ordering::Relaxed);
    let pulled = site.pull(&store, site.request("/m.gguf", &bytes)).unwrap();
    assert!(contents(&store, &pulled) == bytes);
}

#[test]
fn a_busy_origin_is_left_alone_for_as_long_as_it_asks() {
    let busy = [Fault::Status(429, Some("7")), Fault::Status(503, None)];
    let site = survives(3, CHUNK, &busy);
    let slept = site.stage.slept.lock().unwrap().clone();
    assert_eq!(slept, [Duration::from_secs(7), Duration::from_secs(1)]);
}

#[test]
fn it_gives_up_in_the_end_and_keeps_what_came() {
    let site = Site::new();
    let bytes = noise(20, 3 * CHUNK);
    site.origin.file("/m.gguf", bytes.clone());
    site.origin.fault("/m.gguf", Fault::ResetAfter(2 * CHUNK as u64));
    site.origin.always("/m.gguf", Fault::Status(502, None));
    let store = site.store();
    let error = site.pull(&store, site.request("/m.gguf", &bytes)).unwrap_err();
    assert!(matches!(error, FetchError::GaveUp { tries: 4, .. }), "{error}");
    assert!(error.to_string().contains("502"), "{error}");
    site.origin.heal();
    site.pull(&store, site.request("/m.gguf", &bytes)).unwrap();
    assert!(*site.starts("/m.gguf").last().unwrap() >= CHUNK as u64);
}

#[test]
fn what_is_not_the_file_is_refused_before_it_is_written() {
    let length = CHUNK as u64;
    for (fault, says) in [
        (Fault::Html, "a web page"),
        (Fault::Short(length - 1), "bytes, and not"),
        (Fault::Long(1), "bytes, and not"),
        (Fault::Status(404, None), "no such file"),
        (Fault::Status(401, None), "a token"),
        (Fault::Redirect("ftp://example.org/m".to_owned()), "not on the web"),
    ] {
        let site = Site::new();
        let bytes = noise(21, CHUNK);
        site.origin.file("/m.gguf", bytes.clone());
        site.origin.always("/m.gguf", fault);
        let store = site.store();
        let request = Request { size_bytes: Some(length), ..site.request("/m.gguf", &bytes) };
        let error = site.pull(&store, request.clone()).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert!(store.list().unwrap().is_empty());
        assert_eq!(site.origin.seen().len(), 1, "it was tried again: {error}");
        site.origin.heal();
        assert_eq!(contents(&store, &site.pull(&store, request).unwrap()), bytes);
    }
}

#[test]
fn a_body_that_is_longer_or_shorter_than_said_is_not_taken() {
    for fault in [Fault::Short(CHUNK as u64), Fault::Long(3)] {
        let site = Site::new();
        let bytes = noise(22, 2 * CHUNK);
        site.origin.file("/m.gguf", bytes.clone());
        site.origin.always("/m.gguf", fault);
        let store = site.store();
        // Without a length that is known, the hash finds it.
        let error = site.pull(&store, site.request("/m.gguf", &bytes)).unwrap_err();
        assert!(matches!(error, FetchError::Digest { .. }), "{error}");
        assert!(store.list().unwrap().is_empty());
    }
}

#[test]
fn a_mirror_is_asked_when_the_origin_fails() {
    let site = Site::new();
    let mirror = Origin::start();
    let bytes = noise(23, 3 * CHUNK);
    mirror.file("/copy.gguf", bytes.clone());
    site.origin.file("/m.gguf", bytes.clone());
    site.origin.fault("/m.gguf", Fault::ResetAfter(2 * CHUNK as u64));
    site.origin.always("/m.gguf", Fault::Status(403, None));
    let store = site.store();
    let mirrors = vec![mirror.url("/copy.gguf").parse().unwrap()];
    let request = Request { mirrors, ..site.request("/m.gguf", &bytes) };
    assert_eq!(contents(&store, &site.pull(&store, request).unwrap()), bytes);
    // The mirror goes on where the origin broke.
    let range = mirror.seen()[0].header("range").unwrap_or("none").to_owned();
    assert_ne!(range, "none");
}

#[test]
fn a_file_that_changes_at_the_origin_is_never_mixed() {
    let site = Site::new();
    let (old, new) = (noise(24, 3 * CHUNK), noise(25, 3 * CHUNK));
    for (etag, ignores) in [(Some("\"new\""), false), (Some("\"new\""), true), (None, false)] {
        site.origin.file("/m.gguf", old.clone());
        site.origin.set_etag("/m.gguf", Some("\"old\""));
        site.origin.fault("/m.gguf", Fault::ResetAfter(2 * CHUNK as u64));
        site.origin.fault("/m.gguf", Fault::HoldAfter(0));
        let held = site.origin.seen().len() + 2;
        let mut settings = site.settings(1);
        settings.stall_timeout = Duration::from_secs(1);
        let store = site.store_with(settings);
        let pull = store.pull(Request::new(site.source("/m.gguf")));
        site.origin.wait_for_requests("/m.gguf", held);
        site.origin.file("/m.gguf", new.clone());
        site.origin.set_etag("/m.gguf", etag);
        if ignores {
            site.origin.fault("/m.gguf", Fault::IgnoreRange);
        }
        let pulled = site.wait(pull.done()).unwrap();
        assert!(contents(&store, &pulled) == new, "{etag:?} {ignores}");
        store.prune(&Referenced::default(), Duration::ZERO).unwrap();
    }
}

#[test]
fn a_wrong_hash_is_an_error_and_what_came_is_there_for_the_right_one() {
    let site = Site::new();
    let bytes = noise(26, 2 * CHUNK + 1);
    site.origin.file("/m.gguf", bytes.clone());
    let store = site.store();
    let error = site.pull(&store, site.request("/m.gguf", b"other")).unwrap_err();
    let FetchError::Digest { expected, found, .. } = error else { panic!("{error}") };
    assert_eq!((expected, found), (Sha256::of(b"other"), Sha256::of(&bytes)));
    assert!(store.list().unwrap().is_empty());
    let requests = site.origin.seen().len();
    site.pull(&store, site.request("/m.gguf", &bytes)).unwrap();
    let last = site.origin.seen().len();
    assert!(last <= requests + 1);
    assert!(site.starts("/m.gguf").last().is_none_or(|&start| start > 0));
}

#[test]
fn an_origin_that_is_never_the_same_is_given_up() {
    let site = Site::new();
    let bytes = noise(27, CHUNK);
    site.origin.file("/m.gguf", bytes.clone());
    for at in 0..4 {
        site.origin.fault("/m.gguf", Fault::Corrupt(at));
    }
    let store = site.store();
    let error = site.pull(&store, site.request("/m.gguf", &bytes)).unwrap_err();
    assert!(matches!(error, FetchError::Inconsistent { .. }), "{error}");
    site.pull(&store, site.request("/m.gguf", &bytes)).unwrap();
}

#[test]
fn a_file_that_does_not_fit_is_refused_with_both_numbers() {
    let site = Site::new();
    let bytes = noise(28, 12_000_000);
    site.origin.file("/m.gguf", bytes.clone());
    site.stage.free_bytes.store(11_000_000, Ordering::Relaxed);
    let store = site.store();
    let error = site.pull(&store, site.request("/m.gguf", &bytes)).unwrap_err().to_string();
    assert!(error.contains("12.0 MB more needed, 11.0 MB free"), "{error}");
}

#[test]
fn a_disk_that_fills_up_on_the_way_loses_nothing() {
    for connections in [1, 3] {
        let site = Site::new();
        let bytes = noise(29, 5 * CHUNK);
        site.origin.file("/m.gguf", bytes.clone());
        site.stage.room_bytes.store(3 * CHUNK as u64, Ordering::Relaxed);
        let store = site.store_with(site.settings(connections));
        let error = site.pull(&store, site.request("/m.gguf", &bytes)).unwrap_err();
        let FetchError::Store(error) = &error else { panic!("{error}") };
        assert!(matches!(**error, StoreError::NoSpace { .. }), "{error}");
        site.stage.room_bytes.store(u64::MAX, Ordering::Relaxed);
        let pulled = site.pull(&store, site.request("/m.gguf", &bytes)).unwrap();
        assert_eq!(contents(&store, &pulled), bytes);
        assert!(*site.starts("/m.gguf").last().unwrap() >= 2 * CHUNK as u64);
    }
}

#[test]
fn what_a_crash_left_on_the_disk_is_believed_only_as_far_as_it_hashes() {
    let site = Site::new();
    let bytes = noise(30, 6 * CHUNK);
    site.origin.file("/m.gguf", bytes.clone());
    site.origin.fault("/m.gguf", Fault::HoldAfter(5 * CHUNK as u64));
    let store = site.store();
    let pull = store.pull(site.request("/m.gguf", &bytes));
    let mut progress = pull.progress();
    site.wait(progress.wait_for(|progress| progress.done_bytes == 5 * CHUNK as u64)).unwrap();
    pull.cancel();
    let _ = site.wait(pull.done());
    drop(store);
    let [key] = site.partial().try_into().unwrap();
    let dir = site.root.path().join("state/partial").join(key);
    let data = fs::File::options().write(true).open(dir.join("data")).unwrap();
    data.write_all_at(b"?", 3 * CHUNK as u64 + 100).unwrap();
    let chain = fs::File::options().write(true).open(dir.join("chain")).unwrap();
    chain.set_len(4 * 32 + 5).unwrap();

    let store = site.store();
    let pull = store.pull(site.request("/m.gguf", &bytes));
    let mut progress = pull.progress();
    let found = |progress: &m40_store::Progress| progress.phase == Phase::Downloading;
    let done = site.wait(progress.wait_for(found)).unwrap().done_bytes;
    assert!(done >= 3 * CHUNK as u64);
    assert_eq!(contents(&store, &site.wait(pull.done()).unwrap()), bytes);
    assert_eq!(site.starts("/m.gguf"), [0, 3 * CHUNK as u64]);
}

fn any_fault(length: u64) -> impl Strategy<Value = Fault> {
    prop_oneof![
        (0..length).prop_map(Fault::ResetAfter),
        Just(Fault::IgnoreRange),
        Just(Fault::LieAboutBytes),
        Just(Fault::LieAboutRange),
        (0..length).prop_map(Fault::Corrupt),
        Just(Fault::Chunked),
        Just(Fault::Status(503, None)),
        Just(Fault::Status(429, Some("1"))),
        Just(Fault::Nothing),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn whatever_goes_wrong_in_whatever_order_the_file_is_right_or_absent(
        faults in proptest::collection::vec(any_fault(2 * CHUNK as u64), 0..8),
        connections in 1usize..4,
    ) {
        let site = Site::new();
        let bytes = noise(31, 2 * CHUNK + 4321);
        site.origin.file("/m.gguf", bytes.clone());
        for fault in &faults {
            site.origin.fault("/m.gguf", fault.clone());
        }
        let store = site.store_with(site.settings(connections));
        for _ in 0..=faults.len() {
            if site.pull(&store, site.request("/m.gguf", &bytes)).is_ok() {
                break;
            }
            prop_assert!(store.list().unwrap().is_empty());
        }
        let blob = store.find(&Sha256::of(&bytes));
        prop_assert!(blob.is_some(), "it did not come in the end");
        prop_assert!(fs::read(store.path(&Sha256::of(&bytes))).unwrap() == bytes);
    }
}
