//! From files to programs: every architecture, its variants, and every way a file can be wrong.

use m40_gguf::{Gguf, TensorType};
use m40_program::{
    Activation, AttentionShape, BuildError, BuildOptions, KvType, Op, Program, RopeTable, RowSet,
    build, supported_architectures,
};
use m40_testkit::gguf::{GgufBuilder, Meta, RopeScaling, TinyModel};

fn program_for(file: &GgufBuilder, context: Option<u32>) -> Result<Program, BuildError> {
    build(
        &Gguf::parse(file.build()).expect("a valid file"),
        BuildOptions { context, ..BuildOptions::default() },
    )
}

fn try_build(file: &GgufBuilder) -> Result<Program, BuildError> {
    program_for(file, None)
}

fn program(model: &TinyModel) -> Program {
    try_build(&model.builder()).expect("a known architecture")
}

fn attentions(program: &Program) -> Vec<AttentionShape> {
    let shape = |op: &Op| match op {
        Op::Attention { shape, .. } => Some(*shape),
        _ => None,
    };
    program.ops.iter().filter_map(shape).collect()
}

/// The table of each layer's queries.
fn rope_tables(program: &Program) -> Vec<u8> {
    let table = |op: &Op| match op {
        Op::Rope { x, table, .. } if program.buffer(*x).name == "q" => Some(table.0),
        _ => None,
    };
    program.ops.iter().filter_map(table).collect()
}

fn count(program: &Program, name: &str) -> usize {
    program.ops.iter().filter(|op| op.name() == name).count()
}

#[test]
fn the_text_form_of_a_small_llama_is_this() {
    let text = program(&TinyModel::new("llama").layers(1).weights(TensorType::Q4K)).to_string();
    let expected = "\
program llama layers=1 embedding=256 vocab=288 context=256
buffer residual [All, 256]
buffer normed [All, 256]
buffer attended [All, 256]
buffer q [All, 256]
buffer k [All, 128]
buffer v [All, 128]
buffer last_residual [Logits, 256]
buffer last_normed [Logits, 256]
buffer last_attended [Logits, 256]
buffer last_hidden [Logits, 512]
buffer logits [Logits, 288]
rope 0 Interleaved pairs=32 inv_freq=1..1.3335215e-4 magnitude=1
   0 residual = embed token_embd.weight[288x256 Q4_K] * 1
   1 normed = rms-norm residual blk.0.attn_norm.weight eps=1e-5
   2 q = normed * blk.0.attn_q.weight[256x256 Q4_K]; k = normed * blk.0.attn_k.weight[128x256 Q4_K]; v = normed * blk.0.attn_v.weight[128x256 Q4_K]
   3 q = rope x4 table=0
   4 k = rope x2 table=0
   5 kv[0] <- k, v
   6 attended = attention q kv[0] 4/2 heads of 64/64 scale=0.125
   7 last_residual = gather residual
   8 last_attended = gather attended
   9 last_residual = last_attended * blk.0.attn_output.weight[256x256 Q4_K] + last_residual
  10 last_normed = rms-norm last_residual blk.0.ffn_norm.weight eps=1e-5
  11 last_hidden = Silu(last_normed * blk.0.ffn_gate.weight[512x256 Q4_K]) . last_normed * blk.0.ffn_up.weight[512x256 Q4_K]
  12 last_residual = last_hidden * blk.0.ffn_down.weight[256x512 Q4_K] + last_residual
  13 last_normed = rms-norm last_residual output_norm.weight eps=1e-5
  14 logits = last_normed * output.weight[288x256 Q4_K]
result logits
";
    assert_eq!(text, expected, "{text}");
}

