//! The vector operations on AVX-512 with VNNI: sixteen lanes.

use super::avx2::Avx2;
use super::rows::Rows;
use super::simd::{Simd, Work};
use crate::isa::Isa;
use std::arch::x86_64::*;

/// Proof that this CPU has AVX-512 F, BW, DQ, VL and VNNI.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx512(Avx2);

impl Avx512 {
    /// `Some` when [`Isa::detect`] finds the instructions.
    pub(super) fn new() -> Option<Self> {
        Avx2::new().filter(|_| Isa::detect() >= Isa::Avx512Vnni).map(Self)
    }

    /// The `i`-th dwords-of-rows register: 128-bit lane `l` holds 16 bytes of row `4 l + i`.
    #[inline(always)]
    fn piece(self, start: *const u8, stride: usize, i: usize) -> __m512i {
        let piece = on_registers!(_mm512_castsi128_si512(self.load128(start, i * stride)));
        let row = self.load128(start, (i + 4) * stride);
        let piece = on_registers!(_mm512_inserti32x4::<1>(piece, row));
        let row = self.load128(start, (i + 8) * stride);
        let piece = on_registers!(_mm512_inserti32x4::<2>(piece, row));
        let row = self.load128(start, (i + 12) * stride);
        on_registers!(_mm512_inserti32x4::<3>(piece, row))
    }

    /// 16 bytes at `start + offset`, which the caller's [`Rows`] says may be read.
    #[inline(always)]
    fn load128(self, start: *const u8, offset: usize) -> __m128i {
        // SAFETY: only called with a pointer and offsets that `Rows::pointer` has checked.
        unsafe { _mm_loadu_si128(start.wrapping_add(offset).cast()) }
    }

    /// The little-endian dwords at four rows' `start + offset`.
    #[inline(always)]
    fn four_dwords(self, start: *const u8, stride: usize, first: usize) -> __m128i {
        let a = self.dword(start, first * stride);
        let b = self.dword(start, (first + 1) * stride);
        let c = self.dword(start, (first + 2) * stride);
        let d = self.dword(start, (first + 3) * stride);
        on_registers!(_mm_setr_epi32(a, b, c, d))
    }

    #[inline(always)]
    fn dword(self, start: *const u8, offset: usize) -> i32 {
        // SAFETY: as for `load128`.
        unsafe { start.wrapping_add(offset).cast::<i32>().read_unaligned() }
    }
}

/// Every nibble, with its bit k moved to bit 4 of byte k.
const SPREAD: [i32; 16] = {
    let mut table = [0; 16];
    let mut nibble = 0;
    while nibble < 16 {
        table[nibble] = ((nibble as i32 * 0x0020_4081) & 0x0101_0101) << 4;
        nibble += 1;
    }
    table
};

impl Simd for Avx512 {
    type Int = __m512i;
    type Float = __m512;
    const ROWS: usize = 16;

