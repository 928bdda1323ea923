//! Every type's planes hold exactly what its blocks hold, in as many bytes.

use m40_gguf::{TensorType, dequantize};
use m40_repack::{Layout, RepackError, Role, is_supported, repack, unpack};
use m40_testkit::gguf::{Noise, quantize};

const TYPES: [TensorType; 16] = [
    TensorType::F32,
    TensorType::F16,
    TensorType::BF16,
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::Q8_0,
    TensorType::Q2K,
    TensorType::Q3K,
    TensorType::Q4K,
    TensorType::Q5K,
    TensorType::Q6K,
    TensorType::IQ4NL,
    TensorType::IQ4XS,
    TensorType::MXFP4,
];

fn row_bytes(ty: TensorType, cols: usize) -> usize {
    ty.row_bytes(cols).expect("rows are whole blocks")
}

/// Blocks of any bytes: every value of every field, infinite and undefined scales too.
fn any_blocks(ty: TensorType, rows: usize, cols: usize) -> Vec<u8> {
    let mut noise = Noise::new((rows * cols) as u64);
    (0..rows * row_bytes(ty, cols)).map(|_| noise.bits() as u8).collect()
}

fn planes_of(layout: &Layout, blocks: &[u8]) -> Vec<u8> {
    // Not zeros, so that a byte left unwritten shows.
    let mut planes = vec![0xa5; layout.bytes()];
    repack(layout, blocks, &mut planes).expect("the lengths agree");
    planes
}

#[track_caller]
fn assert_survives(ty: TensorType, rows: usize, cols: usize, blocks: &[u8]) {
    let layout = Layout::of(ty, rows, cols).expect("the type has a layout");
    let mut expected = vec![0.0; rows * cols];
    dequantize(ty, blocks, &mut expected).expect("the lengths agree");
    let weights = unpack(&layout, &planes_of(&layout, blocks)).expect("the lengths agree");
    assert_eq!(weights.len(), expected.len(), "{ty} {rows}x{cols}");
    for (i, (got, want)) in weights.iter().zip(&expected).enumerate() {
        assert_eq!(got.to_bits(), want.to_bits(), "{ty} {rows}x{cols}, weight {i}: {got} {want}");
    }
}

#[test]
fn every_weight_survives_bit_for_bit() {
    for ty in TYPES {
        for rows in [1, 2, 3, 4, 5, 8, 33] {
            for blocks_per_row in [1, 2, 3, 7] {
                let cols = blocks_per_row * ty.block_len().max(32);
                assert_survives(ty, rows, cols, &any_blocks(ty, rows, cols));
                let weights = Noise::new(cols as u64).normals(rows * cols, 0.3);
                assert_survives(ty, rows, cols, &quantize(ty, &weights));
            }
        }
    }
}

#[test]
fn rows_of_plain_numbers_need_not_be_whole_groups() {
    for ty in [TensorType::F32, TensorType::F16, TensorType::BF16] {
        for cols in [1, 7, 31, 33, 100] {
            assert_survives(ty, 3, cols, &any_blocks(ty, 3, cols));
        }
    }
}

#[test]
fn planes_take_two_percent_more_than_blocks_at_most() {
    for ty in TYPES {
        for (rows, cols) in [(576_usize, 1536), (1024, 256), (4096, 14336), (3, 1 << 16)] {
            let blocks = rows.next_multiple_of(4) * ty.row_bytes(cols).unwrap();
            let bytes = Layout::of(ty, rows, cols).unwrap().bytes();
            assert!(bytes >= blocks && bytes as f64 <= blocks as f64 * 1.02, "{ty} {rows}x{cols}");
        }
    }
}

#[test]
fn stripes_give_the_same_planes_as_one_pass() {
    for ty in TYPES {
        let (rows, cols) = (23, 512);
        let layout = Layout::of(ty, rows, cols).unwrap();
        let blocks = any_blocks(ty, rows, cols);
        let row_bytes = ty.row_bytes(cols).unwrap();
        let whole = planes_of(&layout, &blocks);
        for rows_per_stripe in [0, 1, 4, 7, 8, 23, 100] {
            let mut planes = vec![0x5a; layout.bytes()];
            for stripe in layout.stripes(&mut planes, rows_per_stripe).unwrap() {
                let rows = stripe.rows();
                stripe.fill(&blocks[rows.start * row_bytes..rows.end * row_bytes]).unwrap();
            }
            assert!(planes == whole, "{ty} in stripes of {rows_per_stripe} rows");
        }
    }
}

