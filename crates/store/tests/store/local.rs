//! Files of this machine: import, verify, prune, and who may have the store.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::Ordering;
use std::time::Duration;

use m40_store::{Kept, OpenError, Referenced, Settings, Sha256, Store, StoreError, Verified};

use crate::support::{CHUNK, Site, names, noise, other_file_system};

#[test]
fn an_imported_file_takes_no_space_twice() {
    let site = Site::new();
    let path = site.root.path().join("m.gguf");
    fs::write(&path, b"abc").unwrap();
    let store = site.store();
    let mut seen = 0;
    let blob = store.import(&path, &mut |bytes| seen += bytes).unwrap();
    assert_eq!((blob.sha256, blob.size_bytes, seen), (Sha256::of(b"abc"), 3, 3));
    let inode = |path| fs::metadata(path).unwrap().ino();
    match blob.info.kept {
        Kept::HardLink => assert_eq!(inode(store.path(&blob.sha256)), inode(path.clone())),
        Kept::Clone => assert_ne!(inode(store.path(&blob.sha256)), inode(path.clone())),
        other => panic!("it was kept as {other:?} on one file system"),
    }
    assert_eq!(store.import(&path, &mut |_| {}).unwrap().sha256, blob.sha256);
    assert_eq!(store.list().unwrap().len(), 1);
    assert_eq!(site.partial(), [""; 0]);
}

#[test]
fn what_somebody_sends_is_stored_if_it_is_what_was_announced() {
    let site = Site::new();
    let store = site.store();
    let bytes = noise(51, 3000);
    let announced = Sha256::of(&bytes);
    let wrong = store.receive(&announced, Some(3000), &mut &bytes[..2999]);
    let found = Sha256::of(&bytes[..2999]);
    assert!(matches!(wrong, Err(StoreError::Digest { expected, found: other })
            if expected == announced && other == found));
    site.stage.free_bytes.store(2999, Ordering::Relaxed);
    let large = store.receive(&announced, Some(3000), &mut &bytes[..]);
    assert!(matches!(large, Err(StoreError::NoSpace { needed_bytes: 3000, free_bytes: 2999, .. })));
    site.stage.free_bytes.store(u64::MAX, Ordering::Relaxed);
    assert!(store.list().unwrap().is_empty());
    let blob = store.receive(&announced, None, &mut &bytes[..]).unwrap();
    assert_eq!((blob.sha256, blob.size_bytes, blob.info.kept), (announced, 3000, Kept::Own));
    assert_eq!(fs::read(store.path(&announced)).unwrap(), bytes);
    assert_eq!(site.partial(), [""; 0]);
}

#[test]
fn a_file_of_another_file_system_is_copied_if_it_fits() {
    let site = Site::new();
    let Some(elsewhere) = other_file_system(&site) else { return };
    let path = elsewhere.path().join("m.gguf");
    let bytes = noise(50, 3000);
    fs::write(&path, &bytes).unwrap();
    let store = site.store();
    site.stage.free_bytes.store(2999, Ordering::Relaxed);
    let error = store.import(&path, &mut |_| {}).unwrap_err();
    let both = matches!(error, StoreError::NoSpace { needed_bytes: 3000, free_bytes: 2999, .. });
    assert!(both, "{error}");
    site.stage.free_bytes.store(3000, Ordering::Relaxed);
    let blob = store.import(&path, &mut |_| {}).unwrap();
    assert_eq!(blob.info.kept, Kept::Own);
    assert_eq!(fs::read(store.path(&blob.sha256)).unwrap(), bytes);
}

