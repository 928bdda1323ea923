//! The emulation itself: kernels/emulate/selftest.cpp.

use std::process::Command;

use m40_testkit::emulation::compile;

/// What the output of each test says that must fail.
const FAILURES: [(&str, &str); 6] = [
    ("fail_misaligned_load", "not a multiple of its size"),
    ("fail_beyond_shared_memory", "heap-buffer-overflow"),
    ("fail_beyond_static_shared_memory", "heap-buffer-overflow"),
    ("fail_shuffle_without_all_lanes", "without all 32 lanes"),
    ("fail_wait_for_ever", "wait for each other for ever"),
    ("fail_too_much_shared_memory", "no such block"),
];

#[test]
fn does_what_kernels_rely_on_and_notices_what_they_must_not_do() {
    let Some(program) = compile("selftest", env!("CARGO_TARGET_TMPDIR")).unwrap() else { return };
    let names = Command::new(&program).output().unwrap();
    let names = String::from_utf8(names.stdout).unwrap();
    assert!(names.lines().count() > FAILURES.len(), "{names}");
    for name in names.lines() {
        let output = Command::new(&program).arg(name).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        match FAILURES.iter().find(|(failing, _)| *failing == name) {
            None => assert!(output.status.success(), "{name}: {said}"),
            Some((_, text)) => {
                assert!(!output.status.success() && said.contains(text), "{name}: {said}");
            }
        }
    }
    for (name, _) in FAILURES {
        assert!(names.lines().any(|line| line == name), "no test {name}");
    }
}
