//! GGUF files made for tests: any file with [`GgufBuilder`], a whole tiny model with [`TinyModel`]
//! or [`TinyEncoder`].
//!
//! Builders make valid files. Damage is an explicit last step:
//!
//! ```
//! use m40_testkit::gguf::GgufBuilder;
//!
//! let bytes = GgufBuilder::new().meta("general.architecture", "llama").build();
//! let damaged = GgufBuilder::new().meta("a", 1u32).corrupt(|bytes| bytes.truncate(20));
//! assert!(damaged.len() < bytes.len());
//! ```

mod encoder;
mod noise;
mod quantize;
mod tiny;
mod vocabulary;

use m40_gguf::{TensorType, ValueType};

pub use encoder::{TinyEncoder, TinyPooling};
pub use noise::Noise;
pub use quantize::{quantize, quantizes};
pub(crate) use tiny::llama3_factors;
pub use tiny::{RopeScaling, TinyModel};
pub use vocabulary::{CHATML, Vocabulary, VocabularyKind};

/// A metadata value to write.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "each variant is the ValueType of the same name")]
pub enum Meta {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Str(String),
    /// Elements, all of the given type.
    Array(ValueType, Vec<Self>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl Meta {
    /// An array of any values that convert; it may be empty.
    pub fn array<T: Into<Self>>(elem: ValueType, values: impl IntoIterator<Item = T>) -> Self {
        Self::Array(elem, values.into_iter().map(Into::into).collect())
    }

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
            Self::Array(..) => ValueType::Array,
            Self::U64(_) => ValueType::U64,
            Self::I64(_) => ValueType::I64,
            Self::F64(_) => ValueType::F64,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::U8(v) => out.push(*v),
            Self::I8(v) => out.extend(v.to_le_bytes()),
            Self::U16(v) => out.extend(v.to_le_bytes()),
            Self::I16(v) => out.extend(v.to_le_bytes()),
            Self::U32(v) => out.extend(v.to_le_bytes()),
            Self::I32(v) => out.extend(v.to_le_bytes()),
            Self::F32(v) => out.extend(v.to_le_bytes()),
            Self::Bool(v) => out.push(u8::from(*v)),
            Self::Str(v) => write_string(out, v),
            Self::Array(elem, values) => {
                out.extend(elem.id().to_le_bytes());
                out.extend((values.len() as u64).to_le_bytes());
                for value in values {
                    assert_eq!(value.ty(), *elem, "an array has elements of one type");
                    value.write(out);
                }
            }
            Self::U64(v) => out.extend(v.to_le_bytes()),
            Self::I64(v) => out.extend(v.to_le_bytes()),
            Self::F64(v) => out.extend(v.to_le_bytes()),
        }
    }
}

macro_rules! meta_from {
    ($($variant:ident($ty:ty)),+) => {$(
        impl From<$ty> for Meta {
            fn from(value: $ty) -> Self {
                Self::$variant(value)
            }
        }

        impl From<Vec<$ty>> for Meta {
            fn from(values: Vec<$ty>) -> Self {
                Self::array(ValueType::$variant, values)
            }
        }
    )+};
}

meta_from!(
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Str(String),
    U64(u64),
    I64(i64),
    F64(f64)
);

impl From<&str> for Meta {
    fn from(value: &str) -> Self {
        Self::Str(value.to_owned())
    }
}

impl From<Vec<&str>> for Meta {
    fn from(values: Vec<&str>) -> Self {
        Self::array(ValueType::Str, values)
    }
}

