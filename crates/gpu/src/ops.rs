//! The ops of a decode pass as kernels read them: the structures of `kernels/ops.cuh`, field by
//! field, and their words.
//!
//! Every field is a 32-bit word, so a structure is its fields in order. The test `ops` compares
//! names and offsets with what a C++ compiler makes of the header.

use std::fmt;

use m40_gguf::TensorType;
use m40_program::KvType;

/// Tokens of a page of the KV cache.
pub const PAGE_TOKENS: usize = 32;

/// Tokens of the context that one block attends to at a time.
pub const CHUNK_TOKENS: usize = 256;

/// Rows of a decode pass, at most.
pub const PASS_ROWS: usize = 8;

/// Passes of a launch, at most.
pub const PASSES_AT_ONCE: usize = 64;

/// Tokens that a sequence ends with, at most.
pub const MOST_STOPS: usize = 16;

/// Words of every op.
pub const OP_WORDS: usize = 48;

/// Floats of a row that a decode pass can norm.
pub const MAX_NORM_WIDTH: usize = 8192;

/// Floats of shared memory that a block has for whatever an op needs.
pub const POOL_FLOATS: usize = 10048;

/// Columns of a step of a product.
pub const STEP_COLUMNS: usize = 1024;

/// Words that lie before the sums of a product whose columns are dealt to blocks: a counter and three
/// that are not used, and squares of each group of a normed row.
pub const SPLIT_HEADER: usize = 4 + PASS_ROWS * MAX_NORM_WIDTH / 32;

/// Threads of a block of the decode kernel for at most so many rows.
pub const fn decode_threads(rows: usize) -> u32 {
    if rows <= 2 { 512 } else { 256 }
}

/// The op reads what ops before it wrote, or writes what they read or wrote.
pub const AWAIT: u32 = 1;

/// The next op has [`AWAIT`].
pub const ANNOUNCE: u32 = 2;

/// What was written up to here has marks, by which readers see whether it has arrived.
pub const OPEN: u32 = 4;

/// The mark of what the op writes.
pub const MARK: u32 = 8;

/// Input `input` of an op has marks, which are these.
pub const fn marked_input(input: usize, mark: bool) -> u32 {
    (16 | (mark as u32) << 5) << (2 * input)
}

/// An offset in the arena, in units of 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place(pub u32);

impl Place {
    /// No memory: what an op leaves out.
    pub const NOWHERE: Self = Self(u32::MAX);

    /// Bytes of a unit.
    pub const BYTES: u64 = 16;

    /// The place `bytes` bytes from the arena's start; `None` unless a multiple of 16 below 64 GiB.
    pub fn of_bytes(bytes: u64) -> Option<Self> {
        let place = u32::try_from(bytes / Self::BYTES).ok().map(Self)?;
        (bytes.is_multiple_of(Self::BYTES) && place != Self::NOWHERE).then_some(place)
    }

    /// Bytes from the arena's start.
    pub fn bytes(self) -> u64 {
        u64::from(self.0) * Self::BYTES
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::NOWHERE { f.write_str("nowhere") } else { write!(f, "@{:x}", self.0) }
    }
}

/// A field that may be known when a kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Constant {
    /// A number.
    Word(u32),
    /// A number.
    Float(f32),
    /// The place of what there is not.
    Nowhere,
}

/// What takes whole words of an op.
trait Words {
    const COUNT: usize;
    fn put(&self, words: &mut Vec<u32>);
    /// What kernels of one program know of it: places differ from one op to the next.
    fn constant(&self) -> Option<Constant>;
}

impl Words for u32 {
    const COUNT: usize = 1;
    fn put(&self, words: &mut Vec<u32>) {
        words.push(*self);
    }
    fn constant(&self) -> Option<Constant> {
        Some(Constant::Word(*self))
    }
}

impl Words for f32 {
    const COUNT: usize = 1;
    fn put(&self, words: &mut Vec<u32>) {
        words.push(self.to_bits());
    }
    fn constant(&self) -> Option<Constant> {
        Some(Constant::Float(*self))
    }
}

impl Words for Place {
    const COUNT: usize = 1;
    fn put(&self, words: &mut Vec<u32>) {
        words.push(self.0);
    }
    fn constant(&self) -> Option<Constant> {
        (*self == Self::NOWHERE).then_some(Constant::Nowhere)
    }
}

impl<T: Words, const N: usize> Words for [T; N] {
    const COUNT: usize = N * T::COUNT;
    fn put(&self, words: &mut Vec<u32>) {
        self.iter().for_each(|item| item.put(words));
    }
    fn constant(&self) -> Option<Constant> {
        None
    }
}

