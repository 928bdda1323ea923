//! The GPU backend on a real device, with the kernels of this build.
//!
//! Without a device every test says that it was skipped; with `M40_REQUIRE_GPU=1` it fails instead.
//! The executable holds all it needs: it can be copied to another machine and run there.

mod card;
mod choosing;
mod embeddings;
mod models;
mod real;
mod resident;
mod sessions;
mod shared;
mod weights;

use std::env;
use std::io::{self, Write};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use m40_cuda::{
    Arena, Capability, CudaError, Device, ElementType, ImageForm, KernelImage, ModuleImage, Param,
    Priority, Signature, StagingRing, checksum, probe,
};

const STAY: Signature = Signature {
    name: "m40_test_stay",
    params: &[Param::Write(ElementType::U32), Param::Scalar(ElementType::U64)],
};
const FAIL: Signature = Signature { name: "m40_test_fail", params: &[] };

/// Some ten seconds on any card: ends a test that would hang.
const GIVE_UP_CYCLES: u64 = 15_000_000_000;

/// Set for the process in which the device gets lost.
const CHILD: &str = "M40_TEST_LOSE_DEVICE";

/// The device, for one test at a time: a resident kernel concerns the whole process.
struct Gpu {
    device: Device,
    _turn: MutexGuard<'static, Option<Device>>,
}

/// Says something even where the test harness captures what passing tests print.
fn say(text: &str) {
    io::stderr().write_all(format!("gpu: {text}\n").as_bytes()).expect("stderr is open");
}

fn gpu() -> Option<Gpu> {
    // Opened once: the driver may take a while to compile the kernels.
    static OPENED: Mutex<Option<Device>> = Mutex::new(None);
    let mut turn = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = &*turn {
        return Some(Gpu { device: device.clone(), _turn: turn });
    }
    match probe(0) {
        Ok(_) => {}
        Err(error @ (CudaError::NoDriver | CudaError::NoDevice { .. }))
            if env::var_os("M40_REQUIRE_GPU").is_none() =>
        {
            let test = std::thread::current();
            say(&format!("{}: skipped: no CUDA device ({error})", test.name().unwrap_or("?")));
            return None;
        }
        Err(error) => panic!("{error}"),
    }
    let image = m40llm::kernel_image().expect("this build has no kernels: run `make nvrtc`");
    let test = |name, ptx| ModuleImage { name, ptx, machine_code: &[] };
    let resident = test("resident", include_str!("resident.ptx"));
    let shared = test("shared", include_str!("shared.ptx"));
    let modules = [image.modules, &[resident, shared]].concat().leak();
    let image = KernelImage { modules, ..*image };
    let begun = Instant::now();
    let device = Device::open(0, &image).unwrap_or_else(|error| panic!("{error}"));
    say(&format!("{} kernels loaded in {:?}", device.kernels().count(), begun.elapsed()));
    *turn = Some(device.clone());
    Some(Gpu { device, _turn: turn })
}

/// Words that look like none of the others.
fn words(len: usize) -> Vec<u32> {
    (0u32..).take(len).map(|i| i.wrapping_mul(0x9e37_79b9) ^ (i >> 7)).collect()
}

#[test]
fn says_what_the_device_is() {
    let Some(gpu) = gpu() else { return };
    let device = &gpu.device;
    let info = device.info();
    say(&format!("{info}; kernels as {}; {}", device.image_form(), m40llm::version()));
    assert!(info.capability >= Capability::MINIMUM);
    assert!(info.memory.free <= info.memory.total && info.memory.free > 0);
    assert!(info.multiprocessors > 0 && info.clock_mhz > 100 && info.memory_bus_bits >= 64);
    let native = info.capability == Capability::MINIMUM;
    assert_eq!(device.image_form() == ImageForm::MachineCode, native);
    let names: Vec<_> = device.kernels().map(|(name, _)| name.to_owned()).collect();
    assert!(names.contains(&"m40_probe".to_owned()), "{names:?}");
    for (name, cost) in device.kernels() {
        assert!(cost.registers > 0 && cost.max_threads > 0, "{name}: {cost:?}");
        assert!(name != "m40_probe" || cost.local_bytes == 0, "{name} spills: {cost:?}");
    }
    let absent = probe(1000).unwrap_err();
    assert!(matches!(absent, CudaError::NoDevice { ordinal: 1000, .. }), "{absent}");
}

