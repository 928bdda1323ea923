//! Replays the inputs of the fuzz target `manifest`: seeds and past crashes, in `data/fuzz/`.

use std::path::Path;

#[test]
fn every_kept_fuzz_input_returns() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fuzz");
    let mut replayed = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        m40_manifest::fuzz::check(&std::fs::read(&path).unwrap());
        replayed += 1;
    }
    assert!(replayed >= 6, "{replayed} inputs in {}", folder.display());
}
