//! Steps to words, once it is known where weights, pages and scratch memory lie.

use std::ops::Range;

use m40_program::{KvLayer, Program, RopeStyle, VectorId};
use m40_repack::{Layout, Role};

use super::{
    Attention, Embed, FusedId, Gating, Input, Lowered, LoweredOp, Matvec, Norm, RegionId, Sample,
    Step, View,
};
use crate::ops::{
    ANNOUNCE, AWAIT, AttentionOp, EmbedOp, MARK, MAX_ROPES, MatvecOp, NormOp, OP_WORDS, OPEN, Op,
    PAGE_TOKENS, Place, RopeAngles, SampleOp, kv_type, marked_input, weight_type,
};

/// Where the memory of a lowered program lies.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// Of each of [`Lowered::matrices`], its planes and where they begin.
    pub matrices: &'a [(Layout, Place)],
    /// Of each vector of the program, its floats.
    pub vectors: &'a [Place],
    /// Of each KV layer of the program, its page 0.
    pub caches: &'a [Place],
    /// Scratch memory, [`Lowered::scratch_bytes`] long.
    pub scratch: Place,
    /// What sampling keeps, `[slots]` [`Choice::state`](crate::Choice::state).
    pub choices: Place,
    /// When sequences end, `[slots]` [`Ending`](crate::ops::Ending).
    pub endings: Place,
}

/// Why places do not fit a lowered program. The places are wrong, not the program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssembleError {
    /// A list has another length than the program's.
    #[error("{found} places were given for {expected} {what}")]
    Count {
        /// What they are places of.
        what: &'static str,
        /// How many the program has.
        expected: usize,
        /// How many were given.
        found: usize,
    },
    /// A matrix is not what was to be placed.
    #[error("matrix {index} was placed with another type or shape than it has")]
    Matrix {
        /// Position in [`Lowered::matrices`].
        index: usize,
    },
    /// Biases of one product do not lie one behind the other.
    #[error(
        "biases {first} and {second} do not lie one behind the other, though one product adds both"
    )]
    Biases {
        /// Tensor of the one.
        first: String,
        /// Tensor of the other.
        second: String,
    },
    /// An offset does not fit into a place.
    #[error("scratch memory ends beyond what the gpu's ops can name")]
    TooFar,
}

/// What steps are assembled with.
struct Assembler<'a> {
    program: &'a Program,
    lowered: &'a Lowered,
    places: &'a Places<'a>,
}

/// A page of a KV layer, in places.
pub(crate) fn page_places(layer: &KvLayer) -> u32 {
    let bytes = PAGE_TOKENS * layer.bytes_per_token();
    (bytes as u64 / Place::BYTES) as u32
}

impl Lowered {
    /// The words of all ops, [`OP_WORDS`] each, for the program it was lowered from.
    ///
    /// # Errors
    /// [`AssembleError`] when the places are not those of this program.
    pub fn assemble(
        &self,
        program: &Program,
        places: &Places<'_>,
    ) -> Result<Vec<u32>, AssembleError> {
        let ops = self.assemble_ops(program, places)?;
        let mut words = Vec::with_capacity(ops.len() * OP_WORDS);
        ops.iter().for_each(|op| words.extend(op.words()));
        Ok(words)
    }

    /// As [`assemble`](Self::assemble), as structures.
    ///
    /// # Errors
    /// The same.
    pub fn assemble_ops(
        &self,
        program: &Program,
        places: &Places<'_>,
    ) -> Result<Vec<Op>, AssembleError> {
        let count = |what, expected: usize, found: usize| {
            let error = AssembleError::Count { what, expected, found };
            if expected == found { Ok(()) } else { Err(error) }
        };
        count("matrices", self.matrices.len(), places.matrices.len())?;
        count("vectors", program.vectors.len(), places.vectors.len())?;
        count("KV layers", program.kv.len(), places.caches.len())?;
        for (index, (parts, (layout, _))) in self.matrices.iter().zip(places.matrices).enumerate() {
            let parts = || parts.iter().map(|id| program.matrix(*id));
            let rows: usize = parts().map(|m| m.rows).sum();
            let alike = |m: &m40_program::Matrix| (m.ty, m.cols) == (layout.ty(), layout.cols());
            if rows != layout.rows() || !parts().all(alike) {
                return Err(AssembleError::Matrix { index });
            }
        }
        let end = places.scratch.bytes() + self.scratch_bytes();
        Place::of_bytes(end.next_multiple_of(Place::BYTES)).ok_or(AssembleError::TooFar)?;
        let assembler = Assembler { program, lowered: self, places };
        self.ops.iter().map(|op| assembler.op(op)).collect()
    }
}

