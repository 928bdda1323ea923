//! What a valid file answers.

use m40_gguf::{Array, Gguf, GgufError, TensorType, Value, ValueType, fuzz};
use m40_testkit::gguf::{GgufBuilder, Meta, every_feature};
use proptest::prelude::*;

fn every_feature_file() -> Gguf<Vec<u8>> {
    Gguf::parse(every_feature().build()).expect("the file is valid")
}

#[test]
fn both_versions_read_alike() {
    for version in [2, 3] {
        let file = Gguf::parse(every_feature().version(version).build()).unwrap();
        assert_eq!(file.version(), version);
        assert_eq!(file.get("a.text"), Some(Value::Str("größe €")));
        assert_eq!(file.tensors().len(), 4);
    }
}

#[test]
fn every_type_of_value_is_read() {
    let file = every_feature_file();
    let scalars = [
        ("a.u8", Value::U8(200)),
        ("a.i8", Value::I8(-100)),
        ("a.u16", Value::U16(60_000)),
        ("a.i16", Value::I16(-30_000)),
        ("a.u32", Value::U32(4_000_000_000)),
        ("a.i32", Value::I32(-2_000_000_000)),
        ("a.f32", Value::F32(0.5)),
        ("a.bool", Value::Bool(true)),
        ("a.u64", Value::U64(u64::MAX)),
        ("a.i64", Value::I64(i64::MIN)),
        ("a.f64", Value::F64(0.25)),
        ("a.text", Value::Str("größe €")),
    ];
    for (key, value) in scalars {
        assert_eq!(file.get(key), Some(value), "{key}");
    }
    assert_eq!(file.get("a"), None);
    assert_eq!(file.get(""), None);
}

#[test]
fn metadata_come_in_the_order_of_the_file() {
    let file = every_feature_file();
    let keys: Vec<_> = file.metadata().map(|(key, _)| key).collect();
    assert_eq!(keys[..3], ["general.architecture", "a.u8", "a.i8"]);
    assert_eq!(keys.last(), Some(&"b.nested"));
    assert_eq!(keys.len(), 19);
}

#[test]
fn arrays_are_iterated_by_type() {
    let file = every_feature_file();
    let array = |key| file.get_array(key).unwrap().unwrap();
    let strings: Vec<_> = array("b.strings").strings().unwrap().collect();
    assert_eq!(strings, ["one", "", "drei"]);
    assert_eq!(array("b.f32").f32s().unwrap().collect::<Vec<_>>(), [1.0, -1.0]);
    assert_eq!(array("b.bool").bools().unwrap().collect::<Vec<_>>(), [true, false]);
    assert_eq!(array("b.u8").integers().unwrap().collect::<Vec<_>>(), [1, 2, 3]);
    assert!(array("b.empty").is_empty());
    assert_eq!(array("b.empty").elem_type(), ValueType::U64);
    assert_eq!(
        array("b.strings").f32s().err(),
        Some(GgufError::WrongElementType { expected: "f32", found: ValueType::Str })
    );
    let error = array("b.f32").integers().err().unwrap();
    assert_eq!(error.to_string(), "array elements are of type f32, expected an integer");
}

#[test]
fn arrays_may_hold_arrays() {
    let file = every_feature_file();
    let outer = file.get_array("b.nested").unwrap().unwrap();
    assert_eq!((outer.len(), outer.elem_type()), (2, ValueType::Array));
    let inner: Vec<Array<'_>> = outer
        .iter()
        .map(|value| match value {
            Value::Array(array) => array,
            other => panic!("{other:?} is no array"),
        })
        .collect();
    assert_eq!(inner[0].i32s().unwrap().collect::<Vec<_>>(), [1, -2]);
    assert_eq!(inner[1].strings().unwrap().collect::<Vec<_>>(), ["x", ""]);
}

#[test]
fn getters_take_any_integer_type_that_fits() {
    let file = every_feature_file();
    assert_eq!(file.get_u32("a.u8"), Ok(Some(200)));
    assert_eq!(file.get_u32("a.u16"), Ok(Some(60_000)));
    assert_eq!(file.get_u64("a.u32"), Ok(Some(4_000_000_000)));
    assert_eq!(file.get_u64("a.u64"), Ok(Some(u64::MAX)));
    assert_eq!(file.get_f32("a.f64"), Ok(Some(0.25)));
    assert_eq!(file.get_u32("no.such.key"), Ok(None));
    assert_eq!(file.get_str("no.such.key"), Ok(None));
}