#[test]
fn computes_what_the_host_computes() {
    let Some(gpu) = gpu() else { return };
    let device = &gpu.device;
    let arena = Arena::new(device, 256 << 20).unwrap();
    device.self_test(&arena).unwrap();
    let mut ring = StagingRing::new(device, 1 << 20).unwrap();
    for len in [1, 31, 255, 256, 257, 65_537, (16 << 20) + 3] {
        let sent = words(len);
        let mut buffer = arena.allocate::<u32>(len).unwrap();
        ring.write(buffer.all_mut(), &sent).unwrap();
        let found = device.checksum(&arena, &mut ring, &buffer).unwrap();
        assert_eq!(found, checksum(&sent), "{len} words");
    }
    assert_eq!(arena.usage().free, arena.usage().capacity);
}

#[test]
fn copies_arrive_unchanged_and_in_order() {
    let Some(gpu) = gpu() else { return };
    let device = &gpu.device;
    let arena = Arena::new(device, 512 << 20).unwrap();
    let mut ring = StagingRing::new(device, 64 << 10).unwrap();
    for len in [1usize, 4096, 16_384, 16_385, 1_000_003] {
        let sent = words(len);
        let mut buffer = arena.allocate::<u32>(len).unwrap();
        ring.write(buffer.all_mut(), &sent).unwrap();
        let mut found = vec![0; len];
        ring.read(buffer.all(), &mut found).unwrap();
        assert!(found == sent, "{len} words");
    }
    // A part in the middle, written while another part is read from a second stream.
    let mut buffer = arena.allocate::<u8>(100_000).unwrap();
    ring.write(buffer.all_mut(), &vec![1; 100_000]).unwrap();
    ring.write(buffer.view_mut(40_001..70_003).unwrap(), &vec![2; 30_002]).unwrap();
    let mut found = vec![0; 100_000];
    ring.read(buffer.all(), &mut found).unwrap();
    let expected = |i: usize| if (40_001..70_003).contains(&i) { 2 } else { 1 };
    assert!(found.iter().enumerate().all(|(i, &byte)| byte == expected(i)));

    let mut ring = StagingRing::new(device, 16 << 20).unwrap();
    let mut buffer = arena.allocate::<u32>(96 << 20).unwrap();
    let (mut start, mut end) = (device.event().unwrap(), device.event().unwrap());
    ring.stream().record(&mut start).unwrap();
    ring.upload(buffer.all_mut(), |_, _: &mut [u32]| Ok::<_, CudaError>(())).unwrap();
    ring.stream().record(&mut end).unwrap();
    end.wait().unwrap();
    let time = end.since(&start).unwrap();
    assert!(time > Duration::ZERO);
    let rate = (buffer.len() * 4) as f64 / time.as_secs_f64() / 1e9;
    say(&format!("pinned copy to the device: {rate:.1} GB/s"));
}

#[test]
fn more_memory_than_there_is_is_a_typed_error_and_no_end() {
    let Some(gpu) = gpu() else { return };
    let device = &gpu.device;
    let total = device.info().memory.total;
    let error = Arena::new(device, total * 2).unwrap_err();
    let CudaError::OutOfMemory { asked, free, .. } = error else { panic!("{error}") };
    assert_eq!(asked, total * 2);
    assert!(free > 0 && free < total);
    let arena = Arena::new(device, 64 << 20).unwrap();
    device.self_test(&arena).unwrap();
}

