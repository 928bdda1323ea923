//! Registries, archives and parts: what is at an origin in other forms than one plain file.

use std::io::Write;

use m40_store::{FetchError, Referenced, Request, Sha256, Source};
use m40_testkit::origin::{Fault, Layer, Origin};

use crate::support::{CHUNK, Site, contents, names, noise};

fn hex(bytes: &[u8]) -> String {
    Sha256::of(bytes).to_string()
}

fn source(text: &str) -> Source {
    text.parse().expect("a source")
}

#[test]
fn a_file_of_hugging_face_is_held_to_the_hash_in_its_headers() {
    let site = Site::new();
    let bytes = noise(60, CHUNK + 5);
    site.origin.hugging_face_file("org/repo", "q/m-Q4_0.gguf", bytes.clone(), &hex(&bytes));
    let store = site.store();
    let pulled = site.pull(&store, Request::new(source("hf:org/repo/q/m-Q4_0.gguf"))).unwrap();
    assert_eq!(pulled.files[0].name, "m-Q4_0.gguf");
    assert_eq!(contents(&store, &pulled), bytes);

    let wrong = noise(61, 100);
    site.origin.hugging_face_file("org/repo", "w.gguf", wrong.clone(), &hex(b"other"));
    let error = site.pull(&store, Request::new(source("hf:org/repo/w.gguf"))).unwrap_err();
    assert!(matches!(error, FetchError::Digest { .. }), "{error}");
    let error = site.pull(&store, Request::new(source("hf:org/repo/no.gguf"))).unwrap_err();
    assert!(error.to_string().contains("no such file"), "{error}");
}

#[test]
fn a_large_file_of_hugging_face_lies_elsewhere_and_the_token_does_not_go_there() {
    let site = Site::new();
    let cdn = Origin::start();
    let bytes = noise(62, 3 * CHUNK);
    cdn.file("/signed", bytes.clone());
    let at = "/org/repo/resolve/main/m.gguf";
    site.origin.hugging_face_file("org/repo", "m.gguf", bytes.clone(), &hex(&bytes));
    // The first request asks for headers only.
    site.origin.fault(at, Fault::Nothing);
    site.origin.fault(at, Fault::Redirect(cdn.url("/signed?key=secret")));
    let mut settings = site.settings(1);
    settings.tokens = vec![m40_store::Token {
        host: site.origin.address().to_string(),
        secret: m40_store::Secret::new("hf_token"),
    }];
    let store = site.store_with(settings);
    let pulled = site.pull(&store, Request::new(source("hf:org/repo/m.gguf"))).unwrap();
    assert_eq!(contents(&store, &pulled), bytes);
    let at_home = site.origin.seen_at(at);
    assert!(at_home.iter().all(|seen| seen.header("authorization") == Some("Bearer hf_token")));
    assert_eq!(cdn.seen()[0].header("authorization"), None);
}

#[test]
fn a_quantization_of_hugging_face_may_be_a_split() {
    let site = Site::new();
    let shards = [noise(63, 1000), noise(64, 2000)];
    let names = ["Q8_0/m-Q8_0-00001-of-00002.gguf", "Q8_0/m-Q8_0-00002-of-00002.gguf"];
    let hashes = shards.each_ref().map(|bytes| hex(bytes));
    let sizes = shards.each_ref().map(|bytes| bytes.len() as u64);
    for index in 0..2 {
        let bytes = shards[index].clone();
        site.origin.hugging_face_file("org/repo", names[index], bytes, &hashes[index]);
    }
    let tree = [
        (names[0], hashes[0].as_str(), sizes[0]),
        (names[1], hashes[1].as_str(), sizes[1]),
        ("m-Q4_0.gguf", hashes[0].as_str(), 7),
    ];
    site.origin.hugging_face_tree("org/repo", &tree);
    let store = site.store();
    let pull = store.pull(Request::new(source("hf:org/repo:Q8_0")));
    let pulled = site.wait(pull.done()).unwrap();
    let found: Vec<&str> = pulled.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(found, ["m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf"]);
    assert_eq!(pulled.files[1].blob.sha256, Sha256::of(&shards[1]));
    assert_eq!(pull.progress().borrow().done_bytes, 3000);
    let error = site.pull(&store, Request::new(source("hf:org/repo:Q5_K"))).unwrap_err();
    assert!(error.to_string().contains("m-Q4_0.gguf"), "{error}");
}

