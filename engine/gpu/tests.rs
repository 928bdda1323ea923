//! Memory of a GPU, counted without one.

use std::path::Path;

use m40_gguf::Gguf;
use m40_program::{BuildOptions, Program, build};
use m40_testkit::gguf::TinyModel;

use super::*;
use crate::model::LoadError;

const CONTEXT: u32 = 128;
const MULTIPROCESSORS: u32 = 24;

fn program(architecture: &str) -> Program {
    let file = TinyModel::new(architecture).build();
    let gguf = Gguf::parse(file.as_slice()).unwrap();
    build(&gguf, BuildOptions { context: Some(CONTEXT), ..BuildOptions::default() }).unwrap()
}

/// What a tiny model takes, in an arena of which so much is free.
fn memory(context: u32, free: u64, capacity: u64) -> GpuMemory {
    let path = Path::new("tiny.gguf");
    let planned = card::plan(path, program("llama"), context, Decode::Graph, MULTIPROCESSORS);
    GpuMemory { free, capacity, ..planned.unwrap().1 }
}

#[test]
fn the_arena_leaves_a_reserve_unless_it_is_given_a_size() {
    let total = 24 << 30;
    let left = |free| card::budget(None, free, total).unwrap();
    assert_eq!(left(20 << 30), (20 << 30) - VRAM_RESERVE);
    assert_eq!(left((20 << 30) + 100), (20 << 30) - VRAM_RESERVE, "a whole number of units");
    assert_eq!(card::budget(None, 140 << 30, 141 << 30), Ok(64 << 30), "as far as kernels reach");
    assert_eq!(card::budget(Some(9 << 30), 20 << 30, total), Ok(9 << 30));
    assert_eq!(card::budget(Some(20 << 30), 20 << 30, total), Ok(20 << 30));
}

#[test]
fn a_budget_that_is_not_there_is_said_in_figures() {
    let error = card::budget(Some(20 << 30), 5 << 30, 24 << 30).unwrap_err().to_string();
    for part in ["20480 MiB", "5120 of 24576 MiB are free"] {
        assert!(error.contains(part), "{error:?} lacks {part:?}");
    }
    let error = card::budget(None, 300 << 20, 24 << 30).unwrap_err().to_string();
    for part in ["300 of the GPU's 24576 MiB are free", "512 are left", "nvidia-smi"] {
        assert!(error.contains(part), "{error:?} lacks {part:?}");
    }
}

#[test]
fn a_model_takes_its_weights_its_scratch_and_a_whole_context() {
    let [short, long] = [CONTEXT / 2, CONTEXT].map(|context| memory(context, 1 << 30, 1 << 30));
    assert_eq!(short.weights, long.weights);
    assert!(short.weights > 0 && short.scratch > 0);
    assert_eq!(long.kv, 2 * short.kv);
    // Two layers of two heads of 64 keys and values, 2 bytes each.
    assert_eq!(long.kv, u64::from(CONTEXT) * 2 * 2 * 128 * 2);
    assert!(long.fits());
    let exactly = GpuMemory { free: long.needed(), ..long };
    assert!(exactly.fits());
    assert!(!GpuMemory { free: long.needed() - 1, ..long }.fits());
}

#[test]
fn what_does_not_fit_says_what_would() {
    let needs = memory(CONTEXT, 0, 0);
    let fixed = needs.weights + needs.scratch;
    let with = |free, capacity| GpuMemory { free, capacity, ..needs };

    let all_but_a_token = with(needs.needed() - 1, 1 << 30);
    let fitting = CONTEXT - needs.step_tokens as u32;
    assert_eq!(all_but_a_token.context_in(all_but_a_token.free), Some(fitting));
    let text = all_but_a_token.to_string();
    let kv = format!("of KV cache for {CONTEXT} tokens");
    let would = format!("a context of {fitting} tokens would fit");
    for part in ["MiB of weights", &kv, "of 1024 MiB are free", &would] {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
    // What is said to fit does.
    let smaller = memory(fitting, all_but_a_token.free, all_but_a_token.capacity);
    assert!(smaller.fits());

    assert_eq!(with(fixed, 0).context_in(fixed), None);
    assert_eq!(with(fixed - 1, 0).context_in(fixed - 1), None);
    assert!(with(fixed, 1 << 30).to_string().ends_with(": unload other models"));
    let text = with(0, fixed + needs.kv_step).to_string();
    let some = format!("without other models a context of {} tokens", needs.step_tokens);
    assert!(text.contains(&some), "{text:?}");
    assert!(with(0, fixed).to_string().contains("no context would fit"));
    assert_eq!(needs.context_in(u64::MAX), Some(needs.context_trained), "never more than trained");
}

#[test]
fn a_model_that_does_not_fit_is_named_with_the_figures_in_one_line() {
    let memory = Box::new(memory(CONTEXT, 1000, 2000));
    let text = LoadError::NoRoom { path: "some.gguf".into(), memory }.to_string();
    assert!(text.starts_with("model some.gguf does not fit the GPU's memory: "), "{text:?}");
    assert!(!text.contains('\n') && !text.contains("  "), "{text:?}");
}

#[test]
fn only_a_lost_device_asks_for_a_restart() {
    let call = m40_cuda::Call::cuStreamSynchronize;
    let lost = CudaError::DeviceLost { call, code: 719, name: "LAUNCH_FAILED".into() };
    assert!(GpuError::from(lost).is_lost());
    assert!(!GpuError::from(CudaError::NoDriver).is_lost());
    assert!(!GpuError::NoKernels.is_lost() && GpuError::NoKernels.is_of_build());
    assert!(!GpuError::from(CudaError::NoDriver).is_of_build());
}