#[test]
fn sinks_come_with_their_tensors_and_the_kv_type_from_the_user() {
    let file = TinyModel::new("llama").layers(1).sinks(true).build();
    let options = BuildOptions { kv_type: KvType::Int8, ..BuildOptions::default() };
    let program = build(&Gguf::parse(file).unwrap(), options).unwrap();
    let lines: Vec<_> = program.ops.iter().map(|op| program.text_of(op).to_string()).collect();
    assert_eq!(lines[5], "kv[0] <- k, v as int8");
    let attention = "attended = attention q kv[0] 4/2 heads of 64/64 scale=0.125";
    assert_eq!(lines[6], format!("{attention} sinks=blk.0.attn_sinks.weight"));
    assert_eq!(program.kv_bytes_per_token(), 2 * (64 + 4 + 64 + 4));
}

#[test]
fn every_supported_architecture_builds() {
    let mut built = TinyModel::architectures().to_vec();
    built.extend(["bert", "nomic-bert"]);
    built.sort_unstable();
    assert_eq!(supported_architectures(), built, "tests/encoders.rs builds those two");
    for architecture in TinyModel::architectures() {
        let program = program(&TinyModel::new(architecture).layers(3));
        let d = &program.description;
        assert_eq!((d.architecture.as_str(), d.layers, d.embedding), (architecture, 3, 256));
        assert_eq!(d.name, format!("Tiny {architecture}"));
        assert_eq!(d.context, 256);
        assert_eq!(program.kv_bytes_per_token(), 3 * 2 * (64 + 64) * 2);
        assert_eq!(attentions(&program).len(), 3);
        let logits = program.buffer(program.result());
        assert_eq!((logits.width, logits.rows), (d.vocab, RowSet::Logits));
    }
}

#[test]
fn families_differ_where_their_papers_do() {
    let of = |architecture: &str| program(&TinyModel::new(architecture).layers(7));
    for architecture in TinyModel::architectures() {
        let p = of(architecture);
        let gemma = architecture.starts_with("gemma");
        let qk_norm = matches!(architecture, "gemma3" | "qwen3");
        assert_eq!(count(&p, "head-norm"), if qk_norm { 14 } else { 0 }, "{architecture}");
        assert_eq!(count(&p, "rms-norm"), if gemma { 29 } else { 15 }, "{architecture}");
        assert_eq!(count(&p, "softcap"), usize::from(architecture == "gemma2"), "{architecture}");
        for op in &p.ops {
            match op {
                Op::Embed { scale, .. } => assert_eq!(*scale, if gemma { 16.0 } else { 1.0 }),
                Op::GatedProject { activation, .. } => {
                    let expected = if gemma { Activation::GeluTanh } else { Activation::Silu };
                    assert_eq!(*activation, expected, "{architecture}");
                }
                _ => {}
            }
        }
        let softcap = (architecture == "gemma2").then_some(50.0);
        for shape in attentions(&p) {
            assert_eq!((shape.scale, shape.softcap), (0.125, softcap), "{architecture}");
        }
    }
}

#[test]
fn gemma_mixes_local_and_global_layers() {
    let windows = |p: &Program| -> Vec<_> { attentions(p).iter().map(|s| s.window).collect() };
    let (local, global) = (Some(16), None);

    let gemma2 = program(&TinyModel::new("gemma2").layers(4));
    assert_eq!(windows(&gemma2), [local, global, local, global]);
    assert_eq!(rope_tables(&gemma2), [0; 4]);

    let gemma3 = program(&TinyModel::new("gemma3").layers(7));
    assert_eq!(windows(&gemma3), [local, local, local, local, local, global, local]);
    assert_eq!(rope_tables(&gemma3), [1, 1, 1, 1, 1, 0, 1]);
    let slowest = |table: &RopeTable| *table.inv_freq.last().expect("32 pairs");
    assert!(slowest(&gemma3.ropes[0]) < slowest(&gemma3.ropes[1]), "the global base is larger");

    let pattern = TinyModel::new("gemma3")
        .layers(4)
        .builder()
        .meta("gemma3.attention.sliding_window_pattern", 2u32)
        .without_meta("gemma3.attention.sliding_window");
    let windows_of_file = windows(&try_build(&pattern).unwrap());
    assert_eq!(windows_of_file, [Some(1024), None, Some(1024), None]);
}

