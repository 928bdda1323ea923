//! The KV cache: pages of sequences, and appending to them.

use m40_program::KvType;
use m40_testkit::gguf::Noise;

use crate::emulator::{Launch, run};
use crate::heads::{Treatment, treatments};
use crate::{Row, from_halves, halves, row_words, spread};

pub(crate) const PAGE_TOKENS: usize = 32;
/// A page that no sequence has.
const NO_PAGE: u32 = u32::MAX;
/// What lies where nothing was stored: no number, as f16 and as a scale.
const NOTHING: u8 = 0xff;

/// Page tables of some sequences, and the cache of one layer.
pub(crate) struct Cache {
    pub(crate) kv_heads: usize,
    pub(crate) key_dim: usize,
    pub(crate) value_dim: usize,
    /// In units of 16 bytes; the layer's pages may lie further apart than they are long.
    pub(crate) page_places: usize,
    pub(crate) bytes: Vec<u8>,
    kv: KvType,
    /// Where page tables are, as words; no table is at place 0.
    pub(crate) arena: Vec<u32>,
    tables: Vec<Vec<u32>>,
}

impl Cache {
    /// With pages for sequences of so many tokens, in no order; `first` tokens of each were given
    /// up, and the pages that held only those.
    pub(crate) fn new(
        noise: &mut Noise,
        kv: KvType,
        (kv_heads, key_dim, value_dim): (usize, usize, usize),
        sequences: &[(usize, usize)],
    ) -> Self {
        let of_token = kv.head_bytes(key_dim) + kv.head_bytes(value_dim);
        let page_places = kv_heads * of_token * PAGE_TOKENS / 16 + 2;
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
            bytes: vec![NOTHING; pages * page_places * 16],
            kv,
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

    /// The first byte of a token's page.
    fn page(&self, sequence: usize, position: usize) -> usize {
        self.tables[sequence][position / PAGE_TOKENS] as usize * self.page_places * 16
    }

    /// Where an element of a token's key is in its page, counted in elements.
    fn key_element(&self, position: usize, head: usize, d: usize) -> usize {
        let tile = head * self.key_dim / 8 + d / 8;
        (tile * PAGE_TOKENS + position % PAGE_TOKENS) * 8 + d % 8
    }

    /// The same of a value.
    fn value_element(&self, position: usize, head: usize, d: usize) -> usize {
        let token = head * PAGE_TOKENS + position % PAGE_TOKENS;
        self.kv_heads * self.key_dim * PAGE_TOKENS + token * self.value_dim + d
    }

    /// Where an element of a token's key is in a cache of f16, counted in elements.
    pub(crate) fn key(&self, sequence: usize, position: usize, head: usize, d: usize) -> usize {
        self.page(sequence, position) / 2 + self.key_element(position, head, d)
    }

    /// The same of a value.
    pub(crate) fn value(&self, sequence: usize, position: usize, head: usize, d: usize) -> usize {
        self.page(sequence, position) / 2 + self.value_element(position, head, d)
    }

    /// Where a scale of int8 is in a token's page, of a head of keys, then of values, in bytes.
    fn scale(&self, position: usize, head: usize) -> usize {
        let elements = self.kv_heads * (self.key_dim + self.value_dim) * PAGE_TOKENS;
        elements + (head * PAGE_TOKENS + position % PAGE_TOKENS) * 4
    }

    /// Elements and scale of a token's key or value.
    fn places(
        &self,
        value: bool,
        sequence: usize,
        position: usize,
        head: usize,
    ) -> (usize, Vec<usize>, usize) {
        let scale = self.scale(position, if value { self.kv_heads + head } else { head });
        let elements = if value {
            (0..self.value_dim).map(|d| self.value_element(position, head, d)).collect()
        } else {
            (0..self.key_dim).map(|d| self.key_element(position, head, d)).collect()
        };
        (self.page(sequence, position), elements, scale)
    }

    /// Stores a token's key, or value, of a head.
    pub(crate) fn put(&mut self, value: bool, at: (usize, usize), head: usize, numbers: &[f32]) {
        let (page, elements, scale) = self.places(value, at.0, at.1, head);
        match self.kv {
            KvType::F16 => {
                for (at, bits) in elements.into_iter().zip(halves(numbers)) {
                    self.bytes[page + 2 * at..][..2].copy_from_slice(&bits.to_le_bytes());
                }
            }
            KvType::Int8 => {
                let largest = numbers.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
                let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
                for (at, x) in elements.into_iter().zip(numbers) {
                    self.bytes[page + at] = ((x * inverse).round_ties_even() as i32 + 128) as u8;
                }
                let bytes = (largest * (1.0 / 127.0)).to_le_bytes();
                self.bytes[page + scale..][..4].copy_from_slice(&bytes);
            }
        }
    }

    /// A token's key, or value, of a head.
    pub(crate) fn get(&self, value: bool, at: (usize, usize), head: usize) -> Vec<f32> {
        let (page, elements, scale) = self.places(value, at.0, at.1, head);
        let bytes = &self.bytes[page..];
        match self.kv {
            KvType::F16 => {
                let bits = |at: usize| u16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]]);
                from_halves(&elements.into_iter().map(bits).collect::<Vec<_>>())
            }
            KvType::Int8 => {
                let scale = bytes[scale..scale + 4].try_into().expect("4 bytes");
                let scale = f32::from_le_bytes(scale);
                elements.into_iter().map(|at| (f32::from(bytes[at]) - 128.0) * scale).collect()
            }
        }
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
        let dims = (kv_heads, key_dim, value_dim);
        let cache = Cache::new(&mut noise, KvType::F16, dims, &[(0, 40), (64, 100)]);
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
                .write(&cache.bytes)
                .number(cache.page_places),
        );
        expected.push(stored(cache, &rows, &treatment, &k, &v, &angles));
    }
    let Some(outputs) = run("append", &launches) else { return };
    for (output, (treatment, expected)) in outputs.iter().zip(expected) {
        let [found, expected] = [&output[0], &expected].map(|bytes| -> Vec<u16> {
            bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect()
        });
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
) -> (Treatment, Vec<u8>) {
    let (kv_heads, key_dim, value_dim) = (cache.kv_heads, cache.key_dim, cache.value_dim);
    for (i, &row) in rows.iter().enumerate() {
        for head in 0..kv_heads {
            let key = &k[(i * kv_heads + head) * key_dim..][..key_dim];
            let key = treatment.apply(key, &angles[2 * i * treatment.pairs..]);
            let key: Vec<f32> = key.into_iter().map(|v| v as f32).collect();
            cache.put(false, row, head, &key);
            cache.put(true, row, head, &v[(i * kv_heads + head) * value_dim..][..value_dim]);
        }
    }
    (treatment.clone(), cache.bytes)
}

