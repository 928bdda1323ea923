//! The types that buffers on the device and arguments of kernels may have.

use std::fmt;

/// What a kernel calls [`Element`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is the Rust type of its name")]
pub enum ElementType {
    U8,
    I8,
    U16,
    U32,
    I32,
    U64,
    F32,
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::U64 => "u64",
            Self::F32 => "f32",
        })
    }
}

mod sealed {
    /// # Safety
    /// Any bytes are a value, and a value has no padding.
    pub unsafe trait Plain: Copy + Default + Send + Sync + 'static {}
}
pub(crate) use sealed::Plain;

/// A plain number. Half floats travel as `u16`.
pub trait Element: Plain {
    /// What kernels call it.
    const TYPE: ElementType;

    /// The number as an argument: its bits, the rest zero.
    fn bits(self) -> u64;
}

macro_rules! elements {
    ($($type:ty => $name:ident, $bits:expr;)*) => {$(
        // SAFETY: a primitive number.
        unsafe impl Plain for $type {}

        impl Element for $type {
            const TYPE: ElementType = ElementType::$name;

            fn bits(self) -> u64 {
                let bits: fn($type) -> u64 = $bits;
                bits(self)
            }
        }
    )*};
}

elements! {
    u8 => U8, u64::from;
    i8 => I8, |value| u64::from(value.cast_unsigned());
    u16 => U16, u64::from;
    u32 => U32, u64::from;
    i32 => I32, |value| u64::from(value.cast_unsigned());
    u64 => U64, |value| value;
    f32 => F32, |value| u64::from(value.to_bits());
}

/// Bytes as whole elements; what is left over at the end is left out. `bytes` begins where an
/// element may: all callers pass page-aligned memory.
pub(crate) fn cast_mut<T: Element>(bytes: &mut [u8]) -> &mut [T] {
    // SAFETY: `T` is plain, so any bytes are valid, and all bytes that it writes are.
    let (before, elements, _) = unsafe { bytes.align_to_mut::<T>() };
    debug_assert!(before.is_empty(), "pinned memory is aligned to pages");
    elements
}

/// As [`cast_mut`], for reading.
pub(crate) fn cast<T: Element>(bytes: &[u8]) -> &[T] {
    // SAFETY: `T` is plain, so any bytes are valid.
    let (before, elements, _) = unsafe { bytes.align_to::<T>() };
    debug_assert!(before.is_empty(), "pinned memory is aligned to pages");
    elements
}
