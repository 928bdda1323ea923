//! What becomes of the programs of every architecture, and what is refused.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use m40_gguf::{Gguf, TensorType};
use m40_gpu::lower::{Gating, Input, LowerError, Lowered, Memory, Step, Target, lower};
use m40_gpu::ops::PASS_ROWS;
use m40_gpu::specialize::DecodeSource;
use m40_program::{BufferId, BuildOptions, Op, Program, build};
use m40_repack::Layout;
use m40_testkit::gguf::TinyModel;

const TARGET: Target = Target { blocks: 24, context: 1000 };

fn program(model: &TinyModel) -> Program {
    build(&Gguf::parse(model.build()).unwrap(), BuildOptions::default()).unwrap()
}

fn lowered(model: &TinyModel) -> (Program, Lowered) {
    let program = program(model);
    let lowered = lower(&program, TARGET).unwrap();
    (program, lowered)
}

/// Steps by their kinds, a barrier before those with a `!`.
fn kinds(lowered: &Lowered) -> String {
    let kind = |step: &Step| match step {
        Step::Embed(_) => "embed",
        Step::Matvec(m) => match (&m.input, &m.gating) {
            (Input::AddRmsNorm { .. }, Some(Gating::Up(..))) => "add-norm-gated",
            (Input::AddRmsNorm { .. }, _) => "add-norm-matvec",
            (Input::RmsNorm { .. }, Some(Gating::Up(..))) => "norm-gated",
            (Input::RmsNorm { .. }, Some(Gating::By(..))) => "norm-gated-by",
            (Input::RmsNorm { .. }, None) => "norm-matvec",
            (Input::Plain(_), _) => "matvec",
        },
        Step::Attention(_) => "attention",
        Step::Norm(_) => "norm",
        Step::Sample(_) => "sample",
    };
    let ops = lowered.ops.iter().map(|op| {
        let barrier = if op.awaits { "!" } else { "" };
        format!("{barrier}{}", kind(&op.step))
    });
    ops.collect::<Vec<_>>().join(" ")
}

#[test]
fn a_plain_layer_is_five_ops_with_a_barrier_each() {
    for architecture in ["llama", "qwen2", "qwen3", "phi3"] {
        let (_, lowered) = lowered(&TinyModel::new(architecture));
        let layer = "!norm-matvec !attention !matvec !norm-gated !matvec ";
        let expected = format!("!embed {layer}{layer}!norm-matvec !sample");
        assert_eq!(kinds(&lowered), expected, "{architecture}");
    }
}

#[test]
fn sums_with_post_norms_are_made_on_the_way_into_products() {
    for architecture in ["gemma2", "gemma3"] {
        let (program, lowered) = lowered(&TinyModel::new(architecture));
        let layer = "!attention !matvec !add-norm-gated !matvec ";
        let expected =
            format!("!embed !norm-matvec {layer}!add-norm-matvec {layer}!add-norm-matvec !sample");
        assert_eq!(kinds(&lowered), expected, "{}", lowered.text(&program));
        // A stream that other blocks still read is never the one that is written.
        let mut streams = vec![];
        for op in &lowered.ops {
            if let Step::Matvec(m) = &op.step
                && let Input::AddRmsNorm { x, block, stream, .. } = m.input
            {
                let stream = stream.unwrap();
                assert!(stream.region != x.region && stream.region != block.region);
                streams.push((x.region, stream.region));
            }
        }
        assert_eq!(streams.len(), 4);
        for pair in streams.windows(2) {
            assert_eq!(pair[0].1, pair[1].0, "each sum goes on from the one before");
        }
    }
}

