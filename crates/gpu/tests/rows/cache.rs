//! The KV cache: pages of sequences, and appending to them.

use m40_testkit::gguf::Noise;

use crate::emulator::{Launch, run};
use crate::heads::{Treatment, treatments};
use crate::{Row, from_halves, halves, row_words, spread};

pub(crate) const PAGE_TOKENS: usize = 32;
/// A page that no sequence has.
const NO_PAGE: u32 = u32::MAX;
/// NaN: what lies where nothing was stored.
const NOTHING: u16 = 0x7e00;

/// Page tables of some sequences, and the cache of one layer.
pub(crate) struct Cache {
    pub(crate) kv_heads: usize,
    pub(crate) key_dim: usize,
    pub(crate) value_dim: usize,
    /// In units of 16 bytes; the layer's pages may lie further apart than they are long.
    pub(crate) page_places: usize,
    pub(crate) halves: Vec<u16>,
    /// Where page tables are, as words; no table is at place 0.
    pub(crate) arena: Vec<u32>,
    tables: Vec<Vec<u32>>,
}

impl Cache {
    /// With pages for sequences of so many tokens, in no order; `first` tokens of each were given
    /// up, and the pages that held only those.
    pub(crate) fn new(
        noise: &mut Noise,
        (kv_heads, key_dim, value_dim): (usize, usize, usize),
        sequences: &[(usize, usize)],
    ) -> Self {
        let page_places = kv_heads * (key_dim + value_dim) * PAGE_TOKENS / 8 + 2;
        let counts: Vec<usize> =
            sequences.iter().map(|(_, tokens)| tokens.div_ceil(PAGE_TOKENS)).collect();
        let pages: usize = counts.iter().sum::<usize>() + 2;
        let mut free: Vec<u32> = (0..pages as u32).collect();
        let mut arena = vec![NO_PAGE; 4];
        let mut tables = vec![];
        for (&(first, _), count) in sequences.iter().zip(counts) {
            let mut table = vec![NO_PAGE; count];
            for page in &mut table[first / PAGE_TOKENS..] {
                *page = free.swap_remove(noise.below(free.len()));
            }
            arena.extend(&table);
            arena.resize(arena.len().next_multiple_of(4), NO_PAGE);
            tables.push(table);
        }
        Self {
            kv_heads,
            key_dim,
            value_dim,
            page_places,
            halves: vec![NOTHING; pages * page_places * 8],
            arena,
            tables,
        }
    }

    /// The place of a sequence's page table.
    pub(crate) fn table(&self, sequence: usize) -> u32 {
        let before = self.tables[..sequence].iter().map(|t| t.len().div_ceil(4));
        before.sum::<usize>() as u32 + 1
    }

    pub(crate) fn row(&self, sequence: usize, position: usize) -> Row {
        Row { token: 0, position: position as u32, pages: self.table(sequence) }
    }

    fn page(&self, sequence: usize, position: usize) -> usize {
        self.tables[sequence][position / PAGE_TOKENS] as usize * self.page_places * 8
    }

    /// Where an element of a key is.
    pub(crate) fn key(&self, sequence: usize, position: usize, head: usize, d: usize) -> usize {
        let tile = head * self.key_dim / 8 + d / 8;
        self.page(sequence, position) + (tile * PAGE_TOKENS + position % PAGE_TOKENS) * 8 + d % 8
    }

    /// Where an element of a value is.
    pub(crate) fn value(&self, sequence: usize, position: usize, head: usize, d: usize) -> usize {
        let token = self.kv_heads * self.key_dim * PAGE_TOKENS
            + (head * PAGE_TOKENS + position % PAGE_TOKENS) * self.value_dim;
        self.page(sequence, position) + token + d
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.halves.iter().flat_map(|v| v.to_le_bytes()).collect()
    }
}

/// Values that f16 must round: ties, subnormals, what is too large.
const AWKWARD: [f32; 10] =
    [1.000_488_3, 1.001_464_8, -2049.0, 65_519.9, 65_520.0, -1e9, 6.1e-5, 2.98e-8, 2.99e-8, -1e-8];

