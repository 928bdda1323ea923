//! A driver for tests on machines without a device: one card, whose memory is host memory and whose
//! streams do their work only when somebody waits for them, as late as a real one might.
//!
//! Each test thread has a driver of its own. Errors are planted with [`Fake::fail`].

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, c_char, c_int, c_uchar, c_uint, c_ulonglong, c_void};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use cudarc::driver::sys::{
    CUcontext, CUdevice, CUdevice_attribute as Attribute, CUdeviceptr, CUevent, CUfunction,
    CUfunction_attribute as FunctionAttribute, CUgraph, CUgraphExec, CUjit_option, CUmodule,
    CUstream, CUstreamCaptureMode,
};

use crate::checksum;
use crate::driver::{Api, Call, Driver};

/// Where device memory seems to be.
const BASE: u64 = 0x7_0000_0000;

/// How far from the host's address of mapped memory the device seems to have it.
const MAPPED: u64 = 1 << 60;

/// The state of the fake driver of one thread.
pub(crate) struct Fake {
    pub(crate) version: c_int,
    pub(crate) devices: c_int,
    pub(crate) capability: (c_int, c_int),
    pub(crate) memory: usize,
    /// All calls, in order.
    pub(crate) log: Vec<Call>,
    failures: HashMap<Call, u32>,
    allocations: BTreeMap<u64, Vec<u8>>,
    pinned: HashMap<usize, Box<[u64]>>,
    pub(crate) images: Vec<Vec<u8>>,
    /// Work not yet done, by stream.
    queues: HashMap<usize, Vec<Work>>,
    /// For each event the stream and how much of its queue precede it.
    events: HashMap<usize, (usize, usize)>,
    /// Names of kernels.
    functions: HashMap<usize, String>,
    /// What streams record instead of queueing it.
    captures: HashMap<usize, Vec<Work>>,
    /// Graphs, and what was made of them to be launched.
    pub(crate) graphs: HashMap<usize, Vec<Work>>,
    handles: usize,
}

/// Something in a stream.
#[derive(Clone)]
pub(crate) enum Work {
    ToDevice {
        to: u64,
        from: *const u8,
        bytes: usize,
    },
    ToHost {
        to: *mut u8,
        from: u64,
        bytes: usize,
    },
    /// `m40_probe`.
    Probe {
        words: u64,
        len: u32,
        sum: u64,
    },
    OnDevice {
        to: u64,
        from: u64,
        bytes: usize,
    },
    Zero {
        to: u64,
        bytes: usize,
    },
    /// `m40_tell`: adds the word at `offset` of an arena to the first word of a mailbox.
    Tell {
        arena: u64,
        offset: u64,
        mailbox: u64,
    },
}

thread_local! {
    static FAKE: RefCell<Fake> = RefCell::new(Fake::default());
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            version: 12_020,
            devices: 1,
            capability: (5, 2),
            memory: 64 << 20,
            log: Vec::new(),
            failures: HashMap::new(),
            allocations: BTreeMap::new(),
            pinned: HashMap::new(),
            images: Vec::new(),
            queues: HashMap::new(),
            events: HashMap::new(),
            functions: HashMap::new(),
            captures: HashMap::new(),
            graphs: HashMap::new(),
            handles: 0,
        }
    }
}

/// Looks at or changes this thread's driver.
pub(crate) fn with<R>(f: impl FnOnce(&mut Fake) -> R) -> R {
    FAKE.with_borrow_mut(f)
}

/// The driver of this thread, opened.
pub(crate) fn open() -> Result<Arc<Driver>, crate::CudaError> {
    Driver::start(api())
}

impl Fake {
    /// Makes every later call of this function fail with this number.
    pub(crate) fn fail(&mut self, call: Call, code: u32) {
        self.failures.insert(call, code);
    }

    pub(crate) fn recover(&mut self) {
        self.failures.clear();
    }

