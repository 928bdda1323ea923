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

use crate::columns::Sixteen;
use crate::format::{Group, Quants, Shape};

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

const fn get(words: &[u32], place: Place, bits: u32) -> u32 {
    words[place.word].rotate_right(place.bit) & ((1 << bits) - 1)
}

/// Four words of bytes of two nibbles each, the first highest, from 32 nibbles.
#[inline(always)]
fn bytes_of_two([a, b]: [Sixteen; 2]) -> Sixteen {
    let join = |q: Sixteen| q.shl(4).or(q.shr(8));
    join(a).even_bytes(join(b))
}

/// As [`bytes_of_two`], the first lowest.
#[inline(always)]
fn bytes_of_two_reversed([a, b]: [Sixteen; 2]) -> Sixteen {
    let join = |q: Sixteen| q.or(q.shr(4));
    join(a).even_bytes(join(b))
}

/// Two words of bytes of four pairs of bits each, the first highest, from 32 pairs.
#[inline(always)]
fn bytes_of_four(q: [Sixteen; 2]) -> [u32; 2] {
    // Nibbles of two pairs, of which each byte has two.
    let [a, b] = q.map(|q| q.shl(2).or(q.shr(8)).and(Sixteen::splat(0x0f)));
    let nibbles = a.even_bytes(b);
    let bytes = nibbles.shl(4).or(nibbles.shr(8));
    let words = bytes.even_bytes(bytes).words();
    [words[0], words[1]]
}