#[test]
fn projections_of_one_type_are_one_matrix_and_those_of_another_wait_for_nothing() {
    let model = TinyModel::new("llama").weights(TensorType::Q4K);
    let (program, alike) = lowered(&model);
    let text = alike.text(&program).to_string();
    let q_k_v = "blk.0.attn_q.weight|blk.0.attn_k.weight|blk.0.attn_v.weight[512x256 Q4_K]";
    assert!(text.contains(q_k_v), "{text}");

    let (program, mixed) = lowered(&model.weights_of("attn_v", TensorType::Q6K));
    let text = mixed.text(&program).to_string();
    assert!(kinds(&mixed).starts_with("!embed !norm-matvec norm-matvec !attention"), "{text}");
    assert!(text.contains("q|k|v[0..384] = norm(residual"), "{text}");
    assert!(text.contains("q|k|v[384..512] = norm(residual"), "{text}");
}

#[test]
fn products_that_wait_for_nothing_between_them_share_the_blocks() {
    let model = TinyModel::new("llama").weights(TensorType::Q4K);
    let (_, mixed) = lowered(&model.weights_of("attn_v", TensorType::Q6K));
    let [q_k, v] = [&mixed.ops[1], &mixed.ops[2]].map(|op| op.blocks.clone());
    assert_eq!((q_k.start, q_k.end), (0, v.start));
    assert_eq!(v, 18..24, "128 of 512 rows have 6 of 24 blocks");
    let others = mixed.ops.iter().filter(|op| op.blocks != (0..24)).count();
    assert_eq!(others, 4, "two in each layer");
}

#[test]
fn barriers_have_fences_until_it_is_known_which_numbers_are_old() {
    let (program, lowered) = lowered(&TinyModel::new("llama"));
    let opens: Vec<_> = lowered.ops.iter().map(|op| u32::from(op.open)).collect();
    // Embedding; a layer whose last product is the second one to write to the stream; a layer whose gate is
    // the first to write to the last layer's rows; the head and the sample, whose numbers are read without
    // marks.
    assert_eq!(opens, [0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 1, 0, 0], "{}", lowered.text(&program));
    let written: Vec<_> = lowered.ops.iter().map(|op| op.marks.written).collect();
    for (first, second) in [(1, 6), (2, 7), (3, 5), (5, 8), (8, 10)] {
        assert_ne!(written[first], written[second], "op {second} writes where op {first} did");
    }
    // The output product reads rows of attention, and the stream of the product before the last.
    assert_eq!(lowered.ops[8].marks.inputs, [Some(written[7]), Some(written[5]), None]);
}

#[test]
fn what_is_read_without_its_marks_is_behind_a_fence() {
    let (_, lowered) = lowered(&TinyModel::new("gemma3"));
    for (op, next) in lowered.ops.iter().zip(&lowered.ops[1..]) {
        let adds =
            matches!(&next.step, Step::Matvec(m) if matches!(m.input, Input::AddRmsNorm { .. }));
        assert!(!(adds && op.open), "sums of streams look at no marks");
    }
}

#[test]
fn parts_of_a_fused_tensor_are_joined_again() {
    let (program, lowered) = lowered(&TinyModel::new("phi3"));
    let text = lowered.text(&program).to_string();
    let joined = "blk.0.attn_qkv.weight|blk.0.attn_qkv.weight+256|blk.0.attn_qkv.weight+384";
    assert!(text.contains(joined), "{text}");
}

#[test]
fn only_some_having_biases_keeps_products_apart() {
    let (program, lowered) = lowered(&TinyModel::new("qwen2"));
    let text = lowered.text(&program).to_string();
    assert!(text.contains("+ blk.0.attn_q.bias + blk.0.attn_k.bias + blk.0.attn_v.bias"), "{text}");
    let mut half = program;
    for op in &mut half.ops {
        if let Op::Project { outputs, .. } = op
            && outputs.len() == 3
        {
            outputs[1].bias = None;
        }
    }
    let lowered = lower(&half, TARGET).unwrap();
    assert!(kinds(&lowered).starts_with("!embed !norm-matvec norm-matvec norm-matvec !attention"));
}

#[test]
fn a_gate_of_another_type_is_a_product_of_its_own() {
    let model = TinyModel::new("llama").weights_of("ffn_gate", TensorType::Q8_0);
    let (program, lowered) = lowered(&model);
    let text = lowered.text(&program).to_string();
    assert!(kinds(&lowered).contains("!matvec !norm-matvec !norm-gated-by !matvec"), "{text}");
}