    #[inline]
    fn vectorize<W: Work>(self, work: W) -> W::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
        fn compiled<W: Work>(s: Avx512, work: W) -> W::Output {
            work.run(s)
        }
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { compiled(self, work) }
    }

    #[inline(always)]
    fn quads(self, rows: &Rows<'_>, at: usize) -> [__m512i; 4] {
        let (start, stride) = (rows.pointer(at, 16, Self::ROWS), rows.stride());
        let p0 = self.piece(start, stride, 0);
        let p1 = self.piece(start, stride, 1);
        let p2 = self.piece(start, stride, 2);
        let p3 = self.piece(start, stride, 3);
        // Transposing 4 x 4 dwords inside every 128-bit lane leaves the rows in order.
        let low01 = on_registers!(_mm512_unpacklo_epi32(p0, p1));
        let low23 = on_registers!(_mm512_unpacklo_epi32(p2, p3));
        let high01 = on_registers!(_mm512_unpackhi_epi32(p0, p1));
        let high23 = on_registers!(_mm512_unpackhi_epi32(p2, p3));
        [
            on_registers!(_mm512_unpacklo_epi64(low01, low23)),
            on_registers!(_mm512_unpackhi_epi64(low01, low23)),
            on_registers!(_mm512_unpacklo_epi64(high01, high23)),
            on_registers!(_mm512_unpackhi_epi64(high01, high23)),
        ]
    }
    #[inline(always)]
    fn dwords(self, rows: &Rows<'_>, at: usize) -> __m512i {
        let (start, stride) = (rows.pointer(at, 4, Self::ROWS), rows.stride());
        let dwords = on_registers!(_mm512_castsi128_si512(self.four_dwords(start, stride, 0)));
        let four = self.four_dwords(start, stride, 4);
        let dwords = on_registers!(_mm512_inserti32x4::<1>(dwords, four));
        let four = self.four_dwords(start, stride, 8);
        let dwords = on_registers!(_mm512_inserti32x4::<2>(dwords, four));
        let four = self.four_dwords(start, stride, 12);
        on_registers!(_mm512_inserti32x4::<3>(dwords, four))
    }
    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        // SAFETY: a prefetch may name any address, it never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }

    #[inline(always)]
    fn splat(self, value: u32) -> __m512i {
        on_registers!(_mm512_set1_epi32(value as i32))
    }
    #[inline(always)]
    fn and(self, a: __m512i, b: __m512i) -> __m512i {
        on_registers!(_mm512_and_si512(a, b))
    }
    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        on_registers!(_mm512_or_si512(a, b))
    }
    #[inline(always)]
    fn xor(self, a: __m512i, b: __m512i) -> __m512i {
        on_registers!(_mm512_xor_si512(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512i, b: __m512i) -> __m512i {
        on_registers!(_mm512_sub_epi32(a, b))
    }
    #[inline(always)]
    fn max(self, a: __m512i, b: __m512i) -> __m512i {
        on_registers!(_mm512_max_epi32(a, b))
    }
    #[inline(always)]
    fn shl(self, a: __m512i, bits: u32) -> __m512i {
        let bits = on_registers!(_mm_cvtsi32_si128(bits as i32));
        on_registers!(_mm512_sll_epi32(a, bits))
    }
    #[inline(always)]
    fn shr(self, a: __m512i, bits: u32) -> __m512i {
        let bits = on_registers!(_mm_cvtsi32_si128(bits as i32));
        on_registers!(_mm512_srl_epi32(a, bits))
    }
    #[inline(always)]
    fn sar(self, a: __m512i, bits: u32) -> __m512i {
        let bits = on_registers!(_mm_cvtsi32_si128(bits as i32));
        on_registers!(_mm512_sra_epi32(a, bits))
    }
    #[inline(always)]
    fn lookup(self, table: &[u8; 16], index: __m512i) -> __m512i {
        // SAFETY: the table is 16 bytes.
        let table = unsafe { _mm_loadu_si128(table.as_ptr().cast()) };
        let table = on_registers!(_mm512_broadcast_i32x4(table));
        on_registers!(_mm512_shuffle_epi8(table, index))
    }
    #[inline(always)]
    fn fifth_bits(self, bits: __m512i, j: u32) -> __m512i {
        // SAFETY: the table is 64 bytes.
        let table = unsafe { _mm512_loadu_si512(SPREAD.as_ptr().cast()) };
        // The permutation looks at the low four bits of its index only.
        on_registers!(_mm512_permutexvar_epi32(self.shr(bits, 4 * j), table))
    }

    #[inline(always)]
    fn unbias(self, neg_sum: i32, bias: u32) -> __m512i {
        let neg_sum = on_registers!(_mm512_set1_epi32(neg_sum));
        on_registers!(_mm512_mullo_epi32(neg_sum, self.splat(bias)))
    }
    #[inline(always)]
    fn dot4(self, acc: __m512i, w: [__m512i; 4], a: [i32; 4], _max: u32) -> __m512i {
        let mut acc = acc;
        for j in 0..4 {
            let a = on_registers!(_mm512_set1_epi32(a[j]));
            acc = on_registers!(_mm512_dpbusd_epi32(acc, w[j], a));
        }
        acc
    }

    #[inline(always)]
    fn to_float(self, a: __m512i) -> __m512 {
        on_registers!(_mm512_cvtepi32_ps(a))
    }
    #[inline(always)]
    fn as_float(self, a: __m512i) -> __m512 {
        on_registers!(_mm512_castsi512_ps(a))
    }
    #[inline(always)]
    fn f16(self, a: __m512i) -> __m512 {
        let halves = on_registers!(_mm512_cvtepi32_epi16(a));
        on_registers!(_mm512_cvtph_ps(halves))
    }
    #[inline(always)]
    fn splat_float(self, value: f32) -> __m512 {
        on_registers!(_mm512_set1_ps(value))
    }
    #[inline(always)]
    fn add_float(self, a: __m512, b: __m512) -> __m512 {
        on_registers!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        on_registers!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        on_registers!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn largest(self, x: &[f32; 32]) -> u32 {
        self.0.largest(x)
    }
    #[inline(always)]
    fn round(self, x: &[f32; 32], factor: f32) -> ([i8; 32], [i32; 2]) {
        self.0.round(x, factor)
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m512 {
        let from = &from[..Self::ROWS];
        // SAFETY: the slice has 16 floats.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, a: __m512, to: &mut [f32]) {
        let to = &mut to[..Self::ROWS];
        // SAFETY: the slice has 16 floats.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), a) }
    }
}