#[test]
fn a_blob_that_went_bad_is_found_and_quarantined() {
    let site = Site::new();
    let path = site.root.path().join("m.gguf");
    let bytes = noise(51, 3 * CHUNK + 10);
    fs::write(&path, &bytes).unwrap();
    let store = site.store();
    let blob = store.import(&path, &mut |_| {}).unwrap();
    let mut seen = 0;
    assert_eq!(store.verify(&blob.sha256, &mut |bytes| seen += bytes).unwrap(), Verified::Right);
    assert_eq!(seen, bytes.len() as u64);

    let file = fs::File::options().write(true).open(store.path(&blob.sha256)).unwrap();
    file.write_all_at(b"?!", CHUNK as u64 + 3).unwrap();
    let verified = store.verify(&blob.sha256, &mut |_| {}).unwrap();
    let Verified::Quarantined { bad_chunks, path, .. } = verified else { panic!("{verified:?}") };
    assert_eq!(bad_chunks, [1]);
    assert!(path.exists());
    assert_eq!(store.find(&blob.sha256), None);
    let error = store.verify(&blob.sha256, &mut |_| {}).unwrap_err();
    assert!(matches!(error, StoreError::NoBlob { .. }), "{error}");
    // Where it is in nobody's way until it is pruned.
    store.prune(&Referenced::default(), Duration::ZERO).unwrap();
    assert!(!path.exists());
}

#[test]
fn prune_removes_what_nothing_refers_to_and_a_dry_run_only_says_so() {
    let site = Site::new();
    let store = site.store();
    let import = |name: &str, bytes: &[u8]| {
        let path = site.root.path().join(name);
        fs::write(&path, bytes).unwrap();
        store.import(&path, &mut |_| {}).unwrap().sha256
    };
    let (wanted, unwanted) = (import("a", b"wanted"), import("b", b"unwanted"));
    let referenced = Referenced { blobs: BTreeSet::from([wanted]), ..Default::default() };
    let young = store.prune(&referenced, Duration::from_secs(3600)).unwrap();
    assert_eq!(young.blobs, []);
    let planned = store.prune_dry_run(&referenced, Duration::ZERO).unwrap();
    assert_eq!((planned.blobs.as_slice(), planned.bytes), ([unwanted].as_slice(), 8));
    assert!(store.find(&unwanted).is_some());
    // One file of several of a source that is still to come.
    let path = site.root.path().join("b").to_str().unwrap().parse().unwrap();
    let coming = Referenced { sources: BTreeSet::from([path]), ..referenced.clone() };
    assert_eq!(store.prune(&coming, Duration::ZERO).unwrap().blobs, []);
    assert_eq!(store.prune(&referenced, Duration::ZERO).unwrap(), planned);
    assert!(store.find(&unwanted).is_none());
    let error = store.remove(&unwanted).unwrap_err();
    assert!(matches!(error, StoreError::NoBlob { .. }), "{error}");
    assert!(store.find(&wanted).is_some());
    assert_eq!(names(&store.dir().join("meta")).len(), 2);
}

#[test]
fn what_is_known_beside_a_blob_may_be_lost() {
    let site = Site::new();
    let path = site.root.path().join("m.gguf");
    fs::write(&path, b"abc").unwrap();
    let store = site.store();
    let sha256 = store.import(&path, &mut |_| {}).unwrap().sha256;
    let meta = store.dir().join("meta");
    fs::write(meta.join(format!("{sha256}.toml")), "sources = 7").unwrap();
    fs::remove_file(meta.join(format!("{sha256}.chain"))).unwrap();
    assert_eq!(store.find(&sha256).unwrap().size_bytes, 3);
    assert_eq!(store.verify(&sha256, &mut |_| {}).unwrap(), Verified::Right);
    assert!(store.find(&sha256).unwrap().info.verified_unix_s > 0);
}

#[test]
fn a_store_has_one_owner_and_a_start_removes_unfinished_imports() {
    let site = Site::new();
    let store = site.store();
    let error = Store::open(store.dir(), Settings::default()).unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    let left = store.dir().join("partial/import-7");
    fs::write(&left, "half").unwrap();
    fs::write(store.dir().join("blobs/sha256/not-a-hash"), "x").unwrap();
    drop(store);
    let store = site.store();
    assert!(!left.exists());
    assert_eq!(store.list().unwrap(), []);
}
