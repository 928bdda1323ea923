//! Whole arenas, mailboxes, zeroing and graphs, against the driver of [`crate::fake`].

use std::sync::atomic::Ordering;

use crate::fake::with;
use crate::tests::{PROBE, device};
use crate::{
    ALIGNMENT, Arena, Call, CudaError, Device, ElementType, LaunchError, Mailbox, Param, Priority,
    Signature, StagingBuffer, StagingRing, Stream,
};

const TELL: Signature = Signature {
    name: "m40_tell",
    params: &[Param::Arena, Param::Scalar(ElementType::U64), Param::Mailbox],
};

fn tell(
    device: &Device,
    arena: &Arena,
    offset: u64,
    mailbox: &Mailbox,
    on: &Stream,
) -> Result<(), CudaError> {
    let kernel = device.kernel(&TELL)?;
    kernel.launch([1, 1, 1], [1, 1, 1]).arena(arena).scalar(offset).mailbox(mailbox, 1).on(on)
}

/// A slice of three words in the middle of an arena, the last of them 7.
fn arena_with_a_seven(device: &Device) -> (Arena, crate::DeviceSlice<u32>) {
    let arena = Arena::new(device, 1 << 20).unwrap();
    let before = arena.allocate::<u8>(1000).unwrap();
    let mut words = arena.allocate::<u32>(3).unwrap();
    let mut ring = StagingRing::new(device, 4096).unwrap();
    ring.write(words.all_mut(), &[5, 6, 7]).unwrap();
    drop(before);
    (arena, words)
}

#[test]
fn a_kernel_finds_slices_by_their_offset_in_the_arena() {
    let device = device();
    let (arena, words) = arena_with_a_seven(&device);
    assert_eq!(words.offset(), 1024);
    assert_eq!(words.offset() % ALIGNMENT.max(128), 0);
    let mailbox = Mailbox::new(&device, 40).unwrap();
    let stream = device.stream(Priority::High).unwrap();
    assert!(mailbox.words().iter().all(|word| word.load(Ordering::Relaxed) == 0));
    assert_eq!(mailbox.words().len(), 40);
    mailbox.word(0).store(100, Ordering::Release);
    tell(&device, &arena, words.offset() + 8, &mailbox, &stream).unwrap();
    assert_eq!(mailbox.word(0).load(Ordering::Acquire), 100, "not before the stream gets there");
    stream.wait().unwrap();
    assert_eq!(mailbox.word(0).load(Ordering::Acquire), 107);
}

#[test]
fn mailboxes_and_arenas_are_checked_like_other_arguments() {
    let device = device();
    let (arena, words) = arena_with_a_seven(&device);
    let mailbox = Mailbox::new(&device, 4).unwrap();
    let stream = device.stream(Priority::High).unwrap();
    let kernel = device.kernel(&TELL).unwrap();
    let launch = || kernel.launch([1, 1, 1], [1, 1, 1]);
    let wrong = |result| match result {
        Err(CudaError::Launch { kernel: "m40_tell", reason }) => reason,
        other => panic!("{other:?}"),
    };
    let short = LaunchError::Short { position: 2, needed: 5, holds: 4 };
    assert_eq!(wrong(launch().arena(&arena).scalar(0u64).mailbox(&mailbox, 5).on(&stream)), short);
    let reason = wrong(launch().read(words.all(), 3).on(&stream)).to_string();
    assert_eq!(reason, "argument 0 is read u32, the kernel's is an arena");
    let reason = wrong(launch().mailbox(&mailbox, 1).on(&stream)).to_string();
    assert_eq!(reason, "argument 0 is a mailbox, the kernel's is an arena");
    let elsewhere = self::device();
    let foreign = Mailbox::new(&elsewhere, 1).unwrap();
    let result = launch().arena(&arena).scalar(0u64).mailbox(&foreign, 1).on(&stream);
    assert_eq!(wrong(result), LaunchError::Elsewhere { position: 2 });
    let foreign = Arena::new(&elsewhere, 4096).unwrap();
    let result = launch().arena(&foreign).scalar(0u64).mailbox(&mailbox, 1).on(&stream);
    assert_eq!(wrong(result), LaunchError::Elsewhere { position: 0 });
    assert!(!with(|fake| fake.log.contains(&Call::cuLaunchKernel)));
}

