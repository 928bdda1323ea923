//! The functions of the library, as NVIDIA's header declares them; those that nobody calls are not here.

#![expect(non_snake_case, reason = "the names are NVIDIA's")]
#![expect(unsafe_code, reason = "this stands in for a library of C")]

use std::ffi::{CStr, c_char, c_uint, c_ulonglong};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nvml_wrapper_sys::bindings::{
    nvmlClockType_t, nvmlDevice_t, nvmlEccCounterType_t, nvmlEnableState_t, nvmlEventData_t,
    nvmlEventSet_t, nvmlMemory_v2_t, nvmlMemoryErrorType_t, nvmlPciInfo_t, nvmlPcieUtilCounter_t,
    nvmlPstates_t, nvmlReturn_t, nvmlTemperatureSensors_t, nvmlTemperatureThresholds_t,
};

use crate::{note, said};

const SUCCESS: nvmlReturn_t = 0;
const INVALID_ARGUMENT: nvmlReturn_t = 2;
const NOT_SUPPORTED: nvmlReturn_t = 3;
const NO_PERMISSION: nvmlReturn_t = 4;
const NOT_FOUND: nvmlReturn_t = 6;
const INSUFFICIENT_SIZE: nvmlReturn_t = 7;
const TIMEOUT: nvmlReturn_t = 10;
const GPU_IS_LOST: nvmlReturn_t = 15;
const UNKNOWN: nvmlReturn_t = 999;

/// Clocks of memory and graphics of the card when nobody has set them, and the lowest, MHz.
const USUAL: (c_uint, c_uint) = (3004, 1114);
const LOWEST: (c_uint, c_uint) = (324, 324);

/// How often a wait for an event looks whether there is one.
const LOOK: Duration = Duration::from_millis(10);

/// The one card. Nothing is ever read through it.
const CARD: nvmlDevice_t = std::ptr::dangling_mut();

/// The one set of events: how many errors there had been when it was made.
struct Events {
    seen: u64,
}

/// Gives the caller a value.
///
/// # Safety
/// `to` is where the caller of a function of this library wants its result, as the header has it: valid for a
/// write of a `T`, or null.
unsafe fn give<T>(to: *mut T, value: Option<T>) -> nvmlReturn_t {
    if is_lost() {
        return GPU_IS_LOST;
    }
    match value {
        None => NOT_SUPPORTED,
        Some(_) if to.is_null() => INVALID_ARGUMENT,
        Some(value) => {
            // SAFETY: by the caller's word, and it is not null.
            unsafe { to.write(value) };
            SUCCESS
        }
    }
}

/// Gives the caller a text.
///
/// # Safety
/// `to` is valid for writes of `length` characters.
unsafe fn give_text(to: *mut c_char, length: c_uint, text: Option<String>) -> nvmlReturn_t {
    if is_lost() {
        return GPU_IS_LOST;
    }
    let Some(text) = text else { return NOT_SUPPORTED };
    if text.len() >= length as usize {
        return INSUFFICIENT_SIZE;
    }
    for (at, byte) in text.bytes().chain([0]).enumerate() {
        // SAFETY: `at` is below `length`.
        let place = unsafe { to.add(at) };
        // SAFETY: by the caller's word.
        unsafe { place.write(byte.cast_signed()) };
    }
    SUCCESS
}

fn number<T: std::str::FromStr>(name: &str) -> Option<T> {
    said(name)?.parse().ok()
}

fn is_lost() -> bool {
    number::<u8>("lost") == Some(1)
}

/// Declares functions that give one value, found by the arguments.
macro_rules! gives {
    ($($function:ident($($argument:ident: $type:ty),*) -> $value:ty = $found:expr;)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $function(
            _card: nvmlDevice_t, $($argument: $type,)* to: *mut $value,
        ) -> nvmlReturn_t {
            // SAFETY: `to` is the result of this function in NVIDIA's header.
            unsafe { give(to, $found) }
        }
    )*};
}

