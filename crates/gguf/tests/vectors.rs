//! Dequantisation and the type table against the Python package `gguf`, from vectors that
//! `data/make_vectors.py` writes.

use std::path::Path;

use m40_gguf::{DequantizeError, TensorType, dequantize, is_dequantizable};

fn data(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/vectors").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn type_table_equals_the_python_package() {
    let table = String::from_utf8(data("types.tsv")).unwrap();
    let ours: String = TensorType::ALL
        .iter()
        .map(|ty| format!("{}\t{}\t{}\t{}\n", ty.id(), ty.name(), ty.block_len(), ty.block_bytes()))
        .collect();
    assert_eq!(ours, table);
}

#[test]
fn types_are_found_by_number_and_name() {
    for &ty in TensorType::ALL {
        assert_eq!(TensorType::from_id(ty.id()), Some(ty));
        assert_eq!(TensorType::from_name(ty.name()), Some(ty));
        assert_eq!(TensorType::from_name(&ty.name().to_lowercase()), Some(ty));
    }
    for id in [4, 5, 31, 32, 33, 36, 37, 38, 42, u32::MAX] {
        assert_eq!(TensorType::from_id(id), None);
    }
    assert_eq!(TensorType::from_name("Q4"), None);
}

#[test]
fn rows_are_whole_blocks() {
    assert_eq!(TensorType::Q4K.row_bytes(512), Some(288));
    assert_eq!(TensorType::Q4K.row_bytes(511), None);
    assert_eq!(TensorType::F32.row_bytes(3), Some(12));
    assert_eq!(TensorType::F64.row_bytes(usize::MAX), None);
}

#[test]
fn dequantises_bit_for_bit_as_the_python_package() {
    let mut seen = 0;
    for &ty in TensorType::ALL.iter().filter(|ty| is_dequantizable(**ty)) {
        check_vectors(ty);
        seen += 1;
    }
    assert_eq!(seen, 16, "every type of the issue has vectors");
}

#[track_caller]
fn check_vectors(ty: TensorType) {
    let file = data(&format!("{}.bin", ty.name()));
    let (count, rest) = file.split_first_chunk::<4>().expect("a count");
    let count = u32::from_le_bytes(*count) as usize;
    let (blocks, weights) = rest.split_at(count * ty.block_bytes());
    let expected: Vec<f32> =
        weights.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    assert!(count > 0);
    assert_eq!(expected.len(), count * ty.block_len(), "{ty}: the vector file is whole");

    let mut out = vec![f32::NAN; expected.len()];
    assert_eq!(dequantize(ty, blocks, &mut out), Ok(()));
    for (i, (ours, theirs)) in out.iter().zip(&expected).enumerate() {
        assert_eq!(
            ours.to_bits(),
            theirs.to_bits(),
            "{ty}: weight {i}: {ours:e} instead of {theirs:e}"
        );
    }
}

#[test]
fn lengths_that_do_not_agree_are_refused() {
    let ty = TensorType::Q8_0;
    assert_eq!(
        dequantize(ty, &[0; 35], &mut [0.0; 32]),
        Err(DequantizeError::PartialBlock { ty, bytes: 35 })
    );
    assert_eq!(
        dequantize(ty, &[0; 68], &mut [0.0; 32]),
        Err(DequantizeError::OutputLength { expected: 64, given: 32 })
    );
    assert_eq!(dequantize(ty, &[], &mut []), Ok(()));
}

#[test]
fn types_without_dequantisation_are_named() {
    let ty = TensorType::IQ2XXS;
    let error = dequantize(ty, &[0; 66], &mut [0.0; 256]).unwrap_err();
    assert_eq!(error.to_string(), "tensor type IQ2_XXS cannot be dequantised");
}
