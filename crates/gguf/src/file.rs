//! [`Gguf`]: checked shards and the questions one asks them.

use std::fmt;

use crate::error::{GgufError, clip};
use crate::header::{self, Entry, Metadata};
use crate::tensor::{Tensor, TensorInfo};
use crate::value::{Array, Value};

/// A checked GGUF model over borrowed or owned bytes: one file, or all shards of a split one.
///
/// `B` is anything that gives bytes: a slice, a `Vec<u8>`, a memory map.
pub struct Gguf<B> {
    shards: Vec<B>,
    version: u32,
    /// Of the first shard; the others repeat only their place in the split.
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    /// Indices into `tensors`, by rising name.
    by_name: Vec<u32>,
}

impl<B: AsRef<[u8]>> Gguf<B> {
    /// Checks a model that is one file.
    ///
    /// # Errors
    /// A [`GgufError`] that says what is wrong and at which offset; [`GgufError::ShardCount`] when
    /// the file is one shard of several.
    pub fn parse(file: B) -> Result<Self, GgufError> {
        Self::parse_shards(vec![file])
    }

    /// Checks a model that is split over files, given in order (see
    /// [`shard_names`](crate::split::shard_names)).
    ///
    /// # Errors
    /// As [`parse`](Self::parse); an error inside one shard of several comes as
    /// [`GgufError::InShard`].
    pub fn parse_shards(shards: Vec<B>) -> Result<Self, GgufError> {
        let mut checked = Checked::default();
        for (index, shard) in shards.iter().enumerate() {
            checked.add(shard.as_ref(), index, shards.len()).map_err(|source| {
                match shards.len() {
                    1 => source,
                    _ => GgufError::InShard { shard: index, source: Box::new(source) },
                }
            })?;
        }
        let Some((version, metadata)) = checked.first else {
            return Err(GgufError::NoShards);
        };
        let by_name = sort_names(&checked.tensors, &checked.entries)?;
        if let Some(expected) = checked.split_tensors
            && expected != checked.tensors.len() as u64
        {
            return Err(GgufError::ShardTensors { expected, found: checked.tensors.len() });
        }
        Ok(Self { shards, version, metadata, tensors: checked.tensors, by_name })
    }

    /// The format's version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Every metadata key and value, in the file's order. For a split model those of the first
    /// shard, which has all of them.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, Value<'_>)> {
        self.metadata
            .iter(self.first_bytes())
            .filter_map(|entry| entry.value().map(|value| (entry.key, value)))
    }

    /// The value of a key, `None` when the file does not have it.
    pub fn get(&self, key: &str) -> Option<Value<'_>> {
        self.entry(key)?.value()
    }

    /// The value of a key that should be an integer from 0 to 2^32 - 1, of whatever integer type.
    ///
    /// # Errors
    /// [`GgufError::WrongType`] when it is no integer, [`GgufError::OutOfRange`] when it does not
    /// fit. `Ok(None)` when the key is absent.
    pub fn get_u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.get_integer(key, "u32")
    }

    /// The value of a key that should be an integer from 0 to 2^64 - 1, of whatever integer type.
    ///
    /// # Errors
    /// As [`get_u32`](Self::get_u32).
    pub fn get_u64(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.get_integer(key, "u64")
    }

    /// The value of a key that should be a float (a 64-bit one is rounded).
    ///
    /// # Errors
    /// [`GgufError::WrongType`] when it is no float. `Ok(None)` when the key is absent.
    pub fn get_f32(&self, key: &str) -> Result<Option<f32>, GgufError> {
        self.get_as(key, "f32", |value| match value {
            Value::F32(v) => Some(v),
            Value::F64(v) => Some(v as f32),
            _ => None,
        })
    }

    /// The value of a key that should be a boolean.
    ///
    /// # Errors
    /// [`GgufError::WrongType`] when it is none. `Ok(None)` when the key is absent.
    pub fn get_bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.get_as(key, "bool", |value| match value {
            Value::Bool(v) => Some(v),
            _ => None,
        })
    }

    /// The value of a key that should be a string.
    ///
    /// # Errors
    /// [`GgufError::WrongType`] when it is none. `Ok(None)` when the key is absent.
    pub fn get_str(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.get_as(key, "string", |value| match value {
            Value::Str(v) => Some(v),
            _ => None,
        })
    }

    /// The value of a key that should be an array.
    ///
    /// # Errors
    /// [`GgufError::WrongType`] when it is none. `Ok(None)` when the key is absent.
    pub fn get_array(&self, key: &str) -> Result<Option<Array<'_>>, GgufError> {
        self.get_as(key, "array", |value| match value {
            Value::Array(v) => Some(v),
            _ => None,
        })
    }

    /// Every tensor, in the file's order, shard after shard.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of this name with its data, `None` when there is none.
    pub fn tensor(&self, name: &str) -> Option<Tensor<'_>> {
        let info = self.tensor_info(name)?;
        let data = self.tensor_data(info);
        Some(Tensor { name: &info.name, ty: info.ty, dims: info.dims, data })
    }

    /// The tensor of this name, `None` when there is none.
    pub fn tensor_info(&self, name: &str) -> Option<&TensorInfo> {
        let found = self
            .by_name
            .binary_search_by(|&i| self.tensors[i as usize].name.as_str().cmp(name))
            .ok()?;
        self.tensors.get(self.by_name[found] as usize)
    }

    /// The data of one of [`tensors`](Self::tensors): whole rows of blocks, aligned in the file to
    /// at least 8 bytes. Empty for the entry of another file whose data lie outside this one.
    pub fn tensor_data(&self, info: &TensorInfo) -> &[u8] {
        let shard = self.shards.get(info.shard()).map(AsRef::as_ref).unwrap_or_default();
        shard.get(info.range()).unwrap_or_default()
    }

    /// The bytes of every shard, as given.
    pub fn shards(&self) -> &[B] {
        &self.shards
    }

    fn first_bytes(&self) -> &[u8] {
        self.shards.first().map(AsRef::as_ref).unwrap_or_default()
    }

    fn entry(&self, key: &str) -> Option<Entry<'_>> {
        self.metadata.find(self.first_bytes(), key)
    }

    fn get_as<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        pick: impl FnOnce(Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        self.entry(key).map(|entry| entry_as(&entry, expected, pick)).transpose()
    }

    fn get_integer<T: TryFrom<i128>>(
        &self,
        key: &str,
        expected: &'static str,
    ) -> Result<Option<T>, GgufError> {
        self.entry(key).map(|entry| entry_integer(&entry, expected)).transpose()
    }
}