#[test]
fn a_slab_of_rows_is_a_matrix_that_lies_within_each_plane() {
    for ty in TYPES {
        let (rows, cols) = (24, 512);
        let layout = Layout::of(ty, rows, cols).unwrap();
        let blocks = any_blocks(ty, rows, cols);
        let whole = planes_of(&layout, &blocks);
        let row_bytes = ty.row_bytes(cols).unwrap();
        let slab = Layout::of(ty, 8, cols).unwrap();
        let part = planes_of(&slab, &blocks[8 * row_bytes..16 * row_bytes]);
        for role in Role::ALL {
            let (to, from) = (layout.plane(role), slab.plane(role));
            let bytes = 2 * to.quad_bytes;
            assert_eq!(to.quad_bytes, from.quad_bytes);
            assert_eq!(
                &whole[to.offset + bytes..][..bytes],
                &part[from.offset..][..bytes],
                "{ty} {role:?}"
            );
        }
    }
}

#[test]
fn planes_are_aligned_and_disjoint() {
    for ty in TYPES {
        let layout = Layout::of(ty, 5, 768).unwrap();
        let mut end = 0;
        for role in Role::ALL {
            let plane = layout.plane(role);
            if plane.quad_bytes > 0 {
                assert!(plane.offset >= end && plane.offset.is_multiple_of(128), "{ty} {role:?}");
                end = plane.offset + plane.quad_bytes * layout.quads();
            }
        }
        assert_eq!(end, layout.bytes());
    }
}

#[test]
fn refuses_what_has_no_layout() {
    let refused = |ty, rows, cols| Layout::of(ty, rows, cols).unwrap_err();
    let q4_k = TensorType::Q4K;
    assert_eq!(
        refused(TensorType::IQ2XXS, 4, 256),
        RepackError::Unsupported { ty: TensorType::IQ2XXS }
    );
    assert!(!is_supported(TensorType::IQ2XXS) && TYPES.iter().all(|&ty| is_supported(ty)));
    assert_eq!(refused(q4_k, 4, 128), RepackError::PartialBlock { ty: q4_k, cols: 128 });
    assert_eq!(refused(q4_k, 0, 256), RepackError::Empty { rows: 0, cols: 256 });
    let (rows, cols) = (1 << 40, 1 << 30);
    assert_eq!(refused(q4_k, rows, cols), RepackError::TooLarge { ty: q4_k, rows, cols });
    assert_eq!(
        refused(q4_k, usize::MAX, 256),
        RepackError::TooLarge { ty: q4_k, rows: usize::MAX, cols: 256 }
    );
}

#[test]
fn refuses_memory_of_another_size() {
    let layout = Layout::of(TensorType::Q4_0, 5, 32).unwrap();
    let mut planes = vec![7; layout.bytes()];
    assert_eq!(
        repack(&layout, &[0; 89], &mut planes),
        Err(RepackError::BlockBytes { rows: 5, expected: 90, given: 89 })
    );
    assert!(planes.iter().all(|&byte| byte == 7), "nothing is written on an error");
    let short = RepackError::PlaneBytes { expected: layout.bytes(), given: layout.bytes() - 1 };
    planes.pop();
    assert_eq!(repack(&layout, &[0; 90], &mut planes), Err(short));
    assert_eq!(unpack(&layout, &planes), Err(short));
}

#[test]
fn rows_that_are_not_there_are_zeros() {
    for ty in TYPES {
        let cols = 3 * ty.block_len().max(32);
        for rows in [1, 2, 3, 5, 7] {
            let layout = Layout::of(ty, rows, cols).expect("the type has a layout");
            let planes = planes_of(&layout, &vec![0xff; rows * row_bytes(ty, cols)]);
            let plane_of = |role| {
                let plane = layout.plane(role);
                let rest = planes.get(plane.offset..).unwrap_or_default();
                &rest[..plane.quad_bytes * layout.quads()]
            };
            for role in [Role::Quants, Role::High] {
                let plane = plane_of(role);
                let (there, missing) = plane.split_at(plane.len() / 4 / layout.quads() * rows);
                assert!(missing.iter().all(|&byte| byte == 0), "{ty}, {rows} rows, {role:?}");
                assert!(there.is_empty() || there.iter().any(|&byte| byte != 0), "{ty}, {role:?}");
            }
            for role in [Role::Scales, Role::Supers] {
                let plane = plane_of(role);
                let zeros = plane.iter().filter(|&&byte| byte == 0).count();
                let missing = plane.len() / 4 / layout.quads() * (layout.quads() * 4 - rows);
                assert_eq!(zeros, missing, "{ty}, {rows} rows, {role:?}");
            }
        }
    }
}
