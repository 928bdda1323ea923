//! Every rule of the verifier, broken once; and that no damage makes it panic.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod mutate;

use m40_gguf::{Gguf, TensorType};
use m40_program::verify::{VerifyError, verify};
use m40_program::{
    BufferId, BuildOptions, Head, KvLayer, KvType, MatrixId, MemoryPlan, Op, Program, Projection,
    RopeId, RowSet, VectorId, build,
};
use m40_testkit::gguf::TinyModel;
use proptest::prelude::*;

fn program(architecture: &str) -> Program {
    let model = TinyModel::new(architecture).weights(TensorType::Q4_0).layers(2);
    build(&Gguf::parse(model.build()).unwrap(), BuildOptions::default()).unwrap()
}

/// The first op of this name.
fn at(program: &Program, name: &str) -> usize {
    program.ops.iter().position(|op| op.name() == name).unwrap()
}

fn buffer(program: &Program, name: &str) -> BufferId {
    BufferId(program.buffers.iter().position(|b| b.name == name).unwrap() as u16)
}

fn outputs(op: &mut Op) -> &mut Vec<Projection> {
    match op {
        Op::Project { outputs, .. } => outputs,
        _ => panic!("{op:?} is no projection"),
    }
}

/// Damages a good program; the complaint must contain `expected`.
#[track_caller]
fn refused(architecture: &str, expected: &str, damage: impl FnOnce(&mut Program)) {
    let mut program = program(architecture);
    assert_eq!(verify(&program), Ok(()));
    damage(&mut program);
    let found = verify(&program).expect_err("the damage was accepted").to_string();
    assert!(found.contains(expected), "{found:?} does not say {expected:?}");
}

#[test]
fn complaints_name_the_op() {
    let mut program = program("llama");
    let index = at(&program, "rope");
    let Op::Rope { heads, .. } = &mut program.ops[index] else { unreachable!("a rope") };
    *heads = 3;
    let found = verify(&program).unwrap_err();
    let VerifyError::Op { index: found_index, name, .. } = &found else { panic!("{found}") };
    assert_eq!((*found_index, *name), (index, "rope"));
    assert_eq!(found.to_string(), "op 3 (rope): 256 floats do not divide into 3 heads");
}

#[test]
fn handles_must_exist() {
    refused("llama", "no buffer 99", |p| p.head = Head::Logits(BufferId(99)));
    refused("llama", "no buffer 99", |p| p.hidden = BufferId(99));
    refused("llama", "no buffer 99", |p| {
        p.ops[7] = Op::Gather { x: BufferId(99), out: BufferId(0) };
    });
    refused("llama", "no matrix 999", |p| {
        outputs(&mut p.ops[2])[0].weight = MatrixId(999);
    });
    refused("qwen2", "no vector 999", |p| {
        outputs(&mut p.ops[2])[0].bias = Some(VectorId(999));
    });
    refused("llama", "no rope table 9", |p| {
        let Op::Rope { table, .. } = &mut p.ops[3] else { unreachable!("a rope") };
        *table = RopeId(9);
    });
    refused("llama", "no KV layer 9", |p| {
        let Op::KvAppend { layer, .. } = &mut p.ops[5] else { unreachable!("an append") };
        *layer = 9;
    });
    refused("llama", "no KV layer 9", |p| {
        let Op::Attention { layer, .. } = &mut p.ops[6] else { unreachable!("attention") };
        *layer = 9;
    });
}

#[test]
fn nothing_is_read_before_it_is_written() {
    refused("llama", "residual is read before it is written", |p| p.ops.swap(0, 1));
    refused("llama", "normed is read before it is written", |p| drop(p.ops.remove(1)));
    refused("llama", "is read before it is written", |p| {
        let residual = buffer(p, "last_residual");
        outputs(&mut p.ops[2])[0].residual = Some(residual);
    });
}

#[test]
fn every_buffer_is_written() {
    refused("llama", "spare is never written", |p| {
        let mut spare = p.buffers[0].clone();
        spare.name = "spare";
        p.buffers.push(spare);
    });
    refused("llama", "logits is never written", |p| drop(p.ops.pop()));
}