#[test]
fn the_largest_gemmas_scale_queries_by_width_per_head() {
    for (architecture, layers) in [("gemma2", 46), ("gemma3", 62)] {
        let model = |layers| {
            let model = TinyModel::new(architecture).heads(4, 1, 128).feed_forward(256);
            program(&model.weights(TensorType::Q8_0).layers(layers))
        };
        let scale = |p: &Program| attentions(p)[0].scale;
        assert_eq!(scale(&model(2)), 1.0 / 128f32.sqrt());
        assert_eq!(scale(&model(layers)), 1.0 / 64f32.sqrt());
    }
}

#[test]
fn a_window_reaches_every_layer_of_llama_and_phi3() {
    for architecture in ["llama", "phi3"] {
        let windows = |model: TinyModel| -> Vec<_> {
            attentions(&program(&model)).iter().map(|s| s.window).collect()
        };
        assert_eq!(windows(TinyModel::new(architecture)), [None, None]);
        let model = TinyModel::new(architecture).sliding_window(32);
        assert_eq!(windows(model), [Some(32), Some(32)]);
        let model = TinyModel::new(architecture).sliding_window(0);
        assert_eq!(windows(model), [None, None], "0 means none");
    }
}

#[test]
fn a_missing_head_is_the_embedding_table() {
    for tied in [true, false] {
        let program = program(&TinyModel::new("llama").tied(tied));
        let Some(Op::Project { outputs, .. }) = program.ops.last() else { panic!("a head") };
        let expected = if tied { "token_embd.weight" } else { "output.weight" };
        assert_eq!(program.matrix(outputs[0].weight).tensor, expected);
        let embeddings = program.matrices.iter().filter(|m| m.tensor == "token_embd.weight");
        assert_eq!(embeddings.count(), 1, "a shared matrix is one matrix");
    }
}

#[test]
fn biases_are_added_where_the_file_has_them() {
    let biases = |model: TinyModel| {
        let program = program(&model);
        let biased = |op: &Op| match op {
            Op::Project { outputs, .. } => outputs.iter().filter(|p| p.bias.is_some()).count(),
            _ => 0,
        };
        program.ops.iter().map(biased).sum::<usize>()
    };
    assert_eq!(biases(TinyModel::new("qwen2")), 6);
    assert_eq!(biases(TinyModel::new("llama")), 0);
    assert_eq!(biases(TinyModel::new("llama").biases(true)), 6);
}

#[test]
fn fused_tensors_are_cut_into_their_rows() {
    let program = program(&TinyModel::new("phi3").layers(1));
    let rows = |tensor: &str| -> Vec<_> {
        let parts = program.matrices.iter().filter(|m| m.tensor == tensor);
        parts.map(|m| (m.first_row, m.rows)).collect()
    };
    assert_eq!(rows("blk.0.attn_qkv.weight"), [(0, 256), (256, 128), (384, 128)]);
    assert_eq!(rows("blk.0.ffn_up.weight"), [(0, 512), (512, 512)]);
}

#[test]
fn rows_without_logits_leave_after_the_last_attention() {
    let program = program(&TinyModel::new("qwen3").layers(2));
    let last = program.ops.iter().rposition(|op| op.name() == "attention").unwrap();
    for (at, op) in program.ops.iter().enumerate() {
        for out in op.writes() {
            let expected = if at > last { RowSet::Logits } else { RowSet::All };
            assert_eq!(program.buffer(out).rows, expected, "op {at}");
        }
    }
}

