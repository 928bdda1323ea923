//! The crate against a driver that is not there: see [`crate::fake`].

use std::time::Duration;

use crate::fake::{self, with};
use crate::{
    Arena, Call, Calls, Capability, Class, CudaError, CudaVersion, Device, ElementType, ImageForm,
    KernelImage, LaunchError, ModuleImage, Param, Priority, Signature, StagingRing, checksum,
};

const IMAGE: KernelImage = KernelImage {
    compiler: "nobody",
    modules: &[ModuleImage {
        name: "probe",
        ptx: "//\n.version 7.0\n.visible .entry m40_probe(\n)\n.visible .entry m40_tell(\n)\n\
            .visible .entry m40_vast(\n)\n",
        machine_code: b"machine code\0",
    }],
};

pub(crate) const PROBE: Signature = Signature {
    name: "m40_probe",
    params: &[
        Param::Read(ElementType::U32),
        Param::Scalar(ElementType::U32),
        Param::Write(ElementType::U32),
    ],
};

pub(crate) fn device() -> Device {
    Device::start(fake::open().unwrap(), 0, &IMAGE).unwrap()
}

#[test]
fn computes_a_checksum_and_notices_a_wrong_one() {
    let device = device();
    let arena = Arena::new(&device, 8 << 20).unwrap();
    device.self_test(&arena).unwrap();
    assert_eq!(arena.usage().free, arena.usage().capacity);
    // A device whose kernels do nothing leaves the sum at zero.
    with(|fake| fake.fail(Call::cuLaunchKernel, 0));
    let error = device.self_test(&arena).unwrap_err();
    assert!(matches!(error, CudaError::WrongResult { found: 0, .. }), "{error}");
}

#[test]
fn a_checksum_depends_on_every_bit_and_position() {
    let mut words: Vec<u32> = (0..300).collect();
    let sum = checksum(&words);
    words.swap(7, 8);
    assert_ne!(checksum(&words), sum);
    words.swap(7, 8);
    words[299] ^= 1 << 31;
    assert_ne!(checksum(&words), sum);
    assert_eq!(checksum(&[]), 0);
}

#[test]
fn says_what_is_missing() {
    with(|fake| fake.devices = 0);
    let open = |ordinal| Device::start(fake::open()?, ordinal, &IMAGE).map(|_| ());
    assert_eq!(open(0), Err(CudaError::NoDevice { ordinal: 0, count: 0 }));
    with(|fake| fake.devices = 1);
    assert_eq!(open(3), Err(CudaError::NoDevice { ordinal: 3, count: 1 }));
    with(|fake| fake.capability = (5, 0));
    let error = open(0).unwrap_err().to_string();
    assert_eq!(error, "Fake M40 has compute capability 5.0, the kernels need 5.2");
    with(|fake| (fake.capability, fake.version) = ((5, 2), 10_020));
    let too_old =
        CudaError::DriverTooOld { found: CudaVersion(10_020), needed: CudaVersion(11_040) };
    assert_eq!(open(0), Err(too_old));
    with(|fake| fake.version = 12_020);
    with(|fake| fake.fail(Call::cuInit, 100));
    assert_eq!(open(0), Err(CudaError::NoDevice { ordinal: 0, count: 0 }));
    // An odd failure to start is no lost device.
    with(|fake| fake.fail(Call::cuInit, 999));
    assert!(matches!(open(0), Err(CudaError::Driver { code: 999, .. })));
}

#[test]
fn describes_the_device() {
    let device = device();
    assert_eq!(device.info().capability, Capability { major: 5, minor: 2 });
    assert_eq!(
        device.info().to_string(),
        "Fake M40 (compute capability 5.2), driver of CUDA 12.2, 0.1 of 0.1 GiB free, ECC on, 24 \
         multiprocessors at 1112 MHz"
    );
}

#[test]
fn loads_machine_code_on_an_m40_and_ptx_elsewhere() {
    assert_eq!(device().image_form(), ImageForm::MachineCode);
    with(|fake| fake.capability = (9, 0));
    let device = device();
    assert_eq!(device.image_form(), ImageForm::Ptx);
    let ptx = with(|fake| fake.images[0].clone());
    assert_eq!(ptx, IMAGE.modules[0].ptx.as_bytes());
    let names: Vec<_> = device.kernels().map(|(name, _)| name).collect();
    assert_eq!(names, ["m40_probe", "m40_tell", "m40_vast"]);
}