macro_rules! structure {
    ($(#[$doc:meta])* $name:ident { $($(#[$about:meta])* $field:ident: $ty:ty,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub struct $name { $($(#[$about])* pub $field: $ty,)+ }

        impl $name {
            /// Names of the fields and the words each takes, in order.
            pub const FIELDS: &[(&str, usize)] =
                &[$((stringify!($field), <$ty as Words>::COUNT),)+];

            /// Words that it takes.
            pub const WORDS: usize = 0 $(+ <$ty as Words>::COUNT)+;

            /// The words of the structure.
            pub fn words(&self) -> Vec<u32> {
                let mut words = Vec::with_capacity(OP_WORDS);
                $(self.$field.put(&mut words);)+
                words
            }

            /// Names of the fields that are no places, and what is in them.
            pub fn constants(&self) -> Vec<(&'static str, Constant)> {
                let fields = [$((stringify!($field), self.$field.constant()),)+];
                fields.into_iter().filter_map(|(name, c)| Some((name, c?))).collect()
            }
        }

        impl Words for $name {
            const COUNT: usize = $name::WORDS;
            fn put(&self, words: &mut Vec<u32>) {
                $(self.$field.put(words);)+
            }
            fn constant(&self) -> Option<Constant> {
                None
            }
        }
    };
}

/// [`Row::slot`] of a sequence whose likeliest tokens are chosen.
pub const NO_SLOT: u32 = Place::NOWHERE.0;

structure! {
    /// A token of a pass.
    Row {
        /// Id in the vocabulary.
        token: u32,
        /// Position in its sequence.
        position: u32,
        /// The sequence's page table, `[pages] u32`.
        pages: Place,
        /// The sequence's, where [`SampleOp`] keeps its state; [`NO_SLOT`]: it has none.
        slot: u32,
    }
}

structure! {
    /// `y = act(n(x) W^T) [* (n(x) U^T)] [+ bias] [+ residual]`, `n` the prologue.
    MatvecOp {
        /// [`Op::MATVEC`], or [`Op::GATED_MATVEC`] with `up`.
        kind: u32,
        /// [`AWAIT`], [`ANNOUNCE`] and so on.
        flags: u32,
        /// [`weight_type`] of W, and of U.
        r#type: u32,
        /// Rows of W.
        rows: u32,
        /// Columns of W.
        cols: u32,
        /// W, in planes.
        weights: Place,
        /// U, of the same shape and type, or nowhere.
        up: Place,
        /// Plane of high bits, from the start of the matrix.
        high: u32,
        /// Plane of scales, from the start of the matrix.
        scales: u32,
        /// Plane of scale tops, from the start of the matrix.
        tops: u32,
        /// Plane of super-scales, from the start of the matrix.
        supers: u32,
        /// 0: none, 1: RMS norm, 2: a block's RMS norm added, then RMS norm.
        prologue: u32,
        /// `[pass rows][x_stride] f32`.
        x: Place,
        /// Floats.
        x_stride: u32,
        /// `[cols] f32`.
        gain: Place,
        /// `[pass rows][x_stride] f32`.
        block: Place,
        /// `[cols] f32`.
        block_gain: Place,
        /// `[pass rows][x_stride] f32`, or nowhere.
        stream: Place,
        /// Of the norm.
        eps: f32,
        /// Of the block's norm.
        block_eps: f32,
        /// 0: none, 1: SiLU, 2: GELU by tanh.
        activation: u32,
        /// `[rows] f32`, or nowhere.
        bias: Place,
        /// `[pass rows][residual_stride] f32`, or nowhere.
        residual: Place,
        /// Floats.
        residual_stride: u32,
        /// `[pass rows][y_stride] f32`.
        y: Place,
        /// Floats.
        y_stride: u32,
        /// 0: none.
        softcap: f32,
        /// `[pass rows][blocks of the grid] {f32, u32}`, or nowhere.
        maxima: Place,
        /// `[pass rows][gate_stride] f32`, or nowhere.
        gate: Place,
        /// Floats.
        gate_stride: u32,
        /// `[SPLIT_HEADER + steps * rows * pass rows] f32`, or nowhere.
        sums: Place,
        /// The first of the blocks that do it.
        first_block: u32,
        /// How many do.
        blocks: u32,
    }
}

structure! {
    /// Attention of each row over its sequence, with norms and rotations of heads and the row's own
    /// keys and values stored before.
    AttentionOp {
        /// [`Op::ATTENTION`].
        kind: u32,
        /// [`AWAIT`], [`ANNOUNCE`] and so on.
        flags: u32,
        /// Of queries.
        heads: u32,
        /// Of keys and values.
        kv_heads: u32,
        /// Floats of a query or key head.
        key_dim: u32,
        /// Floats of a value head.
        value_dim: u32,
        /// `[pass rows][q_stride] f32`.
        q: Place,
        /// `[pass rows][k_stride] f32`.
        k: Place,
        /// `[pass rows][v_stride] f32`.
        v: Place,
        /// Floats.
        q_stride: u32,
        /// Floats.
        k_stride: u32,
        /// Floats.
        v_stride: u32,
        /// `[key_dim] f32`, or nowhere.
        q_gain: Place,
        /// `[key_dim] f32`, or nowhere.
        k_gain: Place,
        /// Of the heads' norms.
        norm_eps: f32,
        /// `[pass rows][pairs] {cos, sin} f32`, or nowhere.
        angles: Place,
        /// Rotated pairs of a head.
        pairs: u32,
        /// Whether pairs are neighbours.
        interleaved: u32,
        /// Page 0 of the layer.
        cache: Place,
        /// Of a page.
        page_places: u32,
        /// [`kv_type`].
        kv_type: u32,
        /// On products of queries and keys.
        scale: f32,
        /// 0: none.
        softcap: f32,
        /// `[heads] f32`, or nowhere.
        sinks: Place,
        /// Tokens that a row sees; 0: all.
        window: u32,
        /// `[pass rows][kv_heads][chunks][heads / kv_heads][value_dim + 4] f32`.
        partials: Place,
        /// Of the longest context that fits.
        chunks: u32,
        /// `[pass rows][kv_heads] u32`, zero between ops.
        arrivals: Place,
        /// `[pass rows][out_stride] f32`.
        out: Place,
        /// Floats.
        out_stride: u32,
    }
}

structure! {
    /// A rotary table of [`EmbedOp`].
    RopeAngles {
        /// `[pairs] f32`.
        inverse_frequencies: Place,
        /// Of a head.
        pairs: u32,
        /// Factor on cosines and sines.
        magnitude: f32,
        /// `[pass rows][pairs] {cos, sin} f32`.
        angles: Place,
    }
}

impl RopeAngles {
    /// No table.
    pub const NONE: Self = Self {
        inverse_frequencies: Place::NOWHERE,
        pairs: 0,
        magnitude: 0.0,
        angles: Place::NOWHERE,
    };
}

structure! {
    /// `out = table[token] * scale`, and the angles of the rows' positions.
    EmbedOp {
        /// [`Op::EMBED`].
        kind: u32,
        /// [`AWAIT`], [`ANNOUNCE`] and so on.
        flags: u32,
        /// [`weight_type`] of the table.
        r#type: u32,
        /// Rows of the table.
        vocab: u32,
        /// Columns of the table.
        cols: u32,
        /// In planes.
        table: Place,
        /// Plane of high bits, from the start of the table.
        high: u32,
        /// Plane of scales, from the start of the table.
        scales: u32,
        /// Plane of scale tops, from the start of the table.
        tops: u32,
        /// Plane of super-scales, from the start of the table.
        supers: u32,
        /// On every number.
        scale: f32,
        /// `[pass rows][out_stride] f32`.
        out: Place,
        /// Floats.
        out_stride: u32,
        /// Tables in `rope`.
        ropes: u32,
        /// Rotary tables.
        rope: [RopeAngles; MAX_ROPES],
    }
}

/// Rotary tables of a program, at most.
pub const MAX_ROPES: usize = 4;

structure! {
    /// `out = x * gain / rms(x) [+ residual]`.
    NormOp {
        /// [`Op::NORM`].
        kind: u32,
        /// [`AWAIT`], [`ANNOUNCE`] and so on.
        flags: u32,
        /// Floats of a row.
        cols: u32,
        /// `[pass rows][x_stride] f32`.
        x: Place,
        /// Floats.
        x_stride: u32,
        /// `[cols] f32`.
        gain: Place,
        /// Added to the mean square.
        eps: f32,
        /// `[pass rows][residual_stride] f32`, or nowhere.
        residual: Place,
        /// Floats.
        residual_stride: u32,
        /// `[pass rows][out_stride] f32`.
        out: Place,
        /// Floats.
        out_stride: u32,
    }
}

structure! {
    /// The next token of each row, from its logits, and whether its sequence ends with it.
    SampleOp {
        /// [`Op::SAMPLE`].
        kind: u32,
        /// [`AWAIT`], [`ANNOUNCE`] and so on.
        flags: u32,
        /// Logits of a row.
        vocab: u32,
        /// `[pass rows][stride] f32`; rows may be changed.
        logits: Place,
        /// Floats.
        stride: u32,
        /// As [`MatvecOp::maxima`].
        maxima: Place,
        /// `[slots]` [`Choice::state`](crate::Choice::state).
        choices: Place,
        /// `[slots]` [`Ending`].
        endings: Place,
        /// `[passes of the launch][pass rows]` [`Next`].
        chosen: Place,
    }
}

structure! {
    /// What a pass has chosen for a row.
    Next {
        /// Id in the vocabulary.
        token: u32,
        /// Of the token; 0: there was none to choose.
        probability: f32,
        /// [`End`], or 0: the sequence goes on.
        end: u32,
        /// Of the first row: 1 if the host wants the pass to be the job's last.
        yields: u32,
    }
}

structure! {
    /// When a sequence ends by itself. Passes count `left` down.
    Ending {
        /// Cancelled once the host's word of its slot is this; never 0.
        ticket: u32,
        /// Tokens that may still be chosen.
        left: u32,
        /// Tokens in `stops`.
        stop_count: u32,
        /// Padding.
        unused: u32,
        /// Tokens that it ends with.
        stops: [u32; MOST_STOPS],
    }
}

/// Why a sequence ends with a token; of several reasons the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// There was none to choose: no logit was usable.
    NoToken = 1,
    /// It is one of those that the sequence ends with.
    StopToken = 2,
    /// The sequence may have no more.
    LastToken = 3,
    /// It was asked for.
    Cancelled = 4,
    /// There is no token: the sequence had ended before.
    Before = 5,
}

