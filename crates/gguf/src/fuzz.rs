//! What the fuzz target and the replay test do with bytes.

use crate::{Array, Gguf, Value, dequantize, is_dequantizable};

/// Parses `bytes` and walks everything a parsed file offers. Must return for any input.
pub fn check(bytes: &[u8]) {
    let Ok(file) = Gguf::parse(bytes) else {
        return;
    };
    for (key, value) in file.metadata() {
        assert_eq!(file.get(key).map(|v| v.ty()), Some(value.ty()), "{key} is found by its name");
        walk(value);
    }
    for key in ["general.architecture", "general.alignment", "tokenizer.ggml.tokens"] {
        // Only that they return: errors are as good as values.
        let _ = (file.get_u32(key), file.get_u64(key), file.get_f32(key));
        let _ = (file.get_bool(key), file.get_str(key), file.get_array(key));
    }
    for info in file.tensors() {
        let data = file.tensor_data(info);
        assert_eq!(data.len(), info.size_bytes());
        assert_eq!(file.tensor_info(&info.name), Some(info), "a tensor is found by its name");
        let block = data.get(..info.ty.block_bytes()).unwrap_or_default();
        let mut out = vec![0.0; info.ty.block_len()];
        assert_eq!(dequantize(info.ty, block, &mut out).is_ok(), is_dequantizable(info.ty));
    }
}

fn walk(value: Value<'_>) {
    if let Value::Array(array) = value {
        assert_eq!(array.iter().count(), array.len(), "every element of an array decodes");
        walk_typed(&array);
        array.iter().for_each(walk);
    }
}

fn walk_typed(array: &Array<'_>) {
    if let Ok(strings) = array.strings() {
        strings.for_each(drop);
    }
    if let Ok(integers) = array.integers() {
        integers.for_each(drop);
    }
    if let Ok(floats) = array.f32s() {
        floats.for_each(drop);
    }
}