#[test]
fn falls_back_to_ptx_when_the_driver_is_older_than_the_machine_code() {
    const TOO_NEW: KernelImage = KernelImage {
        modules: &[ModuleImage { machine_code: b"too new\0", ..IMAGE.modules[0] }],
        ..IMAGE
    };
    let device = Device::start(fake::open().unwrap(), 0, &TOO_NEW).unwrap();
    assert_eq!(device.image_form(), ImageForm::Ptx);
}

#[test]
fn a_refused_module_comes_with_what_the_compiler_said() {
    const BAD: KernelImage = KernelImage {
        modules: &[ModuleImage { name: "broken", machine_code: b"bad\0", ..IMAGE.modules[0] }],
        ..IMAGE
    };
    let error = Device::start(fake::open().unwrap(), 0, &BAD).unwrap_err().to_string();
    let expected = "the driver refuses kernel module broken (CUDA_ERROR_PLANTED): line 1: nonsense";
    assert_eq!(error, expected);
}

#[test]
fn kernels_are_the_entries_of_the_ptx() {
    let ptx = "// .entry no(\n.visible .entry one(\n.entry two (\n.func three(\n";
    let module = ModuleImage { name: "m", ptx, machine_code: b"" };
    assert_eq!(module.kernels().collect::<Vec<_>>(), ["one", "two"]);
}

#[test]
fn uploads_whole_buffers_through_small_slots() {
    let device = device();
    let arena = Arena::new(&device, 1 << 20).unwrap();
    let mut ring = StagingRing::new(&device, 4096).unwrap();
    for len in [0, 1, 1023, 1024, 1025, 10_000] {
        let sent: Vec<u32> = (0..len).map(|i: u32| i.wrapping_mul(2_654_435_761)).collect();
        let mut buffer = arena.allocate::<u32>(sent.len()).unwrap();
        let mut pieces = Vec::new();
        ring.upload(buffer.all_mut(), |first, room| {
            pieces.push(first);
            room.copy_from_slice(&sent[first..first + room.len()]);
            Ok::<_, CudaError>(())
        })
        .unwrap();
        assert_eq!(pieces, (0..sent.len()).step_by(1024).collect::<Vec<_>>());
        // The last pieces are still under way; reading comes after them in the same stream.
        assert_eq!(with(|fake| fake.is_busy()), len > 0);
        let mut found = vec![0; sent.len()];
        ring.read(buffer.all(), &mut found).unwrap();
        assert_eq!(found, sent);
    }
}

#[test]
fn a_copy_of_the_wrong_length_is_refused() {
    let device = device();
    let arena = Arena::new(&device, 1 << 20).unwrap();
    let mut ring = StagingRing::new(&device, 4096).unwrap();
    let mut buffer = arena.allocate::<u16>(3).unwrap();
    let mismatch = CudaError::CopyMismatch { asked: 8, holds: 6 };
    assert_eq!(ring.write(buffer.all_mut(), &[0; 4]), Err(mismatch));
    let mismatch = CudaError::CopyMismatch { asked: 6, holds: 4 };
    assert_eq!(ring.read(buffer.all(), &mut [0; 2]), Err(mismatch));
}

#[test]
fn pinned_memory_outlives_the_copies_from_it() {
    let device = device();
    let arena = Arena::new(&device, 1 << 20).unwrap();
    let mut ring = StagingRing::new(&device, 4096).unwrap();
    let mut buffer = arena.allocate::<u8>(5000).unwrap();
    let fill = |_: usize, room: &mut [u8]| {
        room.fill(3);
        Ok::<_, CudaError>(())
    };
    ring.upload(buffer.all_mut(), fill).unwrap();
    assert!(with(|fake| fake.is_busy()));
    // The fake asserts that nothing is under way when it is freed.
    drop(ring);
    assert_eq!(with(|fake| fake.allocations()), (1, 0));
}

#[test]
fn an_error_of_the_filler_is_the_uploads() {
    #[derive(Debug, PartialEq)]
    enum Error {
        Cuda(CudaError),
        Disk,
    }
    impl From<CudaError> for Error {
        fn from(error: CudaError) -> Self {
            Self::Cuda(error)
        }
    }
    let device = device();
    let arena = Arena::new(&device, 1 << 20).unwrap();
    let mut ring = StagingRing::new(&device, 4096).unwrap();
    let mut buffer = arena.allocate::<u8>(9000).unwrap();
    let result =
        ring.upload(
            buffer.all_mut(),
            |first, _: &mut [u8]| {
                if first == 4096 { Err(Error::Disk) } else { Ok(()) }
            },
        );
    assert_eq!(result, Err(Error::Disk));
}

