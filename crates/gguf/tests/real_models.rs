//! The two real models, against what the Python package `gguf` reads in them.
//!
//! The sums come from `python3 tests/data/make_vectors.py MODEL.gguf`.

use std::path::Path;

use m40_gguf::{Gguf, TensorType, dequantize};
use m40_testkit::models;

fn open(path: &Path) -> Gguf<Vec<u8>> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    Gguf::parse(bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A sum over the bits of the weights of a tensor's first and last rows.
fn row_sums(file: &Gguf<Vec<u8>>, name: &str) -> [u64; 2] {
    let tensor = file.tensor(name).unwrap_or_else(|| panic!("no tensor {name}"));
    let row = tensor.ty.row_bytes(tensor.dims.cols()).expect("rows are whole blocks");
    let last = tensor.data.len() - row;
    [&tensor.data[..row], &tensor.data[last..]].map(|row| {
        let mut weights = vec![0.0; tensor.dims.cols()];
        assert_eq!(dequantize(tensor.ty, row, &mut weights), Ok(()));
        weights.iter().fold(0u64, |sum, weight| {
            sum.wrapping_mul(31).wrapping_add(u64::from(weight.to_bits()))
        })
    })
}

#[track_caller]
fn check(file: &Gguf<Vec<u8>>, expected: &[(&str, TensorType, &[usize], [u64; 2])]) {
    for (name, ty, dims, sums) in expected {
        let info = file.tensor_info(name).unwrap_or_else(|| panic!("no tensor {name}"));
        assert_eq!((info.ty, info.dims.as_slice()), (*ty, *dims), "{name}");
        assert_eq!(row_sums(file, name), *sums, "{name}");
    }
}

#[test]
fn smollm2_reads_as_in_the_python_package() {
    let file = open(&models::smollm2());
    assert_eq!((file.version(), file.tensors().len()), (3, 272));
    assert_eq!(file.metadata().count(), 33);
    assert_eq!(file.get_str("general.architecture"), Ok(Some("llama")));
    assert_eq!(file.get_u32("llama.block_count"), Ok(Some(30)));
    let tokens = file.get_array("tokenizer.ggml.tokens").unwrap().unwrap();
    assert_eq!(tokens.strings().unwrap().nth(1), Some("<|im_start|>"));
    assert_eq!(tokens.strings().unwrap().count(), 49152);
    check(
        &file,
        &[
            (
                "token_embd.weight",
                TensorType::Q8_0,
                &[576, 49152],
                [0x754b1d4dc71940c0, 0xe4b6409176ab2240],
            ),
            (
                "blk.0.attn_norm.weight",
                TensorType::F32,
                &[576],
                [0xdb680491a3410000, 0xdb680491a3410000],
            ),
            (
                "blk.0.ffn_down.weight",
                TensorType::Q4_1,
                &[1536, 576],
                [0x2fe2778d2331f400, 0xa41e91ff76d98a00],
            ),
            (
                "blk.0.ffn_gate.weight",
                TensorType::Q4_1,
                &[576, 1536],
                [0xf4ed8c639b37fe00, 0x4f988d90d9a4dc00],
            ),
            (
                "blk.0.attn_k.weight",
                TensorType::Q4_1,
                &[576, 192],
                [0x93c99be1a8619400, 0x381a3b2065471600],
            ),
            (
                "blk.0.attn_output.weight",
                TensorType::Q4_1,
                &[576, 576],
                [0x9c4dfecee1f07800, 0xecbd00713da8ca00],
            ),
        ],
    );
}

#[test]
fn gemma3_reads_as_in_the_python_package() {
    let file = open(&models::gemma3());
    assert_eq!((file.version(), file.tensors().len()), (3, 236));
    assert_eq!(file.metadata().count(), 33);
    assert_eq!(file.get_str("general.architecture"), Ok(Some("gemma3")));
    assert_eq!(file.get_f32("gemma3.rope.freq_base"), Ok(Some(1e6)));
    let scores = file.get_array("tokenizer.ggml.scores").unwrap().unwrap();
    assert_eq!(scores.f32s().unwrap().len(), 262_144);
    check(
        &file,
        &[
            (
                "output_norm.weight",
                TensorType::F32,
                &[640],
                [0xbe34b7f569360000, 0xbe34b7f569360000],
            ),
            (
                "token_embd.weight",
                TensorType::Q8_0,
                &[640, 262144],
                [0x864cfe811d6cf680, 0x50dbc54176b1f400],
            ),
            (
                "blk.0.attn_k.weight",
                TensorType::Q5_0,
                &[640, 256],
                [0x28039f97c7f2000, 0xfdcca801c3ddc000],
            ),
            (
                "blk.0.attn_k_norm.weight",
                TensorType::F32,
                &[256],
                [0x31e822d7c5f1d000, 0x31e822d7c5f1d000],
            ),
            (
                "blk.0.attn_output.weight",
                TensorType::Q4K,
                &[1024, 640],
                [0x150ac52d6641a3d0, 0x12e257982d357dd8],
            ),
            (
                "blk.0.attn_q.weight",
                TensorType::Q5_0,
                &[640, 1024],
                [0x3974378ad2a4e000, 0xce5006c15205000],
            ),
            (
                "blk.0.attn_v.weight",
                TensorType::Q8_0,
                &[640, 256],
                [0xcf9b55150e543080, 0xf2eb08ff07c7dd00],
            ),
            (
                "blk.0.ffn_down.weight",
                TensorType::Q6K,
                &[2048, 640],
                [0x95aaf6ea72c82f50, 0xf900107167370210],
            ),
            (
                "blk.0.ffn_gate.weight",
                TensorType::Q5_0,
                &[640, 2048],
                [0xd3936f4eacf000, 0x757b9ce2f12ca000],
            ),
            (
                "blk.2.ffn_down.weight",
                TensorType::Q4K,
                &[2048, 640],
                [0x9059013e9f35c370, 0xf0de00cec37b0450],
            ),
        ],
    );
}