gives! {
    nvmlDeviceGetTemperature(_sensor: nvmlTemperatureSensors_t) -> c_uint = number("temperature");
    nvmlDeviceGetTemperatureThreshold(which: nvmlTemperatureThresholds_t) -> c_uint = match which {
        0 => number("shutdown"),
        1 => number("slowdown"),
        _ => None,
    };
    nvmlDeviceGetPowerUsage() -> c_uint = number("power");
    nvmlDeviceGetEnforcedPowerLimit() -> c_uint = number("power_limit");
    nvmlDeviceGetTotalEnergyConsumption() -> c_ulonglong = number("energy");
    nvmlDeviceGetClockInfo(which: nvmlClockType_t) -> c_uint = match which {
        1 => number("sm_clock"),
        2 => number("memory_clock"),
        _ => None,
    };
    nvmlDeviceGetMaxClockInfo(which: nvmlClockType_t) -> c_uint = match which {
        1 => number("sm_clock_max"),
        2 => number("memory_clock_max"),
        _ => None,
    };
    nvmlDeviceGetCurrentClocksThrottleReasons() -> c_ulonglong = number("throttle");
    nvmlDeviceGetTotalEccErrors(
        kind: nvmlMemoryErrorType_t, _since: nvmlEccCounterType_t
    ) -> c_ulonglong = number(if kind == 0 { "ecc_corrected" } else { "ecc_uncorrected" });
    nvmlDeviceGetCurrPcieLinkGeneration() -> c_uint = number("pcie_generation");
    nvmlDeviceGetCurrPcieLinkWidth() -> c_uint = number("pcie_width");
    nvmlDeviceGetMaxPcieLinkGeneration() -> c_uint = number("pcie_generation_max");
    nvmlDeviceGetMaxPcieLinkWidth() -> c_uint = number("pcie_width_max");
    nvmlDeviceGetPcieThroughput(way: nvmlPcieUtilCounter_t) -> c_uint =
        number(if way == 0 { "pcie_tx" } else { "pcie_rx" });
    nvmlDeviceGetPersistenceMode() -> nvmlEnableState_t = number("persistence");
    nvmlDeviceGetPerformanceState() -> nvmlPstates_t = number("performance_state");
    nvmlDeviceGetApplicationsClock(which: nvmlClockType_t) -> c_uint = clock(which, set_clocks());
    nvmlDeviceGetDefaultApplicationsClock(which: nvmlClockType_t) -> c_uint = clock(which, USUAL);
}

/// Application clocks of memory and graphics, MHz.
fn set_clocks() -> (c_uint, c_uint) {
    let path = crate::path().map(|path| crate::set_path(&path));
    let text = path.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
    let both = text.lines().last().and_then(|line| line.split_once(' '));
    both.and_then(|(memory, graphics)| Some((memory.parse().ok()?, graphics.parse().ok()?)))
        .unwrap_or(USUAL)
}

fn clock(which: nvmlClockType_t, (memory, graphics): (c_uint, c_uint)) -> Option<c_uint> {
    match which {
        0 => Some(graphics),
        2 => Some(memory),
        _ => None,
    }
}

#[unsafe(no_mangle)]
extern "C" fn nvmlInit_v2() -> nvmlReturn_t {
    // Without a card this is a machine whose driver is not loaded.
    if said("address").is_some() { SUCCESS } else { 9 }
}