#[test]
fn more_parameters_than_a_launch_has_places_for_are_refused() {
    static VAST: Signature =
        Signature { name: "m40_vast", params: &[Param::Scalar(ElementType::U32); 25] };
    let device = device();
    let stream = device.stream(Priority::High).unwrap();
    let kernel = device.kernel(&VAST).unwrap();
    let launch = (0..25u32).fold(kernel.launch([1, 1, 1], [1, 1, 1]), |l, i| l.scalar(i));
    let reason = LaunchError::TooMany { found: 25 };
    assert_eq!(launch.on(&stream), Err(CudaError::Launch { kernel: "m40_vast", reason }));
}

#[test]
fn a_mailbox_goes_back_with_its_last_handle() {
    let device = device();
    let mailbox = Mailbox::new(&device, 1).unwrap();
    let other = mailbox.clone();
    drop(mailbox);
    other.word(0).store(1, Ordering::Relaxed);
    assert_eq!(with(|fake| fake.allocations()), (0, 1));
    let residency = device.begin_residency();
    let refused = Mailbox::new(&device, 1).unwrap_err();
    assert_eq!(refused, CudaError::Resident { call: Call::cuMemHostAlloc });
    drop(other);
    assert_eq!(with(|fake| fake.allocations()), (0, 1));
    drop(residency);
    assert_eq!(with(|fake| fake.allocations()), (0, 0));
    with(|fake| fake.fail(Call::cuMemHostGetDevicePointer_v2, 1));
    Mailbox::new(&device, 1).unwrap_err();
    assert_eq!(with(|fake| fake.allocations()), (0, 0), "what cannot be used goes back");
}

#[test]
fn a_kernel_stays_beside_copies_that_wait_for_nothing_but_copies() {
    let device = device();
    let (arena, mut words) = arena_with_a_seven(&device);
    let mailbox = Mailbox::new(&device, 1).unwrap();
    let (stays, mut ring) =
        (device.stream(Priority::High).unwrap(), StagingRing::new(&device, 4096).unwrap());
    let mut barrier = arena.allocate::<u32>(1).unwrap();
    let residency = device.begin_residency();
    stays.zero(barrier.all_mut()).unwrap();
    tell(&device, &arena, words.offset(), &mailbox, &stays).unwrap();
    for word in 0..5 {
        ring.write(words.view_mut(0..1).unwrap(), &[word]).unwrap();
        let mut found = [0];
        ring.read(words.view(0..1).unwrap(), &mut found).unwrap();
        assert_eq!((found, stays.is_done()), ([word], Ok(false)));
    }
    assert_eq!(mailbox.word(0).load(Ordering::Acquire), 0, "nothing waited for the kernel");
    // What is dropped meanwhile is destroyed after.
    drop(ring);
    assert_eq!((residency.calls().allocates, residency.is_wanted()), (0, false));
    stays.wait().unwrap();
    assert_eq!(mailbox.word(0).load(Ordering::Acquire), 4);
    drop((mailbox, stays, words, barrier, arena));
    assert_eq!(residency.calls().allocates, 0);
    drop(residency);
    assert_eq!(with(|fake| fake.allocations()), (0, 0));
}

#[test]
fn zeroing_reaches_all_of_a_view_and_nothing_else() {
    let device = device();
    let arena = Arena::new(&device, 1 << 20).unwrap();
    let mut ring = StagingRing::new(&device, 4096).unwrap();
    let mut bytes = arena.allocate::<u8>(11).unwrap();
    ring.write(bytes.all_mut(), &[9; 11]).unwrap();
    ring.stream().zero(bytes.view_mut(3..8).unwrap()).unwrap();
    ring.stream().zero(bytes.view_mut(1..1).unwrap()).unwrap();
    let mut found = [1; 11];
    ring.read(bytes.all(), &mut found).unwrap();
    assert_eq!(found, [9, 9, 9, 0, 0, 0, 0, 0, 9, 9, 9]);
    let residency = device.begin_residency();
    ring.stream().zero(bytes.all_mut()).unwrap();
    ring.read(bytes.all(), &mut found).unwrap();
    assert_eq!(found, [0; 11]);
    drop(residency);
}