#[test]
fn layers_may_have_heads_and_widths_of_their_own() {
    let narrow = TinyModel::new("llama").layers(1).heads(4, 1, 64).feed_forward(256).builder();
    let narrow = Gguf::parse(narrow.build()).unwrap();
    let mut file = TinyModel::new("llama").layers(2).builder();
    for part in ["attn_k", "attn_v", "ffn_gate", "ffn_up", "ffn_down"] {
        let tensor = narrow.tensor(&format!("blk.0.{part}.weight")).unwrap();
        let name = format!("blk.1.{part}.weight");
        let (dims, data) = ([tensor.dims.cols(), tensor.dims.rows()], tensor.data.to_vec());
        file = file.without_tensor(&name).tensor(&name, &dims, tensor.ty, data);
    }
    let file = file
        .meta("llama.attention.head_count", vec![4u32, 4])
        .meta("llama.attention.head_count_kv", vec![2i32, 1])
        .meta("llama.feed_forward_length", vec![512u32, 256]);
    let program = try_build(&file).unwrap();
    let heads: Vec<_> = program.kv.iter().map(|kv| kv.kv_heads).collect();
    assert_eq!(heads, [2, 1]);
    let hidden = program.buffers.iter().filter(|b| b.name.ends_with("hidden"));
    assert_eq!(hidden.map(|b| b.width).collect::<Vec<_>>(), [512, 256]);
}

#[test]
fn long_contexts_choose_the_long_factors() {
    let model = TinyModel::new("phi3").rope_scaling(RopeScaling::LongRope { original_context: 64 });
    let slowest = |context| {
        let program = program_for(&model.builder(), context).unwrap();
        assert_eq!(program.ropes[0].magnitude, 1.19);
        *program.ropes[0].inv_freq.last().unwrap()
    };
    let plain = 1e4f32.powf(-62.0 / 64.0);
    let [short, long] = [1.0 + 31.0 / 64.0, 1.0 + 31.0 / 4.0].map(|factor: f32| plain / factor);
    let close = |a: f32, b: f32| assert!((a - b).abs() < 1e-6 * b, "{a} is not {b}");
    close(slowest(Some(1)), short);
    close(slowest(Some(64)), short);
    close(slowest(Some(65)), long);
    close(slowest(None), long);
}

#[test]
fn factors_without_a_type_are_linear_and_1_is_none() {
    let frequencies = |file: GgufBuilder| try_build(&file).unwrap().ropes[0].inv_freq.clone();
    let plain = frequencies(TinyModel::new("llama").builder());
    let halved: Vec<f32> = plain.iter().map(|f| f / 2.0).collect();
    let file = || TinyModel::new("llama").builder();
    assert_eq!(frequencies(file().meta("llama.rope.scale_linear", 2.0f32)), halved);
    assert_eq!(frequencies(file().meta("llama.rope.scaling.factor", 2.0f32)), halved);
    let typed = |ty: &str| file().meta("llama.rope.scaling.type", ty);
    assert_eq!(frequencies(typed("linear").meta("llama.rope.scaling.factor", 2.0f32)), halved);
    assert_eq!(frequencies(typed("linear")), plain);
    assert_eq!(frequencies(typed("none").meta("llama.rope.scaling.factor", 2.0f32)), plain);
}

/// What is wrong with a file.
#[track_caller]
fn error(file: &GgufBuilder) -> BuildError {
    try_build(file).map(|program| program.to_string()).expect_err("a wrong file was accepted")
}

fn llama() -> GgufBuilder {
    TinyModel::new("llama").layers(1).builder()
}

#[test]
fn names_every_missing_key() {
    for key in [
        "general.architecture",
        "llama.block_count",
        "llama.context_length",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
    ] {
        let found = error(&llama().without_meta(key));
        assert!(matches!(&found, BuildError::MissingKey { key: k } if k == key), "{found}");
        assert_eq!(found.to_string(), format!("metadata key {key} is missing"));
    }
}

