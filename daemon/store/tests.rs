use std::os::unix::fs::MetadataExt;

use super::*;

fn describe(_: &Path) -> Result<Description, String> {
    Ok(Description { architecture: "llama".into(), quantization: "Q4_1".into(), parameters: 7 })
}

struct Dirs {
    root: tempfile::TempDir,
}

impl Dirs {
    fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap() }
    }

    fn store(&self) -> Store {
        Store::open(&self.root.path().join("state"), Settings::default()).unwrap()
    }

    fn file(&self, name: &str, contents: &str) -> PathBuf {
        let path = self.root.path().join(name);
        fs::write(&path, contents).unwrap();
        path
    }
}

fn import(store: &Store, path: &Path, name: Option<&str>) -> Result<Manifest, StoreError> {
    store.import(&Import { path, name, replace: false }, &describe, &mut |_, _| {})
}

#[test]
fn an_imported_file_is_found_by_name_and_hash() {
    let dirs = Dirs::new();
    let file = dirs.file("tiny.Q4_1.gguf", "abc");
    let store = dirs.store();
    let mut seen = Vec::new();
    let request = Import { path: &file, name: None, replace: false };
    let manifest =
        store.import(&request, &describe, &mut |done, total| seen.push((done, total))).unwrap();
    assert_eq!(seen, [(3, 3)]);
    assert_eq!(manifest.name, "tiny.Q4_1");
    // FIPS 180-4's example for "abc".
    let sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(manifest.files[0].sha256.to_string(), sha);
    assert_eq!(store.list(), std::slice::from_ref(&manifest));
    assert_eq!(store.find("tiny.Q4_1"), Some(manifest.clone()));
    assert_eq!(fs::read_to_string(store.path_of(&manifest)).unwrap(), "abc");
    let blob = store.dir.join("blobs/sha256").join(sha);
    assert_eq!(fs::metadata(blob).unwrap().ino(), fs::metadata(file).unwrap().ino());
}

#[test]
fn importing_the_same_file_again_changes_nothing_else() {
    let dirs = Dirs::new();
    let file = dirs.file("m.gguf", "abc");
    let store = dirs.store();
    import(&store, &file, None).unwrap();
    import(&store, &file, None).unwrap();
    import(&store, &file, Some("other-name")).unwrap();
    assert_eq!(store.list().len(), 2);
    let blobs = fs::read_dir(store.dir.join("blobs/sha256")).unwrap().count();
    assert_eq!(blobs, 1);
}

#[test]
fn a_name_is_not_taken_from_another_model_unless_asked() {
    let dirs = Dirs::new();
    let (a, b) = (dirs.file("a.gguf", "a"), dirs.file("b.gguf", "bb"));
    let store = dirs.store();
    import(&store, &a, Some("m")).unwrap();
    let error = import(&store, &b, Some("m")).unwrap_err();
    assert!(matches!(error, StoreError::NameTaken { .. }), "{error}");
    let replace = Import { path: &b, name: Some("m"), replace: true };
    let manifest = store.import(&replace, &describe, &mut |_, _| {}).unwrap();
    assert_eq!(fs::read_to_string(store.path_of(&manifest)).unwrap(), "bb");
}

#[test]
fn a_split_is_imported_whole_or_not_at_all() {
    let dirs = Dirs::new();
    let second = dirs.file("big-00002-of-00002.gguf", "two");
    let store = dirs.store();
    let error = import(&store, &second, None).unwrap_err();
    assert!(error.to_string().contains("big-00001-of-00002.gguf"), "{error}");
    assert!(store.list().is_empty());
    dirs.file("big-00001-of-00002.gguf", "one");
    let manifest = import(&store, &second, None).unwrap();
    assert_eq!(manifest.name, "big");
    assert_eq!(manifest.size_bytes(), 6);
    let first = store.path_of(&manifest);
    assert_eq!(fs::read_to_string(&first).unwrap(), "one");
    assert_eq!(fs::read_to_string(first.with_file_name("big-00002-of-00002.gguf")).unwrap(), "two");
}

#[test]
fn what_fails_the_check_is_not_listed_and_leaves_nothing() {
    let dirs = Dirs::new();
    let file = dirs.file("m.gguf", "junk");
    let store = dirs.store();
    let request = Import { path: &file, name: None, replace: false };
    let refuse = |_: &Path| Err("not a GGUF file".to_owned());
    let error = store.import(&request, &refuse, &mut |_, _| {}).unwrap_err();
    assert_eq!(error.to_string(), "not a GGUF file");
    assert!(store.list().is_empty());
    assert_eq!(fs::read_dir(store.dir.join("blobs/sha256")).unwrap().count(), 0);
}

#[test]
fn bad_paths_and_names_are_refused() {
    let dirs = Dirs::new();
    let file = dirs.file("m.gguf", "abc");
    let store = dirs.store();
    let check = |path: &Path, name: Option<&str>, says: &str| {
        let error = import(&store, path, name).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    };
    check(Path::new("m.gguf"), None, "not absolute");
    check(&dirs.root.path().join("nope.gguf"), None, "there is no file");
    check(dirs.root.path(), None, "not a file");
    check(&file, Some("../evil"), "../evil");
    check(&file, Some(""), "empty");
    assert_eq!(store.find("../../etc/passwd"), None);
}

#[test]
fn a_start_removes_unfinished_imports_and_skips_broken_manifests() {
    let dirs = Dirs::new();
    let store = dirs.store();
    let left = store.dir.join("blobs/sha256/.import-1");
    fs::write(&left, "half").unwrap();
    fs::write(store.dir.join("models/broken.toml"), "name = ").unwrap();
    fs::write(store.dir.join("models/half.toml.new"), "name = \"half\"").unwrap();
    drop(store);
    let store = dirs.store();
    assert!(!left.exists());
    assert!(store.list().is_empty());
}

#[test]
fn the_state_folder_has_one_owner() {
    let dirs = Dirs::new();
    let first = dirs.store();
    let error = Store::open(&first.dir, Settings::default()).unwrap_err();
    assert!(matches!(error, Failure::StateInUse { .. }), "{error}");
}
