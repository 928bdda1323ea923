//! Everything that can be wrong with a file, and where.

use std::fmt;

use crate::{TensorType, ValueType};

/// The part of a file an error is in.
///
/// Names come from the file: they are shown escaped, and clipped to 80 characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The fixed fields at the start: magic, version, counts.
    Header,
    /// A metadata entry whose key could not be read; entries count from 0.
    Entry(u64),
    /// The value of this metadata key.
    Key(String),
    /// A tensor table entry whose name could not be read; entries count from 0.
    TensorEntry(u64),
    /// The tensor of this name.
    Tensor(String),
}

impl Place {
    pub(crate) fn key(name: &str) -> Self {
        Self::Key(clip(name))
    }

    pub(crate) fn tensor(name: &str) -> Self {
        Self::Tensor(clip(name))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => write!(f, "the header"),
            Self::Entry(index) => write!(f, "metadata entry {index}"),
            Self::Key(key) => write!(f, "metadata key {key:?}"),
            Self::TensorEntry(index) => write!(f, "tensor table entry {index}"),
            Self::Tensor(name) => write!(f, "tensor {name:?}"),
        }
    }
}

/// The first 80 characters of a name, so that a hostile file cannot flood a log line.
pub(crate) fn clip(name: &str) -> String {
    const LIMIT: usize = 80;
    match name.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

/// Why bytes are not a usable GGUF file, or why a metadata value is not what was asked for.
///
/// `offset` is always in bytes from the start of the file (of the shard, inside [`InShard`]).
///
/// [`InShard`]: GgufError::InShard
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The first four bytes are not `GGUF`.
    #[error("not a GGUF file: it starts with \"{}\" instead of \"GGUF\"", found.escape_ascii())]
    NotGguf {
        /// The bytes found, at most four.
        found: Vec<u8>,
    },
    /// The file was written for big-endian machines.
    #[error("big-endian GGUF file (version field at offset 4); convert it to little endian")]
    BigEndian,
    /// A version other than 2 and 3.
    #[error(
        "GGUF version {version} at offset 4 is not supported (2 and 3 are); convert the model again"
    )]
    UnsupportedVersion {
        /// The version the file gives.
        version: u32,
    },
    /// The file ends inside something.
    #[error(
        "file ends inside {place}: {what} at offset {offset} needs {needed} bytes, {available} are \
         left; the file is truncated or damaged"
    )]
    Truncated {
        /// Where.
        place: Place,
        /// Which field.
        what: &'static str,
        /// Start of the field.
        offset: u64,
        /// Bytes the field takes; `u64::MAX` when its size does not fit 64 bits.
        needed: u64,
        /// Bytes left in the file.
        available: u64,
    },
    /// A count that no file of this size, or no sane file, can have.
    #[error("{count} {what} at offset {offset}: at most {limit} are possible in this file")]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// The count the file gives.
        count: u64,
        /// The most this file could hold, or this crate's own limit, whichever is less.
        limit: u64,
        /// Offset of the count.
        offset: u64,
    },
    /// A string that is not UTF-8.
    #[error("{place}: the string at offset {offset} is not UTF-8")]
    InvalidUtf8 {
        /// Where.
        place: Place,
        /// Offset of the first byte that is not part of a character.
        offset: u64,
    },
    /// A boolean that is neither 0 nor 1.
    #[error("{place}: the boolean at offset {offset} is {value}, neither 0 nor 1")]
    InvalidBool {
        /// Where.
        place: Place,
        /// Offset of the byte.
        offset: u64,
        /// The byte.
        value: u8,
    },
    /// A metadata type number outside the format.
    #[error("{place}: unknown metadata type {id} at offset {offset}")]
    UnknownValueType {
        /// Where.
        place: Place,
        /// Offset of the number.
        offset: u64,
        /// The number.
        id: u32,
    },
    /// Arrays inside arrays, deeper than [`MAX_DEPTH`](crate::MAX_DEPTH).
    #[error("{place}: arrays nested deeper than {limit} at offset {offset}")]
    TooDeep {
        /// Where.
        place: Place,
        /// Offset of the innermost array looked at.
        offset: u64,
        /// The limit.
        limit: usize,
    },
    /// A key or tensor name of length zero.
    #[error("{place}: empty name at offset {offset}")]
    EmptyName {
        /// Where.
        place: Place,
        /// Offset of the name's length.
        offset: u64,
    },
    /// A key or tensor name longer than the format allows.
    #[error("{place}: name of {length} bytes at offset {offset}, at most {limit} are allowed")]
    NameTooLong {
        /// Where.
        place: Place,
        /// Offset of the name's length.
        offset: u64,
        /// The length in bytes.
        length: u64,
        /// The limit in bytes.
        limit: usize,
    },
    /// Two metadata entries with one key.
    #[error("metadata key {key:?} is given twice, again at offset {offset}")]
    DuplicateKey {
        /// The key.
        key: String,
        /// Offset of the later entry.
        offset: u64,
    },
    /// Two tensors with one name.
    #[error("tensor {name:?} is given twice, again at offset {offset}")]
    DuplicateTensor {
        /// The name.
        name: String,
        /// Offset of the later table entry, in its own shard.
        offset: u64,
    },
    /// `general.alignment` is not a power of two in the accepted range.
    #[error(
        "metadata key \"general.alignment\" at offset {offset} is {alignment}: it must be a power \
         of two from 8 to {limit}"
    )]
    BadAlignment {
        /// Offset of the value.
        offset: u64,
        /// The value.
        alignment: i128,
        /// The largest value accepted.
        limit: u64,
    },
    /// A tensor with no dimension, or with more than four.
    #[error("tensor {tensor:?}: {count} dimensions at offset {offset}, 1 to 4 are possible")]
    BadDimCount {
        /// The tensor.
        tensor: String,
        /// Offset of the count.
        offset: u64,
        /// The count.
        count: u32,
    },
    /// A dimension of size zero.
    #[error("tensor {tensor:?}: dimension {dim} at offset {offset} is zero")]
    ZeroDim {
        /// The tensor.
        tensor: String,
        /// Offset of the dimension.
        offset: u64,
        /// Which dimension, from 0.
        dim: usize,
    },
    /// Dimensions whose product does not fit the machine.
    #[error("tensor {tensor:?}: its size overflows (dimensions at offset {offset})")]
    SizeOverflow {
        /// The tensor.
        tensor: String,
        /// Offset of the first dimension.
        offset: u64,
    },
    /// A tensor type number ggml does not have, or has no more.
    #[error("tensor {tensor:?}: unknown tensor type {id} at offset {offset}{}", retired(*id))]
    UnknownTensorType {
        /// The tensor.
        tensor: String,
        /// Offset of the number.
        offset: u64,
        /// The number.
        id: u32,
    },
    /// Rows that are not a whole number of blocks.
    #[error(
        "tensor {tensor:?}: rows of {cols} weights at offset {offset} are not whole {ty} blocks of \
         {} weights", ty.block_len()
    )]
    PartialBlock {
        /// The tensor.
        tensor: String,
        /// Offset of the first dimension.
        offset: u64,
        /// The tensor's type.
        ty: TensorType,
        /// Weights in a row.
        cols: usize,
    },
    /// Data that do not start at a multiple of the alignment.
    #[error(
        "tensor {tensor:?}: data offset {data_offset} at offset {offset} is not a multiple of the \
         alignment {alignment}"
    )]
    Misaligned {
        /// The tensor.
        tensor: String,
        /// Offset of the field.
        offset: u64,
        /// The field: bytes from the start of the data section.
        data_offset: u64,
        /// The file's alignment in bytes.
        alignment: u64,
    },
    /// Data that end after the end of the file.
    #[error(
        "tensor {tensor:?}: {size} bytes of data (position given at offset {offset}) end after the \
         end of the file at {file_size}; the file is truncated or damaged"
    )]
    OutOfFile {
        /// The tensor.
        tensor: String,
        /// Offset of the field that says where the data are.
        offset: u64,
        /// Bytes of the tensor's data.
        size: u64,
        /// Bytes of the file.
        file_size: u64,
    },
    /// Two tensors share bytes.
    #[error("tensors {first:?} and {second:?} overlap at offset {offset}")]
    Overlap {
        /// The tensor that starts first.
        first: String,
        /// The tensor that starts inside it.
        second: String,
        /// Where the second starts.
        offset: u64,
    },
    /// A metadata value of another type than the one asked for.
    #[error("metadata key {key:?} at offset {offset} is of type {found}, expected {expected}")]
    WrongType {
        /// The key.
        key: String,
        /// What was asked for.
        expected: &'static str,
        /// What the file has.
        found: ValueType,
        /// Offset of the value.
        offset: u64,
    },
    /// An integer that does not fit the type asked for.
    #[error("metadata key {key:?} at offset {offset} is {value}, which does not fit {expected}")]
    OutOfRange {
        /// The key.
        key: String,
        /// What was asked for.
        expected: &'static str,
        /// The value.
        value: i128,
        /// Offset of the value.
        offset: u64,
    },
    /// An array whose elements are of another type than the one asked for.
    #[error("array elements are of type {found}, expected {expected}")]
    WrongElementType {
        /// What was asked for.
        expected: &'static str,
        /// What the array holds.
        found: ValueType,
    },
    /// An empty list of shards.
    #[error("no file given: a model needs at least one")]
    NoShards,
    /// Another number of shards than the files say.
    #[error(
        "the model is split over {expected} files (\"split.count\"), {given} given; pass all of \
         them, in order"
    )]
    ShardCount {
        /// Shards the files say there are.
        expected: u64,
        /// Shards given.
        given: usize,
    },
    /// Shards given in another order than their `split.no`.
    #[error("shard {found} found where shard {expected} belongs (\"split.no\", from 0)")]
    ShardOrder {
        /// The place in the list, from 0.
        expected: usize,
        /// What the shard calls itself.
        found: u64,
    },
    /// Another number of tensors in all shards than the files say.
    #[error("the shards hold {found} tensors, \"split.tensors.count\" says {expected}")]
    ShardTensors {
        /// What the files say.
        expected: u64,
        /// What they hold.
        found: usize,
    },
    /// An error in one shard of several.
    #[error("shard {shard} (from 0): {source}")]
    InShard {
        /// Which, from 0.
        shard: usize,
        /// What is wrong there; offsets are in that shard.
        source: Box<GgufError>,
    },
}

/// What to say of type numbers that ggml once had.
fn retired(id: u32) -> &'static str {
    match id {
        4 | 5 | 31..=33 | 36..=38 => " (a retired ggml type: convert the model again)",
        _ => "",
    }
}
