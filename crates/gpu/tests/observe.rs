//! What of a program's buffers passes leave to be looked at.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use m40_gguf::{Gguf, TensorType};
use m40_gpu::lower::{Target, lower};
use m40_gpu::observe::visible;
use m40_program::{BufferId, BuildOptions, Op, build};
use m40_testkit::gguf::TinyModel;

const TARGET: Target = Target { blocks: 24, context: 1000 };

/// Ops whose outputs are not visible, by name.
fn check(model: &TinyModel, hidden: &[&str]) {
    let program = build(&Gguf::parse(model.build()).unwrap(), BuildOptions::default()).unwrap();
    let name = &program.description.architecture;
    let lowered = lower(&program, TARGET).unwrap();
    let visible = visible(&program, &lowered);
    for pair in visible.windows(2) {
        assert!(pair[0].step <= pair[1].step && pair[0].op <= pair[1].op, "{name}: {pair:?}");
    }
    for seen in &visible {
        assert_eq!(seen.view.width, program.buffer(seen.buffer).width, "{name}: {seen:?}");
        let region = lowered.region(seen.view.region);
        assert!(seen.view.columns().end <= region.stride, "{name}: {seen:?}");
    }
    let shown = |index: usize, buffer: &BufferId| {
        let count = visible.iter().filter(|v| (v.op, v.buffer) == (index, *buffer)).count();
        assert!(count < 2, "{name}: op {index} is shown twice");
        count == 1
    };
    for (index, op) in program.ops.iter().enumerate() {
        let capped = matches!(program.ops.get(index + 1), Some(Op::Softcap { .. }));
        let all = op.writes().iter().all(|buffer| shown(index, buffer));
        assert!(
            all || capped || hidden.contains(&op.name()),
            "{name}: op {index}, {}, is not shown",
            program.text_of(op)
        );
    }
}

#[test]
fn all_but_what_goes_into_another_op_is_visible() {
    for architecture in TinyModel::architectures() {
        // Norms before products are; those of sums after blocks, which gemma has, are not hidden.
        let model = TinyModel::new(architecture).layers(3);
        check(&model, &["gather", "rms-norm", "head-norm", "rope"]);
        // Products in several steps.
        let model =
            model.weights_of("attn_v", TensorType::Q6K).weights_of("ffn_up", TensorType::F16);
        check(&model, &["gather", "rms-norm", "head-norm", "rope"]);
    }
}

#[test]
fn sums_of_a_stream_and_a_normed_block_are_visible() {
    let model = TinyModel::new("gemma3");
    let program = build(&Gguf::parse(model.build()).unwrap(), BuildOptions::default()).unwrap();
    let visible = visible(&program, &lower(&program, TARGET).unwrap());
    for (index, op) in program.ops.iter().enumerate() {
        if matches!(op, Op::RmsNorm { residual: Some(_), .. }) {
            assert!(visible.iter().any(|seen| seen.op == index), "{}", program.text_of(op));
        }
    }
}
