//! SHA-256 of a file, and its *chain*: the state of the hash after each chunk of the file.
//!
//! A registry says one hash for forty gigabytes. The chain costs nothing beside computing it, and
//! says more: chunk `n` is as it was when it was hashed exactly when hashing it takes state `n - 1`
//! to state `n`. So a download goes on from the last chunk that is still right, and of a file that
//! went bad it is known where.

pub use m40_source::{Sha256, Sha256Error};
use sha2::block_api::compress256;

/// Bytes of a file between two states of its chain.
pub const CHUNK_BYTES: u64 = 4 << 20;

const BLOCK_BYTES: usize = 64;

/// FIPS 180-4, 5.3.3.
const START: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// The inner state of the hash at the end of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State([u32; 8]);

impl State {
    pub(crate) const BYTES: usize = 32;

    pub(crate) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        for (bytes, word) in bytes.chunks_exact_mut(4).zip(self.0) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }

    /// The state after one more whole chunk; `None` is the state before the first.
    pub(crate) fn after(before: Option<Self>, chunk: &[u8]) -> Self {
        let mut state = before.map_or(START, |state| state.0);
        let (blocks, _) = chunk.as_chunks();
        compress256(&mut state, blocks);
        Self(state)
    }

    pub(crate) fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let (words, _) = bytes.as_chunks();
        Self(std::array::from_fn(|index| u32::from_be_bytes(words[index])))
    }
}

/// Hashes bytes in their order, and keeps the states of the chain.
#[derive(Debug, Clone)]
pub(crate) struct Hasher {
    state: [u32; 8],
    // The bytes of a block that is not whole yet.
    rest: [u8; BLOCK_BYTES],
    length: u64,
    chain: Vec<State>,
}

impl Hasher {
    pub(crate) fn new() -> Self {
        Self { state: START, rest: [0; BLOCK_BYTES], length: 0, chain: Vec::new() }
    }

    /// Goes on after the chunks that end in these states.
    pub(crate) fn after(chain: &[State]) -> Self {
        let state = chain.last().map_or(START, |state| state.0);
        let length = chain.len() as u64 * CHUNK_BYTES;
        Self { state, rest: [0; BLOCK_BYTES], length, chain: chain.to_vec() }
    }

    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let left = CHUNK_BYTES - self.length % CHUNK_BYTES;
            let (now, later) = bytes.split_at(bytes.len().min(left as usize));
            self.absorb(now);
            if self.length.is_multiple_of(CHUNK_BYTES) {
                self.chain.push(State(self.state));
            }
            bytes = later;
        }
    }

    fn absorb(&mut self, mut bytes: &[u8]) {
        let begun = (self.length % BLOCK_BYTES as u64) as usize;
        self.length += bytes.len() as u64;
        if begun > 0 {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK_BYTES - begun));
            self.rest[begun..begun + now.len()].copy_from_slice(now);
            if begun + now.len() < BLOCK_BYTES {
                return;
            }
            compress256(&mut self.state, &[self.rest]);
            bytes = later;
        }
        let (blocks, rest) = bytes.as_chunks();
        compress256(&mut self.state, blocks);
        self.rest[..rest.len()].copy_from_slice(rest);
    }

    /// How many bytes were hashed.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// The states after each whole chunk so far.
    pub(crate) fn chain(&self) -> &[State] {
        &self.chain
    }

    /// The hash of all of it.
    pub(crate) fn finish(&self) -> Sha256 {
        let mut state = self.state;
        let used = (self.length % BLOCK_BYTES as u64) as usize;
        // FIPS 180-4, 5.1.1: a bit, zeros, and the length in bits.
        let mut last = [[0; BLOCK_BYTES]; 2];
        last[0][..used].copy_from_slice(&self.rest[..used]);
        last[0][used] = 0x80;
        let blocks = if used < BLOCK_BYTES - 8 { 1 } else { 2 };
        last[blocks - 1][BLOCK_BYTES - 8..].copy_from_slice(&(self.length * 8).to_be_bytes());
        compress256(&mut state, &last[..blocks]);
        Sha256::from(State(state).to_bytes())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sha2::Digest;

    use super::*;

    fn reference(bytes: &[u8]) -> Sha256 {
        Sha256::from(<[u8; 32]>::from(sha2::Sha256::digest(bytes)))
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(7);
        std::iter::repeat_with(|| random.u8(..)).take(length).collect()
    }

    proptest! {
        #[test]
        fn it_is_sha_256_however_the_bytes_come(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
            cuts in proptest::collection::vec(0usize..400, 0..6),
        ) {
            let mut hasher = Hasher::new();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            for pair in cuts.windows(2) {
                hasher.update(&bytes[pair[0]..pair[1]]);
            }
            prop_assert_eq!(hasher.finish(), reference(&bytes));
            prop_assert_eq!(hasher.length(), bytes.len() as u64);
        }
    }

    #[test]
    fn hashing_goes_on_from_any_state_of_the_chain() {
        let bytes = noise(2 * CHUNK_BYTES as usize + 1000);
        let mut whole = Hasher::new();
        whole.update(&bytes);
        assert_eq!(whole.chain().len(), 2);
        assert_eq!(whole.finish(), reference(&bytes));
        for known in 0..=2 {
            let mut rest = Hasher::after(&whole.chain()[..known]);
            rest.update(&bytes[known * CHUNK_BYTES as usize..]);
            assert_eq!(rest.finish(), whole.finish());
            assert_eq!(rest.chain(), whole.chain());
        }
        let state = whole.chain()[1];
        assert_eq!(State::from_bytes(&state.to_bytes()), state);
    }
}