#[test]
fn buffers_go_back_when_dropped_and_the_memory_with_the_last() {
    let device = device();
    let arena = Arena::new(&device, 1000 << 10).unwrap();
    let full = arena.usage();
    let buffer = arena.allocate::<f32>(100).unwrap();
    let other = arena.allocate::<u8>(1).unwrap();
    assert_eq!(full.free - arena.usage().free, 512 + 256);
    drop(buffer);
    drop(arena);
    assert_eq!(with(|fake| fake.allocations().0), 1);
    drop(other);
    assert_eq!(with(|fake| fake.allocations().0), 0);
}

#[test]
fn pieces_of_an_arena_are_arenas_and_come_back_whole() {
    let device = device();
    let arena = Arena::new(&device, 4096).unwrap();
    let [first, second] = [arena.piece(1000).unwrap(), arena.piece(2048).unwrap()];
    assert_eq!((first.usage().capacity, second.usage().capacity), (1024, 2048));
    assert_eq!((arena.usage().free, arena.address()), (1024, second.address()));
    // Whatever comes and goes in one, the other has its own.
    let a = second.allocate::<u8>(1000).unwrap();
    let b = first.allocate::<u8>(1024).unwrap();
    let c = second.allocate::<u8>(1024).unwrap();
    assert_eq!([b.offset(), a.offset(), c.offset()], [0, 1024, 2048]);
    let expected = CudaError::ArenaExhausted { asked: 1, free: 0, largest: 0 };
    assert_eq!(second.allocate::<u8>(1).unwrap_err(), expected);
    drop((first, second, a));
    assert_eq!(arena.usage().largest, 1024);
    drop(c);
    assert_eq!(arena.usage().largest, 3072);
    // The memory is there until the last buffer is gone.
    drop(arena);
    assert_eq!(with(|fake| fake.allocations().0), 1);
    drop(b);
    assert_eq!(with(|fake| fake.allocations().0), 0);
}

#[test]
fn running_out_says_of_what_and_how_much_there_is() {
    let device = device();
    let arena = Arena::new(&device, 1 << 20).unwrap();
    let kept = arena.allocate::<u8>(1 << 19).unwrap();
    let error = arena.allocate::<u32>(1 << 18).unwrap_err();
    let expected = CudaError::ArenaExhausted { asked: 1 << 20, free: 1 << 19, largest: 1 << 19 };
    assert_eq!(error, expected);
    drop(kept);
    let error = arena.allocate::<u64>(usize::MAX).unwrap_err();
    assert!(matches!(error, CudaError::ArenaExhausted { asked: u64::MAX, .. }), "{error}");
    let error = Arena::new(&device, 1 << 30).unwrap_err();
    let (free, total) = (63 << 20, 64 << 20);
    let call = Call::cuMemAlloc_v2;
    assert_eq!(error, CudaError::OutOfMemory { call, asked: 1 << 30, free, total });
}

#[test]
fn a_view_never_reaches_past_its_buffer() {
    let device = device();
    let arena = Arena::new(&device, 1 << 20).unwrap();
    let mut buffer = arena.allocate::<u32>(10).unwrap();
    assert_eq!(buffer.view(2..5).unwrap().len(), 3);
    assert_eq!(buffer.view(2..5).unwrap().narrow(3..3).unwrap().len(), 0);
    assert!(buffer.view(2..5).unwrap().narrow(1..4).is_none());
    assert!(buffer.view_mut(10..11).is_none());
    #[expect(clippy::reversed_empty_ranges, reason = "what callers may get wrong")]
    let reversed = buffer.view(5..2);
    assert!(reversed.is_none());
}

