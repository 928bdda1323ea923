//! Checks one file from its first byte to its last tensor, and keeps only offsets.

use crate::cursor::{Cursor, Short};
use crate::error::{GgufError, Place, clip};
use crate::tensor::{Dims, MAX_DIMS, TensorInfo};
use crate::types::TensorType;
use crate::value::{MAX_DEPTH, Value, ValueType, array_header};

/// Bytes tensor data are aligned to when the file does not say.
pub const DEFAULT_ALIGNMENT: usize = 32;
/// The largest `general.alignment` accepted, in bytes: far above any page or sector.
pub const MAX_ALIGNMENT: usize = 1 << 20;
/// The most metadata entries of a file. Real models have some dozens.
pub const MAX_METADATA: u64 = 1 << 20;
/// The most tensors of a file. The largest real models have some thousands.
pub const MAX_TENSORS: u64 = 1 << 20;
/// The longest metadata key in bytes, by the format's definition.
pub const MAX_KEY_BYTES: usize = 65535;
/// The longest tensor name in bytes. The format says 64; real files keep to it.
pub const MAX_NAME_BYTES: usize = 255;

/// Key length, one byte of key, type, one byte of value.
const MIN_ENTRY_BYTES: u64 = 8 + 1 + 4 + 1;
/// Name length, one byte of name, dimension count, one dimension, type, data offset.
const MIN_TENSOR_BYTES: u64 = 8 + 1 + 4 + 8 + 4 + 8;

/// A checked file, without its bytes.
#[derive(Debug, Clone)]
pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) metadata: Metadata,
    pub(crate) tensors: Vec<TensorInfo>,
    /// Where each tensor's table entry starts.
    pub(crate) tensor_entries: Vec<usize>,
}

/// Checks `bytes`, the whole file of shard `shard`.
pub(crate) fn parse(bytes: &[u8], shard: u32) -> Result<Header, GgufError> {
    let mut cursor = Cursor::at(bytes, 0);
    let version = parse_version(bytes, &mut cursor)?;
    let header = |short| truncated(Place::Header, "the counts", short);
    let tensor_count = cursor.u64().map_err(header)?;
    let metadata_count = cursor.u64().map_err(header)?;
    check_count("metadata entries", metadata_count, MAX_METADATA, MIN_ENTRY_BYTES, &cursor, 16)?;
    check_count("tensors", tensor_count, MAX_TENSORS, MIN_TENSOR_BYTES, &cursor, 8)?;

    let metadata = Metadata::parse(bytes, &mut cursor, metadata_count)?;
    let alignment = metadata.alignment(bytes)?;
    check_count("tensors", tensor_count, MAX_TENSORS, MIN_TENSOR_BYTES, &cursor, 8)?;
    let mut tensor_entries = Vec::with_capacity(capacity(tensor_count));
    let mut tensors = Vec::with_capacity(capacity(tensor_count));
    for index in 0..tensor_count {
        tensor_entries.push(cursor.pos());
        tensors.push(parse_tensor(&mut cursor, index, shard, alignment)?);
    }
    place_data(bytes.len(), cursor.pos(), alignment, &mut tensors, &tensor_entries)?;
    check_overlap(&tensors)?;
    Ok(Header { version, metadata, tensors, tensor_entries })
}

fn parse_version(bytes: &[u8], cursor: &mut Cursor<'_>) -> Result<u32, GgufError> {
    if !bytes.starts_with(b"GGUF") {
        return Err(GgufError::NotGguf { found: bytes.iter().copied().take(4).collect() });
    }
    let at_version = |short| truncated(Place::Header, "the version", short);
    cursor.u32().map_err(at_version)?;
    let version = cursor.u32().map_err(at_version)?;
    match version {
        2 | 3 => Ok(version),
        // A version of at most 16 bits, its bytes the other way round.
        _ if version != 0 && version & 0xffff == 0 => Err(GgufError::BigEndian),
        _ => Err(GgufError::UnsupportedVersion { version }),
    }
}

/// Refuses a count that the bytes left cannot hold.
fn check_count(
    what: &'static str,
    count: u64,
    limit: u64,
    min_bytes: u64,
    cursor: &Cursor<'_>,
    offset: u64,
) -> Result<(), GgufError> {
    let limit = limit.min(cursor.left() as u64 / min_bytes);
    if count > limit { Err(GgufError::TooMany { what, count, limit, offset }) } else { Ok(()) }
}

