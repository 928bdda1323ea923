//! f32 vectors of 1, 8 or 16 lanes behind one trait, so that each elementwise or attention kernel
//! is written once and compiled for every instruction set.
//!
//! Every method is `#[inline(always)]`: called inside a function that enables the instruction set
//! (see [`dispatch!`]), it becomes the bare instruction.
#![expect(unsafe_code, reason = "vector loads and stores through raw pointers")]

use half::f16;

/// A vector of f32.
///
/// # Safety
/// Every method requires that the CPU has the implementing type's instruction set. `load*` and
/// `store` access [`Lanes::N`] elements from their pointer, which needs no alignment.
pub(crate) unsafe trait Lanes: Copy {
    /// Elements of a vector.
    const N: usize;
    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn load_f16(from: *const f16) -> Self;
    unsafe fn load_i8(from: *const i8) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn add(self, b: Self) -> Self;
    unsafe fn sub(self, b: Self) -> Self;
    unsafe fn mul(self, b: Self) -> Self;
    unsafe fn div(self, b: Self) -> Self;
    /// `self * b + c`, rounded once.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    unsafe fn min(self, b: Self) -> Self;
    unsafe fn max(self, b: Self) -> Self;
    /// To the nearest whole number, ties to even.
    unsafe fn round(self) -> Self;
    /// `self * 2^n` for whole `n` in -126..=127.
    unsafe fn scale(self, n: Self) -> Self;
    unsafe fn sum(self) -> f32;
    unsafe fn maximum(self) -> f32;
}

// SAFETY: plain arithmetic; pointers are used as the trait says.
unsafe impl Lanes for f32 {
    const N: usize = 1;
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        x
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller gives one readable element.
        unsafe { from.read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        // SAFETY: the caller gives one readable element.
        unsafe { from.read_unaligned() }.to_f32()
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: the caller gives one readable element.
        f32::from(unsafe { from.read() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller gives one writable element.
        unsafe { to.write_unaligned(self) }
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        self + b
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        self - b
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        self * b
    }
    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        self / b
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        self.mul_add(b, c)
    }
    #[inline(always)]
    unsafe fn min(self, b: Self) -> Self {
        f32::min(self, b)
    }
    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        f32::max(self, b)
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        self.round_ties_even()
    }
    #[inline(always)]
    unsafe fn scale(self, n: Self) -> Self {
        self * f32::from_bits(((n as i32 + 127) as u32) << 23)
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        self
    }
    #[inline(always)]
    unsafe fn maximum(self) -> f32 {
        self
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86 {
    //! AVX2 and AVX-512 vectors.
    #![expect(clippy::multiple_unsafe_ops_per_block, reason = "one vector operation per method")]

    use std::arch::x86_64::*;

    use half::f16;

    use super::Lanes;

    /// 8 lanes; needs AVX2, FMA and F16C.
    #[derive(Clone, Copy)]
    pub(crate) struct F32x8(__m256);

    /// 16 lanes; needs AVX-512F and AVX-512DQ.
    #[derive(Clone, Copy)]
    pub(crate) struct F32x16(__m512);

    macro_rules! lanes {
        ($name:ident, $n:literal, $splat:ident, $load:ident, $store:ident, $add:ident, $sub:ident,
         $mul:ident, $div:ident, $fma:ident, $min:ident, $max:ident,
         load_f16 = |$from:ident| $load_f16:expr,
         load_i8 = |$bytes:ident| $load_i8:expr,
         round = |$r:ident| $round:expr, scale = |$s:ident, $e:ident| $scale:expr,
         sum = |$a:ident| $sum:expr, maximum = |$m:ident| $maximum:expr) => {
            // SAFETY: each method is one or a few instructions of the set the type names; pointers
            // are used as the trait says, by unaligned instructions.
            unsafe impl Lanes for $name {
                const N: usize = $n;
                #[inline(always)]
                unsafe fn splat(x: f32) -> Self {
                    // SAFETY: the caller vouches for the instruction set.
                    Self(unsafe { $splat(x) })
                }
                #[inline(always)]
                unsafe fn load(from: *const f32) -> Self {
                    // SAFETY: as above, and for N readable elements.
                    Self(unsafe { $load(from) })
                }
                #[inline(always)]
                unsafe fn load_f16($from: *const f16) -> Self {
                    // SAFETY: as above, and for N readable elements.
                    Self(unsafe { $load_f16 })
                }
                #[inline(always)]
                unsafe fn load_i8($bytes: *const i8) -> Self {
                    // SAFETY: as above, and for N readable elements.
                    Self(unsafe { $load_i8 })
                }
                #[inline(always)]
                unsafe fn store(self, to: *mut f32) {
                    // SAFETY: as above, and for N writable elements.
                    unsafe { $store(to, self.0) }
                }
                #[inline(always)]
                unsafe fn add(self, b: Self) -> Self {
                    // SAFETY: the caller vouches for the instruction set.
                    Self(unsafe { $add(self.0, b.0) })
                }
                #[inline(always)]
                unsafe fn sub(self, b: Self) -> Self {
                    // SAFETY: the caller vouches for the instruction set.
                    Self(unsafe { $sub(self.0, b.0) })
                }
                #[inline(always)]
                unsafe fn mul(self, b: Self) -> Self {
                    // SAFETY: the caller vouches for the instruction set.
                    Self(unsafe { $mul(self.0, b.0) })
                }
                #[inline(always)]
                unsafe fn div(self, b: Self) -> Self {
                    // SAFETY: the caller vouches for the instruction set.
                    Self(unsafe { $div(self.0, b.0) })
                }
                #[inline(always)]
                unsafe fn fma(self, b: Self, c: Self) -> Self {
                    // SAFETY: the caller vouches for the instruction set.
                    Self(unsafe { $fma(self.0, b.0, c.0) })
                }
                #[inline(always)]
                unsafe fn min(self, b: Self) -> Self {
                    // SAFETY: the caller vouches for the instruction set.
                    Self(unsafe { $min(self.0, b.0) })
                }
                #[inline(always)]
                unsafe fn max(self, b: Self) -> Self {
                    // SAFETY: the caller vouches for the instruction set.
                    Self(unsafe { $max(self.0, b.0) })
                }
                #[inline(always)]
                unsafe fn round(self) -> Self {
                    let $r = self.0;
                    // SAFETY: the caller vouches for the instruction set.
                    Self(unsafe { $round })
                }
                #[inline(always)]
                unsafe fn scale(self, n: Self) -> Self {
                    let ($s, $e) = (self.0, n.0);
                    // SAFETY: the caller vouches for the instruction set.
                    Self(unsafe { $scale })
                }
                #[inline(always)]
                unsafe fn sum(self) -> f32 {
                    let $a = self.0;
                    // SAFETY: the caller vouches for the instruction set.
                    unsafe { $sum }
                }
                #[inline(always)]
                unsafe fn maximum(self) -> f32 {
                    let $m = self.0;
                    // SAFETY: the caller vouches for the instruction set.
                    unsafe { $maximum }
                }
            }
        };
    }

    #[inline(always)]
    unsafe fn fold(x: __m256, op: impl Fn(__m128, __m128) -> __m128) -> f32 {
        // SAFETY: the caller vouches for AVX2.
        unsafe {
            let half = op(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let quarter = op(half, _mm_movehl_ps(half, half));
            _mm_cvtss_f32(op(quarter, _mm_shuffle_ps::<1>(quarter, quarter)))
        }
    }

    lanes!(
        F32x8,
        8,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_add_ps,
        _mm256_sub_ps,
        _mm256_mul_ps,
        _mm256_div_ps,
        _mm256_fmadd_ps,
        _mm256_min_ps,
        _mm256_max_ps,
        load_f16 = |from| _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
        load_i8 = |from| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))),
        round = |x| _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x),
        scale = |x, n| {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
        },
        sum = |x| fold(x, |a, b| _mm_add_ps(a, b)),
        maximum = |x| fold(x, |a, b| _mm_max_ps(a, b))
    );

    lanes!(
        F32x16,
        16,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_add_ps,
        _mm512_sub_ps,
        _mm512_mul_ps,
        _mm512_div_ps,
        _mm512_fmadd_ps,
        _mm512_min_ps,
        _mm512_max_ps,
        load_f16 = |from| _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())),
        load_i8 = |from| _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))),
        round = |x| _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x),
        scale = |x, n| _mm512_scalef_ps(x, n),
        sum = |x| _mm512_reduce_add_ps(x),
        maximum = |x| _mm512_reduce_max_ps(x)
    );
}

