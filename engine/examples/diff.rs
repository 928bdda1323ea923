//! Runs a model's program twice over the same tokens, on two backends, and names the first op whose
//! output departs: `cargo run --release --example diff -- MODEL.gguf PROMPT --found gpu`.
//!
//! Tokens go through one by one, as when decoding. On a GPU each op is a launch of its own; what it
//! joins of the program's ops is compared where its results are.
#![expect(clippy::print_stdout, reason = "printing is what it is for")]

use std::error::Error;
use std::fs;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, ValueEnum};
use m40_cpu::{KvCache, Numerics, Row as CpuRow};
use m40_gguf::Gguf;
use m40_program::diff::{Comparison, Difference, Observer};
use m40_program::{BufferId, BuildOptions, Program, build};
use m40_tokenizer::Tokenizer;

type Failed = Box<dyn Error>;
type File = Arc<Gguf<Vec<u8>>>;

/// Compare two backends op by op. Exits with 1 if one departs, with 2 if they cannot be compared.
#[derive(Debug, Parser)]
struct Arguments {
    /// GGUF file
    model: PathBuf,
    /// Text whose tokens are fed
    prompt: String,
    /// What is right
    #[arg(long, value_enum, default_value = "oracle")]
    expected: Side,
    /// What is compared with it
    #[arg(long, value_enum, default_value = "simd")]
    found: Side,
    /// Mean relative difference from which on an op departs: 0.2 suits simd, 0.01 a GPU
    #[arg(long, value_name = "SHARE", default_value_t = 0.2)]
    limit: f64,
    /// End every pass after the op of this number
    #[arg(long, value_name = "OP")]
    stop_after: Option<usize>,
    /// End every pass after so many layers
    #[arg(long, value_name = "N")]
    layers: Option<usize>,
    /// Feed no more tokens than these
    #[arg(long, value_name = "N", default_value_t = 64)]
    tokens: usize,
    /// Print every op that was compared, with its worst token
    #[arg(long)]
    all: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Side {
    /// The CPU, each op as it is meant
    Oracle,
    /// The CPU's vector code
    Simd,
    /// The first GPU
    Gpu,
}

/// Something that runs a program a token at a time.
trait Run {
    fn pass(
        &mut self,
        token: u32,
        position: usize,
        observe: &mut Observer<'_>,
    ) -> Result<(), Failed>;
}

struct Cpu {
    executor: m40_cpu::Executor<Vec<u8>>,
    cache: KvCache,
}

impl Cpu {
    fn new(
        program: &Arc<Program>,
        file: &File,
        numerics: Numerics,
        tokens: usize,
    ) -> Result<Self, Failed> {
        let options = m40_cpu::ExecutorOptions { numerics, ..Default::default() };
        let executor = m40_cpu::Executor::new(Arc::clone(program), Arc::clone(file), options)?;
        Ok(Self { cache: executor.cache(tokens), executor })
    }
}

impl Run for Cpu {
    fn pass(
        &mut self,
        token: u32,
        position: usize,
        observe: &mut Observer<'_>,
    ) -> Result<(), Failed> {
        let row = CpuRow { token, position, cache: 0, segment: 0, logits: true };
        self.executor.forward_observed(&[row], &mut [&mut self.cache], observe);
        Ok(())
    }
}

#[cfg(feature = "cuda")]
mod gpu {
    use std::ops::ControlFlow;
    use std::sync::Arc;

    use m40_cuda::{Arena, Device};
    use m40_gpu::Sequence;
    use m40_gpu::executor::{Executor, ExecutorOptions, Launches, Plan, Row};
    use m40_gpu::weights::Loader;
    use m40_program::Program;
    use m40_program::diff::Observer;

    use super::{Failed, File, Run};

    /// Threads that bring weights to the card.
    const THREADS: usize = 4;

    /// Bytes of the arena for what lies between its parts.
    const SLACK: u64 = 1 << 20;

    pub(super) struct Gpu {
        executor: Executor,
        sequence: Sequence,
    }