/// A count that [`check_count`] has let pass.
fn capacity(count: u64) -> usize {
    usize::try_from(count).unwrap_or(0)
}

fn truncated(place: Place, what: &'static str, short: Short) -> GgufError {
    GgufError::Truncated {
        place,
        what,
        offset: short.offset as u64,
        needed: short.needed,
        available: short.available as u64,
    }
}

/// Where the metadata entries of a file are.
#[derive(Debug, Clone)]
pub(crate) struct Metadata {
    /// Start of each entry, in file order.
    entries: Vec<usize>,
    /// Indices into `entries`, by rising key.
    by_key: Vec<u32>,
}

/// A metadata entry, located.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry<'a> {
    pub(crate) key: &'a str,
    pub(crate) ty: ValueType,
    /// At the value.
    pub(crate) at: Cursor<'a>,
}

impl<'a> Entry<'a> {
    pub(crate) fn value(&self) -> Option<Value<'a>> {
        Value::decode(&mut self.at.clone(), self.ty)
    }
}

impl Metadata {
    fn parse(bytes: &[u8], cursor: &mut Cursor<'_>, count: u64) -> Result<Self, GgufError> {
        let mut entries = Vec::with_capacity(capacity(count));
        for index in 0..count {
            entries.push(cursor.pos());
            check_entry(cursor, index)?;
        }
        let mut by_key: Vec<u32> = (0..).take(entries.len()).collect();
        by_key.sort_unstable_by_key(|&i| (raw_key(bytes, &entries, i), i));
        for pair in by_key.windows(2) {
            if raw_key(bytes, &entries, pair[0]) == raw_key(bytes, &entries, pair[1]) {
                return Err(GgufError::DuplicateKey {
                    key: clip(&String::from_utf8_lossy(raw_key(bytes, &entries, pair[1]))),
                    offset: entries[pair[1] as usize] as u64,
                });
            }
        }
        Ok(Self { entries, by_key })
    }

    /// Every entry in file order.
    pub(crate) fn iter<'a>(&'a self, bytes: &'a [u8]) -> impl Iterator<Item = Entry<'a>> {
        self.entries.iter().filter_map(|&start| read_entry(bytes, start))
    }

    pub(crate) fn find<'a>(&self, bytes: &'a [u8], key: &str) -> Option<Entry<'a>> {
        let found = self
            .by_key
            .binary_search_by(|&i| raw_key(bytes, &self.entries, i).cmp(key.as_bytes()))
            .ok()?;
        read_entry(bytes, self.entries[self.by_key[found] as usize])
    }

    fn alignment(&self, bytes: &[u8]) -> Result<usize, GgufError> {
        let key = "general.alignment";
        let Some(entry) = self.find(bytes, key) else {
            return Ok(DEFAULT_ALIGNMENT);
        };
        let offset = entry.at.pos() as u64;
        let Some(value) = entry.value().and_then(|value| value.as_integer()) else {
            return Err(GgufError::WrongType {
                key: key.to_owned(),
                expected: "u32",
                found: entry.ty,
                offset,
            });
        };
        usize::try_from(value)
            .ok()
            .filter(|n| n.is_power_of_two() && (8..=MAX_ALIGNMENT).contains(n))
            .ok_or(GgufError::BadAlignment {
                offset,
                alignment: value,
                limit: MAX_ALIGNMENT as u64,
            })
    }
}

/// The bytes of an entry's key; empty when they have changed since they were checked.
fn raw_key<'a>(bytes: &'a [u8], entries: &[usize], index: u32) -> &'a [u8] {
    Cursor::at(bytes, entries[index as usize]).string().unwrap_or_default()
}

fn read_entry(bytes: &[u8], start: usize) -> Option<Entry<'_>> {
    let mut at = Cursor::at(bytes, start);
    let key = std::str::from_utf8(at.string().ok()?).ok()?;
    let ty = ValueType::from_id(at.u32().ok()?)?;
    Some(Entry { key, ty, at })
}

fn check_entry(cursor: &mut Cursor<'_>, index: u64) -> Result<(), GgufError> {
    let key = parse_name(cursor, Place::Entry(index), MAX_KEY_BYTES)?;
    let place = || Place::key(key);
    let ty = parse_value_type(cursor, &place)?;
    check_value(cursor, ty, 0, &place)
}

