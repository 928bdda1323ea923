//! The builders make valid files that hold what was asked for.

use m40_gguf::{Gguf, TensorType, Value, is_dequantizable};
use m40_testkit::gguf::{GgufBuilder, RopeScaling, TinyModel, Vocabulary};

fn parse(model: &TinyModel) -> Gguf<Vec<u8>> {
    Gguf::parse(model.build()).expect("a tiny model is valid")
}

#[test]
fn every_architecture_is_a_valid_file() {
    for architecture in TinyModel::architectures() {
        let file = parse(&TinyModel::new(architecture));
        assert_eq!(file.get_str("general.architecture"), Ok(Some(architecture)));
        assert_eq!(file.get_u32(&format!("{architecture}.block_count")), Ok(Some(2)));
        let embedding = file.tensor("token_embd.weight").unwrap();
        let tokens = file.get_array("tokenizer.ggml.tokens").unwrap().unwrap();
        assert_eq!(embedding.dims.as_slice(), [256, tokens.len()]);
        assert_eq!(file.tensor("output.weight").is_none(), architecture.starts_with("gemma"));
    }
}

#[test]
fn architectures_have_the_tensors_of_real_files() {
    let names = |architecture: &str| {
        let file = parse(&TinyModel::new(architecture).layers(1));
        let parts = file.tensors().iter().filter_map(|t| t.name.strip_prefix("blk.0."));
        let mut parts: Vec<_> = parts.map(|part| part.replace(".weight", "")).collect();
        parts.sort();
        parts.join(" ")
    };
    let plain = "attn_k attn_norm attn_output attn_q attn_v ffn_down ffn_gate ffn_norm ffn_up";
    assert_eq!(names("llama"), plain);
    assert_eq!(
        names("qwen2"),
        "attn_k attn_k.bias attn_norm attn_output attn_q attn_q.bias attn_v attn_v.bias ffn_down \
         ffn_gate ffn_norm ffn_up"
    );
    assert_eq!(
        names("qwen3"),
        "attn_k attn_k_norm attn_norm attn_output attn_q attn_q_norm attn_v ffn_down ffn_gate \
         ffn_norm ffn_up"
    );
    assert_eq!(names("gemma2"), format!("{plain} post_attention_norm post_ffw_norm"));
    assert_eq!(
        names("gemma3"),
        "attn_k attn_k_norm attn_norm attn_output attn_q attn_q_norm attn_v ffn_down ffn_gate \
         ffn_norm ffn_up post_attention_norm post_ffw_norm"
    );
    assert_eq!(names("phi3"), "attn_norm attn_output attn_qkv ffn_down ffn_norm ffn_up");
}

#[test]
fn every_dequantisable_type_can_be_the_weights() {
    for &ty in TensorType::ALL.iter().filter(|ty| is_dequantizable(**ty)) {
        let file = parse(&TinyModel::new("qwen3").weights(ty));
        assert_eq!(file.tensor("blk.1.ffn_down.weight").unwrap().ty, ty);
        assert_eq!(file.tensor("blk.1.ffn_norm.weight").unwrap().ty, TensorType::F32);
    }
}

#[test]
fn types_can_be_mixed_as_in_real_quantisations() {
    let model = TinyModel::new("llama")
        .weights(TensorType::Q4K)
        .weights_of("ffn_down", TensorType::Q6K)
        .embedding(TensorType::Q8_0);
    let file = parse(&model);
    assert_eq!(file.tensor("blk.0.ffn_down.weight").unwrap().ty, TensorType::Q6K);
    assert_eq!(file.tensor("blk.0.ffn_up.weight").unwrap().ty, TensorType::Q4K);
    assert_eq!(file.tensor("token_embd.weight").unwrap().ty, TensorType::Q8_0);
}

#[test]
fn weights_depend_on_seed_and_name_only() {
    let of = |model: TinyModel| parse(&model).tensor("blk.1.ffn_up.weight").unwrap().data.to_vec();
    let base = of(TinyModel::new("qwen2").seed(1));
    assert_eq!(base, of(TinyModel::new("qwen2").seed(1).biases(false).tied(true).layers(3)));
    assert_ne!(base, of(TinyModel::new("qwen2").seed(2)));
    let file = parse(&TinyModel::new("qwen2").seed(1));
    assert_ne!(base, file.tensor("blk.0.ffn_up.weight").unwrap().data);
}

