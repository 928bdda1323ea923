//! The decode kernels of one program on one card, as source: kernels/decode.cuh with all sizes known.
//!
//! Ops that differ in places alone are one *variant*: a structure derived from the op's, whose fields
//! are hidden by constants of the same name. Shapes then have constant lengths and strides, choices are
//! made when the kernel is compiled, and only the types of weights that the model has are in it.

use std::collections::HashMap;
use std::fmt::Write as _;

use m40_gguf::TensorType;
use m40_program::Program;
use m40_repack::Layout;

use crate::lower::{AssembleError, Lowered, Places};
use crate::ops::{Constant, Op, Place, weight_type};

macro_rules! header {
    ($name:literal) => {
        ($name, include_str!(concat!("../../../kernels/", $name)))
    };
}

/// Every header that the kernels include: its name and its text.
pub const HEADERS: &[(&str, &str)] = &[
    header!("attention.cuh"),
    header!("attention_head.cuh"),
    header!("attention_item.cuh"),
    header!("attention_part.cuh"),
    header!("block.cuh"),
    header!("choice.cuh"),
    header!("choose.cuh"),
    header!("config.cuh"),
    header!("decode.cuh"),
    header!("desk.cuh"),
    header!("device.cuh"),
    header!("embed.cuh"),
    header!("kv.cuh"),
    header!("marks.cuh"),
    header!("matvec.cuh"),
    header!("next.cuh"),
    header!("ops.cuh"),
    header!("planes.cuh"),
    header!("product.cuh"),
    header!("rotary.cuh"),
    header!("sample.cuh"),
    header!("split.cuh"),
    header!("staging.cuh"),
];

/// The decode kernels of a program.
#[derive(Clone, Debug, PartialEq)]
pub struct DecodeSource {
    /// CUDA C++ that describes the program and includes `decode.cuh`; it ends before the kernels.
    text: String,
    /// Of each op, the number of its variant: what takes the place of its kind.
    variants: Vec<u32>,
}

impl DecodeSource {
    /// The source of a lowered program's kernels.
    ///
    /// # Errors
    /// [`AssembleError`] when the layouts are not those of its matrices.
    pub fn new(
        lowered: &Lowered,
        program: &Program,
        layouts: &[Layout],
    ) -> Result<Self, AssembleError> {
        // No constant is a place, so any will do.
        let somewhere = Place(0);
        let matrices: Vec<_> = layouts.iter().map(|layout| (*layout, somewhere)).collect();
        let mut next = 0;
        let vectors = program.vectors.iter().map(|vector| {
            let place = Place(next);
            next += vector.len.div_ceil(4) as u32;
            place
        });
        let places = Places {
            matrices: &matrices,
            vectors: &vectors.collect::<Vec<_>>(),
            caches: &vec![somewhere; program.kv.len()],
            scratch: somewhere,
            choices: somewhere,
            endings: somewhere,
        };
        let ops = lowered.assemble_ops(program, &places)?;
        Ok(Self::of(&ops, lowered.target.blocks))
    }

    fn of(ops: &[Op], blocks: u32) -> Self {
        let mut numbers = HashMap::new();
        let (mut structures, mut variants) = (String::new(), vec![]);
        for op in ops {
            let body = body(op);
            let next = numbers.len() as u32;
            let number = *numbers.entry(body).or_insert_with_key(|body| {
                let base = base(op);
                let written = write!(structures, "struct Op{next} : {base} {{\n{body}}};\n");
                written.expect("text grows");
                next
            });
            variants.push(number);
        }
        let cases = (0..numbers.len()).map(|number| format!(" CASE({number}, Op{number})"));
        let text = format!(
            "#define M40_BLOCKS {blocks}\n#include \"ops.cuh\"\n#include \"planes.cuh\"\n\
             {structures}#define FOR_VARIANTS(CASE){}\n#include \"decode.cuh\"\n",
            cases.collect::<String>()
        );
        Self { text, variants }
    }

    /// The source of the kernels for at most 1, 2, 4 and 8 rows: `decode_b` and their number.
    pub fn kernels(&self) -> String {
        format!("{}DECODE(1)\nDECODE(2)\nDECODE(4)\nDECODE(8)\n", self.text)
    }

    /// What describes the program, without kernels.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Numbers the ops of a list as these kernels know them. words: as
    /// [`Lowered::assemble`] makes them
    pub fn number(&self, words: &mut [u32]) {
        for (op, variant) in words.chunks_exact_mut(crate::ops::OP_WORDS).zip(&self.variants) {
            op[0] = *variant;
        }
    }
}

/// The structure of kernels/ops.cuh that an op's variant is derived from.
fn base(op: &Op) -> &'static str {
    match op {
        Op::Embed(_) => "EmbedOp",
        Op::Matvec(op) if op.up == Place::NOWHERE => "MatvecOp",
        Op::Matvec(_) => "GatedMatvecOp",
        Op::Attention(_) => "AttentionOp",
        Op::Norm(_) => "NormOp",
        Op::Sample(_) => "SampleOp",
    }
}

/// What a variant's structure has: constants that all its ops share.
fn body(op: &Op) -> String {
    let mut text = "    static constexpr bool kKnown = true;\n".to_owned();
    let mut line = |words: std::fmt::Arguments<'_>| {
        writeln!(text, "    {words};").expect("text grows");
    };
    if let Op::Matvec(op) = op
        && op.sums != Place::NOWHERE
    {
        line(format_args!("static constexpr bool kSplits = true"));
    }
    for (name, constant) in op.constants() {
        let name = name.trim_start_matches("r#");
        match constant {
            Constant::Word(number) if name == "type" => {
                line(format_args!("typedef {} Format", format(number)));
                line(format_args!("static constexpr u32 type = {number}"));
            }
            // The kind is what the variant's number takes the place of; barriers differ from op to op.
            Constant::Word(_) if name == "kind" || name == "flags" => {}
            Constant::Word(number) => line(format_args!("static constexpr u32 {name} = {number}")),
            Constant::Float(number) => {
                line(format_args!("static constexpr float {name} = {number:e}f"));
            }
            Constant::Nowhere => line(format_args!("static constexpr Place {name} = kNowhere")),
        }
    }
    text
}

/// The format of kernels/planes.cuh of a type's number.
fn format(number: u32) -> String {
    let is = |ty: &&TensorType| weight_type(**ty) == Some(number);
    let ty = TensorType::ALL.iter().find(is).expect("ops have types that kernels know");
    ty.to_string()
}
