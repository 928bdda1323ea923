//! Where C calls: statuses, the last error, and pointers becoming references.
#![expect(unsafe_code, reason = "pointers of the caller are read and written here")]

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::{mem, ptr, slice};

use ::engine::{EmbedError, GenerateError, GpuError, GrammarError, LoadError, TemplateError};

/// Changes when a program that was compiled before would no longer work.
pub const M40LLM_ABI_VERSION: u32 = 1;

/// What came of a call. Numbers are never given another meaning.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum m40llm_status {
    /// It was done.
    M40LLM_STATUS_OK = 0,
    /// An argument is NULL that must not be, no UTF-8, out of its range, or does not fit the model.
    M40LLM_STATUS_INVALID_ARGUMENT = 1,
    /// There is no such file.
    M40LLM_STATUS_NOT_FOUND = 2,
    /// The file is no model that this version runs, or the model cannot do what is asked.
    M40LLM_STATUS_UNSUPPORTED = 3,
    /// There is not enough memory for it now.
    M40LLM_STATUS_NO_ROOM = 4,
    /// The GPU, its driver or its kernels cannot be used.
    M40LLM_STATUS_GPU = 5,
    /// The buffer is too small; what it takes was written.
    M40LLM_STATUS_BUFFER_TOO_SMALL = 6,
    /// The session is generating already.
    M40LLM_STATUS_BUSY = 7,
    /// It was cancelled before there was a result.
    M40LLM_STATUS_CANCELLED = 8,
    /// A file cannot be read.
    M40LLM_STATUS_IO = 9,
    /// A bug of the library.
    M40LLM_STATUS_INTERNAL = 10,
}

