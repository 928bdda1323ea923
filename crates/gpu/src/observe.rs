//! Which buffers of a program a decode pass leaves in scratch memory, and after which of its steps.
//!
//! A step does what several ops of the program do, so not every output of every op is ever in
//! memory: normed rows go into their product, rotated heads into their attention. What is there is
//! found by walking program and steps side by side, by the weights that they name.

use m40_program::{BufferId, Op, Program};

use crate::lower::{Input, Lowered, Matvec, Step, View};

/// An output of an op that lies in scratch memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visible {
    /// Index of the step after which it lies there.
    pub step: usize,
    /// Index of the op of the program.
    pub op: usize,
    /// The buffer that the op writes.
    pub buffer: BufferId,
    /// Where it is.
    pub view: View,
}

/// All that is visible, in the order of steps.
///
/// # Panics
/// If one was not lowered from the other.
pub fn visible(program: &Program, lowered: &Lowered) -> Vec<Visible> {
    let mut walk = Walk { program, lowered, op: 0, found: vec![] };
    for (index, op) in lowered.ops.iter().enumerate() {
        walk.step(index, &op.step);
    }
    walk.found
}

struct Walk<'a> {
    program: &'a Program,
    lowered: &'a Lowered,
    /// The op found last: several steps may do parts of it.
    op: usize,
    found: Vec<Visible>,
}

impl Walk<'_> {
    fn step(&mut self, step: usize, what: &Step) {
        match what {
            Step::Embed(embed) => {
                self.find(|op| matches!(op, Op::Embed { .. }));
                self.show(step, self.written(), embed.out);
            }
            Step::Matvec(matvec) => self.matvec(step, matvec),
            Step::Attention(attention) => {
                self.find(
                    |op| matches!(op, Op::Attention { layer, .. } if *layer == attention.layer),
                );
                self.show(step, self.written(), attention.out);
            }
            Step::Norm(norm) => {
                self.find(|op| matches!(op, Op::RmsNorm { weight, .. } if *weight == norm.gain));
                self.show(step, self.written(), norm.out);
            }
            Step::Sample(_) => {}
        }
    }

    fn matvec(&mut self, step: usize, matvec: &Matvec) {
        if let Input::AddRmsNorm { stream: Some(view), block_gain, .. } = matvec.input {
            self.find(|op| matches!(op, Op::RmsNorm { weight, .. } if *weight == block_gain));
            self.show(step, self.written(), view);
        }
        let parts = &self.lowered.matrices[matvec.weights.0];
        self.find(|op| match op {
            Op::Project { outputs, .. } => outputs.iter().any(|output| output.weight == parts[0]),
            Op::GatedProject { gate, up, .. } => [*gate, *up].contains(&parts[0]),
            _ => false,
        });
        match &self.program.ops[self.op] {
            Op::Project { outputs, .. } => {
                let mut first = matvec.y.first;
                for output in outputs.iter().filter(|output| parts.contains(&output.weight)) {
                    let width = self.program.buffer(output.out).width;
                    self.show(step, output.out, View { first, width, ..matvec.y });
                    first += width;
                }
            }
            // Without a gating, only the gate's product is there.
            _ if matvec.gating.is_some() => self.show(step, self.written(), matvec.y),
            _ => {}
        }
        if matvec.softcap.is_some() {
            self.find(|op| matches!(op, Op::Softcap { .. }));
            self.found.last_mut().expect("what is capped was shown").op = self.op;
        }
    }

    /// Goes on to the next such op, which may be the one found last.
    fn find(&mut self, is_it: impl Fn(&Op) -> bool) {
        let ahead = self.program.ops[self.op..].iter().position(is_it);
        self.op += ahead.expect("steps do what the program's ops do, in their order");
    }

    /// What the op writes, if one buffer.
    fn written(&self) -> BufferId {
        self.program.ops[self.op].writes()[0]
    }

    fn show(&mut self, step: usize, buffer: BufferId, view: View) {
        self.found.push(Visible { step, op: self.op, buffer, view });
    }
}
