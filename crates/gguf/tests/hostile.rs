//! Bytes that are no valid file: each is refused with an error that says what and where.

use m40_gguf::{Gguf, GgufError, Place, TensorType, ValueType, fuzz};
use m40_testkit::gguf::{GgufBuilder, Meta, every_feature};
use proptest::prelude::*;

#[track_caller]
fn error_of(bytes: &[u8]) -> GgufError {
    fuzz::check(bytes);
    match Gguf::parse(bytes) {
        Ok(file) => panic!("accepted as {file:?}"),
        Err(error) => error,
    }
}

#[track_caller]
fn assert_error(bytes: &[u8], expected: GgufError, message: &str) {
    let error = error_of(bytes);
    assert_eq!(error, expected);
    assert_eq!(error.to_string(), message);
}

/// A file written field by field, so that any of them can be wrong.
struct Raw(Vec<u8>);

impl Raw {
    fn new(tensors: u64, metadata: u64) -> Self {
        Self(b"GGUF".to_vec()).u32(3).u64(tensors).u64(metadata)
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn string(self, text: &[u8]) -> Self {
        self.u64(text.len() as u64).bytes(text)
    }

    /// A table entry.
    fn tensor(self, name: &str, dims: &[u64], ty: u32, offset: u64) -> Self {
        let raw = self.string(name.as_bytes()).u32(dims.len() as u32);
        dims.iter().fold(raw, |raw, &n| raw.u64(n)).u32(ty).u64(offset)
    }

    /// Padding to the default alignment, then zeros.
    fn data(mut self, bytes: usize) -> Vec<u8> {
        let start = self.0.len().next_multiple_of(32);
        self.0.resize(start + bytes, 0);
        self.0
    }
}

fn key(name: &str) -> Place {
    Place::Key(name.to_owned())
}

#[test]
fn every_truncation_is_an_error_inside_the_file() {
    let bytes = every_feature().build();
    for end in 0..bytes.len() {
        match error_of(&bytes[..end]) {
            GgufError::NotGguf { found } => assert!(found.len() < 4),
            GgufError::Truncated { offset, needed, available, .. } => {
                assert_eq!(offset + available, end as u64);
                assert!(needed > available);
            }
            GgufError::TooMany { offset, .. } => assert!(offset == 8 || offset == 16),
            GgufError::OutOfFile { offset, file_size, .. } => {
                assert!(offset < end as u64);
                assert_eq!(file_size, end as u64);
            }
            other => panic!("cut at {end}: {other:?}"),
        }
    }
}

#[test]
fn every_single_byte_may_change() {
    let bytes = every_feature().build();
    for at in 0..bytes.len() {
        for value in [0, 1, 7, 9, 0x40, 0x7f, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] = value;
            fuzz::check(&damaged);
        }
    }
}

#[test]
fn other_formats_are_named_by_their_first_bytes() {
    assert_error(
        b"PK\x03\x04....",
        GgufError::NotGguf { found: b"PK\x03\x04".to_vec() },
        "not a GGUF file: it starts with \"PK\\x03\\x04\" instead of \"GGUF\"",
    );
    assert_error(
        b"",
        GgufError::NotGguf { found: Vec::new() },
        "not a GGUF file: it starts with \"\" instead of \"GGUF\"",
    );
    error_of(b"GGU");
}

#[test]
fn big_endian_files_are_recognised() {
    let bytes = every_feature().corrupt(|bytes| bytes[4..8].reverse());
    assert_error(
        &bytes,
        GgufError::BigEndian,
        "big-endian GGUF file (version field at offset 4); convert it to little endian",
    );
}

#[test]
fn other_versions_are_refused() {
    for version in [0, 1, 4, 0xffff_ffff] {
        let bytes = every_feature().version(version).build();
        assert_eq!(error_of(&bytes), GgufError::UnsupportedVersion { version });
    }
    let message = error_of(&every_feature().version(1).build()).to_string();
    assert!(message.starts_with("GGUF version 1 at offset 4 is not supported"), "{message}");
}

#[test]
fn huge_counts_are_refused_before_anything_is_allocated() {
    assert_error(
        &Raw::new(u64::MAX, 0).data(64),
        GgufError::TooMany { what: "tensors", count: u64::MAX, limit: 2, offset: 8 },
        "18446744073709551615 tensors at offset 8: at most 2 are possible in this file",
    );
    assert_eq!(
        error_of(&Raw::new(0, u64::MAX / 2).data(0)),
        GgufError::TooMany { what: "metadata entries", count: u64::MAX / 2, limit: 0, offset: 16 }
    );
}