impl End {
    /// What [`Next::end`] says.
    pub fn of(number: u32) -> Option<Self> {
        Some(match number {
            0 => return None,
            1 => Self::NoToken,
            2 => Self::StopToken,
            3 => Self::LastToken,
            4 => Self::Cancelled,
            _ => Self::Before,
        })
    }
}

/// An op of a decode pass.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(missing_docs, reason = "each is its structure")]
pub enum Op {
    Embed(EmbedOp),
    Matvec(MatvecOp),
    Attention(AttentionOp),
    Norm(NormOp),
    Sample(SampleOp),
}

impl Op {
    /// Kind of [`EmbedOp`].
    pub const EMBED: u32 = 0;
    /// Kind of [`MatvecOp`].
    pub const MATVEC: u32 = 1;
    /// Kind of [`AttentionOp`].
    pub const ATTENTION: u32 = 2;
    /// Kind of [`NormOp`].
    pub const NORM: u32 = 3;
    /// Kind of [`SampleOp`].
    pub const SAMPLE: u32 = 4;
    /// Kind of [`MatvecOp`] with `up`.
    pub const GATED_MATVEC: u32 = 5;

    /// Names of its fields that are no places, and what is in them.
    pub fn constants(&self) -> Vec<(&'static str, Constant)> {
        match self {
            Self::Embed(op) => op.constants(),
            Self::Matvec(op) => op.constants(),
            Self::Attention(op) => op.constants(),
            Self::Norm(op) => op.constants(),
            Self::Sample(op) => op.constants(),
        }
    }