#[test]
fn appending_stores_rows_at_their_positions_and_nothing_else() {
    let mut noise = Noise::new(21);
    let mut launches = vec![];
    let mut expected = vec![];
    for (i, treatment) in treatments(&mut noise).into_iter().enumerate() {
        let (kv_heads, value_dim) = [(1, 8), (3, 64), (2, 24), (8, 16)][i % 4];
        let key_dim = treatment.dim;
        let cache = Cache::new(&mut noise, (kv_heads, key_dim, value_dim), &[(0, 40), (64, 100)]);
        let rows: Vec<(usize, usize)> = match i % 3 {
            0 => vec![(1, 99)],
            1 => (20..37).map(|p| (0, p)).chain((64..70).map(|p| (1, p))).collect(),
            _ => vec![(1, 95), (0, 0), (1, 96), (0, 39)],
        };
        let mut k = noise.normals(rows.len() * kv_heads * key_dim, 1.0);
        let mut v = noise.normals(rows.len() * kv_heads * value_dim, 1.0);
        for (x, size) in
            [(&mut k, AWKWARD.len().min(key_dim)), (&mut v, AWKWARD.len().min(value_dim))]
        {
            if treatment.ops == 0 {
                x[..size].copy_from_slice(&AWKWARD[..size]);
            }
        }
        let angles = treatment.angles(&mut noise, rows.len());
        let descriptors: Vec<Row> = rows.iter().map(|&(s, p)| cache.row(s, p)).collect();
        let threads = [32, 128, 256][i % 3];
        let warps = threads as usize / 32;
        launches.push(
            Launch::new("rows_kv_append", (rows.len() * 2 * kv_heads).div_ceil(warps), threads, 0)
                .read_words(&cache.arena)
                .read_words(&row_words(&descriptors))
                .number(rows.len())
                .read_floats(&spread(&k, kv_heads * key_dim, kv_heads * key_dim + 3))
                .number(kv_heads * key_dim + 3)
                .read_floats(&spread(&v, kv_heads * value_dim, kv_heads * value_dim + 1))
                .number(kv_heads * value_dim + 1)
                .number(kv_heads)
                .number(key_dim)
                .number(value_dim)
                .number(treatment.ops)
                .read_floats(&treatment.gain)
                .float(treatment.eps)
                .read_floats(&angles)
                .number(treatment.pairs)
                .write(&cache.bytes())
                .number(cache.page_places),
        );
        expected.push(stored(cache, &rows, &treatment, &k, &v, &angles));
    }
    let Some(outputs) = run("append", &launches) else { return };
    for (output, (treatment, expected)) in outputs.iter().zip(expected) {
        let found: Vec<u16> =
            output[0].as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect();
        let numbers = from_halves(&found).into_iter().zip(from_halves(&expected));
        for (i, (bits, (found, want))) in found.iter().zip(&expected).zip(numbers).enumerate() {
            // Norms and rotations end an f32's rounding from the exact number: a unit in the last
            // place of f16 apart at most, and bits are compared where nothing is computed.
            let near = treatment.ops != 0 && (found - want).abs() <= 1.0e-3 * want.abs() + 1e-7;
            assert!(bits.0 == bits.1 || near, "{treatment:?}: [{i}] is {found}, not {want}");
        }
    }
}

/// The cache with the rows stored.
fn stored(
    mut cache: Cache,
    rows: &[(usize, usize)],
    treatment: &Treatment,
    k: &[f32],
    v: &[f32],
    angles: &[f32],
) -> (Treatment, Vec<u16>) {
    let (kv_heads, key_dim, value_dim) = (cache.kv_heads, cache.key_dim, cache.value_dim);
    for (i, &(sequence, position)) in rows.iter().enumerate() {
        for head in 0..kv_heads {
            let key = &k[(i * kv_heads + head) * key_dim..][..key_dim];
            let key = treatment.apply(key, &angles[2 * i * treatment.pairs..]);
            let key: Vec<f32> = key.into_iter().map(|v| v as f32).collect();
            for (d, bits) in halves(&key).into_iter().enumerate() {
                let at = cache.key(sequence, position, head, d);
                cache.halves[at] = bits;
            }
            let value = &v[(i * kv_heads + head) * value_dim..][..value_dim];
            for (d, bits) in halves(value).into_iter().enumerate() {
                let at = cache.value(sequence, position, head, d);
                cache.halves[at] = bits;
            }
        }
    }
    (treatment.clone(), cache.halves)
}