/// A small file (about 1 kB) with everything the format has: every metadata type, arrays of every
/// type, arrays in arrays, and tensors of 1 to 4 dimensions and several types.
pub fn every_feature() -> GgufBuilder {
    let row = Meta::array(ValueType::I32, [1i32, -2]);
    let table = Meta::Array(ValueType::Array, vec![row, Meta::array(ValueType::Str, ["x", ""])]);
    let weights = |n| Noise::new(n as u64).normals(n, 1.0);
    GgufBuilder::new()
        .meta("general.architecture", "llama")
        .meta("a.u8", 200u8)
        .meta("a.i8", -100i8)
        .meta("a.u16", 60_000u16)
        .meta("a.i16", -30_000i16)
        .meta("a.u32", 4_000_000_000u32)
        .meta("a.i32", -2_000_000_000i32)
        .meta("a.f32", 0.5f32)
        .meta("a.bool", true)
        .meta("a.u64", u64::MAX)
        .meta("a.i64", i64::MIN)
        .meta("a.f64", 0.25f64)
        .meta("a.text", "größe €")
        .meta("b.u8", vec![1u8, 2, 3])
        .meta("b.f32", vec![1.0f32, -1.0])
        .meta("b.bool", vec![true, false])
        .meta("b.strings", vec!["one", "", "drei"])
        .meta("b.empty", Meta::array(ValueType::U64, Vec::<u64>::new()))
        .meta("b.nested", table)
        .tensor_of("vector", &[3], TensorType::F32, &weights(3))
        .tensor_of("matrix", &[32, 2], TensorType::Q4_0, &weights(64))
        .tensor_of("cube", &[2, 2, 2], TensorType::F16, &weights(8))
        .tensor("hypercube", &[1, 2, 1, 2], TensorType::I8, vec![1, 2, 3, 4])
}

#[derive(Debug, Clone)]
struct TensorSpec {
    name: String,
    dims: Vec<u64>,
    ty: TensorType,
    data: Vec<u8>,
}

impl TensorSpec {
    fn entry(&self) -> TensorEntry<'_> {
        let Self { name, dims, ty, data } = self;
        TensorEntry { name, dims, ty: *ty, bytes: data.len() as u64 }
    }
}

/// A line of the table of tensors, whose data are written by other means.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TensorEntry<'a> {
    pub(crate) name: &'a str,
    /// In GGUF's order, the fastest first.
    pub(crate) dims: &'a [u64],
    pub(crate) ty: TensorType,
    /// Length of the data.
    pub(crate) bytes: u64,
}

/// Writes GGUF files: metadata and tensors in the order they are added.
#[derive(Debug, Clone)]
pub struct GgufBuilder {
    version: u32,
    alignment: usize,
    meta: Vec<(String, Meta)>,
    tensors: Vec<TensorSpec>,
}

impl Default for GgufBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl GgufBuilder {
    /// A version 3 file with alignment 32, nothing in it.
    pub fn new() -> Self {
        Self { version: 3, alignment: 32, meta: Vec::new(), tensors: Vec::new() }
    }

    /// Sets the version field.
    pub fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// Aligns tensor data to `bytes`, and says so in `general.alignment`.
    pub fn alignment(mut self, bytes: u32) -> Self {
        self.alignment = bytes as usize;
        self.meta("general.alignment", bytes)
    }

    /// Adds a metadata entry; a key that is already there gets the new value.
    pub fn meta(mut self, key: &str, value: impl Into<Meta>) -> Self {
        let value = value.into();
        match self.meta.iter_mut().find(|(known, _)| known == key) {
            Some((_, old)) => *old = value,
            None => self.meta.push((key.to_owned(), value)),
        }
        self
    }

    /// Removes a metadata entry.
    ///
    /// # Panics
    /// When there is none of this key, so that a test cannot remove nothing by a misspelt name.
    pub fn without_meta(mut self, key: &str) -> Self {
        let before = self.meta.len();
        self.meta.retain(|(known, _)| known != key);
        assert!(self.meta.len() < before, "no metadata key {key:?}");
        self
    }

    /// Adds a tensor. `dims` is in GGUF's order, the fastest first; `data` is rows of blocks.
    ///
    /// # Panics
    /// When `data` has not the length that `dims` and `ty` ask for.
    pub fn tensor(mut self, name: &str, dims: &[usize], ty: TensorType, data: Vec<u8>) -> Self {
        let rows: usize = dims[1..].iter().product();
        let expected = ty.row_bytes(dims[0]).expect("rows are whole blocks") * rows;
        assert_eq!(data.len(), expected, "bytes of {name} {dims:?} {ty}");
        let dims = dims.iter().map(|&n| n as u64).collect();
        self.tensors.push(TensorSpec { name: name.to_owned(), dims, ty, data });
        self
    }

