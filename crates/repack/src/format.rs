//! What a weight type is, to the planes.

use crate::layout::{QUAD, Role};
use crate::packing::{High, Low};

/// How the low (or all) bits of weights lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quants {
    /// Two bits a weight.
    Pairs,
    /// Four bits a weight.
    Nibbles,
    /// Four bits a weight that select from a table.
    Selectors,
    /// Eight bits a weight.
    Bytes,
    /// Numbers of so many bytes.
    Numbers(usize),
}

/// The scales of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scales {
    None,
    /// 8 bits.
    Byte,
    /// 12 bits: the low 8 in one plane, the others in another.
    Twelve,
    /// 16 bits.
    Short,
    /// 32 bits.
    Word,
}

/// The parts of a type's layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) quants: Quants,
    /// Bits of a weight above those in `quants`: 0, 1 or 2.
    pub(crate) high_bits: usize,
    pub(crate) scales: Scales,
    /// Bytes of the scales of a super-group: 0, 2 or 4.
    pub(crate) super_bytes: usize,
}

impl Shape {
    /// Bytes of 4 rows of a group in a plane.
    pub(crate) const fn group_bytes(&self, role: Role) -> usize {
        match role {
            Role::Quants => QUAD * self.quants.bytes(),
            Role::High => QUAD * 4 * self.high_bits,
            Role::Scales => QUAD * self.scales.bytes(),
            Role::ScaleTops => match self.scales {
                Scales::Twelve => QUAD / 2,
                _ => 0,
            },
            Role::Supers => 0,
        }
    }

    /// Bytes of 4 rows of a super-group in a plane.
    pub(crate) const fn super_bytes(&self, role: Role) -> usize {
        match role {
            Role::Supers => QUAD * self.super_bytes,
            _ => 0,
        }
    }
}

impl Quants {
    /// Bytes of a group.
    pub(crate) const fn bytes(self) -> usize {
        match self {
            Self::Pairs => 8,
            Self::Nibbles | Self::Selectors => 16,
            Self::Bytes => 32,
            Self::Numbers(size) => 32 * size,
        }
    }
}

impl Scales {
    /// Bytes of a group in the plane of scales.
    pub(crate) const fn bytes(self) -> usize {
        match self {
            Self::None => 0,
            Self::Byte | Self::Twelve => 1,
            Self::Short => 2,
            Self::Word => 4,
        }
    }
}

/// The most groups that a block has.
pub(crate) const MOST_GROUPS: usize = 8;

/// A group of one row, as the file means it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Group {
    /// Weights as unsigned numbers, high bits included.
    pub(crate) q: [u8; 32],
    /// The group's own scales, as many bits as [`Scales`] says.
    pub(crate) scales: u32,
    /// The scales of its super-group.
    pub(crate) supers: u32,
}

/// A quantised type: what its blocks hold where, and what groups are worth.
pub(crate) trait Format {
    /// Bytes of a block.
    const BYTES: usize;
    /// Groups of a block.
    const GROUPS: usize;
    /// Its planes.
    const SHAPE: Shape;

    /// Where its weights, or their low bits, are in a block.
    const LOW: Low;
    /// Where their high bits are.
    const HIGH: High = High::None;

    /// The scales of each group of a block of [`Self::BYTES`] bytes, where they are bytes or, of 12
    /// bits, their low 8. Here and below those past [`Self::GROUPS`] mean nothing.
    fn bytes(_block: &[u8]) -> [u8; MOST_GROUPS] {
        [0; MOST_GROUPS]
    }

    /// The upper 4 of 12 bits.
    fn tops(_block: &[u8]) -> [u8; MOST_GROUPS] {
        [0; MOST_GROUPS]
    }

    /// Scales of 16 bits.
    fn shorts(_block: &[u8]) -> [[u8; 2]; MOST_GROUPS] {
        [[0; 2]; MOST_GROUPS]
    }

    /// Scales of 32 bits.
    fn longs(_block: &[u8]) -> [[u8; 4]; MOST_GROUPS] {
        [[0; 4]; MOST_GROUPS]
    }

    /// The scales of a block's super-group.
    fn supers(_block: &[u8]) -> u32 {
        0
    }

    /// The weights of a group; products and sums in the order of [`m40_gguf::dequantize`].
    fn weights(group: &Group) -> [f32; 32];
}
