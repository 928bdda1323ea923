//! What decode passes leave to be looked at is what the CPU's oracle computes, op by op.

use std::ops::ControlFlow;

use m40_gguf::TensorType;
use m40_program::diff::Comparison;
use m40_testkit::gguf::TinyModel;

use crate::model::{Model, Placed};
use crate::passes::{TARGET, emulation, tiny, tokens};

/// Of mean relative difference. Keys and values are rounded to f16 in both, sometimes the other way.
const LIMIT: f64 = 1e-3;

/// The oracle of one model and the card with another, over the same tokens.
fn compare(of_oracle: &Model, of_card: &Model) -> Option<Comparison> {
    let mut placed = Placed::new(&emulation()?, of_card, TARGET, 2);
    let (mut oracle, mut sequence) = (of_oracle.oracle(), placed.sequence());
    let mut cache = oracle.cache(2);
    let mut comparison = Comparison::new();
    for token in tokens(2, 5) {
        comparison.begin_pass();
        oracle.observed(&mut cache, token, &mut |output| {
            comparison.expect(output);
            ControlFlow::Continue(())
        });
        let pass = (&mut sequence, token);
        placed.observed(&of_card.program, pass, &mut |output| comparison.find(output));
    }
    placed.release(sequence);
    placed.end();
    Some(comparison)
}

#[test]
fn every_visible_op_is_the_oracles() {
    for architecture in TinyModel::architectures() {
        let model = Model::new(&tiny(architecture));
        let Some(comparison) = compare(&model, &model) else { return };
        assert_eq!(comparison.departs(LIMIT), None, "{architecture}");
        assert!(comparison.differences().count() >= 5 + 2, "{architecture}");
    }
}

#[test]
fn the_op_with_other_weights_is_the_first_that_departs() {
    let tiny = tiny("llama").layers(2);
    let (one, other) =
        (Model::new(&tiny), Model::new(&tiny.clone().weights_of("ffn_down", TensorType::Q4_0)));
    let Some(comparison) = compare(&one, &other) else { return };
    let (op, ..) = comparison.departs(LIMIT).expect("their weights differ");
    let text = one.program.text_of(&one.program.ops[op]).to_string();
    assert!(text.contains("blk.0.ffn_down"), "{text}");
}