#[test]
fn launches_are_checked_against_signature_and_device() {
    let device = device();
    let arena = Arena::new(&device, 1 << 20).unwrap();
    let stream = device.stream(Priority::High).unwrap();
    let kernel = device.kernel(&PROBE).unwrap();
    let words = arena.allocate::<u32>(8).unwrap();
    let floats = arena.allocate::<f32>(8).unwrap();
    let mut sum = arena.allocate::<u32>(1).unwrap();
    let wrong = |result| match result {
        Err(CudaError::Launch { kernel: "m40_probe", reason }) => reason,
        other => panic!("{other:?}"),
    };
    let (grid, block) = ([1, 1, 1], [256, 1, 1]);

    let launch = kernel.launch(grid, block).read(words.all(), 8).scalar(8u32);
    assert_eq!(wrong(launch.on(&stream)), LaunchError::Count { expected: 3, found: 2 });
    let launch = kernel.launch(grid, block).read(words.all(), 9).scalar(9u32);
    let short = LaunchError::Short { position: 0, needed: 9, holds: 8 };
    assert_eq!(wrong(launch.write(sum.all_mut(), 1).on(&stream)), short);
    let launch = kernel.launch(grid, block).read(floats.all(), 8).scalar(8u32);
    let reason = wrong(launch.write(sum.all_mut(), 1).on(&stream)).to_string();
    assert_eq!(reason, "argument 0 is read f32, the kernel's is read u32");
    let launch = kernel.launch(grid, block).read(words.all(), 8).scalar(8i32);
    let reason = wrong(launch.write(sum.all_mut(), 1).on(&stream)).to_string();
    assert_eq!(reason, "argument 1 is scalar i32, the kernel's is scalar u32");
    let launch = kernel.launch(grid, block).read(words.all(), 8).scalar(8u32);
    let reason = wrong(launch.read(sum.all(), 1).on(&stream)).to_string();
    assert_eq!(reason, "argument 2 is read u32, the kernel's is write u32");

    let complete = |launch: crate::Launch<'_>| {
        let mut sum = arena.allocate::<u32>(1).unwrap();
        wrong(launch.read(words.all(), 8).scalar(8u32).write(sum.all_mut(), 1).on(&stream))
    };
    let grid_error = LaunchError::Grid { x: 1, y: 65_536, z: 1 };
    assert_eq!(complete(kernel.launch([1, 65_536, 1], block)), grid_error);
    let most = LaunchError::Block { threads: 512, most: 256 };
    assert_eq!(complete(kernel.launch(grid, [256, 2, 1])), most);
    let none = LaunchError::Block { threads: 0, most: 256 };
    assert_eq!(complete(kernel.launch(grid, [0, 1, 1])), none);
    let shared = LaunchError::Shared { bytes: (48 << 10) + 1, most: 48 << 10 };
    assert_eq!(complete(kernel.launch(grid, block).shared((47 << 10) + 1)), shared);

    let elsewhere = self::device();
    let there = elsewhere.stream(Priority::Low).unwrap();
    let foreign = Arena::new(&elsewhere, 4096).unwrap().allocate::<u32>(8).unwrap();
    let launch = kernel.launch(grid, block).read(foreign.all(), 8).scalar(8u32);
    let elsewhere = LaunchError::Elsewhere { position: 0 };
    assert_eq!(wrong(launch.write(sum.all_mut(), 1).on(&there)), elsewhere);

    assert!(!with(|fake| fake.log.contains(&Call::cuLaunchKernel)));
    let launch = kernel.launch(grid, block).read(words.all(), 8).scalar(8u32);
    launch.write(sum.all_mut(), 1).on(&stream).unwrap();
    static ABSENT: Signature = Signature { name: "m40_absent", params: &[] };
    let error = device.kernel(&ABSENT).unwrap_err();
    assert_eq!(error, CudaError::NoKernel { kernel: "m40_absent" });
}

#[test]
fn nothing_that_may_wait_for_the_device_passes_beside_a_resident_kernel() {
    let device = device();
    let arena = Arena::new(&device, 8 << 20).unwrap();
    let mut ring = StagingRing::new(&device, 4096).unwrap();
    let mut buffer = arena.allocate::<u32>(5000).unwrap();
    let residency = device.begin_residency();
    let begun = with(|fake| fake.log.len());

    // What serves running sequences goes on: memory from the arena, copies both ways, launches.
    let other = arena.allocate::<u32>(2000).unwrap();
    ring.write(buffer.all_mut(), &[7; 5000]).unwrap();
    assert_eq!(device.checksum(&arena, &mut ring, &buffer).unwrap(), checksum(&[7; 5000]));
    device.memory().unwrap();
    drop(other);

    // What could wait for the resident kernel is refused, by name.
    let error = Arena::new(&device, 4096).unwrap_err();
    assert_eq!(error, CudaError::Resident { call: Call::cuMemAlloc_v2 });
    assert_eq!(
        error.to_string(),
        "cuMemAlloc_v2 is not allowed while a kernel stays resident: it may wait for the whole \
         device"
    );
    let error = StagingRing::new(&device, 4096).unwrap_err();
    assert_eq!(error, CudaError::Resident { call: Call::cuEventCreate });
    let error = device.stream(Priority::Low).unwrap_err();
    assert_eq!(error, CudaError::Resident { call: Call::cuStreamCreateWithPriority });

    // What is dropped meanwhile is destroyed after.
    drop((ring, buffer, arena));
    assert_eq!(with(|fake| fake.allocations()), (1, 2));
    let during = with(|fake| fake.log[begun..].to_vec());
    let waiting = during.iter().find(|call| !call.class().allowed_beside_resident_kernel());
    assert_eq!(waiting, None);
    let calls = residency.calls();
    assert_eq!((calls.allocates, calls.refused), (0, 3));
    assert!(calls.enqueues > 0 && calls.waits > 0 && calls.queries > 0, "{calls:?}");
    drop(residency);
    assert_eq!(with(|fake| fake.allocations()), (0, 0));
    Arena::new(&device, 4096).unwrap();
}

