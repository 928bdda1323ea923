//! The structures of kernels/ops.cuh and desk.cuh as a C++ compiler lays them out, against the host's.

use std::fmt::Write as _;
use std::process::Command;

use m40_gguf::TensorType;
use m40_gpu::desk;
use m40_gpu::ops::{
    ANNOUNCE, AWAIT, AttentionOp, CHUNK_TOKENS, EmbedOp, End, Ending, MOST_STOPS, MatvecOp,
    NO_SLOT, Next, NormOp, OP_WORDS, Op, PAGE_TOKENS, PASS_ROWS, PASSES_AT_ONCE, POOL_FLOATS,
    RopeAngles, Row, SPLIT_HEADER, STEP_COLUMNS, SampleOp, kv_type, weight_type,
};
use m40_program::KvType;
use m40_testkit::emulation::compile;

fn structure(text: &mut String, name: &str, fields: &[(&str, usize)]) {
    let words: usize = fields.iter().map(|(_, words)| words).sum();
    writeln!(text, "struct {name} {}", 4 * words).unwrap();
    let mut offset = 0;
    for (field, words) in fields {
        writeln!(text, "{} {offset}", field.trim_start_matches("r#")).unwrap();
        offset += 4 * words;
    }
}

#[test]
fn the_host_writes_ops_as_kernels_read_them() {
    let Some(program) = compile("ops", env!("CARGO_TARGET_TMPDIR")).unwrap() else { return };
    let output = Command::new(program).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut expected = String::new();
    structure(&mut expected, "Row", Row::FIELDS);
    structure(&mut expected, "MatvecOp", MatvecOp::FIELDS);
    structure(&mut expected, "AttentionOp", AttentionOp::FIELDS);
    structure(&mut expected, "RopeAngles", RopeAngles::FIELDS);
    structure(&mut expected, "EmbedOp", EmbedOp::FIELDS);
    structure(&mut expected, "NormOp", NormOp::FIELDS);
    structure(&mut expected, "SampleOp", SampleOp::FIELDS);
    structure(&mut expected, "Next", Next::FIELDS);
    structure(&mut expected, "Ending", Ending::FIELDS);
    let ty = |ty| weight_type(ty).unwrap();
    let constants = [
        ("PageTokens", PAGE_TOKENS as u32),
        ("ChunkTokens", CHUNK_TOKENS as u32),
        ("PassRows", PASS_ROWS as u32),
        ("PassesAtOnce", PASSES_AT_ONCE as u32),
        ("OpWords", OP_WORDS as u32),
        ("MostStops", MOST_STOPS as u32),
        ("Pool", POOL_FLOATS as u32),
        ("StepGroups", STEP_COLUMNS as u32 / 32),
        ("SplitHeader", SPLIT_HEADER as u32),
        ("HalfKv", kv_type(KvType::F16)),
        ("Int8Kv", kv_type(KvType::Int8)),
        ("Await", AWAIT),
        ("Announce", ANNOUNCE),
        ("Nowhere", NO_SLOT),
        ("GoesOn", 0),
        ("NoToken", End::NoToken as u32),
        ("StopToken", End::StopToken as u32),
        ("LastToken", End::LastToken as u32),
        ("Cancelled", End::Cancelled as u32),
        ("Ended", End::Before as u32),
        ("Embed", Op::EMBED),
        ("Matvec", Op::MATVEC),
        ("Attention", Op::ATTENTION),
        ("Norm", Op::NORM),
        ("Sample", Op::SAMPLE),
        ("GatedMatvec", Op::GATED_MATVEC),
        ("F32", ty(TensorType::F32)),
        ("F16", ty(TensorType::F16)),
        ("BF16", ty(TensorType::BF16)),
        ("Q4_0", ty(TensorType::Q4_0)),
        ("Q4_1", ty(TensorType::Q4_1)),
        ("Q5_0", ty(TensorType::Q5_0)),
        ("Q5_1", ty(TensorType::Q5_1)),
        ("Q8_0", ty(TensorType::Q8_0)),
        ("Q2_K", ty(TensorType::Q2K)),
        ("Q3_K", ty(TensorType::Q3K)),
        ("Q4_K", ty(TensorType::Q4K)),
        ("Q5_K", ty(TensorType::Q5K)),
        ("Q6_K", ty(TensorType::Q6K)),
        ("IQ4_NL", ty(TensorType::IQ4NL)),
        ("IQ4_XS", ty(TensorType::IQ4XS)),
        ("MXFP4", ty(TensorType::MXFP4)),
        ("DeskPosted", desk::POSTED as u32),
        ("DeskYield", desk::YIELD as u32),
        ("DeskLeave", desk::LEAVE as u32),
        ("DeskIdle", desk::IDLE as u32),
        ("DeskJob", desk::JOB as u32),
        ("DeskRows", desk::ROWS as u32),
        ("DeskBeat", desk::BEAT as u32),
        ("DeskEnded", desk::ENDED as u32),
        ("DeskOutcome", desk::OUTCOME as u32),
        ("DeskRan", desk::RAN as u32),
        ("DeskTaken", desk::TAKEN as u32),
        ("DeskLeft", desk::LEFT as u32),
        ("DeskRing", desk::RING as u32),
        ("Corrupt", desk::CORRUPT),
        ("Stuck", desk::STUCK),
    ];
    for (name, value) in constants {
        writeln!(expected, "constant k{name} {value}").unwrap();
    }
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
}

#[test]
fn every_type_with_planes_has_a_number() {
    for ty in TensorType::ALL {
        assert_eq!(weight_type(*ty).is_some(), m40_repack::is_supported(*ty), "{ty}");
    }
}