/// Reads a key or a tensor name.
fn parse_name<'a>(
    cursor: &mut Cursor<'a>,
    place: Place,
    limit: usize,
) -> Result<&'a str, GgufError> {
    let offset = cursor.pos() as u64;
    let length = match cursor.u64() {
        Ok(length) => length,
        Err(short) => return Err(truncated(place, "the name's length", short)),
    };
    if length == 0 {
        return Err(GgufError::EmptyName { place, offset });
    }
    if length > limit as u64 {
        return Err(GgufError::NameTooLong { place, offset, length, limit });
    }
    match cursor.take(length) {
        Ok(name) => std::str::from_utf8(name).map_err(|error| GgufError::InvalidUtf8 {
            place,
            offset: offset + 8 + error.valid_up_to() as u64,
        }),
        Err(short) => Err(truncated(place, "the name", short)),
    }
}

fn parse_value_type(
    cursor: &mut Cursor<'_>,
    place: &dyn Fn() -> Place,
) -> Result<ValueType, GgufError> {
    let offset = cursor.pos() as u64;
    let id = cursor.u32().map_err(|short| truncated(place(), "the type", short))?;
    ValueType::from_id(id).ok_or_else(|| GgufError::UnknownValueType { place: place(), offset, id })
}

/// Checks a value and moves behind it. `depth` arrays are around it.
fn check_value(
    cursor: &mut Cursor<'_>,
    ty: ValueType,
    depth: usize,
    place: &dyn Fn() -> Place,
) -> Result<(), GgufError> {
    match ty {
        ValueType::Str => check_string(cursor, place),
        ValueType::Array => check_array(cursor, depth + 1, place),
        ValueType::Bool => check_bools(cursor, 1, place),
        _ => skip_fixed(cursor, ty, 1, place),
    }
}

#[inline]
fn check_string(cursor: &mut Cursor<'_>, place: &dyn Fn() -> Place) -> Result<(), GgufError> {
    let text = cursor.string().map_err(|short| truncated(place(), "a string", short))?;
    std::str::from_utf8(text).map(drop).map_err(|error| GgufError::InvalidUtf8 {
        place: place(),
        offset: (cursor.pos() - text.len() + error.valid_up_to()) as u64,
    })
}

fn check_bools(
    cursor: &mut Cursor<'_>,
    count: u64,
    place: &dyn Fn() -> Place,
) -> Result<(), GgufError> {
    let start = cursor.pos();
    let bytes = cursor.take(count).map_err(|short| truncated(place(), "a boolean", short))?;
    match bytes.iter().position(|&byte| byte > 1) {
        Some(at) => Err(GgufError::InvalidBool {
            place: place(),
            offset: (start + at) as u64,
            value: bytes[at],
        }),
        None => Ok(()),
    }
}

fn skip_fixed(
    cursor: &mut Cursor<'_>,
    ty: ValueType,
    count: u64,
    place: &dyn Fn() -> Place,
) -> Result<(), GgufError> {
    let size = count.saturating_mul(ty.min_size() as u64);
    cursor.take(size).map(drop).map_err(|short| truncated(place(), "the value", short))
}

/// Checks an array that is itself `depth` deep.
fn check_array(
    cursor: &mut Cursor<'_>,
    depth: usize,
    place: &dyn Fn() -> Place,
) -> Result<(), GgufError> {
    let offset = cursor.pos() as u64;
    if depth > MAX_DEPTH {
        return Err(GgufError::TooDeep { place: place(), offset, limit: MAX_DEPTH });
    }
    let (id, count) =
        array_header(cursor).map_err(|short| truncated(place(), "the array's head", short))?;
    let Some(elem) = ValueType::from_id(id) else {
        return Err(GgufError::UnknownValueType { place: place(), offset, id });
    };
    let needed = count.saturating_mul(elem.min_size() as u64);
    if needed > cursor.left() as u64 {
        let short = Short { offset: cursor.pos(), needed, available: cursor.left() };
        return Err(truncated(place(), "the array", short));
    }
    match elem {
        ValueType::Bool => check_bools(cursor, count, place),
        ValueType::Str => (0..count).try_for_each(|_| check_string(cursor, place)),
        ValueType::Array => (0..count).try_for_each(|_| check_array(cursor, depth + 1, place)),
        _ => skip_fixed(cursor, elem, count, place),
    }
}