#[test]
fn copies_on_the_device_reach_all_of_a_view_and_nothing_else() {
    let device = device();
    let arena = Arena::new(&device, 1 << 20).unwrap();
    let mut ring = StagingRing::new(&device, 4096).unwrap();
    let mut from = arena.allocate::<u32>(4).unwrap();
    let mut to = arena.allocate::<u32>(4).unwrap();
    ring.write(from.all_mut(), &[1, 2, 3, 4]).unwrap();
    ring.write(to.all_mut(), &[9; 4]).unwrap();
    ring.stream().copy(from.view(1..3).unwrap(), to.view_mut(2..4).unwrap()).unwrap();
    let mut found = [0; 4];
    ring.read(to.all(), &mut found).unwrap();
    assert_eq!(found, [9, 9, 2, 3]);
    let short = ring.stream().copy(from.all(), to.view_mut(0..3).unwrap()).unwrap_err();
    assert_eq!(short, CudaError::CopyMismatch { asked: 16, holds: 12 });
}

#[test]
fn views_split_where_they_are_told_to() {
    let device = device();
    let arena = Arena::new(&device, 1 << 20).unwrap();
    let mut words = arena.allocate::<u32>(10).unwrap();
    let (first, rest) = words.all_mut().split_at(4).unwrap();
    assert_eq!((first.read().len(), rest.read().len()), (4, 6));
    let (all, none) = rest.split_at(6).unwrap();
    assert_eq!((all.read().len(), none.read().len()), (6, 0));
    assert!(none.split_at(1).is_none());
}

#[test]
fn a_graph_does_its_launches_again_each_time_it_is_launched() {
    let device = device();
    let (arena, mut words) = arena_with_a_seven(&device);
    let mailbox = Mailbox::new(&device, 1).unwrap();
    let mut sum = arena.allocate::<u32>(1).unwrap();
    let stream = device.stream(Priority::High).unwrap();
    stream.zero(sum.all_mut()).unwrap();
    let graph = stream
        .capture(|| {
            tell(&device, &arena, words.offset(), &mailbox, &stream)?;
            let probe = device.kernel(&PROBE)?;
            let probe = probe.launch([1, 1, 1], [256, 1, 1]);
            probe.read(words.all(), 3).scalar(3u32).write(sum.all_mut(), 1).on(&stream)?;
            stream.zero(words.view_mut(2..3).unwrap())
        })
        .unwrap();
    stream.wait().unwrap();
    assert_eq!(mailbox.word(0).load(Ordering::Acquire), 0, "recorded, not done");
    // Launching allocates nothing, so it goes on beside a resident kernel.
    let residency = device.begin_residency();
    let other = device.kernel(&TELL).is_ok();
    assert!(other);
    graph.launch(&stream).unwrap();
    graph.launch(&stream).unwrap();
    stream.wait().unwrap();
    assert_eq!(mailbox.word(0).load(Ordering::Acquire), 10);
    assert_eq!(residency.calls().allocates, 0);
    drop(residency);
    let mut ring = StagingRing::new(&device, 4096).unwrap();
    let mut found = [0];
    ring.read(sum.all(), &mut found).unwrap();
    let expected = crate::checksum(&[5, 6, 7]).wrapping_add(crate::checksum(&[5, 6, 0]));
    assert_eq!(found[0], expected);
    drop(graph);
    assert!(with(|fake| fake.graphs.is_empty()), "both forms of a graph are destroyed");
}

#[test]
fn a_graph_keeps_what_its_launches_address() {
    let device = device();
    let (arena, words) = arena_with_a_seven(&device);
    let mailbox = Mailbox::new(&device, 1).unwrap();
    let stream = device.stream(Priority::High).unwrap();
    let offset = words.offset();
    let record = || tell(&device, &arena, offset, &mailbox, &stream);
    let graph = stream.capture(record).unwrap();
    drop((arena, words, mailbox));
    assert_eq!(with(|fake| fake.allocations()), (1, 1));
    graph.launch(&stream).unwrap();
    stream.wait().unwrap();
    drop(graph);
    assert_eq!(with(|fake| fake.allocations()), (0, 0));
}