#[test]
fn a_model_of_ollama_comes_with_what_says_how_to_use_it() {
    let site = Site::new();
    let weights = noise(65, CHUNK + 9);
    let hash = hex(&weights);
    let kind = |name: &str| format!("application/vnd.ollama.image.{name}");
    let small: [(String, &[u8]); 5] = [
        (kind("template"), b"{{ .Prompt }}"),
        (kind("system"), b"Be brief."),
        (kind("params"), br#"{"stop":["<end>"],"temperature":0.5}"#),
        (kind("license"), b"MIT"),
        (kind("projector"), b"left out"),
    ];
    let hashes: Vec<String> = small.iter().map(|(_, bytes)| hex(bytes)).collect();
    let mut layers: Vec<Layer<'_>> = small
        .iter()
        .zip(&hashes)
        .map(|((media_type, bytes), sha256)| Layer { media_type, bytes, sha256 })
        .collect();
    let model = kind("model");
    layers.insert(0, Layer { media_type: &model, bytes: &weights, sha256: &hash });
    site.origin.ollama_model("library/tiny", "1b", &layers);
    let store = site.store();
    let pulled = site.pull(&store, Request::new(source("ollama:tiny:1b"))).unwrap();
    assert_eq!(pulled.files[0].name, "tiny-1b.gguf");
    assert_eq!(contents(&store, &pulled), weights);
    let beside = pulled.ollama.clone().unwrap();
    assert_eq!(beside.template.as_deref(), Some("{{ .Prompt }}"));
    assert_eq!(beside.system.as_deref(), Some("Be brief."));
    assert_eq!(beside.params["stop"][0], "<end>");
    assert_eq!((beside.licenses.len(), beside.left_out), (1, vec!["projector".to_owned()]));
    let here = format!("ollama:{}/library/tiny:1b", site.origin.address());
    site.pull(&store, Request::new(source(&here))).unwrap();

    // A template that is not what the manifest names is not used.
    site.origin.file(&format!("/v2/library/tiny/blobs/sha256:{}", hashes[0]), &b"evil"[..]);
    let error = site.pull(&store, Request::new(source("ollama:tiny:1b"))).unwrap_err();
    assert!(matches!(error, FetchError::Digest { .. }), "{error}");
    let error = site.pull(&store, Request::new(source("ollama:nobody/has"))).unwrap_err();
    assert!(error.to_string().contains("404"), "{error}");
}

#[test]
fn nonsense_of_a_registry_is_an_error() {
    for answer in ["", "[]", "{\"layers\": 7}", "{\"layers\": []}", "[[[[[[[["] {
        let site = Site::new();
        site.origin.file("/v2/library/m/manifests/latest", answer.as_bytes().to_vec());
        site.origin.file("/api/models/o/r/tree/main", format!("{{{answer}").into_bytes());
        let store = site.store();
        for text in ["ollama:m", "hf:o/r:Q4_0"] {
            let error = site.pull(&store, Request::new(source(text))).unwrap_err();
            assert!(matches!(error, FetchError::Answer { .. }), "{answer:?}: {error}");
        }
    }
}

#[test]
fn parts_become_one_file_and_do_not_stay() {
    let site = Site::new();
    let whole = noise(66, CHUNK + 500);
    let (first, second) = whole.split_at(CHUNK - 3);
    site.origin.file("/m.part1", first.to_vec());
    let path = site.root.path().join("m.part2");
    std::fs::write(&path, second).unwrap();
    let text = format!("{} + {}", site.origin.url("/m.part1"), path.display());
    let store = site.store();
    let request = Request { sha256: Some(Sha256::of(&whole)), ..Request::new(source(&text)) };
    let pulled = site.pull(&store, request.clone()).unwrap();
    assert_eq!(contents(&store, &pulled), whole);
    assert_eq!(store.list().unwrap().len(), 1);
    assert!(path.exists());
    let wrong = Request { sha256: Some(Sha256::of(b"other")), ..request };
    let error = site.pull(&store, wrong).unwrap_err();
    assert!(matches!(error, FetchError::Digest { .. }), "{error}");
    assert_eq!(store.find(&Sha256::of(b"other")), None);
}

#[test]
fn a_member_of_a_wheel_is_taken_out_and_the_wheel_does_not_stay() {
    let site = Site::new();
    let bytes = noise(67, 300_000);
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default();
    zip.start_file("package/m.gguf", options).unwrap();
    zip.write_all(&bytes).unwrap();
    zip.start_file("package/__init__.py", options).unwrap();
    let wheel = zip.finish().unwrap().into_inner();
    site.origin.file("/w.whl", wheel.clone());
    let store = site.store();
    let text = format!("zip+{}!/package/m.gguf", site.origin.url("/w.whl"));
    let pulled = site.pull(&store, Request::new(source(&text))).unwrap();
    assert_eq!(pulled.files[0].name, "m.gguf");
    assert_eq!(contents(&store, &pulled), bytes);
    assert_eq!(store.list().unwrap().len(), 1);

    let pull = |text: &str| site.pull(&store, Request::new(source(text))).unwrap_err().to_string();
    let none = pull(&format!("zip+{}!/none.gguf", site.origin.url("/w.whl")));
    assert!(none.contains("none.gguf"), "{none}");
    let mut bad = wheel;
    bad[100] ^= 1;
    site.origin.file("/bad.whl", bad);
    site.origin.file("/text.whl", noise(68, 4000));
    for path in ["/bad.whl", "/text.whl"] {
        pull(&format!("zip+{}!/package/m.gguf", site.origin.url(path)));
    }
    assert_eq!(site.partial(), [""; 0]);
}

#[test]
fn a_models_folder_of_ollama_is_adopted_without_a_copy() {
    const PARAMS: &[u8] = br#"{"temperature":0.5}"#;
    let site = Site::new();
    let models = site.root.path().join("ollama/models");
    let manifest = |path: &str, bytes: &[u8]| {
        let file = models.join("manifests").join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        let layer = |kind: &str, digest: &str| {
            format!(
                r#"{{"mediaType":"application/vnd.ollama.image.{kind}","digest":"{digest}","size":1}}"#
            )
        };
        let digest = format!("sha256:{}", hex(bytes));
        let params = format!("sha256:{}", hex(PARAMS));
        let layers = [("model", &digest), ("license", &digest), ("params", &params)];
        let layers = layers.map(|(kind, digest)| layer(kind, digest)).join(",");
        std::fs::write(file, format!(r#"{{"schemaVersion":2,"layers":[{layers}]}}"#)).unwrap();
    };
    std::fs::create_dir_all(models.join("blobs")).unwrap();
    let weights = noise(69, 5000);
    let blob = models.join("blobs").join(format!("sha256-{}", hex(&weights)));
    std::fs::write(&blob, &weights).unwrap();
    std::fs::write(models.join("blobs").join(format!("sha256-{}", hex(PARAMS))), PARAMS).unwrap();
    manifest("registry.ollama.ai/library/tiny/1b", &weights);
    manifest("hf.co/org/repo/Q4_0", &weights);
    let broken = models.join("blobs").join(format!("sha256-{}", hex(b"right")));
    std::fs::write(&broken, b"wrong").unwrap();
    manifest("registry.ollama.ai/me/broken/latest", b"right");
    std::fs::write(models.join("manifests/junk"), "{").unwrap();

    let store = site.store();
    let adopted = store.adopt(&models, &mut |done, total| assert!(done <= total)).unwrap();
    let found: Vec<String> = adopted.models.iter().map(|model| model.source.to_string()).collect();
    assert_eq!(found, ["ollama:tiny:1b", "ollama:hf.co/org/repo:Q4_0"]);
    assert_eq!(adopted.left.len(), 2);
    // A licence that is no text is not used.
    let beside = adopted.models[0].ollama.as_ref().unwrap();
    assert_eq!(
        (&beside.params["temperature"], beside.left_out.as_slice()),
        (&0.5.into(), ["license".to_owned()].as_slice())
    );
    let kept = adopted.models[0].blob.info.kept;
    assert!(matches!(kept, m40_store::Kept::HardLink | m40_store::Kept::Clone), "{kept:?}");
    assert_eq!(store.find(&Sha256::of(b"right")), None);
    // The store's own name of it stays when the other program removes its own.
    std::fs::remove_file(blob).unwrap();
    assert!(store.find(&Sha256::of(&weights)).is_some());
}

#[test]
fn a_cache_of_hugging_face_is_adopted_without_a_copy() {
    let site = Site::new();
    let hub = site.root.path().join("hub");
    let repository = hub.join("models--org--some-repo");
    let snapshot = repository.join("snapshots/0123abc/sub");
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(repository.join("blobs")).unwrap();
    let weights = noise(70, 5000);
    std::fs::write(repository.join("blobs").join(hex(&weights)), &weights).unwrap();
    let target = format!("../../../blobs/{}", hex(&weights));
    std::os::unix::fs::symlink(target, snapshot.join("m.gguf")).unwrap();
    std::os::unix::fs::symlink("nowhere", snapshot.join("gone.gguf")).unwrap();
    std::fs::write(snapshot.join("README.md"), "text").unwrap();
    let store = site.store();
    let adopted = store.adopt(&hub, &mut |_, _| {}).unwrap();
    assert_eq!(adopted.models[0].source, source("hf:org/some-repo/sub/m.gguf@0123abc"));
    assert_eq!(adopted.models[0].blob.sha256, Sha256::of(&weights));
    assert_eq!(adopted.left.len(), 1);
    let error = store.adopt(site.root.path(), &mut |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("neither"), "{error}");
}

#[test]
fn what_lies_on_another_file_system_is_adopted_by_reference() {
    let site = Site::new();
    let Some(elsewhere) = crate::support::other_file_system(&site) else { return };
    let repository = elsewhere.path().join("models--org--repo/snapshots/abc");
    std::fs::create_dir_all(&repository).unwrap();
    let weights = noise(71, 5000);
    std::fs::write(repository.join("m.gguf"), &weights).unwrap();
    let store = site.store();
    let adopted = store.adopt(elsewhere.path(), &mut |_, _| {}).unwrap();
    let blob = &adopted.models[0].blob;
    assert_eq!(blob.info.kept, m40_store::Kept::Reference);
    assert_eq!(std::fs::read(store.path(&blob.sha256)).unwrap(), weights);
    // The blob is gone when its owner removes the file, and what is left of it is pruned.
    std::fs::rename(repository.join("m.gguf"), repository.join("n.gguf")).unwrap();
    assert_eq!(store.find(&blob.sha256), None);
    let pruned = store.prune(&Referenced::default(), std::time::Duration::ZERO).unwrap();
    assert_eq!(pruned.leftovers, [store.path(&blob.sha256)]);
    // The file belongs to somebody else: pruning takes the reference and leaves it.
    store.adopt(elsewhere.path(), &mut |_, _| {}).unwrap();
    let pruned = store.prune(&Referenced::default(), std::time::Duration::ZERO).unwrap();
    assert_eq!((pruned.blobs.len(), pruned.bytes), (1, 0));
    assert_eq!(names(&repository), ["n.gguf"]);
}
