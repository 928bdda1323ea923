//! Processes that are killed while they download.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use m40_store::{Proxy, Request, Settings, Sha256, Store};
use m40_testkit::origin::Fault;

use crate::support::{CHUNK, Site, noise};

const URL: &str = "M40_STORE_TEST_URL";
const DIR: &str = "M40_STORE_TEST_DIR";
const HASH: &str = "M40_STORE_TEST_HASH";

/// Does nothing but where the next test starts this program again, to be killed.
#[test]
fn a_download_in_a_process_of_its_own() {
    let var = |name| std::env::var(name).ok();
    let (Some(url), Some(dir), Some(hash)) = (var(URL), var(DIR), var(HASH)) else { return };
    let connections = if url.contains("parallel") { 3 } else { 1 };
    let settings = Settings { connections, proxy: Proxy::Direct, ..Settings::default() };
    let store = Store::open(Path::new(&dir), settings).unwrap();
    let source = url.parse().unwrap();
    let request = Request { sha256: Some(hash.parse().unwrap()), ..Request::new(source) };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let pull = store.pull(request);
    let mut progress = pull.progress();
    let mut done = std::pin::pin!(pull.done());
    runtime
        .block_on(async {
            loop {
                println!("done {}", progress.borrow_and_update().done_bytes);
                tokio::select! {
                    result = &mut done => break result.map(|_| ()),
                    _ = progress.changed() => {}
                }
            }
        })
        .unwrap();
}

/// Every other process is killed when the origin has sent so many bytes, wherever they are by then,
/// and every other one when it says that it has got at least a chunk further.
fn survives_twenty_kills(path: &str, length: usize) {
    let site = Site::new();
    let mut random = fastrand::Rng::with_seed(length as u64);
    let bytes = noise(40, length);
    site.origin.file(path, bytes.clone());
    let state = site.root.path().join("state");
    let download = || {
        let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
        command.args(["--exact", "crash::a_download_in_a_process_of_its_own", "--nocapture"]);
        command.env(URL, site.origin.url(path)).env(DIR, &state);
        command.env(HASH, Sha256::of(&bytes).to_string());
        command.stdout(Stdio::piped()).spawn().expect("this program must start")
    };
    let last_chunk = (length - 1) / CHUNK * CHUNK;
    let mut durable = 0;
    for kill in 0..20 {
        let is_early = kill % 2 == 0;
        let at = if is_early { 0..3 * CHUNK } else { CHUNK..3 * CHUNK };
        // Every reply, as a request that the last process sent may be met only now.
        site.origin.always(path, Fault::HoldAfter(random.u64(at.start as u64..at.end as u64)));
        let held = site.origin.held();
        let mut child = download();
        site.origin.wait_for_held(held + 1);
        if !is_early {
            let lines = BufReader::new(child.stdout.take().expect("its output is a pipe")).lines();
            let mut said = lines.map(|line| line.expect("its output is text")).filter_map(|line| {
                line.strip_prefix("done ").map(|bytes| bytes.parse::<usize>().expect("a number"))
            });
            let goal = (durable + CHUNK).min(last_chunk);
            durable = said.find(|&bytes| bytes >= goal).expect("it got on");
        }
        child.kill().expect("it must be there");
        child.wait().expect("a child can be waited for");
        site.origin.heal();
    }
    site.origin.release();
    assert!(download().wait().expect("a child can be waited for").success());
    let store = site.store();
    let blob = store.find(&Sha256::of(&bytes)).expect("the blob must be there");
    assert!(std::fs::read(store.path(&blob.sha256)).expect("a readable blob") == bytes);
    assert_eq!(site.partial(), [""; 0]);
    // What was said to be on disk was never fetched again.
    assert!(*site.starts(path).last().expect("there were requests") >= durable as u64);
    assert!(durable >= (10 * CHUNK).min(last_chunk));
}

#[test]
fn a_download_is_right_after_twenty_kills_at_random_bytes() {
    survives_twenty_kills("/m.gguf", 30 << 20);
}

#[test]
fn a_download_over_several_connections_is_right_after_twenty_kills() {
    survives_twenty_kills("/parallel.gguf", 90 << 20);
}