    impl Gpu {
        pub(super) fn new(
            program: &Arc<Program>,
            file: &File,
            tokens: usize,
        ) -> Result<Self, Failed> {
            let image = m40llm::kernel_image().ok_or(m40llm::GpuError::NoKernels)?;
            let device = Device::open(0, image)?;
            let options = ExecutorOptions {
                context: tokens as u32,
                sequences: 1,
                launches: Launches::OpByOp,
            };
            let multiprocessors = device.info().multiprocessors;
            let plan = Plan::new(Arc::clone(program), options, multiprocessors)?;
            let kv = plan.kv_bytes(tokens);
            let arena = Arena::new(&device, plan.fixed_bytes()? + kv + SLACK)?;
            let mut loader = Loader::new(&device, THREADS)?;
            let on = &mut |_| ControlFlow::Continue(());
            let executor = Executor::load(
                plan,
                file,
                &arena,
                kv,
                &mut loader,
                &mut m40llm::kernel_builder(),
                on,
            )?;
            Ok(Self { sequence: executor.begin()?, executor })
        }
    }

    impl Run for Gpu {
        fn pass(
            &mut self,
            token: u32,
            position: usize,
            observe: &mut Observer<'_>,
        ) -> Result<(), Failed> {
            let row = Row { token, position, sequence: 0, logits: true };
            Ok(self.executor.decode_observed(&[row], &mut [&mut self.sequence], observe)?)
        }
    }
}

impl Side {
    fn open(
        self,
        program: &Arc<Program>,
        file: &File,
        tokens: usize,
    ) -> Result<Box<dyn Run>, Failed> {
        let cpu = |numerics| Cpu::new(program, file, numerics, tokens);
        Ok(match self {
            Self::Oracle => Box::new(cpu(Numerics::Oracle)?),
            Self::Simd => Box::new(cpu(Numerics::Fast)?),
            #[cfg(feature = "cuda")]
            Self::Gpu => Box::new(gpu::Gpu::new(program, file, tokens)?),
            #[cfg(not(feature = "cuda"))]
            Self::Gpu => return Err(m40llm::GpuError::NoBackend.into()),
        })
    }
}

/// Feeds both the same tokens, up to the first at which they part by more than `limit`, in passes of
/// `ops` ops. Returns that token's position.
fn compare(
    [expected, found]: &mut [Box<dyn Run>; 2],
    tokens: &[u32],
    ops: usize,
    limit: f64,
) -> Result<(Comparison, Option<usize>), Failed> {
    let mut comparison = Comparison::new();
    let end = |op: usize| {
        if op < ops { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    for (position, &token) in tokens.iter().enumerate() {
        comparison.begin_pass();
        expected.pass(token, position, &mut |output| {
            end(output.op).is_continue().then(|| comparison.expect(output));
            end(output.op)
        })?;
        found.pass(token, position, &mut |output| {
            end(output.op).is_continue().then(|| comparison.find(output));
            end(output.op)
        })?;
        if comparison.departs(limit).is_some() {
            return Ok((comparison, Some(position)));
        }
    }
    Ok((comparison, None))
}

fn line(program: &Program, (op, buffer, difference): (usize, BufferId, Difference)) -> String {
    let (text, buffer) = (program.text_of(&program.ops[op]), program.buffer(buffer).name);
    format!("{op:4} {buffer}: {difference} of {text}")
}

fn open(path: &Path) -> Result<(Arc<Program>, File), Failed> {
    let file = Gguf::parse(fs::read(path)?)?;
    let program = build(&file, BuildOptions::default())?;
    Ok((Arc::new(program), Arc::new(file)))
}

fn main() -> ExitCode {
    run(&Arguments::parse()).unwrap_or_else(|error| {
        // Nobody is left to tell if this fails.
        let _ = writeln!(std::io::stderr(), "diff: {error}");
        ExitCode::from(2)
    })
}

fn run(arguments: &Arguments) -> Result<ExitCode, Failed> {
    let (program, file) = open(&arguments.model)?;
    let mut tokens = Tokenizer::from_gguf(&file)?.encode_prompt(&arguments.prompt);
    tokens.truncate(arguments.tokens);
    let all = program.ops.len();
    let ops = arguments.stop_after.map_or(all, |op| op + 1);
    let ops = ops.min(arguments.layers.map_or(all, |layers| program.ops_of_layers(layers)));

    let open = |side: Side| side.open(&program, &file, tokens.len());
    let mut sides = [open(arguments.expected)?, open(arguments.found)?];
    let (comparison, parted) = compare(&mut sides, &tokens, ops, arguments.limit)?;
    if arguments.all {
        comparison.differences().for_each(|seen| println!("{}", line(&program, seen)));
    }
    if let (Some(position), Some(first)) = (parted, comparison.departs(arguments.limit)) {
        println!("token {position} departs first in\n{}", line(&program, first));
        return Ok(ExitCode::FAILURE);
    }
    let size = |(_, _, difference): &(usize, BufferId, Difference)| difference.mean_relative;
    let worst = comparison.differences().max_by(|a, b| size(a).total_cmp(&size(b)));
    println!("{} tokens agree; the most that an op departs is", tokens.len());
    println!(
        "{}",
        worst.map_or_else(|| "nothing: none was compared".into(), |w| line(&program, w))
    );
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use m40_gguf::TensorType;
    use m40_testkit::gguf::TinyModel;

    use super::*;

    const TOKENS: [u32; 4] = [7, 100, 42, 9];

    fn tiny(model: &TinyModel) -> (Arc<Program>, File) {
        let file = Gguf::parse(model.build()).unwrap();
        let program = build(&file, BuildOptions::default()).unwrap();
        (Arc::new(program), Arc::new(file))
    }

    /// The oracle of one model against the vector code of another, and the first op that departs.
    fn check(expected: &TinyModel, found: &TinyModel, ops: usize) -> (usize, Option<String>) {
        let ((program, file), (other, other_file)) = (tiny(expected), tiny(found));
        let mut sides = [
            Side::Oracle.open(&program, &file, TOKENS.len()).unwrap(),
            Side::Simd.open(&other, &other_file, TOKENS.len()).unwrap(),
        ];
        let (comparison, parted) = compare(&mut sides, &TOKENS, ops, 0.1).unwrap();
        assert_eq!(parted.is_some(), comparison.departs(0.1).is_some());
        let first = comparison.departs(0.1).map(|first| line(&program, first));
        (comparison.differences().count(), first)
    }

    #[test]
    fn vector_code_agrees_with_the_oracle_in_every_op() {
        for architecture in TinyModel::architectures() {
            let model = TinyModel::new(architecture).weights(TensorType::Q8_0);
            let (program, _) = tiny(&model);
            let outputs: usize = program.ops.iter().map(|op| op.writes().len()).sum();
            assert_eq!(check(&model, &model, usize::MAX), (outputs, None), "{architecture}");
        }
    }

    #[test]
    fn the_first_op_that_departs_is_named() {
        let model = TinyModel::new("llama").layers(3);
        // Sign and size of a weight at 2 bits are hardly those of the file.
        let other = model.clone().weights_of("ffn_down", TensorType::Q2K);
        let (_, first) = check(&model, &other, usize::MAX);
        assert!(first.expect("they differ").contains("blk.0.ffn_down"));
    }

    #[test]
    fn a_pass_ends_after_the_op_or_layer_asked_for() {
        let model = TinyModel::new("llama").layers(3);
        let other = model.clone().weights_of("ffn_down", TensorType::Q2K);
        assert_eq!(check(&model, &other, 1), (1, None));
        let (program, _) = tiny(&model);
        let layer = program.ops_of_layers(1);
        assert_eq!(check(&model, &other, layer - 1).1, None);
        assert!(check(&model, &other, layer).1.is_some());
    }
}