#[test]
fn rope_scaling_is_written_as_converters_write_it() {
    let scaled = |scaling| parse(&TinyModel::new("llama").rope_scaling(scaling));

    let file = scaled(RopeScaling::Linear { factor: 4.0 });
    assert_eq!(file.get_str("llama.rope.scaling.type"), Ok(Some("linear")));
    assert_eq!(file.get_f32("llama.rope.scaling.factor"), Ok(Some(4.0)));

    let file = scaled(RopeScaling::Yarn { factor: 8.0, original_context: 32 });
    assert_eq!(file.get_str("llama.rope.scaling.type"), Ok(Some("yarn")));
    assert_eq!(file.get_u32("llama.rope.scaling.original_context_length"), Ok(Some(32)));

    let file = scaled(RopeScaling::Llama3);
    let tensor = file.tensor("rope_freqs.weight").unwrap();
    let (factors, _) = tensor.data.as_chunks();
    let factors: Vec<f32> = factors.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    assert_eq!(factors.len(), 32);
    assert_eq!((factors[0], factors[31]), (1.0, 8.0), "fast pairs stay, slow ones are stretched");

    let file =
        parse(&TinyModel::new("phi3").rope_scaling(RopeScaling::LongRope { original_context: 64 }));
    assert!(file.tensor("rope_factors_long.weight").is_some());
    assert!(file.tensor("rope_factors_short.weight").is_some());
}

#[test]
fn options_reach_the_metadata() {
    let model = TinyModel::new("gemma2").sliding_window(8).softcaps(Some(20.0), None).context(99);
    let file = parse(&model);
    assert_eq!(file.get_u32("gemma2.attention.sliding_window"), Ok(Some(8)));
    assert_eq!(file.get_f32("gemma2.attn_logit_softcapping"), Ok(Some(20.0)));
    assert_eq!(file.get_f32("gemma2.final_logit_softcapping"), Ok(None));
    assert_eq!(file.get_u32("gemma2.context_length"), Ok(Some(99)));
}

#[test]
fn vocabularies_are_written_whole() {
    let file = parse(&TinyModel::new("llama").vocabulary(Vocabulary::spm()).add_bos(true));
    assert_eq!(file.get_str("tokenizer.ggml.model"), Ok(Some("llama")));
    assert_eq!(file.get_bool("tokenizer.ggml.add_bos_token"), Ok(Some(true)));
    let array = |key| file.get_array(key).unwrap().unwrap();
    assert_eq!(array("tokenizer.ggml.scores").len(), array("tokenizer.ggml.tokens").len());
    assert_eq!(array("tokenizer.ggml.token_type").i32s().unwrap().nth(5), Some(2));

    let file = parse(&TinyModel::new("llama").chat_template(None));
    assert_eq!(file.get_str("tokenizer.ggml.model"), Ok(Some("gpt2")));
    assert_eq!(file.get("tokenizer.chat_template"), None);
    let merges = file.get_array("tokenizer.ggml.merges").unwrap().unwrap();
    assert_eq!(merges.strings().unwrap().next(), Some("Ġ t"));
}

#[test]
fn shards_hold_the_same_model_as_the_single_file() {
    let model = TinyModel::new("llama").weights(TensorType::Q4_0);
    let whole = parse(&model);
    for n in [1, 2, 3, 7] {
        let split = Gguf::parse_shards(model.build_shards(n)).unwrap();
        assert_eq!(split.shards().len(), n);
        assert_eq!(split.tensors().len(), whole.tensors().len());
        for info in whole.tensors() {
            let tensor = split.tensor(&info.name).unwrap();
            assert_eq!(tensor.data, whole.tensor_data(info), "{}", info.name);
        }
    }
}

#[test]
fn metadata_and_tensors_can_be_replaced_and_removed() {
    let bytes = TinyModel::new("llama")
        .builder()
        .meta("llama.block_count", "two")
        .without_meta("llama.context_length")
        .without_tensor("output_norm.weight")
        .build();
    let file = Gguf::parse(bytes).unwrap();
    assert_eq!(file.get("llama.block_count"), Some(Value::Str("two")));
    assert_eq!(file.get("llama.context_length"), None);
    assert!(file.tensor("output_norm.weight").is_none());
}

#[test]
fn alignment_holds_for_every_tensor() {
    let file = GgufBuilder::new()
        .alignment(512)
        .tensor_of("a", &[3], TensorType::F32, &[1.0, 2.0, 3.0])
        .tensor_of("b", &[2, 2], TensorType::F16, &[1.0; 4])
        .build();
    let file = Gguf::parse(file).unwrap();
    for tensor in file.tensors() {
        assert!(tensor.range().start.is_multiple_of(512), "{tensor:?}");
    }
    assert_eq!(file.tensor("b").unwrap().data, [0x00, 0x3c].repeat(4));
}