#[test]
fn softcaps_of_logits_join_the_last_product() {
    let (program, lowered) = lowered(&TinyModel::new("gemma2"));
    let last = lowered.text(&program).to_string();
    let last = last.lines().rev().nth(2).unwrap();
    assert!(last.contains("= norm(") && last.ends_with(" softcap=30 maxima"), "{last}");
}

#[test]
fn tied_weights_are_placed_once() {
    let (_, tied) = lowered(&TinyModel::new("llama").tied(true));
    let (_, apart) = lowered(&TinyModel::new("llama").tied(false));
    assert_eq!(tied.matrices.len() + 1, apart.matrices.len());
}

/// Every barrier that memory asks for, found the slow way.
#[test]
fn no_op_touches_what_ops_since_the_last_barrier_have_written() {
    for architecture in TinyModel::architectures() {
        let model = TinyModel::new(architecture)
            .layers(3)
            .weights_of("attn_v", TensorType::Q8_0)
            .weights_of("ffn_up", TensorType::F16);
        let (program, lowered) = lowered(&model);
        let mut since: Vec<(Vec<Memory>, Vec<Memory>)> = vec![];
        for (index, op) in lowered.ops.iter().enumerate() {
            let announced = index > 0 && lowered.ops[index - 1].announces;
            assert_eq!(op.awaits, announced || index == 0, "op {index}");
            if op.awaits {
                since.clear();
            }
            let (reads, writes) = op.step.accesses();
            for (earlier_reads, earlier_writes) in &since {
                let clash =
                    |a: &[Memory], b: &[Memory]| a.iter().any(|a| b.iter().any(|b| a.meets(b)));
                let races = clash(&reads, earlier_writes)
                    || clash(&writes, earlier_writes)
                    || clash(&writes, earlier_reads);
                assert!(!races, "op {index}: {}", lowered.text(&program));
            }
            since.push((reads, writes));
        }
    }
}

#[test]
fn regions_do_not_overlap_and_start_on_cache_lines() {
    for architecture in TinyModel::architectures() {
        let (program, lowered) = lowered(&TinyModel::new(architecture));
        let mut end = 0;
        for region in &lowered.regions {
            assert!(region.offset >= end && region.offset % 128 == 0, "{region:?}");
            end = region.offset + (region.rows * region.stride * 4) as u64;
        }
        assert!(lowered.scratch_bytes() >= end);
        let image = lowered.scratch_image();
        assert_eq!(image.len() as u64, lowered.scratch_bytes());
        let constants: usize = program.ropes.iter().map(|rope| rope.inv_freq.len()).sum();
        let numbers = image.as_chunks::<4>().0.iter().filter(|bytes| **bytes != [0; 4]);
        assert_eq!(numbers.count(), constants);
        assert_eq!(lowered.region(lowered.logits.region).rows, PASS_ROWS);
    }
}