#[test]
fn refuses_figures_that_no_model_has() {
    let strings = Meta::from(vec!["4"]);
    let cases: [(&str, Meta); 24] = [
        ("block_count", 0u32.into()),
        ("block_count", 1025u32.into()),
        ("context_length", 0u32.into()),
        ("context_length", u32::MAX.into()),
        ("embedding_length", 0u32.into()),
        ("embedding_length", ((1u32 << 18) + 1).into()),
        ("feed_forward_length", 0u32.into()),
        ("feed_forward_length", vec![512u32, 512].into()),
        ("attention.head_count", 0u32.into()),
        ("attention.head_count", 1025u32.into()),
        ("attention.head_count", vec![4u32, 4].into()),
        ("attention.head_count", strings),
        ("attention.head_count_kv", 0u32.into()),
        ("attention.head_count_kv", 3u32.into()),
        ("attention.head_count_kv", 8u32.into()),
        ("attention.head_count_kv", vec![0u32].into()),
        ("attention.head_count_kv", vec![-2i32].into()),
        ("attention.key_length", 1025u32.into()),
        ("attention.value_length", 1u32.into()),
        ("attention.layer_norm_rms_epsilon", 0.5f32.into()),
        ("attention.layer_norm_rms_epsilon", f32::NAN.into()),
        ("rope.dimension_count", 63u32.into()),
        ("rope.dimension_count", 66u32.into()),
        ("rope.freq_base", 0.0f32.into()),
    ];
    for (suffix, value) in cases {
        let key = format!("llama.{suffix}");
        let found = error(&llama().meta(&key, value.clone()));
        assert!(
            matches!(&found, BuildError::OutOfRange { key: k, .. } if *k == key),
            "{key} = {value:?}: {found}"
        );
    }
    let found = error(&llama().meta("llama.attention.head_count_kv", 3u32)).to_string();
    assert_eq!(
        found,
        "metadata key llama.attention.head_count_kv is 3, expected a divisor of the 4 query heads"
    );
}

#[test]
fn a_key_of_the_wrong_type_is_named() {
    let found = error(&llama().meta("llama.block_count", "one"));
    assert!(matches!(found, BuildError::Gguf(_)), "{found}");
    assert!(found.to_string().contains("llama.block_count"), "{found}");
}

#[test]
fn heads_that_cannot_be_rotated_are_refused() {
    let dims = |file: &GgufBuilder| {
        let found = error(file);
        assert!(
            matches!(&found, BuildError::OutOfRange { key, .. } if key.ends_with("dimension_count")),
            "{found}"
        );
    };
    // 256 / 5 = 51 floats a head, and no other size is given.
    let five = llama().meta("llama.attention.head_count", 5u32);
    let five = five.meta("llama.attention.head_count_kv", 5u32);
    dims(&five.without_meta("llama.rope.dimension_count"));
    // 64 floats to be rotated in a head of 32.
    dims(&llama().meta("llama.attention.key_length", 32u32));
}

#[test]
fn names_every_missing_tensor() {
    for architecture in TinyModel::architectures() {
        let file = TinyModel::new(architecture).layers(1).builder();
        let gguf = Gguf::parse(file.build()).unwrap();
        for info in gguf.tensors() {
            let optional = ["output.weight", ".bias", "q_norm", "k_norm", "post_ffw", "post_att"];
            if optional.iter().any(|part| info.name.contains(part))
                && info.name != "blk.0.attn_output.weight"
            {
                continue;
            }
            let found = error(&file.clone().without_tensor(&info.name));
            match &found {
                BuildError::MissingTensor { tensor } if *tensor == info.name => {}
                // Without a gate the up projection is taken for both.
                BuildError::TensorShape { tensor, .. }
                    if info.name.contains("ffn_gate") && tensor.contains("ffn_up") => {}
                // Without the fused tensor, separate ones are looked for.
                BuildError::MissingTensor { tensor }
                    if info.name.contains("attn_qkv") && tensor.contains("attn_q") => {}
                _ => panic!("{architecture} without {}: {found}", info.name),
            }
        }
    }
}

#[test]
fn names_tensors_of_another_shape() {
    let gguf = Gguf::parse(llama().build()).unwrap();
    for info in gguf.tensors().iter().filter(|info| info.name != "token_embd.weight") {
        let dims = [info.dims.cols(), info.dims.rows() + 1];
        let data = vec![0; dims[0] * dims[1] * 4];
        let file = llama().without_tensor(&info.name);
        let found = error(&file.tensor(&info.name, &dims, TensorType::F32, data));
        assert!(
            matches!(&found, BuildError::TensorShape { tensor, .. } if *tensor == info.name),
            "{}: {found}",
            info.name
        );
    }
    let found = error(&llama().meta("llama.embedding_length", 512u32)).to_string();
    let expected = "tensor token_embd.weight is [256, 288], the metadata implies [512, 288]";
    assert_eq!(found, expected);
}