    /// What is still allocated: on the device, and in pinned memory.
    pub(crate) fn allocations(&self) -> (usize, usize) {
        (self.allocations.len(), self.pinned.len())
    }

    /// Whether a stream has work that nobody has waited for.
    pub(crate) fn is_busy(&self) -> bool {
        self.queues.values().any(|queue| !queue.is_empty())
    }

    fn used(&self) -> usize {
        self.allocations.values().map(Vec::len).sum()
    }

    fn new_handle<T>(&mut self) -> *mut T {
        self.handles += 1;
        ptr::without_provenance_mut(self.handles)
    }

    fn device_bytes(&mut self, address: u64, bytes: usize) -> &mut [u8] {
        let (base, memory) = self.allocations.range_mut(..=address).next_back().unwrap();
        let start = (address - base) as usize;
        &mut memory[start..start + bytes]
    }

    fn words(&mut self, address: u64, len: usize) -> Vec<u32> {
        let words = self.device_bytes(address, len * 4).chunks_exact(4);
        words.map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
    }

    /// Queues work, or records it.
    fn enqueue(&mut self, stream: CUstream, work: Work) -> u32 {
        match self.captures.get_mut(&stream.addr()) {
            Some(recorded) => recorded.push(work),
            None => self.queues.entry(stream.addr()).or_default().push(work),
        }
        0
    }

    /// Does the first `count` things in a stream's queue.
    fn work(&mut self, stream: usize, count: usize) {
        let queue = self.queues.entry(stream).or_default();
        let count = count.min(queue.len());
        let due: Vec<_> = queue.drain(..count).collect();
        for (_, before) in self.events.values_mut().filter(|(of, _)| *of == stream) {
            *before = before.saturating_sub(count);
        }
        for work in due {
            match work {
                Work::ToDevice { to, from, bytes } => {
                    // SAFETY: the crate keeps pinned memory while copies are under way.
                    let from = unsafe { std::slice::from_raw_parts(from, bytes) };
                    self.device_bytes(to, bytes).copy_from_slice(from);
                }
                Work::ToHost { to, from, bytes } => {
                    // SAFETY: as above.
                    let to = unsafe { std::slice::from_raw_parts_mut(to, bytes) };
                    to.copy_from_slice(self.device_bytes(from, bytes));
                }
                Work::Probe { words, len, sum } => {
                    let found = checksum(&self.words(words, len as usize));
                    let old = self.words(sum, 1)[0];
                    let new = old.wrapping_add(found).to_le_bytes();
                    self.device_bytes(sum, 4).copy_from_slice(&new);
                }
                Work::OnDevice { to, from, bytes } => {
                    let copied = self.device_bytes(from, bytes).to_vec();
                    self.device_bytes(to, bytes).copy_from_slice(&copied);
                }
                Work::Zero { to, bytes } => self.device_bytes(to, bytes).fill(0),
                Work::Tell { arena, offset, mailbox } => {
                    let word = self.words(arena + offset, 1)[0];
                    let place = (mailbox - MAPPED) as usize;
                    assert!(self.pinned.contains_key(&place), "no mailbox there");
                    // SAFETY: pinned memory that is there, which the crate sees through atomics.
                    let place = unsafe {
                        AtomicU32::from_ptr(ptr::with_exposed_provenance_mut::<u32>(place))
                    };
                    place.fetch_add(word, Ordering::Release);
                }
            }
        }
    }
}

/// Notes a call and does it, unless it is to fail.
fn call(call: Call, f: impl FnOnce(&mut Fake) -> u32) -> u32 {
    with(|fake| {
        fake.log.push(call);
        match fake.failures.get(&call) {
            Some(&code) => code,
            None => f(fake),
        }
    })
}

/// Stores a result where the caller wants it.
fn put<T>(place: *mut T, value: T) -> u32 {
    // SAFETY: the crate passes places for results.
    unsafe { place.write(value) };
    0
}

