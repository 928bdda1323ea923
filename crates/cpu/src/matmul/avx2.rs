//! The vector operations on AVX2 with FMA and F16C: eight lanes.

use super::rows::Rows;
use super::simd::{Simd, Work};
use crate::isa::Isa;
use std::arch::x86_64::*;

/// Proof that this CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx2(());

impl Avx2 {
    /// `Some` when [`Isa::detect`] finds the instructions.
    pub(super) fn new() -> Option<Self> {
        (Isa::detect() >= Isa::Avx2).then_some(Self(()))
    }

    /// 128-bit lane `l` holds 16 bytes of row `4 l + i`.
    #[inline(always)]
    fn piece(self, start: *const u8, stride: usize, i: usize) -> __m256i {
        let piece = on_registers!(_mm256_castsi128_si256(self.load128(start, i * stride)));
        let row = self.load128(start, (i + 4) * stride);
        on_registers!(_mm256_inserti128_si256::<1>(piece, row))
    }

    /// 16 bytes at `start + offset`, which the caller's [`Rows`] says may be read.
    #[inline(always)]
    fn load128(self, start: *const u8, offset: usize) -> __m128i {
        // SAFETY: only called with a pointer and offsets that `Rows::pointer` has checked.
        unsafe { _mm_loadu_si128(start.wrapping_add(offset).cast()) }
    }

    #[inline(always)]
    fn dword(self, start: *const u8, offset: usize) -> i32 {
        // SAFETY: as for `load128`.
        unsafe { start.wrapping_add(offset).cast::<i32>().read_unaligned() }
    }

    /// 16-bit sums of products of neighbouring bytes of `w` (unsigned) and `a` (signed).
    #[inline(always)]
    fn pairs(self, w: __m256i, a: i32) -> __m256i {
        let a = on_registers!(_mm256_set1_epi32(a));
        on_registers!(_mm256_maddubs_epi16(w, a))
    }

    /// The same for weights with bias 128, the bias taken off: |w| * (a with the sign of w), which
    /// unlike w * a cannot leave 16 bits.
    #[inline(always)]
    fn signed_pairs(self, w: __m256i, a: i32) -> __m256i {
        let w = self.xor(w, self.splat(0x8080_8080));
        let a = on_registers!(_mm256_set1_epi32(a));
        let magnitude = on_registers!(_mm256_abs_epi8(w));
        let a = on_registers!(_mm256_sign_epi8(a, w));
        on_registers!(_mm256_maddubs_epi16(magnitude, a))
    }

    /// `acc` plus the sums of neighbouring 16-bit numbers.
    #[inline(always)]
    fn widen(self, acc: __m256i, pairs: __m256i) -> __m256i {
        let ones = on_registers!(_mm256_set1_epi16(1));
        let sums = on_registers!(_mm256_madd_epi16(pairs, ones));
        on_registers!(_mm256_add_epi32(acc, sums))
    }

    #[inline(always)]
    fn add16(self, a: __m256i, b: __m256i) -> __m256i {
        on_registers!(_mm256_add_epi16(a, b))
    }
}

impl Simd for Avx2 {
    type Int = __m256i;
    type Float = __m256;
    const ROWS: usize = 8;