#[test]
fn huge_strings_and_arrays_are_truncations() {
    let string = Raw::new(0, 1).string(b"k").u32(8).u64(u64::MAX).bytes(b"ab");
    assert_error(
        &string.0,
        GgufError::Truncated {
            place: key("k"),
            what: "a string",
            offset: 45,
            needed: u64::MAX,
            available: 2,
        },
        "file ends inside metadata key \"k\": a string at offset 45 needs 18446744073709551615 \
         bytes, 2 are left; the file is truncated or damaged",
    );
    for (elem, count) in [(4, u64::MAX), (8, 1 << 60), (9, 1 << 40), (7, 1 << 33), (12, 3)] {
        let array = Raw::new(0, 1).string(b"k").u32(9).u32(elem).u64(count).bytes(&[0; 16]);
        match error_of(&array.0) {
            GgufError::Truncated {
                place, what: "the array", offset: 49, available: 16, ..
            } => {
                assert_eq!(place, key("k"));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn unknown_metadata_types_are_refused() {
    let scalar = Raw::new(0, 1).string(b"k").u32(13).u64(0);
    assert_error(
        &scalar.0,
        GgufError::UnknownValueType { place: key("k"), offset: 33, id: 13 },
        "metadata key \"k\": unknown metadata type 13 at offset 33",
    );
    let array = Raw::new(0, 1).string(b"k").u32(9).u32(99).u64(0);
    assert_eq!(
        error_of(&array.0),
        GgufError::UnknownValueType { place: key("k"), offset: 37, id: 99 }
    );
}

#[test]
fn arrays_nest_only_so_deep() {
    let nested = |depth| {
        (1..depth)
            .fold(Meta::from(vec![1u8]), |inner, _| Meta::Array(ValueType::Array, vec![inner]))
    };
    fuzz::check(&GgufBuilder::new().meta("k", nested(4)).build());
    assert!(Gguf::parse(GgufBuilder::new().meta("k", nested(4)).build()).is_ok());
    let bytes = GgufBuilder::new().meta("k", nested(5)).build();
    assert_error(
        &bytes,
        GgufError::TooDeep { place: key("k"), offset: 37 + 4 * 12, limit: 4 },
        "metadata key \"k\": arrays nested deeper than 4 at offset 85",
    );
    fuzz::check(&GgufBuilder::new().meta("k", nested(1000)).build());
}

#[test]
fn strings_must_be_utf8() {
    let value = Raw::new(0, 1).string(b"k").u32(8).string(b"ab\xff");
    assert_error(
        &value.0,
        GgufError::InvalidUtf8 { place: key("k"), offset: 47 },
        "metadata key \"k\": the string at offset 47 is not UTF-8",
    );
    let element = Raw::new(0, 1).string(b"k").u32(9).u32(8).u64(2).string(b"a").string(b"\xc3");
    assert_eq!(error_of(&element.0), GgufError::InvalidUtf8 { place: key("k"), offset: 66 });
    let name = Raw::new(0, 1).string(b"k\xc3\x28").u32(0).bytes(b"a");
    assert_eq!(error_of(&name.0), GgufError::InvalidUtf8 { place: Place::Entry(0), offset: 33 });
    let tensor = Raw::new(1, 0).string(b"\xff").u32(1).u64(1).u32(0).u64(0);
    assert_eq!(
        error_of(&tensor.0),
        GgufError::InvalidUtf8 { place: Place::TensorEntry(0), offset: 32 }
    );
}

#[test]
fn booleans_are_zero_or_one() {
    let scalar = Raw::new(0, 1).string(b"k").u32(7).bytes(&[2]);
    assert_eq!(
        error_of(&scalar.0),
        GgufError::InvalidBool { place: key("k"), offset: 37, value: 2 }
    );
    let array = Raw::new(0, 1).string(b"k").u32(9).u32(7).u64(3).bytes(&[0, 1, 0x80]);
    assert_error(
        &array.0,
        GgufError::InvalidBool { place: key("k"), offset: 51, value: 0x80 },
        "metadata key \"k\": the boolean at offset 51 is 128, neither 0 nor 1",
    );
}

#[test]
fn names_have_a_length() {
    let empty = Raw::new(0, 1).string(b"").u32(0).bytes(&[0; 8]);
    assert_eq!(error_of(&empty.0), GgufError::EmptyName { place: Place::Entry(0), offset: 24 });
    let long = Raw::new(0, 1).string(&[b'k'; 65536]).u32(0).bytes(b"a");
    assert_eq!(
        error_of(&long.0),
        GgufError::NameTooLong { place: Place::Entry(0), offset: 24, length: 65536, limit: 65535 }
    );
    let tensor = Raw::new(1, 0).tensor(&"t".repeat(256), &[1], 0, 0).data(4);
    assert_error(
        &tensor,
        GgufError::NameTooLong {
            place: Place::TensorEntry(0),
            offset: 24,
            length: 256,
            limit: 255,
        },
        "tensor table entry 0: name of 256 bytes at offset 24, at most 255 are allowed",
    );
}

#[test]
fn long_and_odd_names_are_shown_clipped_and_escaped() {
    let name = format!("\x1b[31m\n{}", "ä".repeat(200));
    let bytes = Raw::new(0, 1).string(name.as_bytes()).u32(50).u64(0);
    let message = error_of(&bytes.0).to_string();
    assert!(message.starts_with("metadata key \"\\u{1b}[31m\\nää"), "{message}");
    assert!(!message.contains(['\n', '\x1b']));
    assert!(message.chars().count() < 160, "{message}");
}

#[test]
fn keys_and_tensors_are_unique() {
    let entry = |raw: Raw| raw.string(b"twice").u32(0).bytes(b"a");
    let raw = entry(entry(Raw::new(0, 3)).string(b"a").u32(0).bytes(b"a"));
    assert_error(
        &raw.0,
        GgufError::DuplicateKey { key: "twice".to_owned(), offset: 24 + 18 + 14 },
        "metadata key \"twice\" is given twice, again at offset 56",
    );
    let raw = Raw::new(2, 0).tensor("t", &[1], 0, 0).tensor("t", &[1], 0, 32);
    assert_error(
        &raw.data(64),
        GgufError::DuplicateTensor { name: "t".to_owned(), offset: 24 + 33 },
        "tensor \"t\" is given twice, again at offset 57",
    );
}

#[test]
fn the_alignment_is_a_power_of_two_in_range() {
    let with = |value: Meta| GgufBuilder::new().meta("general.alignment", value).build();
    for alignment in [0u32, 1, 3, 4, 24, 33, 1 << 21, u32::MAX] {
        let expected =
            GgufError::BadAlignment { offset: 53, alignment: alignment.into(), limit: 1 << 20 };
        assert_eq!(error_of(&with(alignment.into())), expected);
    }
    assert_error(
        &with(Meta::I64(-32)),
        GgufError::BadAlignment { offset: 53, alignment: -32, limit: 1 << 20 },
        "metadata key \"general.alignment\" at offset 53 is -32: it must be a power of two from 8 \
         to 1048576",
    );
    assert_eq!(
        error_of(&with(Meta::from("32"))),
        GgufError::WrongType {
            key: "general.alignment".to_owned(),
            expected: "u32",
            found: ValueType::Str,
            offset: 53
        }
    );
}

#[test]
fn tensors_have_one_to_four_dimensions_none_zero() {
    let with = |dims: &[u64]| Raw::new(1, 0).tensor("t", dims, 0, 0).data(64);
    for count in [0, 5, 6] {
        let dims = vec![1; count as usize];
        let bytes = [with(&dims), vec![0; 16]].concat();
        let expected = GgufError::BadDimCount { tensor: "t".to_owned(), offset: 33, count };
        assert_eq!(error_of(&bytes), expected);
    }
    assert_error(
        &with(&[2, 0]),
        GgufError::ZeroDim { tensor: "t".to_owned(), offset: 45, dim: 1 },
        "tensor \"t\": dimension 1 at offset 45 is zero",
    );
}

#[test]
fn sizes_that_overflow_are_refused() {
    let with = |dims: &[u64], ty| Raw::new(1, 0).tensor("t", dims, ty, 0).data(64);
    let expected = GgufError::SizeOverflow { tensor: "t".to_owned(), offset: 37 };
    assert_eq!(error_of(&with(&[1 << 32, 1 << 32], 0)), expected);
    assert_eq!(error_of(&with(&[u64::MAX, 2], 24)), expected);
    assert_eq!(error_of(&with(&[1 << 20, 1 << 20, 1 << 20, 1 << 20], 0)), expected);
    // The weights can be counted, their bytes cannot.
    assert_eq!(error_of(&with(&[1 << 62, 2], 28)), expected);
    assert_eq!(expected.to_string(), "tensor \"t\": its size overflows (dimensions at offset 37)");
}

#[test]
fn unknown_tensor_types_are_named() {
    let with = |ty| Raw::new(1, 0).tensor("t", &[32], ty, 0).data(64);
    assert_error(
        &with(99),
        GgufError::UnknownTensorType { tensor: "t".to_owned(), offset: 45, id: 99 },
        "tensor \"t\": unknown tensor type 99 at offset 45",
    );
    let retired = error_of(&with(4)).to_string();
    assert!(retired.ends_with("(a retired ggml type: convert the model again)"), "{retired}");
}

#[test]
fn rows_are_whole_blocks() {
    assert_error(
        &Raw::new(1, 0).tensor("t", &[250, 4], 12, 0).data(1000),
        GgufError::PartialBlock {
            tensor: "t".to_owned(),
            offset: 37,
            ty: TensorType::Q4K,
            cols: 250,
        },
        "tensor \"t\": rows of 250 weights at offset 37 are not whole Q4_K blocks of 256 weights",
    );
}

#[test]
fn tensor_data_are_aligned() {
    assert_error(
        &Raw::new(1, 0).tensor("t", &[1], 0, 4).data(64),
        GgufError::Misaligned { tensor: "t".to_owned(), offset: 49, data_offset: 4, alignment: 32 },
        "tensor \"t\": data offset 4 at offset 49 is not a multiple of the alignment 32",
    );
}

#[test]
fn tensor_data_lie_in_the_file() {
    let with = |dims: &[u64], offset| Raw::new(1, 0).tensor("t", dims, 0, offset).data(64);
    assert!(Gguf::parse(with(&[16], 0)).is_ok(), "up to the last byte");
    for (elements, offset) in [(17, 0), (16, 32), (1, 64), (1, 1 << 40), (1, u64::MAX - 31)] {
        assert_eq!(
            error_of(&with(&[elements], offset)),
            GgufError::OutOfFile {
                tensor: "t".to_owned(),
                offset: 49,
                size: 4 * elements,
                file_size: 128
            }
        );
    }
    let message = error_of(&with(&[17], 0)).to_string();
    assert_eq!(
        message,
        "tensor \"t\": 68 bytes of data (position given at offset 49) end after the end of the file \
         at 128; the file is truncated or damaged"
    );
}

#[test]
fn tensors_do_not_share_bytes() {
    let with = |offsets: [u64; 2]| {
        let raw = Raw::new(2, 0).tensor("a", &[16], 0, offsets[0]);
        raw.tensor("b", &[16], 0, offsets[1]).data(128)
    };
    assert!(Gguf::parse(with([0, 64])).is_ok());
    assert!(Gguf::parse(with([64, 0])).is_ok(), "in any order");
    let expected = |first: &str, second: &str, offset| GgufError::Overlap {
        first: first.to_owned(),
        second: second.to_owned(),
        offset,
    };
    assert_error(
        &with([0, 32]),
        expected("a", "b", 128),
        "tensors \"a\" and \"b\" overlap at offset 128",
    );
    assert_eq!(error_of(&with([32, 0])), expected("b", "a", 128));
    assert_eq!(error_of(&with([32, 32])), expected("a", "b", 128));
}

#[test]
fn shards_must_be_complete_and_in_order() {
    let shards = every_feature().build_shards(3);
    assert!(Gguf::parse_shards(shards.clone()).is_ok());
    let error = |shards| Gguf::parse_shards(shards).map(drop).unwrap_err();

    assert_eq!(error(Vec::new()), GgufError::NoShards);
    assert_eq!(
        Gguf::parse(shards[0].clone()).map(drop),
        Err(GgufError::ShardCount { expected: 3, given: 1 })
    );
    assert_eq!(
        error(shards[..2].to_vec()),
        GgufError::InShard {
            shard: 0,
            source: Box::new(GgufError::ShardCount { expected: 3, given: 2 })
        }
    );
    let [a, b, c] = shards.try_into().unwrap();
    let swapped = error(vec![a.clone(), c.clone(), b.clone()]);
    assert_eq!(
        swapped.to_string(),
        "shard 1 (from 0): shard 2 found where shard 1 belongs (\"split.no\", from 0)"
    );
    assert_eq!(
        error(vec![a.clone(), b[..b.len() - 1].to_vec(), c.clone()]).to_string().split(':').next(),
        Some("shard 1 (from 0)")
    );
    let single = every_feature().build();
    assert!(matches!(error(vec![a, b, single]), GgufError::InShard { shard: 2, .. }));
}

#[test]
fn shards_hold_as_many_tensors_as_they_say() {
    let build = |total: i32| {
        let file = every_feature().meta("split.count", 1u16).meta("split.tensors.count", total);
        Gguf::parse(file.build()).map(drop)
    };
    assert_eq!(build(4), Ok(()));
    assert_eq!(build(5), Err(GgufError::ShardTensors { expected: 5, found: 4 }));
    assert!(matches!(build(-1), Err(GgufError::OutOfRange { .. })));
}

#[test]
fn one_tensor_in_two_shards_is_refused() {
    let shard = |number: u16| {
        GgufBuilder::new()
            .meta("split.no", number)
            .meta("split.count", 2u16)
            .tensor("t", &[1], TensorType::I8, vec![0])
            .build()
    };
    assert!(matches!(
        Gguf::parse_shards(vec![shard(0), shard(1)]),
        Err(GgufError::DuplicateTensor { name, .. }) if name == "t"
    ));
}

/// A change to bytes that damages some field.
#[derive(Debug, Clone)]
enum Damage {
    Byte(usize, u8),
    Number(usize, u64),
    Remove(usize, usize),
    Insert(usize, Vec<u8>),
    Copy(usize, usize, usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = 0..2000usize;
    let number = prop_oneof![
        any::<u64>(),
        0..64u64,
        Just(u64::MAX),
        (0..64u32).prop_map(|shift| 1 << shift),
        (0..64u32).prop_map(|shift| u64::MAX >> shift),
    ];
    prop_oneof![
        (at.clone(), any::<u8>()).prop_map(|(at, value)| Damage::Byte(at, value)),
        (at.clone(), number).prop_map(|(at, value)| Damage::Number(at, value)),
        (at.clone(), 0..40usize).prop_map(|(at, n)| Damage::Remove(at, n)),
        (at.clone(), prop::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        (at.clone(), at, 0..80usize).prop_map(|(from, to, n)| Damage::Copy(from, to, n)),
    ]
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let len = bytes.len().max(1);
        match self {
            Self::Byte(at, value) => {
                bytes.iter_mut().skip(at % len).take(1).for_each(|b| *b = *value);
            }
            Self::Number(at, value) => {
                bytes.iter_mut().skip(at % len).zip(value.to_le_bytes()).for_each(|(b, v)| *b = v);
            }
            Self::Remove(at, n) => {
                let start = (at % len).min(bytes.len());
                let end = (start + n).min(bytes.len());
                bytes.drain(start..end);
            }
            Self::Insert(at, new) => {
                let at = (at % len).min(bytes.len());
                bytes.splice(at..at, new.iter().copied());
            }
            Self::Copy(from, to, n) => {
                let piece: Vec<u8> = bytes.iter().skip(from % len).take(*n).copied().collect();
                bytes.iter_mut().skip(to % len).zip(piece).for_each(|(b, v)| *b = v);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn damaged_files_never_panic(damages in prop::collection::vec(damage(), 1..6)) {
        let mut bytes = every_feature().build();
        damages.iter().for_each(|damage| damage.apply(&mut bytes));
        fuzz::check(&bytes);
    }

    #[test]
    fn damaged_shards_never_panic(damages in prop::collection::vec(damage(), 1..4), n in 1..4usize) {
        let mut shards = every_feature().build_shards(n);
        for (i, damage) in damages.iter().enumerate() {
            damage.apply(&mut shards[i % n]);
        }
        if let Ok(file) = Gguf::parse_shards(shards) {
            for info in file.tensors() {
                prop_assert_eq!(file.tensor_data(info).len(), info.size_bytes());
            }
        }
    }
}