pub use m40llm_status::*;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0} is NULL")]
    Null(&'static str),
    #[error("{name}: {why}")]
    Argument { name: &'static str, why: String },
    #[error("the buffer holds {capacity}, {needed} are needed")]
    Buffer { needed: usize, capacity: usize },
    #[error("the session is generating already: make another one for another thread")]
    Busy,
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Gpu(#[from] GpuError),
    #[error(transparent)]
    Generate(#[from] GenerateError),
    #[error(transparent)]
    Embed(#[from] EmbedError),
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Grammar(#[from] GrammarError),
}

impl Failure {
    pub(crate) fn argument(name: &'static str, why: impl ToString) -> Self {
        Self::Argument { name, why: why.to_string() }
    }

    fn status(&self) -> m40llm_status {
        match self {
            Self::Null(_) | Self::Argument { .. } | Self::Template(_) | Self::Grammar(_) => {
                M40LLM_STATUS_INVALID_ARGUMENT
            }
            Self::Buffer { .. } => M40LLM_STATUS_BUFFER_TOO_SMALL,
            Self::Busy => M40LLM_STATUS_BUSY,
            Self::Load(error) => of_load(error),
            Self::Gpu(_) => M40LLM_STATUS_GPU,
            Self::Generate(error) | Self::Embed(EmbedError::Pass(error)) => of_generation(error),
            Self::Embed(EmbedError::NoClassifier) => M40LLM_STATUS_UNSUPPORTED,
            Self::Embed(EmbedError::Cancelled) => M40LLM_STATUS_CANCELLED,
            Self::Embed(EmbedError::NotNumbers { .. }) => M40LLM_STATUS_INTERNAL,
            Self::Embed(_) => M40LLM_STATUS_INVALID_ARGUMENT,
        }
    }
}

fn of_load(error: &LoadError) -> m40llm_status {
    match error {
        LoadError::NotFound { .. } => M40LLM_STATUS_NOT_FOUND,
        LoadError::Io { .. } => M40LLM_STATUS_IO,
        LoadError::Context { .. } => M40LLM_STATUS_INVALID_ARGUMENT,
        LoadError::NoRoom { .. } => M40LLM_STATUS_NO_ROOM,
        LoadError::Gpu { .. } => M40LLM_STATUS_GPU,
        _ => M40LLM_STATUS_UNSUPPORTED,
    }
}

fn of_generation(error: &GenerateError) -> m40llm_status {
    match error {
        GenerateError::Encoder => M40LLM_STATUS_UNSUPPORTED,
        GenerateError::CacheFull { .. } | GenerateError::TooManySessions { .. } => {
            M40LLM_STATUS_NO_ROOM
        }
        GenerateError::Gpu(_) => M40LLM_STATUS_GPU,
        GenerateError::NoToken | GenerateError::Pass { .. } => M40LLM_STATUS_INTERNAL,
        _ => M40LLM_STATUS_INVALID_ARGUMENT,
    }
}

thread_local! {
    static LAST_ERROR: RefCell<String> = const { RefCell::new(String::new()) };
}

/// A call from C. Having one means that whoever calls keeps the rules of the header: pointers are NULL or
/// to what their type and the function's description say, for as long as the call lasts, and handles come
/// from this library and were not freed.
#[derive(Clone, Copy)]
pub(crate) struct Caller(());

/// Runs the body of a call, and keeps what it says when it fails.
///
/// # Safety
/// Whoever calls keeps the rules of the header.
pub(crate) unsafe fn call(body: impl FnOnce(Caller) -> Result<(), Failure>) -> m40llm_status {
    let (status, message) = match catch_unwind(AssertUnwindSafe(|| body(Caller(())))) {
        Ok(Ok(())) => return M40LLM_STATUS_OK,
        Ok(Err(failure)) => (failure.status(), failure.to_string()),
        Err(panic) => (M40LLM_STATUS_INTERNAL, panicked(&*panic)),
    };
    LAST_ERROR.with_borrow_mut(|last| *last = message);
    status
}

/// Frees what a handle is of.
///
/// # Safety
/// Whoever calls keeps the rules of the header, and does not use the handle any more.
pub(crate) unsafe fn free<T>(handle: *mut T) {
    if handle.is_null() {
        return;
    }
    // Whoever frees cannot be told that it went wrong.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: by the contract of the `_free` functions this came from `hand_out` and is used no more.
        drop(unsafe { Box::from_raw(handle) });
    }));
}

fn panicked(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("internal error: {}", text.unwrap_or("a panic"))
}

/// A struct that begins with its size, of which a caller may know the first fields only.
///
/// # Safety
/// `repr(C)`, of plain numbers and pointers, its first field a `size_t` with its size.
pub(crate) unsafe trait Versioned: Copy + Default {}

impl Caller {
    /// What the caller's struct says, and defaults where there is none or it is shorter.
    pub(crate) fn options<T: Versioned>(self, from: *const T) -> Result<T, Failure> {
        let mut all = T::default();
        if from.is_null() {
            return Ok(all);
        }
        // SAFETY: by contract the caller's struct begins with its size, a `size_t`.
        let size = unsafe { from.cast::<usize>().read() };
        let known = declared(size, mem::size_of::<T>())?;
        // SAFETY: the caller's struct has `size` bytes and ours as many as its type; `known` is no more than
        // either, and any bytes are plain numbers and pointers.
        unsafe { ptr::copy_nonoverlapping(from.cast::<u8>(), (&raw mut all).cast::<u8>(), known) };
        Ok(all)
    }

    /// Writes as much of a struct as the caller's has.
    pub(crate) fn tell<T: Versioned>(
        self,
        value: T,
        to: *mut T,
        name: &'static str,
    ) -> Result<(), Failure> {
        if to.is_null() {
            return Err(Failure::Null(name));
        }
        // SAFETY: by contract the caller's struct begins with its size, a `size_t`.
        let size = unsafe { to.cast::<usize>().read() };
        let known = declared(size, mem::size_of::<T>())?;
        // SAFETY: the caller's struct has `size` bytes and ours as many as its type; `known` is no more than
        // either.
        unsafe {
            ptr::copy_nonoverlapping((&raw const value).cast::<u8>(), to.cast::<u8>(), known);
        }
        // SAFETY: as the size was read.
        unsafe { to.cast::<usize>().write(size) };
        Ok(())
    }

    /// What a handle is of.
    pub(crate) fn borrow<'a, T>(
        self,
        handle: *const T,
        name: &'static str,
    ) -> Result<&'a T, Failure> {
        // SAFETY: by contract NULL or from `hand_out`, and not freed while it is used. Handles give shared
        // references only.
        unsafe { handle.as_ref() }.ok_or(Failure::Null(name))
    }

    /// Gives the caller a handle.
    pub(crate) fn hand_out<T>(
        self,
        to: *mut *mut T,
        make: impl FnOnce() -> Result<T, Failure>,
    ) -> Result<(), Failure> {
        if to.is_null() {
            return Err(Failure::Null("the last argument"));
        }
        let made = Box::into_raw(Box::new(make()?));
        // SAFETY: by contract there is room for a pointer.
        unsafe { to.write(made) };
        Ok(())
    }

    /// Writes a number.
    pub(crate) fn put<T>(self, value: T, to: *mut T, name: &'static str) -> Result<(), Failure> {
        if to.is_null() {
            return Err(Failure::Null(name));
        }
        // SAFETY: by contract there is room for one.
        unsafe { to.write(value) };
        Ok(())
    }

    /// An array of the caller's; NULL is an empty one.
    pub(crate) fn array<'a, T>(
        self,
        from: *const T,
        count: usize,
        name: &'static str,
    ) -> Result<&'a [T], Failure> {
        match (from.is_null(), count) {
            (_, 0) => Ok(&[]),
            (true, _) => Err(Failure::Null(name)),
            // SAFETY: by contract it has so many elements and nobody changes them during the call.
            _ => Ok(unsafe { slice::from_raw_parts(from, count) }),
        }
    }

    /// A text of the caller's.
    pub(crate) fn text<'a>(
        self,
        from: *const c_char,
        name: &'static str,
    ) -> Result<&'a str, Failure> {
        if from.is_null() {
            return Err(Failure::Null(name));
        }
        // SAFETY: by contract it ends with a NUL and nobody changes it during the call.
        let text = unsafe { CStr::from_ptr(from) };
        text.to_str().map_err(|error| Failure::argument(name, error))
    }

    /// A text of so many bytes.
    pub(crate) fn text_of<'a>(
        self,
        from: *const c_char,
        bytes: usize,
        name: &'static str,
    ) -> Result<&'a str, Failure> {
        let bytes = self.array(from.cast::<u8>(), bytes, name)?;
        str::from_utf8(bytes).map_err(|error| Failure::argument(name, error))
    }

    /// Copies values to a buffer of the caller's, and says how many there are even if they do not fit.
    pub(crate) fn fill<T: Copy>(
        self,
        values: &[T],
        to: *mut T,
        capacity: usize,
        count: *mut usize,
    ) -> Result<(), Failure> {
        self.put(values.len(), count, "the last argument")?;
        if values.len() > capacity {
            return Err(Failure::Buffer { needed: values.len(), capacity });
        }
        if values.is_empty() {
            return Ok(());
        }
        if to.is_null() {
            return Err(Failure::Null("the buffer"));
        }
        // SAFETY: by contract there is room for `capacity`, and no more than these are copied; the buffer is
        // the caller's and the values are ours.
        unsafe { ptr::copy_nonoverlapping(values.as_ptr(), to, values.len()) };
        Ok(())
    }
}

