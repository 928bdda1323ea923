//! Parsing allocates in proportion to the bytes there are, never to what they claim.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use m40_gguf::{Gguf, TensorType};
use m40_testkit::gguf::{GgufBuilder, every_feature};

thread_local! {
    /// Bytes this thread holds, and the most it held since the last reset.
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

fn count(change: isize) {
    // A thread that is ending allocates without being counted.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + change);
        PEAK.with(|peak| peak.set(peak.get().max(live.get())));
    });
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes held at any time while `bytes` are parsed.
fn peak_while_parsing(bytes: &[u8]) -> usize {
    let before = LIVE.with(Cell::get);
    PEAK.with(|peak| peak.set(before));
    drop(Gguf::parse(bytes));
    usize::try_from(PEAK.with(Cell::get) - before).expect("the peak is above the start")
}

/// Every file may cost this: the shard list and the text of an error.
const FIXED: usize = 512;
/// Held for each byte of the file at most. The worst is a table of one-byte tensors, whose entries
/// take 33 bytes in the file and 97 in memory.
const PER_BYTE: usize = 3;

#[track_caller]
fn assert_bounded(bytes: &[u8]) {
    let (peak, bound) = (peak_while_parsing(bytes), bytes.len() * PER_BYTE + FIXED);
    assert!(peak <= bound, "{peak} bytes held for a file of {}", bytes.len());
}

#[test]
fn counting_sees_allocations() {
    let before = LIVE.with(Cell::get);
    let kept = vec![0u8; 1000];
    assert_eq!(LIVE.with(Cell::get) - before, 1000);
    drop(kept);
    assert_eq!(LIVE.with(Cell::get), before);
}

#[test]
fn every_truncation_is_bounded() {
    let bytes = every_feature().build();
    for end in 0..=bytes.len() {
        assert_bounded(&bytes[..end]);
    }
}

#[test]
fn every_huge_number_is_bounded() {
    let bytes = every_feature().build();
    for at in 0..bytes.len() - 8 {
        for huge in [u64::MAX, u64::MAX >> 1, 1 << 40, 1 << 32, 1 << 24, 1 << 16] {
            let mut damaged = bytes.clone();
            damaged[at..at + 8].copy_from_slice(&huge.to_le_bytes());
            assert_bounded(&damaged);
        }
    }
}

#[test]
fn a_file_that_is_all_tensor_table_is_bounded() {
    let names: Vec<String> = (0..20_000).map(|i| format!("{i:x}")).collect();
    let file = names.iter().fold(GgufBuilder::new().alignment(8), |file, name| {
        file.tensor(name, &[1], TensorType::I8, vec![0])
    });
    let bytes = file.build();
    assert_eq!(Gguf::parse(&bytes).map(|file| file.tensors().len()), Ok(20_000));
    assert_bounded(&bytes);
    // The table alone: as many entries, no data behind them.
    assert_bounded(&bytes[..bytes.len() - 20_000 * 8]);
}

#[test]
fn a_file_that_is_all_metadata_is_bounded() {
    let file = (0..20_000).fold(Vec::new(), |mut entries: Vec<u8>, i: u64| {
        let key = format!("{i:x}");
        entries.extend((key.len() as u64).to_le_bytes());
        entries.extend(key.as_bytes());
        entries.extend([0, 0, 0, 0, 7]);
        entries
    });
    let mut bytes = [b"GGUF".as_slice(), &3u32.to_le_bytes(), &0u64.to_le_bytes()].concat();
    bytes.extend(20_000u64.to_le_bytes());
    bytes.extend(file);
    assert_eq!(Gguf::parse(&bytes).map(|file| file.metadata().count()), Ok(20_000));
    assert!(peak_while_parsing(&bytes) <= bytes.len() + FIXED);
}

#[test]
fn strings_and_arrays_cost_nothing() {
    let words: Vec<String> = (0..100_000).map(|i| format!("word {i}")).collect();
    let bytes = GgufBuilder::new()
        .meta("tokens", words)
        .meta("scores", vec![0.5f32; 100_000])
        .meta("text", "x".repeat(1 << 20))
        .build();
    assert!(peak_while_parsing(&bytes) <= FIXED, "{}", peak_while_parsing(&bytes));
}
