//! Damage to programs: small random changes of everything an op can refer to.

use m40_program::{BufferId, Head, Index, MatrixId, Op, Program, RopeId, RowSet, VectorId};

/// Sizes that are likely to fit somewhere, and some that fit nowhere.
const SIZES: [usize; 14] =
    [0, 1, 2, 4, 32, 64, 128, 256, 288, 512, 1024, 1025, usize::MAX / 2, usize::MAX];

/// Makes one change, chosen by the first number; the others say where and what.
pub(crate) fn mutate(program: &mut Program, [kind, at, part, value]: [usize; 4]) {
    let size = SIZES[value % SIZES.len()];
    let counts = [program.buffers.len(), program.matrices.len(), program.vectors.len()];
    let len = program.ops.len();
    match kind % 6 {
        _ if len == 0 => {}
        0 => mutate_order(&mut program.ops, at, part, value),
        1 => mutate_tables(program, at, part, size),
        2 | 3 => mutate_op(&mut program.ops[at % len], counts, part, value, size),
        // What an op does is left as it is, and something else is done besides.
        _ => {
            let mut more = program.ops[at % len].clone();
            mutate_op(&mut more, counts, part, value, size);
            program.ops.insert(at / len % (len + 1), more);
        }
    }
}

fn mutate_order(ops: &mut Vec<Op>, at: usize, part: usize, value: usize) {
    let (at, to) = (at % ops.len(), part % ops.len());
    match value % 3 {
        0 => ops.swap(at, to),
        1 => drop(ops.remove(at)),
        _ => ops.insert(to, ops[at].clone()),
    }
}

/// Changes what ops refer to: buffers, weights, the cache. No list is ever empty.
fn mutate_tables(program: &mut Program, at: usize, part: usize, size: usize) {
    fn pick<T>(list: &mut [T], at: usize) -> &mut T {
        let len = list.len();
        &mut list[at % len]
    }
    match part % 13 {
        0 => pick(&mut program.buffers, at).width = size,
        1 => {
            let rows = &mut pick(&mut program.buffers, at).rows;
            *rows = if *rows == RowSet::All { RowSet::Logits } else { RowSet::All };
        }
        2 => pick(&mut program.matrices, at).rows = size,
        3 => pick(&mut program.matrices, at).cols = size,
        4 => pick(&mut program.matrices, at).first_row = size,
        5 => pick(&mut program.vectors, at).len = size,
        6 => pick(&mut program.vectors, at).first = size,
        7 => pick(&mut program.kv, at).kv_heads = size,
        8 => pick(&mut program.kv, at).key_dim = size,
        9 => pick(&mut program.kv, at).value_dim = size,
        10 => pick(&mut program.ropes, at).inv_freq.truncate(size),
        11 => program.hidden = BufferId((at % (program.buffers.len() + 1)) as u16),
        _ => program.head = Head::Logits(BufferId((at % (program.buffers.len() + 1)) as u16)),
    }
}

fn mutate_op(op: &mut Op, counts: [usize; 3], part: usize, value: usize, size: usize) {
    let buffer = BufferId((value % (counts[0] + 1)) as u16);
    let matrix = MatrixId((value % (counts[1] + 1)) as u32);
    let vector = VectorId((value % (counts[2] + 1)) as u32);
    let maybe = (!value.is_multiple_of(5)).then_some(buffer);
    let float = [0.0, -1.0, 1e30, f32::NAN][value % 4];
    match op {
        Op::Embed { table, scale, out } => match part % 3 {
            0 => *table = matrix,
            1 => *scale = float,
            _ => *out = buffer,
        },
        Op::AddRow { table, index, x } => match part % 3 {
            0 => *table = matrix,
            1 => *index = Index::Position,
            _ => *x = buffer,
        },
        Op::LayerNorm { x, weight, bias, .. } => match part % 3 {
            0 => *x = buffer,
            1 => *weight = vector,
            _ => *bias = vector,
        },
        Op::Activate { x, .. } => *x = buffer,
        Op::Gather { x, out } => *[x, out][part % 2] = buffer,
        Op::RmsNorm { x, weight, eps, residual, out } => match part % 5 {
            0 => *x = buffer,
            1 => *weight = vector,
            2 => *eps = float,
            3 => *residual = maybe,
            _ => *out = buffer,
        },
        Op::Project { x, outputs } => {
            let at = value / (counts[0] + 1) % outputs.len().max(1);
            match (part % 6, outputs.get_mut(at)) {
                (0, _) | (_, None) => *x = buffer,
                (1, Some(p)) => p.weight = matrix,
                (2, Some(p)) => p.bias = (!value.is_multiple_of(3)).then_some(vector),
                (3, Some(p)) => p.residual = maybe,
                (4, Some(p)) => p.out = buffer,
                (_, Some(_)) => drop(outputs.remove(at)),
            }
        }
        Op::GatedProject { x, gate, up, out, .. } => match part % 4 {
            0 => *x = buffer,
            1 => *gate = matrix,
            2 => *up = matrix,
            _ => *out = buffer,
        },
        Op::HeadNorm { x, heads, weight, .. } => match part % 3 {
            0 => *x = buffer,
            1 => *heads = size,
            _ => *weight = vector,
        },
        Op::Rope { x, heads, table } => match part % 3 {
            0 => *x = buffer,
            1 => *heads = size,
            _ => *table = RopeId((value % 3) as u8),
        },
        Op::KvAppend { layer, k, v } => match part % 3 {
            0 => *layer = (value % 3) as u16,
            1 => *k = buffer,
            _ => *v = buffer,
        },
        Op::Attention { layer, q, out, shape, sinks } => match part % 12 {
            0 => *layer = (value % 3) as u16,
            1 => *q = buffer,
            2 => *out = buffer,
            3 => shape.heads = size,
            4 => shape.kv_heads = size,
            5 => shape.key_dim = size,
            6 => shape.value_dim = size,
            7 => shape.window = Some(size as u32),
            8 => shape.softcap = Some(float),
            9 => *sinks = (!value.is_multiple_of(3)).then_some(vector),
            10 => shape.causal = !shape.causal,
            _ => shape.scale = float,
        },
        Op::Softcap { x, cap } => match part % 2 {
            0 => *x = buffer,
            _ => *cap = float,
        },
    }
}
