//! The memory plan and the cost model on programs written by hand or at random.

use m40_gguf::TensorType;
use m40_program::cost::{Cost, PassShape};
use m40_program::memory::ALIGN_FLOATS;
use m40_program::{
    Activation, AttentionShape, Buffer, BufferId, Description, Head, Index, KvLayer, KvType,
    Matrix, MatrixId, MemoryPlan, Op, Program, Projection, RopeId, RowSet, VectorId,
};
use proptest::prelude::*;

fn program(buffers: Vec<Buffer>, ops: Vec<Op>) -> Program {
    let description = Description {
        architecture: "none".into(),
        name: String::new(),
        layers: 1,
        embedding: 64,
        vocab: 100,
        context: 16,
        pooling: None,
    };
    let matrix = |ty, rows, cols| Matrix { tensor: "m".into(), ty, first_row: 0, rows, cols };
    Program {
        description,
        hidden: BufferId(buffers.len() as u16 - 1),
        head: Head::None,
        buffers,
        matrices: vec![
            matrix(TensorType::Q4_0, 100, 64),
            matrix(TensorType::F16, 32, 64),
            matrix(TensorType::F32, 64, 32),
        ],
        vectors: vec![],
        ropes: vec![],
        kv: vec![KvLayer { kv_heads: 2, key_dim: 8, value_dim: 16, ty: KvType::F16 }],
        ops,
    }
}

fn buffer(width: usize, rows: RowSet) -> Buffer {
    Buffer { name: "b", width, rows }
}

const A: BufferId = BufferId(0);
const B: BufferId = BufferId(1);
const C: BufferId = BufferId(2);

fn norm(x: BufferId, out: BufferId) -> Op {
    Op::RmsNorm { x, weight: VectorId(0), eps: 0.0, residual: None, out }
}

#[test]
fn buffers_whose_lives_do_not_meet_share_memory() {
    let buffers = vec![buffer(100, RowSet::All); 4];
    // A -> B -> C -> D: at any time two are alive.
    let ops = vec![norm(A, B), norm(B, C), norm(C, BufferId(3))];
    let plan = MemoryPlan::new(&program(buffers, ops), 8, 1);
    assert_eq!(plan.floats, 2 * 800);
    assert_eq!(plan.bytes(), 4 * 2 * 800);
    assert_eq!(plan.offset(A), plan.offset(C));
    assert_ne!(plan.offset(A), plan.offset(B));
}

#[test]
fn logit_rows_are_counted_apart() {
    let buffers = vec![buffer(64, RowSet::All), buffer(64, RowSet::Logits)];
    let plan = MemoryPlan::new(&program(buffers, vec![Op::Gather { x: A, out: B }]), 10, 3);
    assert_eq!(plan.floats, 13 * 64);
    assert_eq!((plan.rows, plan.logit_rows), (10, 3));
}

#[test]
fn the_logits_live_until_the_end() {
    // The result is written first; the others come and go after it.
    let buffers = vec![buffer(64, RowSet::All); 3];
    let plan = MemoryPlan::new(&program(buffers, vec![norm(A, C), norm(A, B)]), 1, 1);
    assert_ne!(plan.offset(C), plan.offset(B));
}

fn ops(buffers: u16) -> impl Strategy<Value = Vec<Op>> {
    let id = move || (0..buffers).prop_map(BufferId);
    let op = prop_oneof![
        id().prop_map(|x| Op::Softcap { x, cap: 1.0 }),
        (id(), id()).prop_map(|(x, out)| Op::Gather { x, out }),
        (id(), id(), id()).prop_map(|(x, r, out)| {
            Op::RmsNorm { x, weight: VectorId(0), eps: 0.0, residual: Some(r), out }
        }),
        (id(), proptest::collection::vec(id(), 1..4)).prop_map(|(x, outs)| {
            let output = |out| Projection { weight: MatrixId(0), bias: None, residual: None, out };
            Op::Project { x, outputs: outs.into_iter().map(output).collect() }
        }),
    ];
    proptest::collection::vec(op, 0..30)
}

fn programs() -> impl Strategy<Value = Program> {
    (1u16..12).prop_flat_map(|n| {
        let rows = prop_oneof![Just(RowSet::All), Just(RowSet::Logits)];
        let buffer = (1usize..300, rows).prop_map(|(width, rows)| buffer(width, rows));
        let buffers = proptest::collection::vec(buffer, usize::from(n));
        (buffers, ops(n)).prop_map(|(buffers, ops)| program(buffers, ops))
    })
}

/// Whether some op, or the reading of the result after the last, falls into both lives.
fn alive_together(program: &Program, a: BufferId, b: BufferId) -> bool {
    let life = |id: BufferId| {
        let touches = |op: &Op| op.reads().contains(&id) || op.writes().contains(&id);
        let mut at: Vec<usize> =
            (0..program.ops.len()).filter(|i| touches(&program.ops[*i])).collect();
        at.extend((program.result() == id).then_some(program.ops.len()));
        at.first().copied().zip(at.last().copied())
    };
    match (life(a), life(b)) {
        (Some((a, z)), Some((b, y))) => a <= y && b <= z,
        _ => false,
    }
}