impl<B> fmt::Debug for Gguf<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gguf")
            .field("version", &self.version)
            .field("shards", &self.shards.len())
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}

fn entry_as<'a, T>(
    entry: &Entry<'a>,
    expected: &'static str,
    pick: impl FnOnce(Value<'a>) -> Option<T>,
) -> Result<T, GgufError> {
    entry.value().and_then(pick).ok_or_else(|| GgufError::WrongType {
        key: entry.key.to_owned(),
        expected,
        found: entry.ty,
        offset: entry.at.pos() as u64,
    })
}

fn entry_integer<T: TryFrom<i128>>(
    entry: &Entry<'_>,
    expected: &'static str,
) -> Result<T, GgufError> {
    let value = entry_as(entry, expected, |value| value.as_integer())?;
    T::try_from(value).map_err(|_| GgufError::OutOfRange {
        key: entry.key.to_owned(),
        expected,
        value,
        offset: entry.at.pos() as u64,
    })
}

/// The shards checked so far.
#[derive(Default)]
struct Checked {
    first: Option<(u32, Metadata)>,
    tensors: Vec<TensorInfo>,
    /// Where each tensor's table entry starts in its shard.
    entries: Vec<usize>,
    /// `split.tensors.count` of the first shard.
    split_tensors: Option<u64>,
}

impl Checked {
    fn add(&mut self, bytes: &[u8], index: usize, count: usize) -> Result<(), GgufError> {
        let number = u32::try_from(index).map_err(|_| GgufError::TooMany {
            what: "shards",
            count: count as u64,
            limit: u64::from(u32::MAX),
            offset: 0,
        })?;
        let header = header::parse(bytes, number)?;
        let integer = |key| -> Result<Option<u64>, GgufError> {
            header.metadata.find(bytes, key).map(|e| entry_integer(&e, "u64")).transpose()
        };
        let expected = integer("split.count")?.unwrap_or(1).max(1);
        if expected != count as u64 {
            return Err(GgufError::ShardCount { expected, given: count });
        }
        let found = integer("split.no")?.unwrap_or(0);
        if found != index as u64 {
            return Err(GgufError::ShardOrder { expected: index, found });
        }
        let split_tensors = integer("split.tensors.count")?;
        if self.first.is_none() {
            // Kept as they are: the usual single file costs no second copy of its table.
            self.split_tensors = split_tensors;
            self.tensors = header.tensors;
            self.entries = header.tensor_entries;
            self.first = Some((header.version, header.metadata));
        } else {
            self.tensors.extend(header.tensors);
            self.entries.extend(header.tensor_entries);
        }
        Ok(())
    }
}

fn sort_names(tensors: &[TensorInfo], entries: &[usize]) -> Result<Vec<u32>, GgufError> {
    let count = u32::try_from(tensors.len()).map_err(|_| GgufError::TooMany {
        what: "tensors",
        count: tensors.len() as u64,
        limit: u64::from(u32::MAX),
        offset: 0,
    })?;
    let mut by_name: Vec<u32> = (0..count).collect();
    by_name.sort_unstable_by_key(|&i| (tensors[i as usize].name.as_str(), i));
    for pair in by_name.windows(2) {
        let (first, second) = (&tensors[pair[0] as usize], &tensors[pair[1] as usize]);
        if first.name == second.name {
            return Err(GgufError::DuplicateTensor {
                name: clip(&second.name),
                offset: entries[pair[1] as usize] as u64,
            });
        }
    }
    Ok(by_name)
}