/// Defines `pub(crate) fn name(isa, args)` that runs `kernel::<L>(args)` compiled for `isa`.
///
/// The kernel is an `unsafe fn` generic over [`Lanes`] whose only requirement is the CPU's
/// instruction set; everything else it must check itself.
macro_rules! dispatch {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $kernel:ident) => {
        $(#[$doc])*
        pub(crate) fn $name(isa: $crate::isa::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: this function's features are those the vector type needs.
                unsafe { $kernel::<$crate::simd::x86::F32x8>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c")]
            fn avx512($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: this function's features are those the vector type needs.
                unsafe { $kernel::<$crate::simd::x86::F32x16>($($arg),*) }
            }
            match isa {
                // SAFETY: an `Isa` other than `Scalar` exists only on a CPU that has its features.
                #[cfg(target_arch = "x86_64")]
                $crate::isa::Isa::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::isa::Isa::Avx512Vnni => unsafe { avx512($($arg),*) },
                // SAFETY: scalar lanes need no feature.
                _ => unsafe { $kernel::<f32>($($arg),*) },
            }
        }
    };
}
pub(crate) use dispatch;

/// `e^x`, within 2 units in the last place for -87..=88; flushes to 0 below and saturates above.
///
/// # Safety
/// The CPU must have `L`'s instruction set.
#[inline(always)]
#[expect(clippy::multiple_unsafe_ops_per_block, reason = "a chain of vector arithmetic")]
pub(crate) unsafe fn exp<L: Lanes>(x: L) -> L {
    // e^x = 2^n * e^r with n = round(x / ln 2), |r| <= ln 2 / 2; ln 2 is subtracted in two parts so
    // that r keeps all its bits. Coefficients: Taylor's, enough on so short an interval.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // SAFETY: the caller vouches for the instruction set; no pointer is used.
    unsafe {
        let x = x.max(L::splat(-87.0)).min(L::splat(88.0));
        let n = x.mul(L::splat(std::f32::consts::LOG2_E)).round();
        let r = n.fma(L::splat(-LN2_HIGH), x);
        let r = n.fma(L::splat(-LN2_LOW), r);
        let mut p = L::splat(1.0 / 5040.0);
        for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = p.fma(r, L::splat(c));
        }
        p.scale(n)
    }
}