#[test]
fn refuses_weights_that_would_not_be_used() {
    let file = llama()
        .tensor("blk.0.attn_rel_b.weight", &[4], TensorType::F32, vec![0; 16])
        .tensor("blk.1.attn_norm.weight", &[4], TensorType::F32, vec![0; 16]);
    let found = error(&file);
    assert!(
        matches!(&found, BuildError::UnusedTensors { first, count: 2 } if first == "blk.0.attn_rel_b.weight"),
        "{found}"
    );
}

#[test]
fn redundant_rope_data_is_not_a_weight() {
    let file = llama().tensor("blk.0.attn_rot_embd.weight", &[4], TensorType::F32, vec![0; 16]);
    try_build(&file).unwrap();
}

#[test]
fn unknown_architectures_are_named_with_the_known_ones() {
    let found = error(&llama().meta("general.architecture", "mamba"));
    assert!(matches!(found, BuildError::UnsupportedArchitecture { .. }));
    assert_eq!(
        found.to_string(),
        "architecture \"mamba\" is not supported (this build runs bert, gemma2, gemma3, llama, \
         nomic-bert, phi3, qwen2, qwen3)"
    );
}

#[test]
fn unknown_variants_are_refused() {
    let factors = |values: [f32; 32]| {
        let data = values.iter().flat_map(|f| f.to_le_bytes()).collect();
        llama().tensor("rope_freqs.weight", &[32], TensorType::F32, data)
    };
    let with = |i: usize, bad: f32| {
        let mut values = [1.0; 32];
        values[i] = bad;
        factors(values)
    };
    for file in [
        llama().meta("llama.expert_count", 8u32),
        llama().meta("llama.rope.scaling.type", "ntk"),
        with(3, 0.0),
        with(0, -1.0),
        with(31, f32::NAN),
        with(31, f32::INFINITY),
    ] {
        let found = error(&file);
        assert!(matches!(found, BuildError::UnsupportedVariant { .. }), "{found}");
    }
    try_build(&llama().meta("llama.expert_count", 0u32)).unwrap();
    try_build(&factors([1.0; 32])).unwrap();
}

#[test]
fn rotary_factors_must_fit_the_head() {
    let name = "rope_freqs.weight";
    let few = llama().tensor(name, &[16], TensorType::F32, vec![0; 64]);
    let half = llama().tensor(name, &[32], TensorType::F16, vec![0; 64]);
    let rows = llama().tensor(name, &[16, 2], TensorType::F32, vec![0; 128]);
    for file in [few, half, rows] {
        let found = error(&file);
        assert!(
            matches!(&found, BuildError::TensorShape { tensor, .. } if tensor == name),
            "{found}"
        );
    }
    let found = error(&llama().meta("llama.rope.scaling.type", "longrope"));
    assert!(matches!(found, BuildError::MissingTensor { .. }), "{found}");
}

#[test]
fn layers_end_where_the_next_one_reads_its_first_weights() {
    for architecture in TinyModel::architectures() {
        let program = program(&TinyModel::new(architecture).layers(3));
        assert_eq!(program.ops_of_layers(0), 1, "{architecture}: the embedding");
        let ends = [1, 2, 3, 9].map(|layers| program.ops_of_layers(layers));
        assert_eq!(ends[0] - 1, ends[1] - ends[0], "{architecture}: layers are alike");
        assert_eq!(ends[2..], [program.ops.len(); 2]);
        let attentions =
            |ops: usize| program.ops[..ops].iter().filter(|op| op.name() == "attention").count();
        assert_eq!(ends.map(attentions), [1, 2, 3, 3], "{architecture}");
    }
}