/// Defines one function of the driver: its arguments, then what it does with the [`Fake`].
macro_rules! functions {
    ($($symbol:ident($fake:ident $(, $argument:ident: $type:ty)* $(,)?) $body:block)*) => {
        fn api() -> Api {
            $(
                #[expect(non_snake_case, reason = "the driver's own names")]
                unsafe extern "C" fn $symbol($($argument: $type),*) -> u32 {
                    call(Call::$symbol, |$fake| $body)
                }
            )*
            Api { $($symbol,)* cuGetErrorName, cuGetErrorString: cuGetErrorName }
        }
    };
}

#[expect(non_snake_case, reason = "the driver's own names")]
unsafe extern "C" fn cuGetErrorName(_code: c_uint, name: *mut *const c_char) -> u32 {
    put(name, c"CUDA_ERROR_PLANTED".as_ptr())
}

functions! {
    cuInit(_fake, _flags: c_uint) { 0 }
    cuDriverGetVersion(fake, version: *mut c_int) { put(version, fake.version) }
    cuDeviceGetCount(fake, count: *mut c_int) { put(count, fake.devices) }
    cuDeviceGet(_fake, device: *mut CUdevice, ordinal: c_int) { put(device, ordinal) }
    cuDeviceGetName(_fake, name: *mut c_char, _length: c_int, _device: CUdevice) {
        put(name.cast(), *b"Fake M40\0")
    }
    cuDeviceGetAttribute(fake, value: *mut c_int, attribute: Attribute, _device: CUdevice) {
        put(value, match attribute {
            Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR => fake.capability.0,
            Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR => fake.capability.1,
            Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT => 24,
            Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE => 1_112_000,
            Attribute::CU_DEVICE_ATTRIBUTE_ECC_ENABLED => 1,
            Attribute::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID => 0,
            Attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID => 0x3b,
            Attribute::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID => 0,
            _ => 1000,
        })
    }
    cuDeviceTotalMem_v2(fake, bytes: *mut usize, _device: CUdevice) { put(bytes, fake.memory) }
    cuCtxSetCurrent(_fake, _context: CUcontext) { 0 }
    cuCtxGetStreamPriorityRange(_fake, least: *mut c_int, greatest: *mut c_int) {
        put(least, 0);
        put(greatest, -2)
    }
    cuMemGetInfo_v2(fake, free: *mut usize, total: *mut usize) {
        put(free, fake.memory - fake.used());
        put(total, fake.memory)
    }
    cuModuleGetFunction(
        fake, function: *mut CUfunction, _module: CUmodule, name: *const c_char,
    ) {
        // SAFETY: the crate passes a C string.
        let name = unsafe { CStr::from_ptr(name) }.to_str().unwrap().to_owned();
        let handle: CUfunction = fake.new_handle();
        fake.functions.insert(handle.addr(), name);
        put(function, handle)
    }
    cuFuncGetAttribute(
        _fake, value: *mut c_int, attribute: FunctionAttribute, _function: CUfunction,
    ) {
        put(value, match attribute {
            FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK => 256,
            FunctionAttribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES => 1024,
            _ => 0,
        })
    }
    cuOccupancyMaxActiveBlocksPerMultiprocessor(
        _fake, blocks: *mut c_int, _function: CUfunction, _threads: c_int, _shared: usize,
    ) { put(blocks, 8) }
    cuStreamQuery(fake, stream: CUstream) {
        if fake.queues.get(&stream.addr()).is_none_or(Vec::is_empty) { 0 } else { 600 }
    }
    cuEventQuery(fake, event: CUevent) {
        if fake.events.get(&event.addr()).is_none_or(|event| event.1 == 0) { 0 } else { 600 }
    }
    cuEventElapsedTime(_fake, milliseconds: *mut f32, _start: CUevent, _end: CUevent) {
        put(milliseconds, 1.5)
    }
    cuLaunchKernel(
        fake, function: CUfunction,
        _gx: c_uint, _gy: c_uint, _gz: c_uint, _bx: c_uint, _by: c_uint, _bz: c_uint,
        _shared: c_uint, stream: CUstream,
        parameters: *mut *mut c_void, _extra: *mut *mut c_void,
    ) {
        // SAFETY: all kernels have three parameters; each pointer is to eight bytes.
        let [a, b, c] = unsafe { parameters.cast::<[*const u64; 3]>().read() }
            // SAFETY: as above.
            .map(|parameter| unsafe { parameter.read() });
        let work = match fake.functions[&function.addr()].as_str() {
            "m40_tell" => Work::Tell { arena: a, offset: b, mailbox: c },
            _ => Work::Probe { words: a, len: b as u32, sum: c },
        };
        fake.enqueue(stream, work)
    }
    cuMemcpyHtoDAsync_v2(
        fake, to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream,
    ) {
        let copy = Work::ToDevice { to, from: from.cast(), bytes };
        fake.enqueue(stream, copy)
    }
    cuMemcpyDtoHAsync_v2(
        fake, to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream,
    ) {
        let copy = Work::ToHost { to: to.cast(), from, bytes };
        fake.enqueue(stream, copy)
    }
    cuMemcpyDtoDAsync_v2(
        fake, to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream,
    ) { fake.enqueue(stream, Work::OnDevice { to, from, bytes }) }
    cuMemsetD8Async(fake, to: CUdeviceptr, value: c_uchar, bytes: usize, stream: CUstream) {
        assert_eq!(value, 0);
        fake.enqueue(stream, Work::Zero { to, bytes })
    }
    cuMemHostGetDevicePointer_v2(
        _fake, address: *mut CUdeviceptr, host: *mut c_void, _flags: c_uint,
    ) { put(address, host.expose_provenance() as u64 + MAPPED) }
    cuStreamBeginCapture_v2(fake, stream: CUstream, mode: CUstreamCaptureMode) {
        assert_eq!(mode, CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED);
        let before = fake.captures.insert(stream.addr(), Vec::new());
        if before.is_some() { 401 } else { 0 }
    }
    cuStreamEndCapture(fake, stream: CUstream, graph: *mut CUgraph) {
        let Some(recorded) = fake.captures.remove(&stream.addr()) else { return 401 };
        let handle: CUgraph = fake.new_handle();
        fake.graphs.insert(handle.addr(), recorded);
        put(graph, handle)
    }
    cuGraphInstantiateWithFlags(
        fake, executable: *mut CUgraphExec, graph: CUgraph, flags: c_ulonglong,
    ) {
        assert_eq!(flags, 0);
        let recorded = fake.graphs[&graph.addr()].clone();
        let handle: CUgraphExec = fake.new_handle();
        fake.graphs.insert(handle.addr(), recorded);
        put(executable, handle)
    }
    cuGraphLaunch(fake, graph: CUgraphExec, stream: CUstream) {
        for work in fake.graphs[&graph.addr()].clone() {
            fake.enqueue(stream, work);
        }
        0
    }
    cuGraphExecDestroy(fake, graph: CUgraphExec) {
        u32::from(fake.graphs.remove(&graph.addr()).is_none())
    }
    cuGraphDestroy(fake, graph: CUgraph) {
        u32::from(fake.graphs.remove(&graph.addr()).is_none())
    }
    cuEventRecord(fake, event: CUevent, stream: CUstream) {
        let before = fake.queues.get(&stream.addr()).map_or(0, Vec::len);
        fake.events.insert(event.addr(), (stream.addr(), before));
        0
    }
    cuStreamWaitEvent(fake, _stream: CUstream, event: CUevent, _flags: c_uint) {
        if let Some(&(stream, before)) = fake.events.get(&event.addr()) {
            fake.work(stream, before);
        }
        0
    }
    cuStreamSynchronize(fake, stream: CUstream) {
        fake.work(stream.addr(), usize::MAX);
        0
    }
    cuEventSynchronize(fake, event: CUevent) {
        if let Some(&(stream, before)) = fake.events.get(&event.addr()) {
            fake.work(stream, before);
        }
        0
    }
    cuDevicePrimaryCtxSetFlags_v2(_fake, _device: CUdevice, _flags: c_uint) { 0 }
    cuDevicePrimaryCtxRetain(fake, context: *mut CUcontext, _device: CUdevice) {
        put(context, fake.new_handle())
    }
    cuDevicePrimaryCtxRelease_v2(_fake, _device: CUdevice) { 0 }
    cuModuleLoadDataEx(
        fake, module: *mut CUmodule, image: *const c_void,
        count: c_uint, options: *mut CUjit_option, values: *mut *mut c_void,
    ) {
        // SAFETY: the crate's images in tests end in a NUL, PTX and machine code alike.
        let image = unsafe { CStr::from_ptr(image.cast()) }.to_bytes().to_vec();
        if image.starts_with(b"bad") {
            // SAFETY: there is at least one option.
            let option = unsafe { options.read() };
            assert_eq!((count, option), (2, CUjit_option::CU_JIT_ERROR_LOG_BUFFER));
            // SAFETY: each option has a value; this one's is the buffer.
            let log = unsafe { values.read() };
            put(log.cast(), *b"line 1: nonsense\0");
            return 218;
        }
        if image.starts_with(b"too new") {
            return 209;
        }
        fake.images.push(image);
        put(module, fake.new_handle())
    }
    cuModuleUnload(fake, _module: CUmodule) {
        fake.images.pop();
        0
    }
    cuStreamCreateWithPriority(
        fake, stream: *mut CUstream, flags: c_uint, _priority: c_int,
    ) {
        assert_eq!(flags, 1, "not a non-blocking stream");
        put(stream, fake.new_handle())
    }
    cuStreamDestroy_v2(fake, stream: CUstream) {
        fake.work(stream.addr(), usize::MAX);
        0
    }
    cuEventCreate(fake, event: *mut CUevent, _flags: c_uint) { put(event, fake.new_handle()) }
    cuEventDestroy_v2(fake, event: CUevent) {
        fake.events.remove(&event.addr());
        0
    }
    cuMemAlloc_v2(fake, address: *mut CUdeviceptr, bytes: usize) {
        if bytes > fake.memory - fake.used() {
            return 2;
        }
        let start = fake.allocations.last_key_value().map_or(BASE, |(start, memory)| {
            (start + memory.len() as u64).next_multiple_of(512)
        });
        fake.allocations.insert(start, vec![0xa5; bytes]);
        put(address, start)
    }
    cuMemFree_v2(fake, address: CUdeviceptr) {
        u32::from(fake.allocations.remove(&address).is_none())
    }
    cuMemHostAlloc(fake, address: *mut *mut c_void, bytes: usize, _flags: c_uint) {
        let mut memory = vec![u64::MAX; bytes.div_ceil(8)].into_boxed_slice();
        let start = memory.as_mut_ptr();
        fake.pinned.insert(start.addr(), memory);
        put(address, start.cast())
    }
    cuMemFreeHost(fake, address: *mut c_void) {
        let Some(memory) = fake.pinned.remove(&address.addr()) else { return 1 };
        let copies = |work: &Work| match work {
            Work::ToDevice { from, .. } => Some(from.addr()),
            Work::ToHost { to, .. } => Some(to.addr()),
            Work::Tell { mailbox, .. } => Some((mailbox - MAPPED) as usize),
            Work::Probe { .. } | Work::Zero { .. } | Work::OnDevice { .. } => None,
        };
        let here = address.addr()..address.addr() + memory.len() * 8;
        let mut travelling = fake.queues.values().flatten().filter_map(copies);
        assert!(!travelling.any(|start| here.contains(&start)), "freed while a copy is under way");
        0
    }
}
