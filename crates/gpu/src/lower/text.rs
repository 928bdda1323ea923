//! The text form of a lowered program, made for diffs.

use std::fmt;

use m40_program::Program;

use super::{FusedId, Gating, Input, Lowered, LoweredOp, Matvec, Step, View};

/// A lowered program with the program it was lowered from, for its names: see
/// [`Lowered::text`].
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    lowered: &'a Lowered,
    program: &'a Program,
}

impl Lowered {
    /// One line per matrix, region and op, in order; `program` is what it was lowered from. A `!`
    /// before an op is a barrier, a `~` one without a fence.
    pub fn text<'a>(&'a self, program: &'a Program) -> Text<'a> {
        Text { lowered: self, program }
    }
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = self.lowered.target;
        writeln!(
            f,
            "lowered {} blocks={} context={}",
            self.program.description.architecture, target.blocks, target.context
        )?;
        for region in &self.lowered.regions {
            writeln!(f, "region {} [{}, {}]", region.name, region.rows, region.stride)?;
        }
        let mut open = false;
        for (i, op) in self.lowered.ops.iter().enumerate() {
            let barrier = match (op.awaits, open) {
                (false, _) => ' ',
                (true, false) => '!',
                (true, true) => '~',
            };
            write!(f, "{i:4} {barrier} ")?;
            open = op.open;
            self.op(f, op)?;
            writeln!(f)?;
        }
        writeln!(f, "logits {}", self.view(self.lowered.logits))
    }
}

impl Text<'_> {
    /// The region's name, and the columns if they are not all.
    fn view(&self, view: View) -> String {
        let region = self.lowered.region(view.region);
        if view.width == region.stride {
            return region.name.clone();
        }
        format!("{}[{}..{}]", region.name, view.first, view.first + view.width)
    }

    fn matrix(&self, id: FusedId) -> String {
        let parts = self.lowered.matrices[id.0].iter().map(|id| {
            let matrix = self.program.matrix(*id);
            match matrix.first_row {
                0 => matrix.tensor.clone(),
                first => format!("{}+{first}", matrix.tensor),
            }
        });
        parts.collect::<Vec<_>>().join("|")
    }

    fn vector(&self, id: m40_program::VectorId) -> &str {
        &self.program.vector(id).tensor
    }

    fn op(&self, f: &mut fmt::Formatter<'_>, op: &LoweredOp) -> fmt::Result {
        match &op.step {
            Step::Embed(embed) => {
                write!(
                    f,
                    "{} = embed {} * {}",
                    self.view(embed.out),
                    self.matrix(embed.table),
                    embed.scale
                )?;
                embed.ropes.iter().try_for_each(|rope| {
                    let name = &self.lowered.region(rope.angles).name;
                    write!(f, "; {name} of {} pairs * {}", rope.pairs, rope.magnitude)
                })
            }
            Step::Matvec(matvec) => self.matvec(f, matvec),
            Step::Attention(attention) => {
                let shape = &attention.shape;
                let [q, k, v] = [attention.q, attention.k, attention.v].map(|x| self.view(x));
                write!(f, "{} = attention {q}", self.view(attention.out))?;
                attention.q_gain.iter().try_for_each(|g| write!(f, " {}", self.vector(*g)))?;
                write!(f, ", {k}")?;
                attention.k_gain.iter().try_for_each(|g| write!(f, " {}", self.vector(*g)))?;
                write!(
                    f,
                    ", {v} kv[{}] {}/{} heads of {}/{} scale={}",
                    attention.layer,
                    shape.heads,
                    shape.kv_heads,
                    shape.key_dim,
                    shape.value_dim,
                    shape.scale
                )?;
                attention.rope.iter().try_for_each(|rope| write!(f, " rope={}", rope.0))?;
                shape.window.iter().try_for_each(|w| write!(f, " window={w}"))?;
                shape.softcap.iter().try_for_each(|cap| write!(f, " softcap={cap}"))?;
                attention.sinks.iter().try_for_each(|s| write!(f, " sinks={}", self.vector(*s)))
            }
            Step::Norm(norm) => {
                let gain = self.vector(norm.gain);
                let (out, x) = (self.view(norm.out), self.view(norm.x));
                write!(f, "{out} = norm {x} {gain} eps={:e}", norm.eps)?;
                norm.residual.iter().try_for_each(|r| write!(f, " + {}", self.view(*r)))
            }
            Step::Sample(sample) => {
                let chosen = &self.lowered.region(sample.chosen).name;
                write!(f, "{chosen} = sample {}", self.view(sample.logits))
            }
        }
    }

    fn input(&self, input: &Input) -> String {
        match *input {
            Input::Plain(x) => self.view(x),
            Input::RmsNorm { x, gain, eps } => {
                format!("norm({} {} eps={eps:e})", self.view(x), self.vector(gain))
            }
            Input::AddRmsNorm { x, block, block_gain, block_eps, stream, gain, eps } => {
                let stored = stream.map(|s| format!("{} = ", self.view(s))).unwrap_or_default();
                format!(
                    "norm({stored}{} + norm({} {} eps={block_eps:e}) {} eps={eps:e})",
                    self.view(x),
                    self.view(block),
                    self.vector(block_gain),
                    self.vector(gain)
                )
            }
        }
    }

    fn matvec(&self, f: &mut fmt::Formatter<'_>, matvec: &Matvec) -> fmt::Result {
        let (y, x) = (self.view(matvec.y), self.input(&matvec.input));
        let (rows, cols, ty) = (matvec.rows, matvec.cols, matvec.ty.name());
        let shape = format!("[{rows}x{cols} {ty}]");
        let weights = self.matrix(matvec.weights);
        match &matvec.gating {
            None => write!(f, "{y} = {x} * {weights}{shape}")?,
            Some(Gating::Up(up, activation)) => {
                let up = self.matrix(*up);
                write!(f, "{y} = {activation:?}(* {weights}) . (* {up}){shape} of {x}")?;
            }
            Some(Gating::By(gate, activation)) => {
                write!(f, "{y} = {activation:?}({}) . {x} * {weights}{shape}", self.view(*gate))?;
            }
        }
        matvec.biases.iter().try_for_each(|bias| write!(f, " + {}", self.vector(*bias)))?;
        matvec.residual.iter().try_for_each(|r| write!(f, " + {}", self.view(*r)))?;
        matvec.softcap.iter().try_for_each(|cap| write!(f, " softcap={cap}"))?;
        matvec.maxima.iter().try_for_each(|m| write!(f, " {}", self.lowered.region(*m).name))
    }
}