proptest! {
    #[test]
    fn buffers_alive_together_never_overlap(program in programs(), rows in 1usize..40, logits in 1usize..5) {
        let plan = MemoryPlan::new(&program, rows, logits);
        let range = |i: usize| {
            let b = &program.buffers[i];
            let id = BufferId(i as u16);
            let n = match b.rows {
                _ if !alive_together(&program, id, id) => 0,
                RowSet::All => rows,
                RowSet::Logits => logits,
            };
            plan.offsets[i]..plan.offsets[i] + n * b.width
        };
        let mut sum = 0;
        for i in 0..program.buffers.len() {
            prop_assert!(plan.offsets[i].is_multiple_of(ALIGN_FLOATS));
            prop_assert!(range(i).end <= plan.floats);
            sum += range(i).len().next_multiple_of(ALIGN_FLOATS);
            for j in 0..i {
                let (a, b) = (range(i), range(j));
                let apart = a.end <= b.start || b.end <= a.start;
                let [id, other] = [i, j].map(|i| BufferId(i as u16));
                prop_assert!(apart || !alive_together(&program, id, other), "{a:?} and {b:?}");
            }
        }
        prop_assert!(plan.floats <= sum);
    }
}

/// Five tokens, two of them with logits, each seeing 10 others on average; an f16 cache.
const PASS: PassShape = PassShape { rows: 5, logit_rows: 2, context: 10 };

/// Buffers `[all, 64]`, `[all, 32]`, `[logits, 100]`.
#[track_caller]
fn costs(op: Op, weight_bytes: u64, activation_bytes: u64, kv_bytes: u64, flops: u64) {
    let buffers =
        vec![buffer(64, RowSet::All), buffer(32, RowSet::All), buffer(100, RowSet::Logits)];
    let program = program(buffers, vec![op.clone()]);
    let expected = Cost { weight_bytes, activation_bytes, kv_bytes, flops };
    assert_eq!(program.cost(&op, PASS), expected);
    assert_eq!(program.pass_cost(PASS), expected);
    assert_eq!(expected.bytes(), weight_bytes + activation_bytes + kv_bytes);
}

#[test]
fn costs_are_these() {
    // A row of 64 weights in Q4_0 is two blocks of 18 bytes.
    costs(Op::Embed { table: MatrixId(0), scale: 1.0, out: A }, 5 * 36, 5 * 64 * 4, 0, 0);
    costs(Op::Gather { x: A, out: C }, 0, (5 * 64 + 2 * 100) * 4, 0, 0);
    costs(norm(A, B), 0, 5 * (64 + 32) * 4, 0, 4 * 5 * 64);
    let p = |weight, out| Projection { weight, bias: None, residual: None, out };
    costs(
        Op::Project { x: A, outputs: vec![p(MatrixId(1), B), p(MatrixId(1), B)] },
        2 * 32 * 64 * 2,
        5 * (64 + 32 + 32) * 4,
        0,
        2 * (2 * 5 * 32 * 64),
    );
    costs(
        Op::Project { x: C, outputs: vec![p(MatrixId(2), A)] },
        64 * 32 * 4,
        (2 * 100 + 5 * 64) * 4,
        0,
        2 * 2 * 64 * 32,
    );
    let (gate, up, activation) = (MatrixId(1), MatrixId(1), Activation::Silu);
    costs(
        Op::GatedProject { x: A, gate, up, activation, out: B },
        2 * 32 * 64 * 2,
        5 * (64 + 32) * 4,
        0,
        2 * (2 * 5 * 32 * 64),
    );
    costs(Op::Rope { x: B, heads: 2, table: RopeId(0) }, 0, 2 * 5 * 32 * 4, 0, 3 * 5 * 32);
    // 2 heads of 8 + 16 elements a token.
    costs(Op::KvAppend { layer: 0, k: A, v: B }, 0, 5 * (64 + 32) * 4, 5 * 48 * 2, 0);
    costs(Op::Softcap { x: C, cap: 1.0 }, 0, 2 * 2 * 100 * 4, 0, 4 * 2 * 100);
    let activation = Activation::GeluTanh;
    costs(Op::Activate { x: C, activation }, 0, 2 * 2 * 100 * 4, 0, 4 * 2 * 100);
    let (table, index) = (MatrixId(0), Index::Position);
    costs(Op::AddRow { table, index, x: A }, 5 * 36, 2 * 5 * 64 * 4, 0, 0);
}

#[test]
fn attention_costs_what_its_window_shows() {
    let attention = |window| {
        let shape = AttentionShape {
            heads: 4,
            kv_heads: 2,
            key_dim: 8,
            value_dim: 16,
            scale: 1.0,
            window,
            softcap: None,
            causal: true,
        };
        Op::Attention { layer: 0, q: B, out: A, shape, sinks: None }
    };
    let seeing = |op, seen: u64| {
        costs(op, 0, 5 * (64 + 32) * 4, seen * 48 * 2, 2 * 5 * seen * 4 * (8 + 16));
    };
    seeing(attention(None), 10);
    seeing(attention(Some(100)), 10);
    seeing(attention(Some(3)), 3);
}

#[test]
fn costs_of_a_pass_add_up() {
    let buffers =
        vec![buffer(64, RowSet::All), buffer(32, RowSet::All), buffer(100, RowSet::Logits)];
    let both = program(buffers, vec![norm(A, B), Op::Gather { x: A, out: C }]);
    let sum = both.cost(&both.ops[0], PASS) + both.cost(&both.ops[1], PASS);
    assert_eq!(both.pass_cost(PASS), sum);
    assert_eq!(sum.activation_bytes, (5 * 96 + 5 * 64 + 200) * 4);
}