/// A launch that stores rows in a cache of int8.
fn appending(cache: &Cache, rows: &[(usize, usize)], k: &[f32], v: &[f32], threads: u32) -> Launch {
    let (k_width, v_width) = (cache.kv_heads * cache.key_dim, cache.kv_heads * cache.value_dim);
    let descriptors: Vec<Row> = rows.iter().map(|&(s, p)| cache.row(s, p)).collect();
    let grid = (rows.len() * 2 * cache.kv_heads).div_ceil(threads as usize / 32);
    Launch::new("rows_kv_append_int8", grid, threads, 0)
        .read_words(&cache.arena)
        .read_words(&row_words(&descriptors))
        .number(rows.len())
        .read_floats(&spread(k, k_width, k_width + 3))
        .number(k_width + 3)
        .read_floats(&spread(v, v_width, v_width + 1))
        .number(v_width + 1)
        .number(cache.kv_heads)
        .number(cache.key_dim)
        .number(cache.value_dim)
        .write(&cache.bytes)
        .number(cache.page_places)
}

#[test]
fn appending_int8_stores_integers_and_scales_and_nothing_else() {
    let mut noise = Noise::new(22);
    let mut launches = vec![];
    let mut expected = vec![];
    let dims = [(1, 8, 8), (3, 64, 40), (2, 128, 128), (1, 24, 520), (8, 80, 16)];
    for (i, (kv_heads, key_dim, value_dim)) in dims.into_iter().enumerate() {
        let sequences = [(0, 40), (64, 100)];
        let mut cache =
            Cache::new(&mut noise, KvType::Int8, (kv_heads, key_dim, value_dim), &sequences);
        let rows = [(1, 95), (0, 0), (1, 96), (0, 39), (0, 31)];
        let (k_width, v_width) = (kv_heads * key_dim, kv_heads * value_dim);
        let mut k = noise.normals(rows.len() * k_width, 1e-3);
        let mut v = noise.normals(rows.len() * v_width, 100.0);
        k[..8].copy_from_slice(&AWKWARD[..8]);
        // Ties, and a head of zeros.
        v[..8].copy_from_slice(&[127.0, 0.5, 1.5, -0.5, -126.5, 63.49999, -2.5, -0.0]);
        v[v_width..v_width + value_dim].fill(0.0);
        launches.push(appending(&cache, &rows, &k, &v, [32, 128, 256][i % 3]));
        for (i, &row) in rows.iter().enumerate() {
            for head in 0..kv_heads {
                cache.put(false, row, head, &k[i * k_width + head * key_dim..][..key_dim]);
                cache.put(true, row, head, &v[i * v_width + head * value_dim..][..value_dim]);
            }
        }
        expected.push(cache.bytes);
    }
    let Some(outputs) = run("append-int8", &launches) else { return };
    for ((output, expected), dims) in outputs.iter().zip(expected).zip(dims) {
        let differs = output[0].iter().zip(&expected).position(|(found, want)| found != want);
        assert_eq!(differs, None, "{dims:?}");
    }
}

#[test]
fn what_is_no_number_makes_a_head_of_int8_no_numbers() {
    let mut noise = Noise::new(23);
    let mut cache = Cache::new(&mut noise, KvType::Int8, (4, 40, 8), &[(0, 7)]);
    let mut k = noise.normals(4 * 40, 1.0);
    (k[3], k[40 + 39], k[80]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
    let launch = appending(&cache, &[(0, 6)], &k, &noise.normals(4 * 8, 1.0), 64);
    let Some(outputs) = run("append-no-number", &[launch]) else { return };
    cache.bytes.copy_from_slice(&outputs[0][0]);
    for (head, finite) in [false, false, false, true].into_iter().enumerate() {
        let key = cache.get(false, (0, 6), head);
        assert!(key.iter().all(|x| if finite { x.is_finite() } else { x.is_nan() }), "{key:?}");
    }
}
