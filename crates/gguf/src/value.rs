//! Metadata values, decoded when asked for.

use std::fmt;
use std::iter::Map;

use crate::GgufError;
use crate::cursor::{Cursor, Short};

/// How deep arrays may nest: an array of numbers is 1 deep.
pub const MAX_DEPTH: usize = 4;

/// The type of a metadata value, by its number in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ValueType {
    /// Unsigned 8-bit integer.
    U8 = 0,
    /// Signed 8-bit integer.
    I8 = 1,
    /// Unsigned 16-bit integer.
    U16 = 2,
    /// Signed 16-bit integer.
    I16 = 3,
    /// Unsigned 32-bit integer.
    U32 = 4,
    /// Signed 32-bit integer.
    I32 = 5,
    /// 32-bit float.
    F32 = 6,
    /// One byte, 0 or 1.
    Bool = 7,
    /// UTF-8 with a 64-bit length before it.
    Str = 8,
    /// Element type (32 bits), count (64 bits), elements.
    Array = 9,
    /// Unsigned 64-bit integer.
    U64 = 10,
    /// Signed 64-bit integer.
    I64 = 11,
    /// 64-bit float.
    F64 = 12,
}

impl ValueType {
    /// The type with this number, `None` outside the format.
    pub const fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::Str,
            9 => Self::Array,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    /// The type's number in a file.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// Bytes of a value of this type, `None` for strings and arrays.
    pub const fn fixed_size(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::Str | Self::Array => None,
        }
    }

    /// The fewest bytes a value of this type takes.
    pub(crate) const fn min_size(self) -> usize {
        match self {
            Self::Str => 8,
            Self::Array => 12,
            _ => match self.fixed_size() {
                Some(size) => size,
                None => 1,
            },
        }
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::Str => "string",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        })
    }
}

/// A metadata value. Strings and arrays borrow from the file.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(missing_docs, reason = "each variant is the ValueType of the same name")]
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Str(&'a str),
    Array(Array<'a>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl<'a> Value<'a> {
    /// The value's type.
    pub const fn ty(&self) -> ValueType {
        match self {
            Self::U8(_) => ValueType::U8,
            Self::I8(_) => ValueType::I8,
            Self::U16(_) => ValueType::U16,
            Self::I16(_) => ValueType::I16,
            Self::U32(_) => ValueType::U32,
            Self::I32(_) => ValueType::I32,
            Self::F32(_) => ValueType::F32,
            Self::Bool(_) => ValueType::Bool,
            Self::Str(_) => ValueType::Str,
            Self::Array(_) => ValueType::Array,
            Self::U64(_) => ValueType::U64,
            Self::I64(_) => ValueType::I64,
            Self::F64(_) => ValueType::F64,
        }
    }

    /// The value of any integer type, `None` for the others.
    pub const fn as_integer(&self) -> Option<i128> {
        Some(match *self {
            Self::U8(v) => v as i128,
            Self::I8(v) => v as i128,
            Self::U16(v) => v as i128,
            Self::I16(v) => v as i128,
            Self::U32(v) => v as i128,
            Self::I32(v) => v as i128,
            Self::U64(v) => v as i128,
            Self::I64(v) => v as i128,
            _ => return None,
        })
    }

    /// Decodes a value whose bytes were checked by [`check`](crate::header); `None` when they have
    /// changed since.
    pub(crate) fn decode(cursor: &mut Cursor<'a>, ty: ValueType) -> Option<Self> {
        Some(match ty {
            ValueType::U8 => Self::U8(u8::from_le_bytes(cursor.array().ok()?)),
            ValueType::I8 => Self::I8(i8::from_le_bytes(cursor.array().ok()?)),
            ValueType::U16 => Self::U16(u16::from_le_bytes(cursor.array().ok()?)),
            ValueType::I16 => Self::I16(i16::from_le_bytes(cursor.array().ok()?)),
            ValueType::U32 => Self::U32(u32::from_le_bytes(cursor.array().ok()?)),
            ValueType::I32 => Self::I32(i32::from_le_bytes(cursor.array().ok()?)),
            ValueType::F32 => Self::F32(f32::from_le_bytes(cursor.array().ok()?)),
            ValueType::Bool => Self::Bool(cursor.array::<1>().ok()? != [0]),
            ValueType::Str => Self::Str(decode_str(cursor)?),
            ValueType::Array => Self::Array(Array::decode(cursor)?),
            ValueType::U64 => Self::U64(u64::from_le_bytes(cursor.array().ok()?)),
            ValueType::I64 => Self::I64(i64::from_le_bytes(cursor.array().ok()?)),
            ValueType::F64 => Self::F64(f64::from_le_bytes(cursor.array().ok()?)),
        })
    }
}

fn decode_str<'a>(cursor: &mut Cursor<'a>) -> Option<&'a str> {
    std::str::from_utf8(cursor.string().ok()?).ok()
}

/// An array of metadata values of one type. Elements are decoded as they are iterated.
#[derive(Clone, Copy)]
pub struct Array<'a> {
    elem: ValueType,
    len: usize,
    /// At the first element.
    start: Cursor<'a>,
}

/// What stands before an array's elements.
pub(crate) fn array_header(cursor: &mut Cursor<'_>) -> Result<(u32, u64), Short> {
    Ok((cursor.u32()?, cursor.u64()?))
}

