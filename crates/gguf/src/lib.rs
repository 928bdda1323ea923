//! GGUF files as validated views.
//!
//! [`Gguf::parse`] checks a whole file once, header, metadata and tensor table, and then answers
//! from the bytes it was given: strings, arrays and tensor data are slices of the file, so that a
//! memory-mapped model of any size costs a few kilobytes. [`Gguf::parse_shards`] does the same for
//! a model split over several files.
//!
//! ```
//! use m40_gguf::{Gguf, GgufError};
//!
//! let error = Gguf::parse(b"PK\x03\x04 not a model".as_slice()).unwrap_err();
//! assert!(matches!(error, GgufError::NotGguf { .. }));
//! ```
//!
//! # What is read
//!
//! GGUF versions 2 and 3, little endian; every metadata type, arrays of arrays included; every
//! tensor type ggml has an identifier for ([`TensorType`]). [`dequantize`] turns the blocks of the
//! types models are usually stored in into `f32`.
//!
//! # What a parsed file means
//!
//! Having a [`Gguf`] means: every key and string is UTF-8 and lies in the file, keys and tensor
//! names are unique, every tensor has 1 to 4 non-zero dimensions, its rows are whole blocks, its
//! data lie in the file, start at a multiple of the alignment (at least 8) and overlap no other
//! tensor's. Anything else is a [`GgufError`] naming the byte offset and the key or tensor.
//!
//! # Limits
//!
//! Nothing is allocated from a count the file only claims: a count is first compared with the bytes
//! that are left. Memory used is at most a small multiple of the bytes of the header (3, see
//! `tests/memory.rs`), and for a real model far less than that. The time is linear in the header
//! but for two sorts (keys, tensors).
//!
//! If the bytes change after parsing, because a mapped file is overwritten in place, accessors stay
//! safe and do not panic, but what they return is unspecified.
//!
//! The crate does no IO and has no unsafe code.
#![forbid(unsafe_code)]

mod cursor;
mod dequant;
mod error;
mod file;
#[doc(hidden)]
pub mod fuzz;
mod header;
pub mod split;
mod tensor;
mod types;
mod value;

pub use dequant::{DequantizeError, dequantize, is_dequantizable};
pub use error::{GgufError, Place};
pub use file::Gguf;
pub use header::{
    DEFAULT_ALIGNMENT, MAX_ALIGNMENT, MAX_KEY_BYTES, MAX_METADATA, MAX_NAME_BYTES, MAX_TENSORS,
};
pub use tensor::{Dims, MAX_DIMS, Tensor, TensorInfo};
pub use types::TensorType;
pub use value::{Array, ArrayIter, MAX_DEPTH, Value, ValueType};