/// The claim behind `m40_cuda::Class`: what may pass while a kernel stays resident does pass.
#[test]
fn work_goes_on_beside_a_resident_kernel() {
    let Some(gpu) = gpu() else { return };
    let device = &gpu.device;
    let arena = Arena::new(device, 64 << 20).unwrap();
    let mut ring = StagingRing::new(device, 1 << 20).unwrap();
    let stream = device.stream(Priority::High).unwrap();
    let kernel = device.kernel(&STAY).unwrap();
    let mut told = arena.allocate::<u32>(2).unwrap();
    ring.write(told.all_mut(), &[0, 0]).unwrap();
    let sent = words(1 << 20);

    let begun = Instant::now();
    let residency = device.begin_residency();
    let launch = kernel.launch([1, 1, 1], [1, 1, 1]);
    launch.write(told.all_mut(), 2).scalar(GIVE_UP_CYCLES).on(&stream).unwrap();

    // Its first launch in this process, perhaps: that too must not wait.
    for _ in 0..3 {
        let mut buffer = arena.allocate::<u32>(sent.len()).unwrap();
        ring.write(buffer.all_mut(), &sent).unwrap();
        let found = device.checksum(&arena, &mut ring, &buffer).unwrap();
        assert_eq!(found, checksum(&sent));
        assert!(device.memory().unwrap().free > 0);
    }
    let refused = Arena::new(device, 1 << 20).unwrap_err();
    assert!(matches!(refused, CudaError::Resident { .. }), "{refused}");
    drop(device.event().unwrap_err());
    let dropped = StagingRing::new(device, 4096).map(|_| ());
    assert!(matches!(dropped, Err(CudaError::Resident { .. })));
    assert!(!stream.is_done().unwrap(), "the kernel left before it was told to");

    ring.write(told.view_mut(0..1).unwrap(), &[1]).unwrap();
    stream.wait().unwrap();
    let calls = residency.calls();
    drop(residency);
    let mut left = [0; 2];
    ring.read(told.all(), &mut left).unwrap();
    assert_eq!(left, [1, 1], "it gave up instead of being told");
    assert_eq!((calls.allocates, calls.refused), (0, 3), "{calls:?}");
    say(&format!("beside a resident kernel for {:?}: {calls:?}", begun.elapsed()));
    Arena::new(device, 1 << 20).unwrap();
}

#[test]
fn as_many_blocks_as_are_resident_run_at_once() {
    let Some(gpu) = gpu() else { return };
    let device = &gpu.device;
    let kernel = device.kernel(&STAY).unwrap();
    let blocks = kernel.resident_blocks(32, 0).unwrap();
    assert!(blocks >= device.info().multiprocessors);
    assert_eq!(blocks % device.info().multiprocessors, 0);
}

/// In a process of its own: what follows in it gets the same error.
#[test]
fn a_failing_kernel_loses_the_device_and_every_call_says_so() {
    if env::var_os(CHILD).is_none() {
        let Some(gpu) = gpu() else { return };
        let name = "a_failing_kernel_loses_the_device_and_every_call_says_so";
        let mut child = Command::new(env::current_exe().unwrap());
        let child = child.args(["--exact", name, "--nocapture"]).env(CHILD, "1");
        assert!(child.status().unwrap().success());
        drop(gpu);
        return;
    }
    let gpu = gpu().expect("the parent had a device");
    let device = &gpu.device;
    let arena = Arena::new(device, 8 << 20).unwrap();
    let stream = device.stream(Priority::High).unwrap();
    device.kernel(&FAIL).unwrap().launch([1, 1, 1], [1, 1, 1]).on(&stream).unwrap();
    let lost = stream.wait().unwrap_err();
    say(&lost.to_string());
    assert!(matches!(lost, CudaError::DeviceLost { .. }), "{lost}");
    assert_eq!(device.lost(), Some(&lost));
    assert_eq!(device.memory().unwrap_err(), lost);
    assert_eq!(device.self_test(&arena).unwrap_err(), lost);
}