/// Reads a table entry. `start` of the result is still relative to the data section.
fn parse_tensor(
    cursor: &mut Cursor<'_>,
    index: u64,
    shard: u32,
    alignment: usize,
) -> Result<TensorInfo, GgufError> {
    let name = parse_name(cursor, Place::TensorEntry(index), MAX_NAME_BYTES)?;
    let short = |what| move |short| truncated(Place::tensor(name), what, short);
    let dims_offset = cursor.pos() as u64 + 4;
    let dims = parse_dims(cursor, name)?;

    let type_offset = cursor.pos() as u64;
    let id = cursor.u32().map_err(short("the type"))?;
    let ty = TensorType::from_id(id).ok_or_else(|| GgufError::UnknownTensorType {
        tensor: clip(name),
        offset: type_offset,
        id,
    })?;
    if !dims.cols().is_multiple_of(ty.block_len()) {
        return Err(GgufError::PartialBlock {
            tensor: clip(name),
            offset: dims_offset,
            ty,
            cols: dims.cols(),
        });
    }
    let overflow = || GgufError::SizeOverflow { tensor: clip(name), offset: dims_offset };
    let size = ty.row_bytes(dims.cols()).and_then(|row| row.checked_mul(dims.rows()));
    let size = size.ok_or_else(overflow)?;

    let field = cursor.pos() as u64;
    let data_offset = cursor.u64().map_err(short("the data offset"))?;
    if !data_offset.is_multiple_of(alignment as u64) {
        return Err(GgufError::Misaligned {
            tensor: clip(name),
            offset: field,
            data_offset,
            alignment: alignment as u64,
        });
    }
    // An offset beyond usize lies outside every file: place_data reports it.
    let start = usize::try_from(data_offset).unwrap_or(usize::MAX);
    Ok(TensorInfo { name: name.to_owned(), ty, dims, shard, start, size })
}

fn parse_dims(cursor: &mut Cursor<'_>, name: &str) -> Result<Dims, GgufError> {
    let short = |short| truncated(Place::tensor(name), "the dimensions", short);
    let offset = cursor.pos() as u64;
    let count = cursor.u32().map_err(short)?;
    if count == 0 || count as usize > MAX_DIMS {
        return Err(GgufError::BadDimCount { tensor: clip(name), offset, count });
    }
    let overflow = || GgufError::SizeOverflow { tensor: clip(name), offset: offset + 4 };
    let mut sizes = [1; MAX_DIMS];
    for (dim, size) in sizes.iter_mut().enumerate().take(count as usize) {
        let offset = cursor.pos() as u64;
        let read = cursor.u64().map_err(short)?;
        if read == 0 {
            return Err(GgufError::ZeroDim { tensor: clip(name), offset, dim });
        }
        *size = usize::try_from(read).map_err(|_| overflow())?;
    }
    Dims::new(&sizes[..count as usize]).ok_or_else(overflow)
}

/// Turns offsets into the data section into offsets into the file, and checks that every tensor
/// lies in it.
fn place_data(
    file_size: usize,
    table_end: usize,
    alignment: usize,
    tensors: &mut [TensorInfo],
    entries: &[usize],
) -> Result<(), GgufError> {
    let data_start = table_end.checked_next_multiple_of(alignment);
    for (tensor, &entry) in tensors.iter_mut().zip(entries) {
        let start = data_start.and_then(|base| base.checked_add(tensor.start));
        let end = start.and_then(|start| start.checked_add(tensor.size));
        match (start, end) {
            (Some(start), Some(end)) if end <= file_size => tensor.start = start,
            _ => {
                let field =
                    entry + 8 + tensor.name.len() + 4 + 8 * tensor.dims.as_slice().len() + 4;
                return Err(GgufError::OutOfFile {
                    tensor: clip(&tensor.name),
                    offset: field as u64,
                    size: tensor.size as u64,
                    file_size: file_size as u64,
                });
            }
        }
    }
    Ok(())
}

fn check_overlap(tensors: &[TensorInfo]) -> Result<(), GgufError> {
    let mut by_start: Vec<u32> = (0..).take(tensors.len()).collect();
    by_start.sort_unstable_by_key(|&i| (tensors[i as usize].start, i));
    for pair in by_start.windows(2) {
        let (first, second) = (&tensors[pair[0] as usize], &tensors[pair[1] as usize]);
        if second.start < first.start + first.size {
            return Err(GgufError::Overlap {
                first: clip(&first.name),
                second: clip(&second.name),
                offset: second.start as u64,
            });
        }
    }
    Ok(())
}