impl<'a> Array<'a> {
    /// Reads the array's head; the cursor stays at the first element.
    fn decode(cursor: &mut Cursor<'a>) -> Option<Self> {
        let (elem, len) = array_header(cursor).ok()?;
        let array = Self {
            elem: ValueType::from_id(elem)?,
            len: usize::try_from(len).ok()?,
            start: *cursor,
        };
        Some(array)
    }

    /// Elements in the array.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether the array has no element.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The type of every element.
    pub const fn elem_type(&self) -> ValueType {
        self.elem
    }

    /// The elements in order.
    pub fn iter(&self) -> ArrayIter<'a> {
        ArrayIter { elem: self.elem, left: self.len, cursor: self.start, depth: 1 }
    }

    /// The elements of an array of strings.
    ///
    /// # Errors
    /// [`GgufError::WrongElementType`] when they are not strings.
    pub fn strings(&self) -> Result<impl ExactSizeIterator<Item = &'a str> + use<'a>, GgufError> {
        self.typed("string", ValueType::Str, |value| match value {
            Value::Str(text) => text,
            _ => "",
        })
    }

    /// The elements of an array of `f32`.
    ///
    /// # Errors
    /// [`GgufError::WrongElementType`] when they are not.
    pub fn f32s(&self) -> Result<impl ExactSizeIterator<Item = f32> + use<'a>, GgufError> {
        self.typed("f32", ValueType::F32, |value| match value {
            Value::F32(v) => v,
            _ => 0.0,
        })
    }

    /// The elements of an array of `i32`.
    ///
    /// # Errors
    /// [`GgufError::WrongElementType`] when they are not.
    pub fn i32s(&self) -> Result<impl ExactSizeIterator<Item = i32> + use<'a>, GgufError> {
        self.typed("i32", ValueType::I32, |value| match value {
            Value::I32(v) => v,
            _ => 0,
        })
    }

    /// The elements of an array of `u32`.
    ///
    /// # Errors
    /// [`GgufError::WrongElementType`] when they are not.
    pub fn u32s(&self) -> Result<impl ExactSizeIterator<Item = u32> + use<'a>, GgufError> {
        self.typed("u32", ValueType::U32, |value| match value {
            Value::U32(v) => v,
            _ => 0,
        })
    }

    /// The elements of an array of booleans.
    ///
    /// # Errors
    /// [`GgufError::WrongElementType`] when they are not.
    pub fn bools(&self) -> Result<impl ExactSizeIterator<Item = bool> + use<'a>, GgufError> {
        self.typed("bool", ValueType::Bool, |value| value == Value::Bool(true))
    }

    /// The elements of an array of any integer type.
    ///
    /// # Errors
    /// [`GgufError::WrongElementType`] when they are not integers.
    pub fn integers(&self) -> Result<impl ExactSizeIterator<Item = i128> + use<'a>, GgufError> {
        let expected = match self.elem {
            ValueType::F32
            | ValueType::F64
            | ValueType::Bool
            | ValueType::Str
            | ValueType::Array => ValueType::I64,
            integer => integer,
        };
        self.typed("an integer", expected, |value| value.as_integer().unwrap_or(0))
    }

    fn typed<T, F: Fn(Value<'a>) -> T>(
        &self,
        expected: &'static str,
        elem: ValueType,
        pick: F,
    ) -> Result<Map<ArrayIter<'a>, F>, GgufError> {
        if self.elem != elem {
            return Err(GgufError::WrongElementType { expected, found: self.elem });
        }
        Ok(self.iter().map(pick))
    }
}

impl<'a> IntoIterator for &Array<'a> {
    type Item = Value<'a>;
    type IntoIter = ArrayIter<'a>;

    fn into_iter(self) -> ArrayIter<'a> {
        self.iter()
    }
}

impl PartialEq for Array<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.elem == other.elem && self.iter().eq(other.iter())
    }
}

impl fmt::Debug for Array<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}; {}]", self.elem, self.len)
    }
}

/// The elements of an [`Array`].
#[derive(Debug, Clone)]
pub struct ArrayIter<'a> {
    elem: ValueType,
    left: usize,
    cursor: Cursor<'a>,
    depth: usize,
}

impl<'a> Iterator for ArrayIter<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        if self.left == 0 {
            return None;
        }
        let value = Value::decode(&mut self.cursor, self.elem);
        self.left = if value.is_some() { self.left - 1 } else { 0 };
        if let Some(Value::Array(inner)) = value {
            self.skip_elements(inner);
        }
        value
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for ArrayIter<'_> {}

impl<'a> ArrayIter<'a> {
    /// Moves over the elements of an inner array, whose depth was checked at parsing.
    fn skip_elements(&mut self, inner: Array<'a>) {
        if self.depth >= MAX_DEPTH {
            self.left = 0;
            return;
        }
        let mut elements = ArrayIter { depth: self.depth + 1, ..inner.iter() };
        if let Some(size) = inner.elem.fixed_size() {
            let bytes = (inner.len as u64).saturating_mul(size as u64);
            if elements.cursor.take(bytes).is_err() {
                self.left = 0;
            }
        } else {
            elements.by_ref().for_each(drop);
        }
        self.cursor = elements.cursor;
    }
}