#[test]
fn widths_must_fit() {
    refused("llama", "normed is [All, 255], not [All, 256]", |p| {
        let normed = buffer(p, "normed");
        p.buffers[usize::from(normed.0)].width = 255;
    });
    refused("llama", "has no width", |p| p.buffers[3].width = 0);
    refused("llama", "is empty", |p| p.matrices[3].rows = 0);
    refused("llama", "weight has 512 columns, the input 256 floats", |p| {
        let down = p.matrices.iter().position(|m| m.tensor.contains("ffn_down")).unwrap();
        outputs(&mut p.ops[2])[0].weight = MatrixId(down as u32);
    });
    refused("llama", "has 256 elements, not 128", |p| {
        outputs(&mut p.ops[2])[1].bias = Some(VectorId(0));
    });
    refused("qwen3", "has 256 elements, not 64", |p| {
        let i = at(p, "head-norm");
        let Op::HeadNorm { weight, .. } = &mut p.ops[i] else { unreachable!("a norm") };
        *weight = VectorId(0);
    });
    refused("llama", "pairs do not fit a head of 64", |p| p.ropes[0].inv_freq = vec![1.0; 33]);
    refused("llama", "embeddings for a vocabulary of another size", |p| p.description.vocab -= 1);
}

#[test]
fn rows_must_fit() {
    refused("llama", "gather takes all rows", |p| {
        let (x, out) = (buffer(p, "last_residual"), buffer(p, "last_attended"));
        p.ops.push(Op::Gather { x, out });
    });
    refused("llama", "not [Logits, 256]", |p| {
        let (i, all) = (at(p, "gather"), buffer(p, "normed"));
        let Op::Gather { out, .. } = &mut p.ops[i] else { unreachable!("a gather") };
        *out = all;
    });
    refused("llama", "rope needs the positions of all rows", |p| {
        let x = buffer(p, "last_residual");
        p.ops.push(Op::Rope { x, heads: 4, table: RopeId(0) });
    });
    refused("llama", "k, v are", |p| {
        let k = buffer(p, "k");
        p.buffers[usize::from(k.0)].rows = RowSet::Logits;
        // Written by a product of logit rows only.
        let (i, x) = (at(p, "kv-append"), buffer(p, "last_normed"));
        p.ops.drain(..i);
        let weight = |part: &str| {
            let name = format!("blk.0.attn_{part}.weight");
            MatrixId(p.matrices.iter().position(|m| m.tensor == name).unwrap() as u32)
        };
        let (q, v) = (buffer(p, "residual"), buffer(p, "v"));
        let output = |weight, out| Projection { weight, bias: None, residual: None, out };
        let table = p.matrices.iter().position(|m| m.tensor == "token_embd.weight").unwrap();
        let project = |x, weight, out| Op::Project { x, outputs: vec![output(weight, out)] };
        let start = [
            Op::Embed { table: MatrixId(table as u32), scale: 1.0, out: q },
            project(q, weight("v"), v),
            Op::Gather { x: q, out: x },
            project(x, weight("k"), k),
        ];
        p.ops.splice(0..0, start);
    });
    refused("llama", "the vocabulary has 288", |p| {
        p.head = Head::Logits(buffer(p, "last_residual"));
    });
    refused("llama", "hidden states are", |p| p.hidden = p.result());
}

#[test]
fn in_place_use_is_only_for_ops_that_allow_it() {
    refused("llama", "the output is the input", |p| {
        let x = buffer(p, "normed");
        outputs(&mut p.ops[2])[0].out = x;
    });
    refused("llama", "the output is the input", |p| {
        let i = at(p, "gated-project");
        let Op::GatedProject { x, out, .. } = &mut p.ops[i] else { unreachable!("a gate") };
        let (gated, normed) = (*out, *x);
        let projected = |m: &m40_program::Matrix| m.tensor == "blk.0.attn_q.weight";
        let square = MatrixId(p.matrices.iter().position(projected).unwrap() as u32);
        assert_ne!(gated, normed);
        let activation = m40_program::Activation::Silu;
        p.ops[i] =
            Op::GatedProject { x: normed, gate: square, up: square, activation, out: normed };
    });
    refused("llama", "attention needs all rows", |p| {
        let i = at(p, "attention");
        let Op::Attention { q, out, .. } = &mut p.ops[i] else { unreachable!("attention") };
        *out = *q;
    });
    refused("gemma3", "in place there is no room for a residual", |p| {
        let with_residual = |op: &Op| matches!(op, Op::RmsNorm { residual: Some(_), .. });
        let i = p.ops.iter().position(with_residual).unwrap();
        let Op::RmsNorm { x, out, .. } = &mut p.ops[i] else { unreachable!("a norm") };
        *out = *x;
    });
}

#[test]
fn a_norm_in_place_without_residual_is_fine() {
    let mut program = program("llama");
    let i = at(&program, "rms-norm");
    let Op::RmsNorm { weight, eps, .. } = program.ops[i] else { unreachable!("a norm") };
    let x = buffer(&program, "normed");
    program.ops.insert(i + 1, Op::RmsNorm { x, weight, eps, residual: None, out: x });
    assert_eq!(verify(&program), Ok(()));
}