#[test]
fn a_recording_that_fails_leaves_a_stream_that_works() {
    let device = device();
    let (arena, words) = arena_with_a_seven(&device);
    let mailbox = Mailbox::new(&device, 1).unwrap();
    let stream = device.stream(Priority::High).unwrap();
    let offset = words.offset();
    let error = stream.capture(|| {
        tell(&device, &arena, offset, &mailbox, &stream)?;
        Err(CudaError::NoDriver)
    });
    assert_eq!(error.unwrap_err(), CudaError::NoDriver);
    let residency = device.begin_residency();
    let refused = stream.capture(|| tell(&device, &arena, offset, &mailbox, &stream));
    let call = Call::cuGraphInstantiateWithFlags;
    assert_eq!(refused.unwrap_err(), CudaError::Resident { call });
    drop(residency);
    assert!(with(|fake| fake.graphs.is_empty()));
    tell(&device, &arena, offset, &mailbox, &stream).unwrap();
    stream.wait().unwrap();
    assert_eq!(mailbox.word(0).load(Ordering::Acquire), 5);
    // Nothing is kept once nothing is recorded.
    drop((arena, words, mailbox));
    assert_eq!(with(|fake| fake.allocations()), (0, 0));
}

#[test]
fn copies_through_pinned_memory_are_no_part_of_a_graph() {
    let device = device();
    let (arena, mut words) = arena_with_a_seven(&device);
    let mut buffer = StagingBuffer::new(&device, 4096).unwrap();
    let stream = device.stream(Priority::Low).unwrap();
    let graph = stream.capture(|| buffer.send([(0, words.all_mut())], &stream));
    assert_eq!(graph.unwrap_err(), CudaError::Capturing);
    buffer.send([(0, words.all_mut())], &stream).unwrap();
    drop(arena);
}

#[test]
fn one_staging_buffer_fills_several_places() {
    let device = device();
    let arena = Arena::new(&device, 1 << 20).unwrap();
    let stream = device.stream(Priority::Low).unwrap();
    let mut buffer = StagingBuffer::new(&device, 4096).unwrap();
    assert_eq!(buffer.len(), 4096);
    let mut bytes = arena.allocate::<u8>(100).unwrap();
    let mut words = arena.allocate::<u32>(2).unwrap();
    stream.zero(bytes.all_mut()).unwrap();
    for (i, byte) in buffer.room().unwrap().iter_mut().enumerate() {
        *byte = i as u8;
    }
    let (_, end) = bytes.all_mut().split_at(90).unwrap();
    let (first, last) = end.split_at(3).unwrap();
    buffer.send([(16, first), (19, last)], &stream).unwrap();
    buffer.send([(4, words.all_mut())], &stream).unwrap();
    assert!(with(|fake| fake.is_busy()));
    // Writing waits until both have left.
    buffer.room().unwrap().fill(0xff);
    assert!(!with(|fake| fake.is_busy()));
    let mut ring = StagingRing::new(&device, 4096).unwrap();
    let (mut bytes_there, mut words_there) = ([1; 100], [0; 2]);
    ring.read(bytes.all(), &mut bytes_there).unwrap();
    ring.read(words.all(), &mut words_there).unwrap();
    assert!(bytes_there[..90].iter().all(|&byte| byte == 0));
    assert_eq!(bytes_there[90..], [16, 17, 18, 19, 20, 21, 22, 23, 24, 25]);
    assert_eq!(words_there, [0x0706_0504, 0x0b0a_0908]);
    // What was enqueued before an error still travels, and is waited for.
    let (first, last) = words.all_mut().split_at(1).unwrap();
    let too_far = buffer.send([(4092, first), (4093, last)], &stream);
    assert_eq!(too_far, Err(CudaError::CopyMismatch { asked: 3, holds: 4 }));
    assert!(with(|fake| fake.is_busy()));
    // The fake asserts that nothing is under way when it is freed.
    drop(buffer);
}