fn declared(size: usize, ours: usize) -> Result<usize, Failure> {
    if size < mem::size_of::<usize>() {
        return Err(Failure::argument("size", "0: call the _init function of the struct first"));
    }
    Ok(size.min(ours))
}

/// Fills in the defaults.
///
/// # Safety
/// Whoever calls keeps the rules of the header.
pub(crate) unsafe fn init<T: Versioned>(to: *mut T) {
    if !to.is_null() {
        // SAFETY: by contract there is room for one.
        unsafe { to.write(T::default()) };
    }
}

/// The version of the interface: `M40LLM_ABI_VERSION` of the library, to be compared with that of the header.
#[unsafe(no_mangle)]
pub extern "C" fn m40llm_abi_version() -> u32 {
    M40LLM_ABI_VERSION
}

/// Copies the version of the library, and of its GPU kernels, to `buffer` of `capacity` bytes, with a NUL;
/// its end is left out if it does not fit. Returns its length in bytes without the NUL.
#[unsafe(no_mangle)]
pub extern "C" fn m40llm_version(buffer: *mut c_char, capacity: usize) -> usize {
    cut(::engine::version(), buffer, capacity)
}

/// Copies why the last call of this thread failed that did, in the same way: what happened and what to do,
/// for people.
#[unsafe(no_mangle)]
pub extern "C" fn m40llm_last_error(buffer: *mut c_char, capacity: usize) -> usize {
    LAST_ERROR.with_borrow(|last| cut(last, buffer, capacity))
}

fn cut(text: &str, buffer: *mut c_char, capacity: usize) -> usize {
    if buffer.is_null() || capacity == 0 {
        return text.len();
    }
    let copied = text.floor_char_boundary(capacity - 1);
    // SAFETY: by contract there is room for `capacity` bytes, of which these are fewer.
    unsafe { ptr::copy_nonoverlapping(text.as_ptr().cast::<c_char>(), buffer, copied) };
    // SAFETY: `copied` is less than `capacity`.
    unsafe { buffer.wrapping_add(copied).write(0) };
    text.len()
}