#[test]
fn values_that_do_not_fit_are_named() {
    let file = every_feature_file();
    for (key, value) in [("a.i8", -100i128), ("a.u64", i128::from(u64::MAX))] {
        match file.get_u32(key).unwrap_err() {
            GgufError::OutOfRange { key: named, expected: "u32", value: given, .. } => {
                assert_eq!((named.as_str(), given), (key, value));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn wrong_types_are_named_with_key_and_offset() {
    let bytes = GgufBuilder::new().meta("llama.block_count", "two").build();
    let file = Gguf::parse(bytes).unwrap();
    let error = file.get_u32("llama.block_count").unwrap_err();
    // Header, the key with its length, the type.
    let offset = 24 + 8 + 17 + 4;
    assert_eq!(
        error,
        GgufError::WrongType {
            key: "llama.block_count".to_owned(),
            expected: "u32",
            found: ValueType::Str,
            offset,
        }
    );
    assert_eq!(
        error.to_string(),
        "metadata key \"llama.block_count\" at offset 53 is of type string, expected u32"
    );
    assert!(file.get_f32("llama.block_count").is_err());
    assert!(file.get_bool("llama.block_count").is_err());
    assert!(file.get_array("llama.block_count").is_err());
}

#[test]
fn tensors_have_shape_and_data() {
    let file = every_feature_file();
    let cube = file.tensor("cube").unwrap();
    assert_eq!((cube.ty, cube.dims.as_slice()), (TensorType::F16, [2, 2, 2].as_slice()));
    assert_eq!((cube.dims.cols(), cube.dims.rows(), cube.dims.elements()), (2, 4, 8));
    assert_eq!((cube.dims.get(2), cube.dims.get(3), cube.dims.get(9)), (2, 1, 1));
    assert_eq!(cube.data.len(), 16);
    assert_eq!(file.tensor("hypercube").unwrap().data, [1, 2, 3, 4]);
    assert_eq!(file.tensor("matrix").unwrap().data.len(), 36);
    assert!(file.tensor("Matrix").is_none());
    for info in file.tensors() {
        assert_eq!(file.tensor_data(info), &file.shards()[0][info.range()]);
    }
}

#[test]
fn a_file_may_hold_metadata_alone() {
    let file = Gguf::parse(GgufBuilder::new().meta("a", 1u32).build()).unwrap();
    assert_eq!(file.get_u32("a"), Ok(Some(1)));
    assert!(file.tensors().is_empty());
}

#[test]
fn bytes_that_change_after_parsing_do_no_harm() {
    /// Gives other bytes once it was told to.
    struct Changing(std::rc::Rc<std::cell::Cell<bool>>, Vec<u8>);
    impl AsRef<[u8]> for Changing {
        fn as_ref(&self) -> &[u8] {
            if self.0.get() { &self.1[..70] } else { &self.1 }
        }
    }
    let changed = std::rc::Rc::new(std::cell::Cell::new(false));
    let file = Gguf::parse(Changing(changed.clone(), every_feature().build())).unwrap();
    changed.set(true);
    assert_eq!(file.get("a.text"), None);
    assert!(file.metadata().count() < 19);
    assert!(file.tensor("matrix").unwrap().data.is_empty());
}

fn scalars() -> impl Strategy<Value = Meta> {
    prop_oneof![
        any::<u8>().prop_map(Meta::U8),
        any::<i16>().prop_map(Meta::I16),
        any::<u32>().prop_map(Meta::U32),
        (-1e30f32..1e30).prop_map(Meta::F32),
        any::<bool>().prop_map(Meta::Bool),
        ".{0,12}".prop_map(Meta::Str),
        any::<i64>().prop_map(Meta::I64),
    ]
}

/// A scalar, or arrays around copies of one, as deep as the format goes.
fn values() -> impl Strategy<Value = Meta> {
    scalars().prop_recursive(4, 64, 5, |inner| {
        (inner, 0..5usize).prop_map(|(value, n)| Meta::Array(value.ty(), vec![value; n]))
    })
}

fn depth(meta: &Meta) -> usize {
    match meta {
        Meta::Array(_, values) => 1 + values.first().map_or(0, depth),
        _ => 0,
    }
}

fn equal(meta: &Meta, value: Value<'_>) -> bool {
    match (meta, value) {
        (Meta::Array(elem, values), Value::Array(array)) => {
            array.elem_type() == *elem
                && array.len() == values.len()
                && values.iter().zip(array.iter()).all(|(meta, value)| equal(meta, value))
        }
        (Meta::Str(a), Value::Str(b)) => a == b,
        (Meta::U8(a), Value::U8(b)) => *a == b,
        (Meta::I16(a), Value::I16(b)) => *a == b,
        (Meta::U32(a), Value::U32(b)) => *a == b,
        (Meta::F32(a), Value::F32(b)) => *a == b,
        (Meta::Bool(a), Value::Bool(b)) => *a == b,
        (Meta::I64(a), Value::I64(b)) => *a == b,
        _ => false,
    }
}

proptest! {
    #[test]
    fn metadata_read_back_as_written(
        entries in prop::collection::btree_map("[a-z.]{1,20}", values(), 0..12)
    ) {
        let entries: Vec<_> = entries.into_iter().filter(|(_, v)| depth(v) <= 4).collect();
        let bytes = entries
            .iter()
            .filter(|(key, _)| key != "general.alignment")
            .fold(GgufBuilder::new(), |file, (key, value)| file.meta(key, value.clone()))
            .build();
        fuzz::check(&bytes);
        let file = Gguf::parse(bytes).unwrap();
        for (key, value) in &entries {
            prop_assert!(equal(value, file.get(key).unwrap()), "{key}: {value:?}");
        }
    }
}