/// The words of a group in the planes of low and of high bits, as many as the type has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Words {
    pub(crate) low: [Sixteen; 2],
    pub(crate) high: [u32; 2],
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
    /// The words of a group's weights.
    ///
    /// The places are those of [`place`] and [`high_place`], 8 columns at a time: a byte of fields,
    /// first column highest, lies where byte 2 ends at bit 22 less the bits above it, thus one
    /// more rotation to the right than there are high bits. Tests hold this against the places.
    #[inline(always)]
    pub(crate) fn pack(shape: &Shape, group: &Group) -> Self {
        let mut words = Self { low: [Sixteen::splat(0); 2], high: [0; 2] };
        let q = group.q;
        let mask = |mask| Sixteen::splat(mask);
        let up = 1 + shape.high_bits;
        match shape.quants {
            Quants::Pairs => {
                let low = bytes_of_four(q.map(|q| q.and(mask(3))));
                let low = low.map(|low| u64::from(low.rotate_right(up as u32)));
                words.low[0] = Sixteen::of_longs([low[0] | low[1] << 32, 0]);
                if shape.high_bits > 0 {
                    // As pairs whose upper bit is the high bit; the second word's are one lower.
                    let top = bytes_of_four(q.map(|q| q.shr(1).and(mask(2))));
                    words.high[0] = top[0].rotate_right(1) | top[1].rotate_right(2);
                }
            }
            Quants::Nibbles => {
                words.low[0] = bytes_of_two(q.map(|q| q.and(mask(0x0f)))).rotate(up);
                // As nibbles whose upper bits are the high bits, one word's below another's.
                let top = |bits: u8| {
                    let below = 4 - usize::from(bits);
                    bytes_of_two(q.map(|q| q.shr(4).and(mask((1 << bits) - 1)).shl(below))).words()
                };
                match shape.high_bits {
                    1 => {
                        let [a, b, c, d] = top(1);
                        let low = c.rotate_right(3) | d.rotate_right(4);
                        words.high[0] = a.rotate_right(1) | b.rotate_right(2) | low;
                    }
                    2 => {
                        let [a, b, c, d] = top(2);
                        words.high[0] = a.rotate_right(1) | b.rotate_right(3);
                        words.high[1] = c.rotate_right(1) | d.rotate_right(3);
                    }
                    _ => {}
                }
            }
            // In column order: the first lowest.
            Quants::Selectors => words.low[0] = bytes_of_two_reversed(q),
            Quants::Bytes | Quants::Numbers(_) => words.low = q.map(|q| q.rotate(1)),
        }
        words
    }

    /// The weights in the words.
    pub(crate) fn unpack(&self, shape: &Shape) -> [Sixteen; 2] {
        let (low, high) = (field_bits(shape.quants), shape.high_bits as u32);
        let words = self.low_words();
        let q: [u8; 32] = std::array::from_fn(|i| {
            if shape.quants == Quants::Selectors {
                return (words[i / 8] >> (4 * (i % 8))) as u8 & 0x0f;
            }
            let mut q = get(&words, place(low, high, i), low);
            if high > 0 {
                q |= get(&self.high, high_place(low, high, i), high) << low;
            }
            q as u8
        });
        [Sixteen::first(&q), Sixteen::first(&q[16..])]
    }

    fn low_words(&self) -> [u32; 8] {
        let ([a, b, c, d], [e, f, g, h]) = (self.low[0].words(), self.low[1].words());
        [a, b, c, d, e, f, g, h]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a kernel does to make one float's field: rotate by whole bytes, then mask.
    fn field_after_rotation(word: u32, byte: u32, low_bit: u32, bits: u32) -> u32 {
        (word.rotate_left((8 * (2 + 4 - byte)) % 32) >> low_bit) & ((1 << bits) - 1)
    }

    fn group(mask: u8) -> Group {
        let q: [u8; 32] = std::array::from_fn(|i| (i * 37 % 256) as u8 & mask);
        let q = [Sixteen::first(&q), Sixteen::first(&q[16..])];
        Group { q, scales: 0, supers: 0 }
    }

    fn shape(quants: Quants, high_bits: usize) -> Shape {
        Shape { quants, high_bits, scales: crate::format::Scales::None, super_bytes: 0 }
    }

    #[test]
    fn byte_rotations_bring_every_nibble_to_the_top_of_the_mantissa() {
        let group = group(15);
        let words = Words::pack(&shape(Quants::Nibbles, 0), &group).low_words();
        for (i, q) in group.columns().iter().enumerate() {
            let low_bit = [19, 15][i % 2];
            let field = field_after_rotation(words[i / 8], (i % 8 / 2) as u32, low_bit, 4);
            assert_eq!(field, u32::from(*q), "column {i}");
        }
    }

    #[test]
    fn a_rotation_by_the_word_number_puts_high_bits_above_the_low_ones() {
        for (quants, high) in [(Quants::Nibbles, 1), (Quants::Nibbles, 2), (Quants::Pairs, 1)] {
            let low = field_bits(quants);
            let group = group(((1 << (low as usize + high)) - 1) as u8);
            let words = Words::pack(&shape(quants, high), &group);
            let high = high as u32;
            for (i, q) in group.columns().iter().enumerate() {
                let (per_word, slots) = (32 / low as usize, 8 / low);
                let (word, index) = (i / per_word, (i % per_word) as u32);
                let per_high = (low / high) as usize;
                let turned =
                    words.high[word / per_high].rotate_left(high * (word % per_high) as u32);
                let low_bit = 23 - high - low * (index % slots + 1);
                let byte = index / slots;
                let field = field_after_rotation(words.low_words()[word], byte, low_bit, low)
                    | field_after_rotation(turned, byte, low_bit + low, high) << low;
                assert_eq!(field, u32::from(*q), "{quants:?} + {high}, column {i}");
            }
        }
    }

    #[test]
    fn unpacking_inverts_packing() {
        for (quants, high, mask) in [
            (Quants::Pairs, 0, 3),
            (Quants::Pairs, 1, 7),
            (Quants::Nibbles, 0, 15),
            (Quants::Nibbles, 1, 31),
            (Quants::Nibbles, 2, 63),
            (Quants::Selectors, 0, 15),
            (Quants::Bytes, 0, 255),
        ] {
            let mut group = group(mask);
            let (shape, columns) = (shape(quants, high), group.columns());
            group.q = Words::pack(&shape, &group).unpack(&shape);
            assert_eq!(group.columns(), columns, "{quants:?} + {high}");
        }
    }
}
