//! How fast `m40d` gets a model beside `curl`, from an origin of this machine to the same disk, and how
//! much memory that takes.
//!
//!     cargo bench --bench pull -- [MIB]
//!
//! Both get a file of random bytes, in turns, three times each; the best counts. `curl` neither hashes
//! nor flushes: its second line has a `sync` of the file behind it. The time of `m40d` begins when the
//! manifest is saved, and ends when `m40ctl pull` says that the model is here.

#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use m40_store::Sha256;
use m40_testkit::daemon::{Builder, Daemon};
use m40_testkit::origin::Origin;

const ROUNDS: usize = 3;

fn main() {
    // Cargo adds a flag of its own.
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let mib: usize = arguments.next().map_or(1024, |mib| mib.parse().expect("a number of MiB"));
    let mut bytes = vec![0; mib << 20];
    fastrand::Rng::with_seed(1).fill(&mut bytes);
    let sha256 = Sha256::of(&bytes);
    let origin = Origin::start();
    origin.file("/m.gguf", bytes);
    let url = origin.url("/m.gguf");
    println!("{mib} MiB from {url}, MiB/s, best of {ROUNDS}");
    let (mut curl, mut sync, mut m40d) = (f64::INFINITY, f64::INFINITY, f64::INFINITY);
    let mut memory = 0;
    for _ in 0..ROUNDS {
        let builder =
            Builder::new(env!("CARGO_BIN_EXE_m40d")).config("[store]\nproxy = \"none\"\n");
        let file = builder.dir().join("curl");
        let started = Instant::now();
        run(Command::new("curl").args(["-sSfo", &file.to_string_lossy(), &url]));
        curl = curl.min(started.elapsed().as_secs_f64());
        run(Command::new("sync").arg(&file));
        sync = sync.min(started.elapsed().as_secs_f64());
        std::fs::remove_file(file).expect("a file that was made");
        let daemon = builder.start();
        let before = resident_kib(&daemon, "VmRSS:");
        let started = Instant::now();
        define(daemon.dir(), &format!("source = {url:?}\nsha256 = \"{sha256}\"\n"));
        run(&mut daemon.ctl(env!("CARGO_BIN_EXE_m40ctl"), &["reload"]));
        run(&mut daemon.ctl(env!("CARGO_BIN_EXE_m40ctl"), &["pull", "m"]));
        m40d = m40d.min(started.elapsed().as_secs_f64());
        memory = memory.max(resident_kib(&daemon, "VmHWM:").saturating_sub(before));
    }
    for (name, seconds) in [("curl", curl), ("curl and sync", sync), ("m40d", m40d)] {
        println!("{name:<14}{:>8.0}{:>8.2} of curl", mib as f64 / seconds, curl / seconds);
    }
    println!("most memory {:>10.1} MiB beyond the start", memory as f64 / 1024.0);
}

fn define(root: &Path, text: &str) {
    let dir = root.join("models.d");
    std::fs::create_dir_all(&dir).expect("a folder");
    std::fs::write(dir.join("m.toml"), text).expect("a manifest");
}

fn resident_kib(daemon: &Daemon, name: &str) -> u64 {
    let path = format!("/proc/{}/status", daemon.pid());
    let status = std::fs::read_to_string(path).expect("a readable /proc");
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).expect("a number of KiB")
}

fn run(command: &mut Command) {
    let output = command.output().expect("the program must be there");
    assert!(output.status.success(), "{command:?}: {output:?}");
}
