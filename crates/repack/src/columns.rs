//! Sixteen bytes at once, in two words of 64 bits: what compilers make vector instructions of.

/// 16 bytes, little-endian.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sixteen([u64; 2]);

impl Sixteen {
    #[inline(always)]
    pub(crate) fn of_longs(longs: [u64; 2]) -> Self {
        Self(longs)
    }

    /// The first 16 of `bytes`.
    #[inline(always)]
    pub(crate) fn first(bytes: &[u8]) -> Self {
        let bytes: &[u8; 16] = bytes.first_chunk().expect("blocks have their format's size");
        let (longs, _) = bytes.as_chunks();
        Self([u64::from_le_bytes(longs[0]), u64::from_le_bytes(longs[1])])
    }

    #[inline(always)]
    pub(crate) fn splat(byte: u8) -> Self {
        Self([u64::from(byte) * 0x0101_0101_0101_0101; 2])
    }

    /// For each bit of `mask`, lowest first, a byte: 1 or 0.
    #[inline(always)]
    pub(crate) fn bits(mask: u16) -> Self {
        let bytes = |byte: u16| {
            // In each byte its own bit of the mask's, then that bit as 1.
            let spread = (u64::from(byte) * 0x0101_0101_0101_0101) & 0x8040_2010_0804_0201;
            ((spread + 0x7f7f_7f7f_7f7f_7f7f) >> 7) & 0x0101_0101_0101_0101
        };
        Self([bytes(mask & 0xff), bytes(mask >> 8)])
    }

    #[inline(always)]
    pub(crate) fn bytes(self) -> [u8; 16] {
        (u128::from(self.0[0]) | u128::from(self.0[1]) << 64).to_le_bytes()
    }

    /// As words of 32 bits.
    #[inline(always)]
    pub(crate) fn words(self) -> [u32; 4] {
        let [low, high] = self.0;
        [low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32]
    }

    #[inline(always)]
    fn of_words(words: [u32; 4]) -> Self {
        let [a, b, c, d] = words.map(u64::from);
        Self([a | b << 32, c | d << 32])
    }

    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(u64, u64) -> u64) -> Self {
        Self([f(self.0[0], other.0[0]), f(self.0[1], other.0[1])])
    }

    #[inline(always)]
    pub(crate) fn and(self, other: Self) -> Self {
        self.zip(other, |a, b| a & b)
    }

    #[inline(always)]
    pub(crate) fn or(self, other: Self) -> Self {
        self.zip(other, |a, b| a | b)
    }

    #[inline(always)]
    pub(crate) fn xor(self, other: Self) -> Self {
        self.zip(other, |a, b| a ^ b)
    }

    /// Bits moved down, across bytes: what comes from the byte above is to be masked.
    #[inline(always)]
    pub(crate) fn shr(self, bits: usize) -> Self {
        Self(self.0.map(|long| long >> bits))
    }

    /// Bits moved up, across bytes.
    #[inline(always)]
    pub(crate) fn shl(self, bits: usize) -> Self {
        Self(self.0.map(|long| long << bits))
    }

    /// The bits `mask << shift` of each byte, moved down.
    #[inline(always)]
    pub(crate) fn field(self, shift: usize, mask: u8) -> Self {
        self.shr(shift).and(Self::splat(mask))
    }

    /// Words of 32 bits rotated to lower bits.
    #[inline(always)]
    pub(crate) fn rotate(self, bits: usize) -> Self {
        Self::of_words(self.words().map(|word| word.rotate_right(bits as u32)))
    }

    /// Every other byte, from the first on, of this and of `next`.
    #[inline(always)]
    pub(crate) fn even_bytes(self, next: Self) -> Self {
        let pack = |long: u64| {
            let pairs = long & 0x00ff_00ff_00ff_00ff;
            let pairs = (pairs | pairs >> 8) & 0x0000_ffff_0000_ffff;
            (pairs | pairs >> 16) & 0xffff_ffff
        };
        let join = |longs: [u64; 2]| pack(longs[0]) | pack(longs[1]) << 32;
        Self([join(self.0), join(next.0)])
    }
}

#[cfg(test)]
mod tests {
    use super::Sixteen;

    fn bytes(seed: u8) -> [u8; 16] {
        std::array::from_fn(|i| (i as u8).wrapping_mul(37).wrapping_add(seed))
    }

    #[test]
    fn a_mask_becomes_a_byte_for_each_bit() {
        for mask in (0..=u16::MAX).step_by(7) {
            let expected = std::array::from_fn(|i| (mask >> i) as u8 & 1);
            assert_eq!(Sixteen::bits(mask).bytes(), expected);
        }
    }

    #[test]
    fn every_other_byte_is_kept_in_order() {
        let (a, b) = (bytes(3), bytes(120));
        let all = [a, b].concat();
        let expected: Vec<u8> = all.iter().copied().step_by(2).collect();
        assert_eq!(Sixteen::first(&a).even_bytes(Sixteen::first(&b)).bytes()[..], expected);
    }

    #[test]
    fn words_rotate_by_themselves() {
        let rotated = Sixteen::first(&bytes(9)).rotate(5);
        let expected = Sixteen::first(&bytes(9)).words().map(|word| word.rotate_right(5));
        assert_eq!(rotated.words(), expected);
    }
}
