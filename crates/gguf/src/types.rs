//! The tensor types of ggml.
//!
//! Numbers, names and sizes are those of ggml's `ggml_type`, as published in the Python package
//! `gguf` 0.19 (`GGMLQuantizationType`, `GGML_QUANT_SIZES`); `tests/vectors.rs` compares them.

use std::fmt;

macro_rules! tensor_types {
    ($($(#[$doc:meta])* $variant:ident = $id:literal, $name:literal, $len:literal, $bytes:literal;)+) => {
        /// A ggml tensor type: how weights lie in blocks.
        ///
        /// A row of a tensor is a whole number of blocks of [`block_len`](Self::block_len) weights,
        /// each [`block_bytes`](Self::block_bytes) long, without padding between them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum TensorType {
            $($(#[$doc])* $variant = $id,)+
        }

        impl TensorType {
            /// Every type, by rising number.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Weights in a block.
            pub const fn block_len(self) -> usize {
                match self { $(Self::$variant => $len,)+ }
            }

            /// Bytes in a block.
            pub const fn block_bytes(self) -> usize {
                match self { $(Self::$variant => $bytes,)+ }
            }

            /// ggml's name, such as `Q4_K`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// The type with this number in a file, `None` when ggml has none.
            pub const fn from_id(id: u32) -> Option<Self> {
                match id { $($id => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

tensor_types! {
    /// 32-bit float.
    F32 = 0, "F32", 1, 4;
    /// 16-bit IEEE float.
    F16 = 1, "F16", 1, 2;
    /// 4 bits, one f16 scale per 32.
    Q4_0 = 2, "Q4_0", 32, 18;
    /// 4 bits, f16 scale and minimum per 32.
    Q4_1 = 3, "Q4_1", 32, 20;
    /// 5 bits, one f16 scale per 32.
    Q5_0 = 6, "Q5_0", 32, 22;
    /// 5 bits, f16 scale and minimum per 32.
    Q5_1 = 7, "Q5_1", 32, 24;
    /// 8 bits, one f16 scale per 32.
    Q8_0 = 8, "Q8_0", 32, 34;
    /// 8 bits with a scale and a sum per 32 (ggml's activations, 40 bytes in its table).
    Q8_1 = 9, "Q8_1", 32, 40;
    /// 2 bits, 4-bit scales and minima per 16.
    Q2K = 10, "Q2_K", 256, 84;
    /// 3 bits, 6-bit scales per 16.
    Q3K = 11, "Q3_K", 256, 110;
    /// 4 bits, 6-bit scales and minima per 32.
    Q4K = 12, "Q4_K", 256, 144;
    /// 5 bits, 6-bit scales and minima per 32.
    Q5K = 13, "Q5_K", 256, 176;
    /// 6 bits, 8-bit scales per 16.
    Q6K = 14, "Q6_K", 256, 210;
    /// 8 bits with an f32 scale and sums (ggml's activations).
    Q8K = 15, "Q8_K", 256, 292;
    /// 2.06 bits, codebook.
    IQ2XXS = 16, "IQ2_XXS", 256, 66;
    /// 2.31 bits, codebook.
    IQ2XS = 17, "IQ2_XS", 256, 74;
    /// 3.06 bits, codebook.
    IQ3XXS = 18, "IQ3_XXS", 256, 98;
    /// 1.56 bits, codebook.
    IQ1S = 19, "IQ1_S", 256, 50;
    /// 4 bits into a table of 16 uneven levels, one f16 scale per 32.
    IQ4NL = 20, "IQ4_NL", 32, 18;
    /// 3.44 bits, codebook.
    IQ3S = 21, "IQ3_S", 256, 110;
    /// 2.56 bits, codebook.
    IQ2S = 22, "IQ2_S", 256, 82;
    /// As IQ4_NL with 6-bit scales per 32.
    IQ4XS = 23, "IQ4_XS", 256, 136;
    /// 8-bit integer.
    I8 = 24, "I8", 1, 1;
    /// 16-bit integer.
    I16 = 25, "I16", 1, 2;
    /// 32-bit integer.
    I32 = 26, "I32", 1, 4;
    /// 64-bit integer.
    I64 = 27, "I64", 1, 8;
    /// 64-bit float.
    F64 = 28, "F64", 1, 8;
    /// 1.75 bits, codebook.
    IQ1M = 29, "IQ1_M", 256, 56;
    /// The upper half of a 32-bit float.
    BF16 = 30, "BF16", 1, 2;
    /// Ternary, five weights in a byte.
    TQ1_0 = 34, "TQ1_0", 256, 54;
    /// Ternary, four weights in a byte.
    TQ2_0 = 35, "TQ2_0", 256, 66;
    /// OCP microscaling FP4: E2M1 weights, one E8M0 scale per 32.
    MXFP4 = 39, "MXFP4", 32, 17;
    /// E2M1 weights, an E4M3 scale per 16.
    NVFP4 = 40, "NVFP4", 64, 36;
    /// One sign bit, one f16 scale per 128.
    Q1_0 = 41, "Q1_0", 128, 18;
}

impl TensorType {
    /// The number that stands for the type in a file.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// The type with this name (as [`name`](Self::name) gives it), in any case.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|ty| ty.name().eq_ignore_ascii_case(name))
    }

    /// Bytes of a row of `cols` weights; `None` when that is no whole number of blocks or overflows.
    pub const fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_len()) {
            return None;
        }
        (cols / self.block_len()).checked_mul(self.block_bytes())
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
