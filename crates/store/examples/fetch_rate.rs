//! How fast a download is beside `curl`, from an origin of this machine to the same disk.
//!
//!     cargo run --release -p m40-store --example fetch_rate -- [MIB [DIR]]
//!
//! Both write a file of random bytes, in turns, three times each; the best counts. `curl` neither
//! hashes nor flushes: its second column has a `sync` of the file behind it. The memory is the most
//! that this process had resident beyond what it had before the download.

#![expect(clippy::print_stdout, reason = "an example prints its result")]

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use m40_store::{Proxy, Request, Settings, Sha256, Store};
use m40_testkit::origin::Origin;

const ROUNDS: usize = 3;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mib: usize = arguments.next().map_or(1024, |mib| mib.parse().expect("a number of MiB"));
    let dir = arguments.next().unwrap_or_else(|| ".".to_owned());
    if let Ok(url) = std::env::var("FETCH_RATE_URL") {
        return fetch(&url, Path::new(&dir), mib);
    }
    let dir = tempfile::tempdir_in(dir).expect("a folder");
    let mut bytes = vec![0; mib << 20];
    fastrand::Rng::with_seed(1).fill(&mut bytes);
    let sha256 = Sha256::of(&bytes);
    let origin = Origin::start();
    origin.file("/m.gguf", bytes);
    let url = origin.url("/m.gguf");
    println!("{mib} MiB from {url} to {}, MiB/s, best of {ROUNDS}", dir.path().display());
    let mut best = [f64::INFINITY; 4];
    let mut memory = 0;
    for _ in 0..ROUNDS {
        let file = dir.path().join("curl");
        let started = Instant::now();
        run(Command::new("curl").args(["-sSfo", &file.to_string_lossy(), &url]));
        best[0] = best[0].min(started.elapsed().as_secs_f64());
        run(Command::new("sync").arg(&file));
        best[1] = best[1].min(started.elapsed().as_secs_f64());
        let _ = std::fs::remove_file(file);
        for (index, connections) in [(2, 1), (3, 4)] {
            let state = dir.path().join("state");
            let mut command = Command::new(std::env::current_exe().expect("this program"));
            command.args([connections.to_string().as_str(), &state.to_string_lossy()]);
            let command = command.env("FETCH_RATE_URL", format!("{url} {sha256}"));
            let output = command.output().expect("this program must start");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let figures: Vec<f64> =
                text.split_whitespace().map(|figure| figure.parse().expect("a figure")).collect();
            best[index] = best[index].min(figures[0]);
            memory = memory.max(figures[1] as u64);
            let _ = std::fs::remove_dir_all(state);
        }
    }
    let names = ["curl", "curl and sync", "store, 1 connection", "store, 4 connections"];
    for (name, seconds) in names.iter().zip(best) {
        let of_curl = best[0] / seconds;
        println!("{name:<22}{:>8.0}{of_curl:>8.2} of curl", mib as f64 / seconds);
    }
    println!("most memory {:>11.1} MiB beyond the start", memory as f64 / 1024.0);
}

/// One download in a process of its own; prints its seconds and KiB.
fn fetch(url: &str, dir: &Path, connections: usize) {
    let (url, sha256) = url.split_once(' ').expect("a URL and a hash");
    let settings = Settings { connections, proxy: Proxy::Direct, ..Settings::default() };
    let store = Store::open(dir, settings).expect("a store");
    let source = url.parse().expect("a source");
    let sha256 = Some(sha256.parse().expect("a hash"));
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let before = resident_kib("VmRSS:");
    let started = Instant::now();
    let pull = store.pull(Request { sha256, ..Request::new(source) });
    runtime.block_on(pull.done()).expect("the download");
    let seconds = started.elapsed().as_secs_f64();
    println!("{seconds} {}", resident_kib("VmHWM:").saturating_sub(before));
}

fn resident_kib(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("a readable /proc");
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).expect("a number of KiB")
}

fn run(command: &mut Command) {
    let status = command.status().expect("the program must be there");
    assert!(status.success(), "{command:?}: {status}");
}