#[test]
fn outputs_of_one_projection_do_not_meet() {
    refused("llama", "no outputs", |p| outputs(&mut p.ops[2]).clear());
    refused("llama", "two outputs are the same buffer", |p| {
        let outputs = outputs(&mut p.ops[2]);
        outputs[2].out = outputs[1].out;
    });
    refused("llama", "the residual of one output is another output", |p| {
        let q = buffer(p, "q");
        // Both of q's shape, written before.
        let attended = p.buffers.len() as u16;
        let mut copy = p.buffers[usize::from(q.0)].clone();
        copy.name = "copy";
        p.buffers.push(copy);
        let mut again = p.ops[2].clone();
        let list = outputs(&mut again);
        list.truncate(1);
        let mut second = list[0].clone();
        second.out = BufferId(attended);
        second.residual = Some(q);
        list.push(second);
        p.ops.insert(3, again);
    });
    refused("llama", "is not [All, 128]", |p| {
        let residual = buffer(p, "residual");
        outputs(&mut p.ops[2])[1].residual = Some(residual);
    });
}

#[test]
fn the_cache_is_appended_to_once_per_layer_and_before_it_is_read() {
    refused("llama", "KV layer 0 is read before it is appended to", |p| {
        let i = at(p, "kv-append");
        p.ops.remove(i);
    });
    refused("llama", "is appended to out of order", |p| {
        let append = p.ops[at(p, "kv-append")].clone();
        p.ops.push(append);
    });
    refused("llama", "2 of 3 KV layers are appended to", |p| p.kv.push(p.kv[0]));
    refused("llama", "k, v are", |p| p.kv[0].kv_heads = 1);
    refused("llama", "KV layer 1 is", |p| p.kv[1].kv_heads = 0);
    refused("llama", "KV layer 1 is", |p| p.kv[1].value_dim = 1025);
    refused("llama", "k, v are", |p| p.kv[0].kv_heads = usize::MAX);
}

#[test]
fn attention_must_fit_its_queries_and_its_cache() {
    let with = |expected: &str, change: fn(&mut m40_program::AttentionShape)| {
        refused("llama", expected, |p| {
            let i = at(p, "attention");
            let Op::Attention { shape, .. } = &mut p.ops[i] else { unreachable!("attention") };
            change(shape);
        });
    };
    with("does not fit KV layer", |s| s.kv_heads = 1);
    with("does not fit KV layer", |s| s.value_dim = 32);
    with("do not make 256 floats", |s| s.heads = 8);
    with("do not make 256 floats", |s| s.heads = 3);
    with("do not make 256 floats", |s| s.heads = usize::MAX - 1);
    with("a window of 0 tokens", |s| s.window = Some(0));
    with("cap 0 is not above 0", |s| s.softcap = Some(0.0));
    refused("llama", "output_norm.weight has 256 elements, not 4", |p| {
        let i = at(p, "attention");
        let last = p.vectors.len() - 1;
        let Op::Attention { sinks, .. } = &mut p.ops[i] else { unreachable!("attention") };
        *sinks = Some(VectorId(last as u32));
    });
}

#[test]
fn caps_are_above_zero() {
    for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        refused("gemma2", "is not above 0", |p| {
            let Some(Op::Softcap { cap, .. }) = p.ops.last_mut() else { panic!("a softcap") };
            *cap = bad;
        });
    }
}

proptest! {
    #[test]
    fn no_damage_makes_the_verifier_panic(
        changes in proptest::collection::vec(any::<[usize; 4]>(), 1..6),
        architecture in prop::sample::select(TinyModel::architectures().to_vec()),
    ) {
        thread_local!(static PROGRAMS: Vec<Program> = TinyModel::architectures().map(program).into());
        let known = TinyModel::architectures().iter().position(|a| *a == architecture);
        let mut program = PROGRAMS.with(|programs| programs[known.unwrap()].clone());
        changes.into_iter().for_each(|change| mutate::mutate(&mut program, change));
        if verify(&program).is_ok() {
            // What is accepted can be planned and shown.
            prop_assert!(MemoryPlan::new(&program, 7, 2).floats > 0);
            prop_assert!(!program.to_string().is_empty());
        }
    }
}

#[test]
fn cache_sizes_are_sums_over_layers() {
    let layer = |ty| KvLayer { kv_heads: 2, key_dim: 64, value_dim: 32, ty };
    let [wide, narrow] = [KvType::F16, KvType::Int8].map(layer);
    // A scale for a key, and one for a value, of each head.
    assert_eq!([wide, narrow].map(|kv| kv.bytes_per_token()), [2 * 192, 192 + 2 * 2 * 4]);
    let mut program = program("llama");
    program.kv = vec![wide, narrow];
    assert_eq!(program.kv_bytes_per_token(), 384 + 208);
}