#[test]
fn what_no_op_of_the_card_does_is_refused_by_name() {
    let refusal = |change: &dyn Fn(&mut Program)| {
        let mut program = program(&TinyModel::new("llama"));
        change(&mut program);
        lower(&program, TARGET).unwrap_err().to_string()
    };
    let position =
        |program: &Program, name| program.ops.iter().position(|op| op.name() == name).unwrap();
    let found = refusal(&|program| {
        let at = position(program, "attention");
        let Op::Rope { table, .. } = &mut program.ops[at - 3] else { panic!() };
        table.0 += 1;
        program.ropes.push(program.ropes[0].clone());
    });
    assert_eq!(
        found,
        "op 6 (attention) does not run on the gpu: queries and keys are rotated differently; run \
         the model on the cpu"
    );
    let found = refusal(&|program| {
        let at = position(program, "attention");
        program.ops.remove(at - 1);
    });
    assert!(found.contains("its keys are not those appended last"), "{found}");
    let found = refusal(&|program| {
        let at = position(program, "rope");
        let twice = program.ops[at].clone();
        program.ops.insert(at, twice);
    });
    assert!(found.contains("heads are rotated once"), "{found}");
    let found = refusal(&|program| {
        let at = position(program, "attention");
        let Op::Attention { q, .. } = program.ops[at] else { panic!() };
        let Op::Project { x, .. } = &mut program.ops[at + 1] else { panic!() };
        *x = q;
    });
    assert!(found.contains("heads of q are only normed and rotated inside attention"), "{found}");
    let found = refusal(&|program| program.kv[1].value_dim = 60);
    assert!(found.contains("heads of layer 1 have 64 and 60 floats"), "{found}");
    let found = refusal(&|program| {
        let out = program.result();
        let at = position(program, "embed") + 1;
        program.ops.insert(at, Op::Softcap { x: BufferId(0), cap: 1.0 });
        assert_ne!(out, BufferId(0));
    });
    assert!(found.starts_with("op 1 (softcap)"), "{found}");
    let found = lower(
        &{
            let mut program = program(&TinyModel::new("llama"));
            program.matrices[3].ty = TensorType::Q8_1;
            program
        },
        TARGET,
    );
    assert!(matches!(found, Err(LowerError::Type { ty: TensorType::Q8_1, .. })));
}

#[test]
fn a_norm_that_two_ops_read_is_an_op_of_its_own() {
    let mut program = program(&TinyModel::new("llama"));
    // The second layer's feed-forward block is fed the rows of its attention's norm, too.
    let norms: Vec<_> =
        (0..program.ops.len()).filter(|i| matches!(program.ops[*i], Op::RmsNorm { .. })).collect();
    program.ops.remove(norms[1]);
    let lowered = lower(&program, TARGET).unwrap();
    let expected = "!embed !norm !matvec !attention !matvec matvec !matvec";
    assert!(kinds(&lowered).starts_with(expected), "{}", lowered.text(&program));
}

#[test]
fn the_text_form_names_every_op() {
    let (program, lowered) = lowered(&TinyModel::new("gemma3"));
    let text = lowered.text(&program).to_string();
    let ops = text.lines().filter(|line| line.starts_with("  ")).count();
    assert_eq!(ops, lowered.ops.len(), "{text}");
    let add_norm = "normed";
    assert!(!text.contains(add_norm), "normed rows have no memory: {text}");
    assert_eq!(text, lower(&program, TARGET).unwrap().text(&program).to_string());
}

/// The kernels' source for a model.
fn source(model: &TinyModel) -> DecodeSource {
    let (program, lowered) = lowered(model);
    let layouts = lowered.matrices.iter().map(|parts| {
        let parts: Vec<_> = parts.iter().map(|id| program.matrix(*id)).collect();
        let rows = parts.iter().map(|matrix| matrix.rows).sum();
        Layout::of(parts[0].ty, rows, parts[0].cols).unwrap()
    });
    DecodeSource::new(&lowered, &program, &layouts.collect::<Vec<_>>()).unwrap()
}

#[test]
fn ops_that_differ_in_places_alone_are_one_variant_of_the_kernels() {
    let model = TinyModel::new("llama").weights(TensorType::Q4K);
    let short = source(&model.clone().layers(2));
    assert_eq!(short.text(), source(&model.clone().layers(5)).text(), "layers are alike");
    let text = short.text();
    assert_eq!(text.matches(": MatvecOp {").count(), 4, "q|k|v, out, down and the head: {text}");
    assert_eq!(text.matches(": GatedMatvecOp {").count(), 1, "{text}");
    assert!(text.contains("typedef Q4_K Format;"), "{text}");
    assert!(text.contains("static constexpr Place bias = kNowhere;"), "{text}");
    let mixed = source(&model.weights_of("attn_v", TensorType::Q6K));
    assert_eq!(mixed.text().matches(": MatvecOp {").count(), 5, "v apart: {}", mixed.text());
}
