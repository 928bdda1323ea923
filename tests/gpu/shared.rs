//! What host and kernels share: a whole arena, words in pinned memory, and recorded launches.

use std::hint;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use m40_cuda::{Arena, CudaError, ElementType, Mailbox, Param, Priority, Signature, StagingRing};

use super::{GIVE_UP_CYCLES, gpu, say};

const TELL: Signature = Signature {
    name: "m40_test_tell",
    params: &[Param::Arena, Param::Scalar(ElementType::U64), Param::Mailbox],
};
const ANSWER: Signature = Signature {
    name: "m40_test_answer",
    params: &[Param::Mailbox, Param::Scalar(ElementType::U64)],
};

#[test]
fn a_graph_finds_an_offset_in_the_arena_and_tells_the_host() {
    let Some(gpu) = gpu() else { return };
    let device = &gpu.device;
    let arena = Arena::new(device, 64 << 20).unwrap();
    let before = arena.allocate::<u8>(100_000).unwrap();
    let mut words = arena.allocate::<u32>(3000).unwrap();
    let mut ring = StagingRing::new(device, 1 << 20).unwrap();
    let sent: Vec<u32> = (1000..4000).collect();
    ring.write(words.all_mut(), &sent).unwrap();
    assert!(before.offset() != words.offset() && words.offset() > 0);
    let mailbox = Mailbox::new(device, 96).unwrap();
    let stream = device.stream(Priority::High).unwrap();
    let kernel = device.kernel(&TELL).unwrap();
    let start = words.offset();
    let tell = |number: u64| {
        let launch = kernel.launch([1, 1, 1], [1, 1, 1]).arena(&arena);
        launch.scalar(start + 4 * number).mailbox(&mailbox, 1).on(&stream)
    };
    tell(7).unwrap();
    stream.wait().unwrap();
    assert_eq!(mailbox.word(0).load(Ordering::Acquire), 1007);
    let graph = stream.capture(|| (0..300).try_for_each(tell)).unwrap();
    stream.wait().unwrap();
    assert_eq!(mailbox.word(0).load(Ordering::Acquire), 1007, "recorded, not done");

    // One launch of the graph against one of each kernel: to enqueue, and until all is done.
    let sum: u32 = (1000..1300).sum();
    let mut expected = 1007;
    for (name, launch) in [
        ("each", &(|| (0..300).try_for_each(tell)) as &dyn Fn() -> Result<(), CudaError>),
        ("a graph", &|| graph.launch(&stream)),
    ] {
        for _ in 0..3 {
            let begun = Instant::now();
            launch().unwrap();
            let enqueued = begun.elapsed();
            stream.wait().unwrap();
            expected += sum;
            assert_eq!(mailbox.word(0).load(Ordering::Acquire), expected, "{name}");
            say(&format!(
                "300 kernels, {name}: {enqueued:?} to enqueue, done in {:?}",
                begun.elapsed()
            ));
        }
    }

    // Zeroing, in the middle and of any length, is done in order and may be recorded.
    let graph = stream.capture(|| stream.zero(words.view_mut(1..2999).unwrap())).unwrap();
    let residency = device.begin_residency();
    graph.launch(&stream).unwrap();
    stream.wait().unwrap();
    assert_eq!(residency.calls().allocates, 0);
    drop(residency);
    let mut found = vec![1; 3000];
    ring.read(words.all(), &mut found).unwrap();
    assert_eq!((found[0], found[2999]), (1000, 3999));
    assert!(found[1..2999].iter().all(|&word| word == 0));
    let mut bytes = arena.allocate::<u8>(11).unwrap();
    ring.write(bytes.all_mut(), &[9; 11]).unwrap();
    ring.stream().zero(bytes.view_mut(3..8).unwrap()).unwrap();
    let mut found = [1; 11];
    ring.read(bytes.all(), &mut found).unwrap();
    assert_eq!(found, [9, 9, 9, 0, 0, 0, 0, 0, 9, 9, 9]);

    // A recording that fails leaves a stream that works.
    let failed = stream.capture(|| tell(0).and(Err(CudaError::NoDriver)));
    assert_eq!(failed.unwrap_err(), CudaError::NoDriver);
    let before = mailbox.word(0).load(Ordering::Acquire);
    tell(0).unwrap();
    stream.wait().unwrap();
    assert_eq!(mailbox.word(0).load(Ordering::Acquire), before + 1000);
}

/// Waits for a word to be a number; gives up when the kernel must have.
fn wait(word: &AtomicU32, number: u32) {
    let begun = Instant::now();
    while word.load(Ordering::Acquire) != number {
        assert!(begun.elapsed() < Duration::from_secs(30), "no answer to {number}");
        hint::spin_loop();
    }
}

#[test]
fn a_running_kernel_answers_through_a_mailbox() {
    let Some(gpu) = gpu() else { return };
    let device = &gpu.device;
    let mailbox = Mailbox::new(device, 96).unwrap();
    let stream = device.stream(Priority::High).unwrap();
    let kernel = device.kernel(&ANSWER).unwrap();
    let residency = device.begin_residency();
    let launch = kernel.launch([1, 1, 1], [1, 1, 1]);
    launch.mailbox(&mailbox, 65).scalar(GIVE_UP_CYCLES).on(&stream).unwrap();
    let mut times = Vec::new();
    for number in 1..1000 {
        let begun = Instant::now();
        mailbox.word(0).store(number, Ordering::Release);
        wait(mailbox.word(32), number);
        times.push(begun.elapsed());
    }
    assert!(!stream.is_done().unwrap(), "the kernel left before it was told to");
    mailbox.word(0).store(u32::MAX, Ordering::Release);
    stream.wait().unwrap();
    assert_eq!(mailbox.word(64).load(Ordering::Acquire), 0, "it gave up");
    assert_eq!(residency.calls().allocates, 0);
    drop(residency);
    times.sort();
    say(&format!(
        "a mailbox's round trip: {:?} in the middle, {:?} at most",
        times[500], times[998]
    ));
}
