//! Shapes are written as valid files of the sizes and types of the real models.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::collections::BTreeMap;

use m40_gguf::{Gguf, TensorType, dequantize};
use m40_testkit::shapes::Shape;

fn write(shape: &Shape, threads: usize) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    shape.write(file.path(), threads).unwrap();
    std::fs::read(file.path()).unwrap()
}

fn parse(shape: &Shape) -> Gguf<Vec<u8>> {
    Gguf::parse(write(shape, 2)).expect("a shape is a valid file")
}

#[test]
fn every_shape_has_the_bytes_of_the_real_model() {
    let gigabytes = |name: &str| Shape::by_name(name).unwrap().tensor_bytes() as f64 / 1e9;
    let real = [
        ("135m", 0.0966),
        ("1.5b", 0.9805),
        ("1b-f16", 2.4717),
        ("8b-q4_0", 4.517),
        ("8b-q4_k_m", 4.9127),
        ("24b-q4_0", 13.260),
    ];
    for (name, expected) in real {
        let found = gigabytes(name);
        assert!((found / expected - 1.0).abs() < 0.001, "{name}: {found} GB, expected {expected}");
    }
    assert_eq!(Shape::all().map(|shape| shape.name), real.map(|(name, _)| name));
    assert_eq!(Shape::by_name("7b"), None);
}

#[test]
fn more_bits_go_where_the_quantiser_puts_them() {
    let shape = Shape::by_name("1.5b").unwrap().with_layers(28).with_vocab(512);
    let thin = Shape { hidden: 256, feed_forward: 256, heads: 2, kv_heads: 2, ..shape };
    let file = parse(&thin);
    let layers = |part: &str| -> Vec<usize> {
        let ty = |i: &usize| file.tensor(&format!("blk.{i}.{part}.weight")).unwrap().ty;
        (0..28).filter(|i| ty(i) == TensorType::Q6K).collect()
    };
    let expected = [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26, 27];
    assert_eq!(layers("attn_v"), expected);
    assert_eq!(layers("ffn_down"), expected);
    assert!(layers("ffn_up").is_empty());
    assert_eq!(file.tensor("token_embd.weight").unwrap().ty, TensorType::Q6K);
    assert!(file.tensor("output.weight").is_none());
    assert!(file.tensor("blk.3.attn_k.bias").is_some());
}

#[test]
fn bytes_depend_on_the_seed_and_not_on_the_threads() {
    let shape = Shape::by_name("135m").unwrap().with_layers(2).with_vocab(4096);
    let bytes = write(&shape, 1);
    assert!(bytes == write(&shape, 3));
    assert!(bytes != write(&shape.clone().with_seed(1), 1));
    // A longer file of before leaves nothing behind.
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![1; bytes.len() + 1000]).unwrap();
    shape.write(file.path(), 2).unwrap();
    assert!(bytes == std::fs::read(file.path()).unwrap());
}

#[test]
fn a_cut_shape_keeps_the_weights_of_the_layers_it_has() {
    let shape = Shape::by_name("1b-f16").unwrap().with_vocab(512);
    let (one, two) = (parse(&shape.clone().with_layers(1)), parse(&shape.with_layers(2)));
    assert_eq!(one.get_u32("llama.block_count"), Ok(Some(1)));
    for tensor in one.tensors() {
        let other = two.tensor(&tensor.name).unwrap();
        assert!(one.tensor_data(tensor) == other.data, "{}", tensor.name);
    }
}

#[test]
fn no_two_parts_of_a_model_are_the_same() {
    let file = parse(&Shape::by_name("8b-q4_0").unwrap().with_layers(1).with_vocab(300));
    let mut seen = BTreeMap::new();
    for tensor in file.tensors().iter().filter(|t| t.ty == TensorType::Q4_0) {
        for (i, part) in file.tensor_data(tensor).chunks(1 << 16).enumerate() {
            let before = seen.insert(part, (&tensor.name, i));
            assert_eq!(before, None, "{} {i}", tensor.name);
        }
    }
}

#[test]
fn gains_of_norms_are_near_one() {
    let file = parse(&Shape::by_name("135m").unwrap().with_layers(1).with_vocab(512));
    let tensor = file.tensor("blk.0.attn_norm.weight").unwrap();
    let mut gains = vec![0.0; 576];
    dequantize(tensor.ty, tensor.data, &mut gains).unwrap();
    let mean = gains.iter().sum::<f32>() / 576.0;
    assert!((mean - 1.0).abs() < 0.02 && gains.iter().all(|g| (0.5..1.5).contains(g)), "{mean}");
}