    /// Adds a tensor of `F32`, or of a type [`quantize()`] knows, from its weights in row order.
    ///
    /// # Panics
    /// As [`tensor`](Self::tensor), and when there is no quantiser for the type.
    pub fn tensor_of(self, name: &str, dims: &[usize], ty: TensorType, weights: &[f32]) -> Self {
        self.tensor(name, dims, ty, quantize(ty, weights))
    }

    /// Removes a tensor.
    ///
    /// # Panics
    /// When there is none of this name.
    pub fn without_tensor(mut self, name: &str) -> Self {
        let before = self.tensors.len();
        self.tensors.retain(|tensor| tensor.name != name);
        assert!(self.tensors.len() < before, "no tensor {name:?}");
        self
    }

    /// The file.
    pub fn build(&self) -> Vec<u8> {
        self.write(&self.meta, &self.tensors)
    }

    /// The file with `damage` done to it.
    pub fn corrupt(&self, damage: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut bytes = self.build();
        damage(&mut bytes);
        bytes
    }

    /// The model split over `n` files: metadata in the first, tensors spread in order, and the
    /// `split.*` keys in each.
    ///
    /// # Panics
    /// When `n` is 0 or too large for the 16-bit keys.
    pub fn build_shards(&self, n: usize) -> Vec<Vec<u8>> {
        let count = u16::try_from(n).expect("shards are counted in 16 bits");
        let total = i32::try_from(self.tensors.len()).expect("tensors are counted in 31 bits");
        let per_shard = self.tensors.len().div_ceil(n).max(1);
        (0..count)
            .map(|number| {
                let mut meta = if number == 0 { self.meta.clone() } else { Vec::new() };
                if number > 0 && self.alignment != 32 {
                    let alignment = u32::try_from(self.alignment).expect("set from a u32");
                    meta.push(("general.alignment".to_owned(), alignment.into()));
                }
                meta.push(("split.no".to_owned(), number.into()));
                meta.push(("split.count".to_owned(), count.into()));
                meta.push(("split.tensors.count".to_owned(), total.into()));
                let tensors = self.tensors.chunks(per_shard).nth(usize::from(number));
                self.write(&meta, tensors.unwrap_or_default())
            })
            .collect()
    }

    fn write(&self, meta: &[(String, Meta)], tensors: &[TensorSpec]) -> Vec<u8> {
        let entries: Vec<_> = tensors.iter().map(TensorSpec::entry).collect();
        let mut out = self.write_head(meta, &entries);
        for tensor in tensors {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend(&tensor.data);
        }
        out
    }

    /// What comes before the data of these tensors, in place of any that were added. The data
    /// begin at the next multiple of the alignment, as each tensor does.
    pub(crate) fn head(&self, tensors: &[TensorEntry<'_>]) -> Vec<u8> {
        self.write_head(&self.meta, tensors)
    }

    fn write_head(&self, meta: &[(String, Meta)], tensors: &[TensorEntry<'_>]) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(b"GGUF");
        out.extend(self.version.to_le_bytes());
        out.extend((tensors.len() as u64).to_le_bytes());
        out.extend((meta.len() as u64).to_le_bytes());
        for (key, value) in meta {
            write_string(&mut out, key);
            out.extend(value.ty().id().to_le_bytes());
            value.write(&mut out);
        }
        let mut data_offset = 0u64;
        for tensor in tensors {
            write_string(&mut out, tensor.name);
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(tensor.ty.id().to_le_bytes());
            out.extend(data_offset.to_le_bytes());
            data_offset += tensor.bytes.next_multiple_of(self.alignment as u64);
        }
        out
    }
}

fn write_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}