    /// Its words, zeros after the structure's.
    pub fn words(&self) -> [u32; OP_WORDS] {
        let fields = match self {
            Self::Embed(op) => op.words(),
            Self::Matvec(op) => op.words(),
            Self::Attention(op) => op.words(),
            Self::Norm(op) => op.words(),
            Self::Sample(op) => op.words(),
        };
        let mut words = [0; OP_WORDS];
        words[..fields.len()].copy_from_slice(&fields);
        words
    }
}

/// The kernels' number of a type of keys and values.
pub const fn kv_type(ty: KvType) -> u32 {
    match ty {
        KvType::F16 => 0,
        KvType::Int8 => 1,
    }
}

/// The kernels' number of a type of weights; `None` when they have none.
pub const fn weight_type(ty: TensorType) -> Option<u32> {
    Some(match ty {
        TensorType::F32 => 0,
        TensorType::F16 => 1,
        TensorType::BF16 => 2,
        TensorType::Q4_0 => 3,
        TensorType::Q4_1 => 4,
        TensorType::Q5_0 => 5,
        TensorType::Q5_1 => 6,
        TensorType::Q8_0 => 7,
        TensorType::Q2K => 8,
        TensorType::Q3K => 9,
        TensorType::Q4K => 10,
        TensorType::Q5K => 11,
        TensorType::Q6K => 12,
        TensorType::IQ4NL => 13,
        TensorType::IQ4XS => 14,
        TensorType::MXFP4 => 15,
        _ => return None,
    })
}
