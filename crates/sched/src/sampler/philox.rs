//! Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy
//! as 1, 2, 3" (SC'11).
//!
//! A counter-based generator has no state to carry: the number for a position is a function of
//! (seed, position) alone. A row of a batch, a resumed session and a GPU thread all get the same
//! number without agreeing on an order of calls.

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// Key increments: the golden ratio and sqrt(3) - 1 as 32-bit fractions.
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// The third counter word says what a number is for, so that later uses (accepting a draft token,
/// for one) can have numbers of their own at the same position.
const STREAM_TOKEN: u32 = 0;

/// One block: four 32-bit words for a 128-bit counter and a 64-bit key.
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let mut c = counter;
    let mut k = key;
    for round in 0..ROUNDS {
        if round > 0 {
            k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
        }
        let a = u64::from(MULTIPLIER[0]) * u64::from(c[0]);
        let b = u64::from(MULTIPLIER[1]) * u64::from(c[2]);
        c = [(b >> 32) as u32 ^ c[1] ^ k[0], b as u32, (a >> 32) as u32 ^ c[3] ^ k[1], a as u32];
    }
    c
}

/// A uniform number in `[0, 1)` with 53 random bits, for drawing the token at `position`.
///
/// Key: the seed, low word first. Counter: the position, low word first, then the stream, then 0.
/// The first output word gives the high bits.
pub fn uniform(seed: u64, position: u64) -> f64 {
    let counter = [position as u32, (position >> 32) as u32, STREAM_TOKEN, 0];
    let words = philox4x32(counter, [seed as u32, (seed >> 32) as u32]);
    let bits = (u64::from(words[0]) << 32) | u64::from(words[1]);
    (bits >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known-answer vectors published with the Random123 library.
    #[test]
    fn matches_the_published_vectors() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox4x32(counter, key), expected);
        }
    }

    #[test]
    fn uniform_numbers_stay_in_range_and_fill_it() {
        let mut buckets = [0u32; 16];
        for position in 0..16_000 {
            let u = uniform(42, position);
            assert!((0.0..1.0).contains(&u));
            buckets[(u * 16.0) as usize] += 1;
        }
        assert!(buckets.iter().all(|&n| (850..1150).contains(&n)), "{buckets:?}");
    }

    #[test]
    fn seed_and_position_both_matter_in_all_their_bits() {
        let base = uniform(1, 1);
        for bit in 0..64 {
            assert_ne!(base.to_bits(), uniform(1 ^ (1 << bit), 1).to_bits());
            assert_ne!(base.to_bits(), uniform(1, 1 ^ (1 << bit)).to_bits());
        }
    }
}