#[test]
fn the_gate_opens_when_the_last_resident_kernel_has_left() {
    let device = device();
    let (one, two) = (device.begin_residency(), device.begin_residency());
    drop(one);
    assert!(matches!(device.event(), Err(CudaError::Resident { .. })));
    assert_eq!(two.calls(), Calls { queries: 2, refused: 1, ..Calls::default() });
    drop(two);
    device.event().unwrap();
}

/// NVIDIA's list of what waits for other work on the device (CUDA C++ programming guide, "implicit
/// synchronization", and the reference of each function), against the classes here.
#[test]
fn every_function_that_makes_or_destroys_is_classed_as_allocating() {
    for &call in Call::ALL {
        let name = call.name();
        let makes =
            ["Alloc", "Free", "Create", "Destroy", "Load", "Unload", "PrimaryCtx", "Instantiate"];
        let allocates = makes.iter().any(|part| name.contains(part));
        assert_eq!(call.class() == Class::Allocates, allocates, "{name}");
        assert_eq!(call.class() == Class::Waits, name.contains("Synchronize"), "{name}");
        // Never called at all: these wait for everything, or work on the legacy default stream.
        let global = ["cuCtxSynchronize", "Managed", "cuMemHostRegister"];
        assert!(!global.iter().any(|part| name.contains(part)), "{name}");
        let moves = name.starts_with("cuMemset") || name.starts_with("cuMemcpy");
        assert!(!moves || name.contains("Async"), "{name}");
    }
}

#[test]
fn a_lost_device_is_told_apart_and_stays_lost() {
    let device = device();
    let arena = Arena::new(&device, 1 << 20).unwrap();
    let mut ring = StagingRing::new(&device, 4096).unwrap();
    let mut buffer = arena.allocate::<u32>(10).unwrap();
    assert_eq!(device.lost(), None);
    with(|fake| fake.fail(Call::cuStreamSynchronize, 719));
    let lost = ring.write(buffer.all_mut(), &[1; 10]).unwrap_err();
    assert_eq!(
        lost.to_string(),
        "the device is lost: CUDA_ERROR_PLANTED (719) during cuStreamSynchronize; the process must \
         be restarted"
    );
    // Whatever else the driver would say, and for every later call, it is the first error.
    with(|fake| fake.recover());
    let calls = with(|fake| fake.log.len());
    assert_eq!(device.memory(), Err(lost.clone()));
    assert_eq!(Arena::new(&device, 4096).unwrap_err(), lost);
    assert_eq!(device.lost(), Some(&lost));
    drop((ring, buffer, arena));
    assert_eq!(with(|fake| fake.log.len()), calls, "a lost device is left alone");
}

#[test]
fn an_ordinary_error_loses_nothing() {
    let device = device();
    with(|fake| fake.fail(Call::cuMemAlloc_v2, 1));
    let error = Arena::new(&device, 4096).unwrap_err();
    assert!(matches!(error, CudaError::Driver { code: 1, .. }), "{error}");
    with(|fake| fake.recover());
    Arena::new(&device, 4096).unwrap();
}

#[test]
fn events_tell_order_and_time() {
    let device = device();
    let arena = Arena::new(&device, 1 << 20).unwrap();
    let mut ring = StagingRing::new(&device, 4096).unwrap();
    let mut buffer = arena.allocate::<u32>(10).unwrap();
    let (mut start, mut end) = (device.event().unwrap(), device.event().unwrap());
    assert!(end.is_done().unwrap(), "never recorded");
    ring.stream().record(&mut start).unwrap();
    ring.upload(buffer.all_mut(), |_, room| {
        room.fill(1);
        Ok::<_, CudaError>(())
    })
    .unwrap();
    ring.stream().record(&mut end).unwrap();
    assert!(start.is_done().unwrap());
    assert!(!end.is_done().unwrap());
    assert!(!ring.stream().is_done().unwrap());
    device.stream(Priority::High).unwrap().wait_for(&end).unwrap();
    end.wait().unwrap();
    assert!(end.is_done().unwrap() && ring.stream().is_done().unwrap());
    assert_eq!(end.since(&start).unwrap(), Duration::from_micros(1500));
}
