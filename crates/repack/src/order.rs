//! The order of weights within words.
//!
//! A kernel makes floats of bit fields in place: with the bits of a power of two above it, a field
//! at bit `L` of the mantissa is the number `2^(23 - L) + q`. The higher the field, the smaller the
//! power, and the less its rounding costs when the kernel subtracts it again. So all fields of a
//! word are placed where a rotation by whole bytes, one cheap instruction, brings them to the top of
//! the mantissa: byte `b` of a word has its fields at [`low_bit`] minus `8 * (2 - b)`, modulo 32.
//!
//! High bits go where, once a word is rotated left by the shift of its number, they lie just above
//! the low bits of the same weight, so that one bitwise selection joins 8 weights.
//!
//! This is where every weight is, one at a time. `packing` brings them there many at a time: a byte
//! of fields, first column highest, lies where byte 2 ends at bit 22 less the bits above it, thus
//! in words rotated by one bit more than there are high bits.

use crate::format::{Quants, Shape};

/// Column `c` of a group: the word of its low bits, and the lowest bit there before rotation, in
/// 0..32.
#[derive(Debug, Clone, Copy)]
struct Place {
    word: usize,
    bit: u32,
}

/// Where the field of slot `slot` of a byte begins once the byte is rotated into place, for fields
/// of `low` bits with `high` bits above.
///
/// Slot 0 with its high bits ends at bit 22, the top of the mantissa.
const fn low_bit(low: u32, high: u32, slot: u32) -> u32 {
    23 - high - low * (slot + 1)
}

/// `bit`, seen from byte 2, in the word before byte `byte` is rotated to where byte 2 is.
const fn unrotated(bit: u32, byte: u32) -> u32 {
    (bit + 8 * byte + 16) % 32
}

const fn place(low: u32, high: u32, column: usize) -> Place {
    let slots = 8 / low;
    let per_word = 32 / low as usize;
    let index = (column % per_word) as u32;
    let bit = unrotated(low_bit(low, high, index % slots), index / slots);
    Place { word: column / per_word, bit }
}

/// As [`place`], for the high bits: words of `high` bits a group hold the high bits of several words
/// of low bits, each `high` bits lower than the one before.
const fn high_place(low: u32, high: u32, column: usize) -> Place {
    let Place { word, bit } = place(low, high, column);
    let words = (low / high) as usize;
    let shift = high * (word % words) as u32;
    Place { word: word / words, bit: (bit + low + 32 - shift) % 32 }
}

const fn get(words: &[u32; 8], place: Place, bits: u32) -> u32 {
    words[place.word].rotate_right(place.bit) & ((1 << bits) - 1)
}

/// The words of a group in the planes of low and of high bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Words {
    pub(crate) low: [u32; 8],
    pub(crate) high: [u32; 8],
}

/// Bits of a weight in the plane of low bits, for types in which they are fields.
const fn field_bits(quants: Quants) -> u32 {
    match quants {
        Quants::Pairs => 2,
        Quants::Nibbles => 4,
        _ => 8,
    }
}

impl Words {
    /// The weights in the words.
    pub(crate) fn unpack(&self, shape: &Shape) -> [u8; 32] {
        let (low, high) = (field_bits(shape.quants), shape.high_bits as u32);
        std::array::from_fn(|i| {
            if shape.quants == Quants::Selectors {
                return (self.low[i / 8] >> (4 * (i % 8))) as u8 & 0x0f;
            }
            let mut q = get(&self.low, place(low, high, i), low);
            if high > 0 {
                q |= get(&self.high, high_place(low, high, i), high) << low;
            }
            q as u8
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a kernel does to make one float's field: rotate by whole bytes, then mask.
    fn field_after_rotation(word: u32, byte: u32, low_bit: u32, bits: u32) -> u32 {
        (word.rotate_left((8 * (2 + 4 - byte)) % 32) >> low_bit) & ((1 << bits) - 1)
    }

    fn weights(bits: usize) -> [u8; 32] {
        std::array::from_fn(|i| (i * 37 % (1 << bits)) as u8)
    }

    /// The words of a group, one weight after another.
    fn pack(quants: Quants, high: u32, q: &[u8; 32]) -> Words {
        let (mut words, low) = (Words::default(), field_bits(quants));
        let put = |words: &mut [u32; 8], place: Place, bits: u32, field: u8| {
            words[place.word] |= (u32::from(field) & ((1 << bits) - 1)).rotate_left(place.bit);
        };
        for (i, q) in q.iter().enumerate() {
            put(&mut words.low, place(low, high, i), low, *q);
            if high > 0 {
                put(&mut words.high, high_place(low, high, i), high, q >> low);
            }
        }
        words
    }

    fn shape(quants: Quants, high_bits: usize) -> Shape {
        Shape { quants, high_bits, scales: crate::format::Scales::None, super_bytes: 0 }
    }

    #[test]
    fn byte_rotations_bring_every_nibble_to_the_top_of_the_mantissa() {
        let weights = weights(4);
        let words = pack(Quants::Nibbles, 0, &weights);
        for (i, q) in weights.iter().enumerate() {
            let low_bit = [19, 15][i % 2];
            let field = field_after_rotation(words.low[i / 8], (i % 8 / 2) as u32, low_bit, 4);
            assert_eq!(field, u32::from(*q), "column {i}");
        }
    }

    #[test]
    fn a_rotation_by_the_word_number_puts_high_bits_above_the_low_ones() {
        for (quants, high) in [(Quants::Nibbles, 1), (Quants::Nibbles, 2), (Quants::Pairs, 1)] {
            let low = field_bits(quants);
            let weights = weights(low as usize + high);
            let high = high as u32;
            let words = pack(quants, high, &weights);
            for (i, q) in weights.iter().enumerate() {
                let (per_word, slots) = (32 / low as usize, 8 / low);
                let (word, index) = (i / per_word, (i % per_word) as u32);
                let per_high = (low / high) as usize;
                let turned =
                    words.high[word / per_high].rotate_left(high * (word % per_high) as u32);
                let low_bit = 23 - high - low * (index % slots + 1);
                let byte = index / slots;
                let field = field_after_rotation(words.low[word], byte, low_bit, low)
                    | field_after_rotation(turned, byte, low_bit + low, high) << low;
                assert_eq!(field, u32::from(*q), "{quants:?} + {high}, column {i}");
            }
        }
    }

    #[test]
    fn unpacking_inverts_packing() {
        for (quants, high) in [
            (Quants::Pairs, 0),
            (Quants::Pairs, 1),
            (Quants::Nibbles, 0),
            (Quants::Nibbles, 1),
            (Quants::Nibbles, 2),
            (Quants::Bytes, 0),
        ] {
            let weights = weights(field_bits(quants) as usize + high);
            let words = pack(quants, high as u32, &weights);
            assert_eq!(words.unpack(&shape(quants, high)), weights, "{quants:?} + {high}");
        }
    }
}