impl Assembler<'_> {
    fn op(&self, op: &LoweredOp) -> Result<Op, AssembleError> {
        // Of products that share the card a block does one, which waits for it.
        let shares = op.blocks.len() < self.lowered.target.blocks as usize;
        let bits = [
            (op.awaits || shares, AWAIT),
            (op.announces, ANNOUNCE),
            (op.open, OPEN),
            (op.marks.written, MARK),
        ];
        let mut flags = bits.iter().filter(|(is, _)| *is).map(|(_, bit)| bit).sum();
        for (input, mark) in op.marks.inputs.iter().enumerate() {
            flags |= mark.map_or(0, |mark| marked_input(input, mark));
        }
        Ok(match &op.step {
            Step::Embed(embed) => Op::Embed(self.embed(embed, flags)),
            Step::Matvec(matvec) => Op::Matvec(self.matvec(matvec, &op.blocks, flags)?),
            Step::Attention(attention) => Op::Attention(self.attention(attention, flags)),
            Step::Norm(norm) => Op::Norm(self.norm(norm, flags)),
            Step::Sample(sample) => Op::Sample(self.sample(sample, flags)),
        })
    }

    fn region(&self, id: RegionId) -> Place {
        let offset = self.lowered.region(id).offset / Place::BYTES;
        Place(self.places.scratch.0 + offset as u32)
    }

    /// Place and stride of a view.
    fn view(&self, view: View) -> (Place, u32) {
        let region = self.lowered.region(view.region);
        let skipped = view.first as u64 * 4 / Place::BYTES;
        (Place(self.region(view.region).0 + skipped as u32), region.stride as u32)
    }

    fn optional(&self, view: Option<View>) -> (Place, u32) {
        view.map_or((Place::NOWHERE, 0), |view| self.view(view))
    }

    fn vector(&self, id: VectorId) -> Place {
        self.places.vectors[id.0 as usize]
    }

    fn optional_vector(&self, id: Option<VectorId>) -> Place {
        id.map_or(Place::NOWHERE, |id| self.vector(id))
    }

    /// A matrix: its type, its start and its planes.
    fn matrix(&self, id: FusedId) -> (u32, Place, [u32; 4]) {
        let (layout, place) = &self.places.matrices[id.0];
        let ty = weight_type(layout.ty()).expect("types were checked when the program was lowered");
        let planes = [Role::High, Role::Scales, Role::ScaleTops, Role::Supers];
        let planes = planes.map(|role| (layout.plane(role).offset as u64 / Place::BYTES) as u32);
        (ty, *place, planes)
    }

    fn embed(&self, embed: &Embed, flags: u32) -> EmbedOp {
        let (r#type, table, [high, scales, tops, supers]) = self.matrix(embed.table);
        let (layout, _) = &self.places.matrices[embed.table.0];
        let (out, out_stride) = self.view(embed.out);
        let mut rope = [RopeAngles::NONE; MAX_ROPES];
        for (to, from) in rope.iter_mut().zip(&embed.ropes) {
            *to = RopeAngles {
                inverse_frequencies: self.region(from.inverse_frequencies),
                pairs: from.pairs as u32,
                magnitude: from.magnitude,
                angles: self.region(from.angles),
            };
        }
        EmbedOp {
            kind: Op::EMBED,
            flags,
            r#type,
            vocab: layout.rows() as u32,
            cols: layout.cols() as u32,
            table,
            high,
            scales,
            tops,
            supers,
            scale: embed.scale,
            out,
            out_stride,
            ropes: embed.ropes.len() as u32,
            rope,
        }
    }

    /// The first of biases that lie one behind the other.
    fn biases(&self, biases: &[VectorId]) -> Result<Place, AssembleError> {
        for pair in biases.windows(2) {
            let [first, second] = [pair[0], pair[1]].map(|id| self.program.vector(id));
            let end = self.vector(pair[0]).bytes() + first.len as u64 * 4;
            if end != self.vector(pair[1]).bytes() {
                let [first, second] = [first, second].map(|vector| vector.tensor.clone());
                return Err(AssembleError::Biases { first, second });
            }
        }
        Ok(self.optional_vector(biases.first().copied()))
    }

    fn matvec(
        &self,
        matvec: &Matvec,
        blocks: &Range<u32>,
        flags: u32,
    ) -> Result<MatvecOp, AssembleError> {
        let (r#type, weights, [high, scales, tops, supers]) = self.matrix(matvec.weights);
        let nowhere = Place::NOWHERE;
        let (mut gain, mut block, mut block_gain, mut stream) =
            (nowhere, nowhere, nowhere, nowhere);
        let (mut eps, mut block_eps) = (0.0, 0.0);
        let (prologue, (x, x_stride)) = match matvec.input {
            Input::Plain(x) => (0, self.view(x)),
            Input::RmsNorm { x, gain: g, eps: e } => {
                (gain, eps) = (self.vector(g), e);
                (1, self.view(x))
            }
            Input::AddRmsNorm {
                x,
                block: b,
                block_gain: bg,
                block_eps: be,
                stream: s,
                gain: g,
                eps: e,
            } => {
                (gain, eps) = (self.vector(g), e);
                (block, block_gain, block_eps) = (self.view(b).0, self.vector(bg), be);
                (stream, _) = self.optional(s);
                (2, self.view(x))
            }
        };
        let code = |activation| match activation {
            m40_program::Activation::Silu => 1,
            m40_program::Activation::GeluTanh => 2,
        };
        let (activation, up, (gate, gate_stride)) = match matvec.gating {
            None => (0, nowhere, (nowhere, 0)),
            Some(Gating::Up(up, activation)) => {
                (code(activation), self.places.matrices[up.0].1, (nowhere, 0))
            }
            Some(Gating::By(gate, activation)) => (code(activation), nowhere, self.view(gate)),
        };
        let (residual, residual_stride) = self.optional(matvec.residual);
        let (y, y_stride) = self.view(matvec.y);
        Ok(MatvecOp {
            kind: if up == nowhere { Op::MATVEC } else { Op::GATED_MATVEC },
            flags,
            r#type,
            rows: matvec.rows as u32,
            cols: matvec.cols as u32,
            weights,
            up,
            high,
            scales,
            tops,
            supers,
            prologue,
            x,
            x_stride,
            gain,
            block,
            block_gain,
            stream,
            eps,
            block_eps,
            activation,
            bias: self.biases(&matvec.biases)?,
            residual,
            residual_stride,
            y,
            y_stride,
            softcap: matvec.softcap.unwrap_or(0.0),
            maxima: matvec.maxima.map_or(nowhere, |region| self.region(region)),
            gate,
            gate_stride,
            sums: matvec.sums.map_or(nowhere, |region| self.region(region)),
            first_block: blocks.start,
            blocks: blocks.len() as u32,
        })
    }

    fn attention(&self, attention: &Attention, flags: u32) -> AttentionOp {
        let layer = usize::from(attention.layer);
        let shape = &attention.shape;
        let [(q, q_stride), (k, k_stride), (v, v_stride), (out, out_stride)] =
            [attention.q, attention.k, attention.v, attention.out].map(|view| self.view(view));
        let table = attention.rope.map(|id| self.program.rope(id));
        AttentionOp {
            kind: Op::ATTENTION,
            flags,
            heads: shape.heads as u32,
            kv_heads: shape.kv_heads as u32,
            key_dim: shape.key_dim as u32,
            value_dim: shape.value_dim as u32,
            q,
            k,
            v,
            q_stride,
            k_stride,
            v_stride,
            q_gain: self.optional_vector(attention.q_gain),
            k_gain: self.optional_vector(attention.k_gain),
            norm_eps: attention.norm_eps,
            angles: attention.angles.map_or(Place::NOWHERE, |region| self.region(region)),
            pairs: table.map_or(0, |table| table.inv_freq.len() as u32),
            interleaved: u32::from(table.is_some_and(|t| t.style == RopeStyle::Interleaved)),
            cache: self.places.caches[layer],
            page_places: page_places(&self.program.kv[layer]),
            kv_type: kv_type(self.program.kv[layer].ty),
            scale: shape.scale,
            softcap: shape.softcap.unwrap_or(0.0),
            sinks: self.optional_vector(attention.sinks),
            window: shape.window.unwrap_or(0),
            partials: self.region(attention.partials),
            chunks: self.lowered.chunks(),
            arrivals: self.region(attention.arrivals),
            out,
            out_stride,
        }
    }

    fn norm(&self, norm: &Norm, flags: u32) -> NormOp {
        let [(x, x_stride), (out, out_stride)] = [norm.x, norm.out].map(|view| self.view(view));
        let (residual, residual_stride) = self.optional(norm.residual);
        NormOp {
            kind: Op::NORM,
            flags,
            cols: norm.x.width as u32,
            x,
            x_stride,
            gain: self.vector(norm.gain),
            eps: norm.eps,
            residual,
            residual_stride,
            out,
            out_stride,
        }
    }

    fn sample(&self, sample: &Sample, flags: u32) -> SampleOp {
        let (logits, stride) = self.view(sample.logits);
        SampleOp {
            kind: Op::SAMPLE,
            flags,
            vocab: sample.logits.width as u32,
            logits,
            stride,
            maxima: self.region(sample.maxima),
            choices: self.places.choices,
            endings: self.places.endings,
            chosen: self.region(sample.chosen),
        }
    }
}