    #[inline]
    fn vectorize<W: Work>(self, work: W) -> W::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn compiled<W: Work>(s: Avx2, work: W) -> W::Output {
            work.run(s)
        }
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { compiled(self, work) }
    }

    #[inline(always)]
    fn quads(self, rows: &Rows<'_>, at: usize) -> [__m256i; 4] {
        let (start, stride) = (rows.pointer(at, 16, Self::ROWS), rows.stride());
        let p0 = self.piece(start, stride, 0);
        let p1 = self.piece(start, stride, 1);
        let p2 = self.piece(start, stride, 2);
        let p3 = self.piece(start, stride, 3);
        // Transposing 4 x 4 dwords inside every 128-bit lane leaves the rows in order.
        let low01 = on_registers!(_mm256_unpacklo_epi32(p0, p1));
        let low23 = on_registers!(_mm256_unpacklo_epi32(p2, p3));
        let high01 = on_registers!(_mm256_unpackhi_epi32(p0, p1));
        let high23 = on_registers!(_mm256_unpackhi_epi32(p2, p3));
        [
            on_registers!(_mm256_unpacklo_epi64(low01, low23)),
            on_registers!(_mm256_unpackhi_epi64(low01, low23)),
            on_registers!(_mm256_unpacklo_epi64(high01, high23)),
            on_registers!(_mm256_unpackhi_epi64(high01, high23)),
        ]
    }
    #[inline(always)]
    fn dwords(self, rows: &Rows<'_>, at: usize) -> __m256i {
        let (start, stride) = (rows.pointer(at, 4, Self::ROWS), rows.stride());
        let mut d = [0; 8];
        for row in 0..8 {
            d[row] = self.dword(start, row * stride);
        }
        on_registers!(_mm256_setr_epi32(d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]))
    }
    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        // SAFETY: a prefetch may name any address, it never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }

    #[inline(always)]
    fn splat(self, value: u32) -> __m256i {
        on_registers!(_mm256_set1_epi32(value as i32))
    }
    #[inline(always)]
    fn and(self, a: __m256i, b: __m256i) -> __m256i {
        on_registers!(_mm256_and_si256(a, b))
    }
    #[inline(always)]
    fn or(self, a: __m256i, b: __m256i) -> __m256i {
        on_registers!(_mm256_or_si256(a, b))
    }
    #[inline(always)]
    fn xor(self, a: __m256i, b: __m256i) -> __m256i {
        on_registers!(_mm256_xor_si256(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m256i, b: __m256i) -> __m256i {
        on_registers!(_mm256_sub_epi32(a, b))
    }
    #[inline(always)]
    fn max(self, a: __m256i, b: __m256i) -> __m256i {
        on_registers!(_mm256_max_epi32(a, b))
    }
    #[inline(always)]
    fn shl(self, a: __m256i, bits: u32) -> __m256i {
        let bits = on_registers!(_mm_cvtsi32_si128(bits as i32));
        on_registers!(_mm256_sll_epi32(a, bits))
    }
    #[inline(always)]
    fn shr(self, a: __m256i, bits: u32) -> __m256i {
        let bits = on_registers!(_mm_cvtsi32_si128(bits as i32));
        on_registers!(_mm256_srl_epi32(a, bits))
    }
    #[inline(always)]
    fn sar(self, a: __m256i, bits: u32) -> __m256i {
        let bits = on_registers!(_mm_cvtsi32_si128(bits as i32));
        on_registers!(_mm256_sra_epi32(a, bits))
    }
    #[inline(always)]
    fn lookup(self, table: &[u8; 16], index: __m256i) -> __m256i {
        // SAFETY: the table is 16 bytes.
        let table = unsafe { _mm_loadu_si128(table.as_ptr().cast()) };
        let table = on_registers!(_mm256_broadcastsi128_si256(table));
        on_registers!(_mm256_shuffle_epi8(table, index))
    }
    #[inline(always)]
    fn fifth_bits(self, bits: __m256i, j: u32) -> __m256i {
        // The byte with the nibble in every byte, then one bit of it tested in each.
        let from = (j / 2) * 0x0101_0101;
        let [b, c, d] = [0x0404_0404, 0x0808_0808, 0x0c0c_0c0c];
        let lanes = on_registers!(_mm256_setr_epi32(0, b, c, d, 0, b, c, d));
        let copies = on_registers!(_mm256_shuffle_epi8(bits, self.or(lanes, self.splat(from))));
        let tested = self.splat(0x0804_0201 << (4 * (j % 2)));
        let set = on_registers!(_mm256_cmpeq_epi8(self.and(copies, tested), tested));
        self.and(set, self.splat(0x1010_1010))
    }

    #[inline(always)]
    fn unbias(self, neg_sum: i32, bias: u32) -> __m256i {
        // `dot4` takes a bias of 128 off by itself.
        let neg_sum = if bias == 128 { 0 } else { neg_sum };
        let neg_sum = on_registers!(_mm256_set1_epi32(neg_sum));
        on_registers!(_mm256_mullo_epi32(neg_sum, self.splat(bias)))
    }
    #[inline(always)]
    fn dot4(self, acc: __m256i, w: [__m256i; 4], a: [i32; 4], max: u32) -> __m256i {
        // A pair is at most 2 * 127 * max: how many fit 16 bits decides when to widen.
        let mut pairs = w;
        for j in 0..4 {
            pairs[j] =
                if max > 127 { self.signed_pairs(w[j], a[j]) } else { self.pairs(w[j], a[j]) };
        }
        let [p0, p1, p2, p3] = pairs;
        if max <= 32 {
            self.widen(acc, self.add16(self.add16(p0, p1), self.add16(p2, p3)))
        } else if max <= 64 {
            self.widen(self.widen(acc, self.add16(p0, p1)), self.add16(p2, p3))
        } else {
            self.widen(self.widen(self.widen(self.widen(acc, p0), p1), p2), p3)
        }
    }

    #[inline(always)]
    fn to_float(self, a: __m256i) -> __m256 {
        on_registers!(_mm256_cvtepi32_ps(a))
    }
    #[inline(always)]
    fn as_float(self, a: __m256i) -> __m256 {
        on_registers!(_mm256_castsi256_ps(a))
    }
    #[inline(always)]
    fn f16(self, a: __m256i) -> __m256 {
        let low = self.and(a, self.splat(0xffff));
        let packed = on_registers!(_mm256_packus_epi32(low, low));
        let packed = on_registers!(_mm256_permute4x64_epi64::<0b1000>(packed));
        let halves = on_registers!(_mm256_castsi256_si128(packed));
        on_registers!(_mm256_cvtph_ps(halves))
    }
    #[inline(always)]
    fn splat_float(self, value: f32) -> __m256 {
        on_registers!(_mm256_set1_ps(value))
    }
    #[inline(always)]
    fn add_float(self, a: __m256, b: __m256) -> __m256 {
        on_registers!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        on_registers!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        on_registers!(_mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn largest(self, x: &[f32; 32]) -> u32 {
        let magnitude = self.splat(0x7fff_ffff);
        let mut largest = self.splat(0);
        for x in x.as_chunks::<8>().0 {
            let bits = on_registers!(_mm256_castps_si256(self.load(x)));
            largest = self.max(largest, self.and(bits, magnitude));
        }
        let high = on_registers!(_mm256_extracti128_si256::<1>(largest));
        let low = on_registers!(_mm256_castsi256_si128(largest));
        let four = on_registers!(_mm_max_epi32(low, high));
        let swapped = on_registers!(_mm_shuffle_epi32::<0b01_00_11_10>(four));
        let two = on_registers!(_mm_max_epi32(four, swapped));
        let swapped = on_registers!(_mm_shuffle_epi32::<0b10_11_00_01>(two));
        let one = on_registers!(_mm_max_epi32(two, swapped));
        on_registers!(_mm_cvtsi128_si32(one)) as u32
    }
    #[inline(always)]
    fn round(self, x: &[f32; 32], factor: f32) -> ([i8; 32], [i32; 2]) {
        let factor = self.splat_float(factor);
        let mut parts = [self.splat(0); 4];
        for (part, x) in parts.iter_mut().zip(x.as_chunks::<8>().0) {
            *part = on_registers!(_mm256_cvtps_epi32(self.mul(self.load(x), factor)));
        }
        // Packing works on 128-bit lanes, and leaves fours in the order 0 2 4 6 1 3 5 7.
        let low = on_registers!(_mm256_packs_epi32(parts[0], parts[1]));
        let high = on_registers!(_mm256_packs_epi32(parts[2], parts[3]));
        let fours = on_registers!(_mm256_packs_epi16(low, high));
        let order = on_registers!(_mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        let packed = on_registers!(_mm256_permutevar8x32_epi32(fours, order));
        let mut bytes = [0_i8; 32];
        // SAFETY: the array is 32 bytes.
        unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), packed) };
        // Sums of eight bytes each, unsigned: every byte with 128 added.
        let biased = self.xor(packed, self.splat(0x8080_8080));
        let eights = on_registers!(_mm256_sad_epu8(biased, self.splat(0)));
        let mut sums = [0_i32; 8];
        // SAFETY: the array is 32 bytes.
        unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), eights) };
        (bytes, [sums[0] + sums[2] - 16 * 128, sums[4] + sums[6] - 16 * 128])
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m256 {
        let from = &from[..Self::ROWS];
        // SAFETY: the slice has 8 floats.
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, a: __m256, to: &mut [f32]) {
        let to = &mut to[..Self::ROWS];
        // SAFETY: the slice has 8 floats.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), a) }
    }
}