#[unsafe(no_mangle)]
extern "C" fn nvmlShutdown() -> nvmlReturn_t {
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlSystemGetDriverVersion(to: *mut c_char, length: c_uint) -> nvmlReturn_t {
    // SAFETY: as the header has it.
    unsafe { give_text(to, length, said("driver")) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetCount_v2(to: *mut c_uint) -> nvmlReturn_t {
    // SAFETY: as the header has it.
    unsafe { give(to, Some(1)) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(
    index: c_uint,
    to: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    // SAFETY: as the header has it.
    unsafe { give(to, (index == 0).then_some(CARD)) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetHandleByPciBusId_v2(
    address: *const c_char,
    to: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    // SAFETY: the header has a text that ends with a zero here.
    let wanted = unsafe { CStr::from_ptr(address) };
    let here = said("address").is_some_and(|here| wanted.to_bytes() == here.as_bytes());
    // SAFETY: as the header has it.
    if here { unsafe { give(to, Some(CARD)) } } else { NOT_FOUND }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetPciInfo_v3(
    _card: nvmlDevice_t,
    to: *mut nvmlPciInfo_t,
) -> nvmlReturn_t {
    let part = |at: usize| {
        let address = said("address")?;
        u32::from_str_radix(address.trim_end_matches(".0").split(':').nth(at)?, 16).ok()
    };
    let place = || {
        let (domain, bus, device) = (part(0)?, part(1)?, part(2)?);
        let (busIdLegacy, busId) = ([0; 16], [0; 32]);
        let (pciDeviceId, pciSubSystemId) = (0x17fd_10de, 0);
        Some(nvmlPciInfo_t { busIdLegacy, domain, bus, device, pciDeviceId, pciSubSystemId, busId })
    };
    // SAFETY: as the header has it.
    unsafe { give(to, place()) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetName(
    _card: nvmlDevice_t,
    to: *mut c_char,
    length: c_uint,
) -> nvmlReturn_t {
    // SAFETY: as the header has it.
    unsafe { give_text(to, length, said("name")) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetUUID(
    _card: nvmlDevice_t,
    to: *mut c_char,
    length: c_uint,
) -> nvmlReturn_t {
    // SAFETY: as the header has it.
    unsafe { give_text(to, length, said("uuid")) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetEccMode(
    _card: nvmlDevice_t,
    now: *mut nvmlEnableState_t,
    pending: *mut nvmlEnableState_t,
) -> nvmlReturn_t {
    // SAFETY: as the header has it.
    match unsafe { give(now, number("ecc")) } {
        // SAFETY: as the header has it.
        SUCCESS => unsafe { give(pending, number("ecc_pending")) },
        error => error,
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(
    _card: nvmlDevice_t,
    to: *mut nvmlMemory_v2_t,
) -> nvmlReturn_t {
    let memory = || {
        let (total, used) = (number("memory_total")?, number("memory_used")?);
        let version = (size_of::<nvmlMemory_v2_t>() | 2 << 24) as c_uint;
        Some(nvmlMemory_v2_t { version, total, reserved: 0, free: total - used, used })
    };
    // SAFETY: as the header has it.
    unsafe { give(to, memory()) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetSupportedMemoryClocks(
    _card: nvmlDevice_t,
    count: *mut c_uint,
    to: *mut c_uint,
) -> nvmlReturn_t {
    // SAFETY: as the header has it.
    unsafe { give_clocks(count, to, [USUAL.0, LOWEST.0]) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetSupportedGraphicsClocks(
    _card: nvmlDevice_t,
    _memory: c_uint,
    count: *mut c_uint,
    to: *mut c_uint,
) -> nvmlReturn_t {
    // SAFETY: as the header has it.
    unsafe { give_clocks(count, to, [USUAL.1, LOWEST.1]) }
}

/// Gives the caller a list.
///
/// # Safety
/// `to` is valid for writes of as many clocks as `count` says, which is valid for reads and writes.
unsafe fn give_clocks(count: *mut c_uint, to: *mut c_uint, clocks: [c_uint; 2]) -> nvmlReturn_t {
    // SAFETY: by the caller's word.
    let room = unsafe { count.read() };
    // SAFETY: likewise.
    let given = unsafe { give(count, Some(2)) };
    if given != SUCCESS || room < 2 {
        return if room < 2 { INSUFFICIENT_SIZE } else { given };
    }
    // SAFETY: there is room for two.
    unsafe { to.cast::<[c_uint; 2]>().write_unaligned(clocks) };
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceSetApplicationsClocks(
    _card: nvmlDevice_t,
    memory: c_uint,
    graphics: c_uint,
) -> nvmlReturn_t {
    set(&format!("{memory} {graphics}"))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceResetApplicationsClocks(_card: nvmlDevice_t) -> nvmlReturn_t {
    set("reset")
}

fn set(line: &str) -> nvmlReturn_t {
    match number::<u8>("clocks_permitted") {
        None => NOT_SUPPORTED,
        Some(0) => NO_PERMISSION,
        Some(_) => {
            let noted = crate::path().map(|sheet| note(&sheet, line));
            noted.and_then(Result::ok).map_or(UNKNOWN, |()| SUCCESS)
        }
    }
}

/// How many errors there were, and the last one's number.
fn xids() -> (u64, u64) {
    let said = said("xid").unwrap_or_default();
    let both = said.split_once(' ');
    let both = both.and_then(|(count, last)| Some((count.parse().ok()?, last.parse().ok()?)));
    both.unwrap_or((0, 0))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlEventSetCreate(to: *mut nvmlEventSet_t) -> nvmlReturn_t {
    let set = Box::into_raw(Box::new(Events { seen: xids().0 }));
    // SAFETY: as the header has it.
    unsafe { give(to, Some(set.cast())) }
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceRegisterEvents(
    _card: nvmlDevice_t,
    _kinds: c_ulonglong,
    _set: nvmlEventSet_t,
) -> nvmlReturn_t {
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlEventSetWait_v2(
    set: nvmlEventSet_t,
    to: *mut nvmlEventData_t,
    timeout_ms: c_uint,
) -> nvmlReturn_t {
    // SAFETY: a set is what `nvmlEventSetCreate` made, and is used by one thread at a time.
    let events = unsafe { &mut *set.cast::<Events>() };
    let end = Instant::now() + Duration::from_millis(timeout_ms.into());
    loop {
        if is_lost() {
            return GPU_IS_LOST;
        }
        let (count, last) = xids();
        if count > events.seen {
            events.seen = count;
            let (gpuInstanceId, computeInstanceId) = (c_uint::MAX, c_uint::MAX);
            let (device, eventType, eventData) = (CARD, 8, last);
            let event =
                nvmlEventData_t { device, eventType, eventData, gpuInstanceId, computeInstanceId };
            // SAFETY: as the header has it.
            return unsafe { give(to, Some(event)) };
        }
        if Instant::now() >= end {
            return TIMEOUT;
        }
        #[expect(clippy::disallowed_methods, reason = "a file has nothing to wait for")]
        sleep(LOOK);
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlEventSetFree(set: nvmlEventSet_t) -> nvmlReturn_t {
    // SAFETY: a set is what `nvmlEventSetCreate` made, and is freed once.
    drop(unsafe { Box::from_raw(set.cast::<Events>()) });
    SUCCESS
}
