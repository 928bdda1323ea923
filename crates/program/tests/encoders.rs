//! Encoders: from files to programs, and what is refused.

use m40_gguf::Gguf;
use m40_program::{
    BuildError, BuildOptions, Head, MemoryPlan, Op, Pooling, Program, RowSet, build,
};
use m40_testkit::gguf::{GgufBuilder, TinyEncoder, TinyModel, TinyPooling, Vocabulary};

fn try_build(file: &GgufBuilder) -> Result<Program, BuildError> {
    build(&Gguf::parse(file.build()).expect("a valid file"), BuildOptions::default())
}

fn program(model: &TinyEncoder) -> Program {
    try_build(&model.builder()).expect("a known architecture")
}

fn count(program: &Program, name: &str) -> usize {
    program.ops.iter().filter(|op| op.name() == name).count()
}

#[test]
fn encoders_see_whole_texts_and_end_in_hidden_states() {
    for model in [TinyEncoder::bert(), TinyEncoder::nomic_bert()] {
        let program = program(&model);
        assert!(!program.is_causal());
        assert_eq!((program.head, program.result()), (Head::None, program.hidden));
        let hidden = program.buffer(program.hidden);
        assert_eq!((hidden.width, hidden.rows), (128, RowSet::Logits));
        assert_eq!(program.ops_to_hidden().len(), program.ops.len());
        assert_eq!(count(&program, "layer-norm"), 1 + 2 * 2);
    }
}

#[test]
fn encoder_families_differ_where_their_papers_do() {
    let [bert, nomic] = [TinyEncoder::bert(), TinyEncoder::nomic_bert()].map(|m| program(&m));
    let counts = |program: &Program| {
        ["add-row", "rope", "activate", "gated-project"].map(|name| count(program, name))
    };
    assert_eq!(counts(&bert), [2, 0, 2, 0]);
    assert_eq!(counts(&nomic), [1, 4, 0, 2]);
    assert_eq!(bert.description.pooling, Some(Pooling::Cls));
    assert_eq!(nomic.description.pooling, Some(Pooling::Mean));
}

#[test]
fn a_classifier_is_a_head() {
    let program = program(&TinyEncoder::cross_encoder());
    assert_eq!(program.description.pooling, Some(Pooling::Rank));
    let Head::Classes(classes) = program.head else { panic!("{:?}", program.head) };
    assert_eq!(program.buffer(classes).width, 1);
    assert_eq!(program.ops.len() - program.ops_to_hidden().len(), 3);
    let text = program.to_string();
    assert!(text.contains("pooled = softcap 1"), "{text}");
    assert!(text.contains("residual = residual + Segment of token_types.weight"), "{text}");
}

#[test]
fn how_vectors_are_made_may_be_left_open_but_not_unknown() {
    assert_eq!(program(&TinyEncoder::bert().pooling(None)).description.pooling, None);
    let last = program(&TinyEncoder::bert().pooling(Some(TinyPooling::Last)));
    assert_eq!(last.description.pooling, Some(Pooling::Last));
    let unknown = TinyEncoder::bert().builder().meta("bert.pooling_type", 5u32);
    let error = try_build(&unknown).unwrap_err().to_string();
    assert_eq!(error, "metadata key bert.pooling_type is 5, expected 0 to 4");
}

#[test]
fn what_is_missing_or_left_over_in_an_encoder_is_named() {
    for tensor in ["token_embd_norm.bias", "blk.1.attn_output_norm.weight", "blk.0.ffn_up.weight"] {
        let error = try_build(&TinyEncoder::bert().builder().without_tensor(tensor)).unwrap_err();
        assert_eq!(error.to_string(), format!("tensor {tensor} is missing"));
    }
    // A classifier of which only the first half is there would be left out.
    let half = TinyEncoder::cross_encoder().builder().without_tensor("cls.output.weight");
    let error = try_build(&half).unwrap_err();
    assert!(matches!(error, BuildError::UnusedTensors { .. }), "{error}");
}

#[test]
fn fewer_positions_than_the_context_are_refused() {
    let file = TinyEncoder::bert().context(64).builder().meta("bert.context_length", 65u32);
    let error = try_build(&file).unwrap_err().to_string();
    assert_eq!(error, "tensor position_embd.weight is [128, 64], the metadata implies [128, 65]");
}

#[test]
fn passes_to_hidden_states_need_no_room_for_the_head() {
    let vocabulary = Vocabulary::bpe("llama-bpe").filled(8192);
    let file = TinyModel::new("llama").vocabulary(vocabulary).builder();
    let program = try_build(&file).expect("a decoder");
    assert!(program.is_causal());
    let left_out = &program.ops[program.ops_to_hidden().len()..];
    assert!(matches!(left_out, [Op::Project { .. }]), "{left_out:?}");
    let [whole, hidden] = [MemoryPlan::new, MemoryPlan::to_hidden].map(|plan| plan(&program, 8, 8));
    assert!(hidden.floats < whole.floats);
    // The engine computes embeddings of decoders in passes of half as many rows as prompts have.
    let prompts = MemoryPlan::new(&program, 512, 16);
    assert!(MemoryPlan::to_hidden(&program, 256, 256).floats <= prompts.floats);
}
