//! f16 as bits.

/// The nearest f16, the even one of two.
pub(crate) fn half(x: f32) -> u16 {
    let bits = x.to_bits();
    let (sign, magnitude) = ((bits >> 16 & 0x8000) as u16, bits & 0x7fff_ffff);
    if magnitude >= 0x4780_0000 {
        // Infinite, or no number.
        return sign | if magnitude > 0x7f80_0000 { 0x7e00 } else { 0x7c00 };
    }
    if magnitude < 0x3880_0000 {
        // Subnormal: the sum's last bit is worth 2^-24.
        let sum = f32::from_bits(magnitude) + 0.5;
        return sign | (sum.to_bits() - 0.5f32.to_bits()) as u16;
    }
    let rounded = magnitude + 0xfff + (magnitude >> 13 & 1) - (112 << 23);
    sign | (rounded >> 13) as u16
}

pub(crate) fn from_half(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff);
    if magnitude >= 0x7c00 {
        return f32::from_bits(sign | 0x7f80_0000 | (magnitude & 0x3ff) << 13);
    }
    // The exponents' biases differ by 112.
    let scaled = f32::from_bits(magnitude << 13) * f32::from_bits((127 + 112) << 23);
    f32::from_bits(sign | scaled.to_bits())
}

#[test]
fn halves_are_the_nearest() {
    for bits in 0..0x7c00u16 {
        let x = from_half(bits);
        assert_eq!(half(x), bits);
        assert_eq!(half(-x), bits | 0x8000);
        // Halfway to the next one, and a little to both sides.
        let next = from_half(bits + 1);
        if next.is_finite() {
            let middle = x + (next - x) / 2.0;
            assert_eq!(half(middle), bits + (bits & 1));
            assert_eq!(half(f32::from_bits(middle.to_bits() - 1)), bits);
            assert_eq!(half(f32::from_bits(middle.to_bits() + 1)), bits + 1);
        }
    }
    assert_eq!((half(65504.0), half(65520.0), half(1e9)), (0x7bff, 0x7c00, 0x7c00));
    assert!(from_half(half(f32::NAN)).is_nan());
}
