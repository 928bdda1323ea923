//! Prints how fast models are on the GPU, what bounds them, and what a Tesla M40 is predicted to
//! reach: `make bench-gpu`, or
//! `cargo bench --bench models -- [--cpu] [--decode persistent|graph|launch] [--kv f16|int8]
//! [--repeats N] [--batches N,...] [--depths N,...] [--tokens N] [--kernels] [MODEL ...]`.
//!
//! A model is a GGUF file or the name of a shape of `m40_testkit::shapes`, which is then made of
//! random weights in the folder for temporary files. Without models: five such shapes. Figures are
//! means of several rounds, warm, with half their range. `--cpu` measures the CPU in what it has of
//! this. `--kernels` also prints what each kernel of a pass of many rows takes, for each number of
//! sequences that takes such passes. Without a GPU it says so and ends well, unless `M40_REQUIRE_GPU` is set.

#![expect(clippy::print_stdout, reason = "a printed table is its purpose")]

use std::error::Error;
use std::fs;
use std::hint;
use std::io::Write;
use std::num::NonZero;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use m40_cuda::{
    Arena, CudaError, Device, ElementType, KernelImage, Mailbox, ModuleImage, Param, Priority,
    Signature, StagingRing, probe,
};
use m40_gguf::Gguf;
use m40_gpu::executor::{Executor, ExecutorOptions, KernelTime, Launches, Plan, Row};
use m40_gpu::ops::PASS_ROWS;
use m40_gpu::weights::Loader;
use m40_program::{BuildOptions, Program, build};
use m40_testkit::shapes::Shape;
use m40llm::{
    BenchLine, BenchOptions, BenchRow, BenchTest, Engine, EngineOptions, GpuError, KvType,
    ModelOptions, Spread, bench_executor,
};
use tempfile::NamedTempFile;

type Failed = Box<dyn Error>;

const DEFAULT_MODELS: [&str; 5] = ["135m", "1.5b", "1b-f16", "8b-q4_0", "8b-q4_k_m"];

/// Answers in a mailbox until it is told to leave. Of the tests: the product has no use for it.
const ANSWER: Signature = Signature {
    name: "m40_test_answer",
    params: &[Param::Mailbox, Param::Scalar(ElementType::U64)],
};

/// Some seconds on any card, after which the kernel above leaves by itself.
const GIVE_UP_CYCLES: u64 = 15_000_000_000;

/// Round trips of the mailbox that make a figure.
const ROUND_TRIPS: u32 = 1000;

/// Bytes of the arena for probes and for what lies between its parts.
const PROBE_BYTES: u64 = 1200 << 20;

/// Bytes of the card that are left to the driver, and those that kernels can name.
const RESERVE: u64 = 512 << 20;
const REACH: u64 = 64 << 30;

/// Bytes of a staging buffer of the copy that loading is compared with.
const STAGING_BYTES: usize = 16 << 20;

struct Arguments {
    cpu: bool,
    launches: Launches,
    kernels: bool,
    kv_type: KvType,
    options: BenchOptions,
    models: Vec<String>,
}

fn arguments() -> Result<Arguments, Failed> {
    let mut parsed = Arguments {
        cpu: false,
        launches: Launches::Whole,
        kernels: false,
        kv_type: KvType::F16,
        options: BenchOptions::default(),
        models: vec![],
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut numbers = || -> Result<Vec<usize>, Failed> {
            let list = arguments.next().ok_or("a number is missing")?;
            Ok(list.split(',').map(str::parse).collect::<Result<_, _>>()?)
        };
        match argument.as_str() {
            // cargo bench passes this to every benchmark.
            "--bench" => {}
            "--cpu" => parsed.cpu = true,
            "--kernels" => parsed.kernels = true,
            "--batches" => parsed.options.batches = numbers()?,
            "--depths" => parsed.options.depths = numbers()?,
            "--repeats" => parsed.options.repeats = numbers()?[0],
            "--tokens" => parsed.options.tokens = numbers()?[0],
            "--decode" => {
                parsed.launches = match arguments.next().as_deref() {
                    Some("persistent") => Launches::Whole,
                    Some("graph") => Launches::Recorded,
                    Some("launch") => Launches::OpByOp,
                    _ => return Err("--decode takes persistent, graph or launch".into()),
                }
            }
            "--kv" => {
                parsed.kv_type = match arguments.next().as_deref() {
                    Some("f16") => KvType::F16,
                    Some("int8") => KvType::Int8,
                    _ => return Err("--kv takes f16 or int8".into()),
                }
            }
            _ => parsed.models.push(argument),
        }
    }
    if parsed.models.is_empty() {
        parsed.models = DEFAULT_MODELS.map(str::to_owned).to_vec();
    }
    Ok(parsed)
}

fn main() -> ExitCode {
    let Err(error) = run() else { return ExitCode::SUCCESS };
    // Nobody is left to tell if this fails.
    let _ = writeln!(std::io::stderr(), "bench: {error}");
    ExitCode::FAILURE
}

fn run() -> Result<(), Failed> {
    let arguments = arguments()?;
    if arguments.cpu {
        return arguments.models.iter().try_for_each(|model| bench_cpu(model, &arguments));
    }
    let Some(device) = device()? else { return Ok(()) };
    println!("{}; {}", device.info(), m40llm::version());
    println!();
    heading();
    let round_trips = repeated(arguments.options.repeats, || round_trip(&device))?;
    print(BenchLine::Row(plain("mailbox, there and back", "us", round_trips)));
    arguments.models.iter().try_for_each(|model| bench_gpu(&device, model, &arguments))
}

/// The first GPU with all kernels; `None`, saying so, where there is none.
fn device() -> Result<Option<Device>, Failed> {
    match probe(0) {
        Ok(_) => {}
        Err(error @ (CudaError::NoDriver | CudaError::NoDevice { .. }))
            if std::env::var_os("M40_REQUIRE_GPU").is_none() =>
        {
            println!("skipped: no CUDA device ({error})");
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    }
    let image = m40llm::kernel_image().ok_or(GpuError::NoKernels)?;
    let ptx = include_str!("../../tests/gpu/shared.ptx");
    let shared = ModuleImage { name: "shared", ptx, machine_code: &[] };
    let modules = [image.modules, &[shared]].concat().leak();
    Ok(Some(Device::open(0, &KernelImage { modules, ..*image })?))
}

/// A model's file, of random weights if it is the name of a shape; and what removes it.
fn file(model: &str) -> Result<(PathBuf, Option<NamedTempFile>), Failed> {
    let Some(shape) = Shape::by_name(model) else { return Ok((model.into(), None)) };
    let file = NamedTempFile::with_suffix(".gguf")?;
    shape.write(file.path(), threads())?;
    Ok((file.path().to_owned(), Some(file)))
}

fn threads() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

fn bench_cpu(model: &str, arguments: &Arguments) -> Result<(), Failed> {
    let (path, _file) = file(model)?;
    let engine = Engine::new(EngineOptions::default())?;
    println!("{}", engine.device());
    let options = ModelOptions { kv_type: arguments.kv_type, ..ModelOptions::default() };
    let loaded = engine.load(&path, &options)?;
    let info = loaded.info();
    title(model, &info.quantization, info.weight_bytes);
    heading();
    loaded.session().bench(&arguments.options, &mut go_on)?;
    Ok(())
}

fn bench_gpu(device: &Device, model: &str, arguments: &Arguments) -> Result<(), Failed> {
    let (path, _file) = file(model)?;
    let options = &arguments.options;
    let gguf = Gguf::parse(fs::read(&path)?)?;
    let plan = plan(device, &gguf, arguments)?;
    title(model, &main_type(plan.program()), plan.program().weight_bytes());
    heading();

    let (arena, kv_bytes) = memory(device, &plan, options)?;
    let bytes = plan.program().weight_bytes();
    let copy = repeated(options.repeats, || pinned_copy(&arena, bytes))?;
    print(BenchLine::Row(plain("pinned copy", "GB/s", copy)));
    let (mut loader, mut builder) = (Loader::new(device, threads())?, m40llm::kernel_builder());
    let mut load = || -> Result<(Executor, f64), Failed> {
        // A load makes a plan of its own, which reads nothing.
        let plan = plan.clone();
        let begun = Instant::now();
        let on = &mut |_| ControlFlow::Continue(());
        let executor =
            Executor::load(plan, &gguf, &arena, kv_bytes, &mut loader, &mut builder, on)?;
        Ok((executor, rate(bytes, begun.elapsed())))
    };
    // The first touches pinned memory and the arena, and has the driver load kernels.
    drop(load()?);
    let loads = repeated(options.repeats, || Ok(load()?.1))?;
    let share = Some(loads.mean / copy.mean);
    print(BenchLine::Row(BenchRow { copy_share: share, ..plain("load", "GB/s", loads) }));

    let (mut executor, _) = load()?;
    bench_executor(&mut executor, options, &mut go_on)?;
    let of_many = |batch: &usize| executor.rows_at_once(*batch) > PASS_ROWS;
    let batches: Vec<_> = options.batches.iter().copied().filter(of_many).collect();
    let mut kernels = batches.iter().filter(|_| arguments.kernels);
    kernels.try_for_each(|&batch| kernel_times(&mut executor, batch))
}

/// Prints what the kernels of a pass of so many rows take.
fn kernel_times(executor: &mut Executor, batch: usize) -> Result<(), Failed> {
    let batch = executor.rows_at_once(batch);
    let mut sequences = (0..batch).map(|_| executor.begin()).collect::<Result<Vec<_>, _>>()?;
    let row = |sequence| Row { token: 0, position: 0, sequence, logits: false };
    let rows: Vec<_> = (0..batch).map(row).collect();
    let mut sequences: Vec<_> = sequences.iter_mut().collect();
    let times = executor.kernel_times(&rows, &mut sequences)?;
    let all: Duration = times.iter().map(|kernel| kernel.time).sum();
    let microseconds = |time: Duration| time.as_secs_f64() * 1e6;
    println!();
    println!("| {batch} rows | blocks | launches | us each | us a pass |");
    println!("|---|---|---|---|---|");
    for KernelTime { name, blocks, launches, time } in times {
        let all = microseconds(time);
        println!("| {name} | {blocks} | {launches} | {:.2} | {all:.0} |", all / launches as f64);
    }
    println!("| all | | | | {:.0} |", microseconds(all));
    Ok(())
}

/// A plan for as many and as long sequences as are measured.
fn plan(device: &Device, gguf: &Gguf<Vec<u8>>, arguments: &Arguments) -> Result<Plan, Failed> {
    let options = &arguments.options;
    let longest = longest(options).next_multiple_of(1024);
    let trained = build(gguf, BuildOptions::default())?.description.context;
    let context = trained.min(u32::try_from(longest)?);
    let program =
        Arc::new(build(gguf, BuildOptions { context: Some(context), kv_type: arguments.kv_type })?);
    let sequences = options.batches.iter().copied().max().unwrap_or(1).max(1) as u32;
    let executor = ExecutorOptions { context, sequences, launches: arguments.launches };
    Ok(Plan::new(program, executor, device.info().multiprocessors)?)
}

/// Tokens of the longest sequence.
fn longest(options: &BenchOptions) -> usize {
    let deepest = options.depths.iter().copied().max().unwrap_or(0);
    let most = options.prompts.iter().copied().max().unwrap_or(0);
    deepest + most.max(options.tokens)
}

/// An arena for the model and for probes, and bytes of its KV cache: what all sequences take, or
/// what the card has.
fn memory(device: &Device, plan: &Plan, options: &BenchOptions) -> Result<(Arena, u64), Failed> {
    let sequences = options.batches.iter().copied().max().unwrap_or(1).max(1);
    let wanted = plan.kv_bytes(longest(options)) * sequences as u64;
    let fixed = plan.fixed_bytes()? + PROBE_BYTES;
    let free = device.memory()?.free.saturating_sub(RESERVE).min(REACH);
    let kv_bytes = wanted.min(free.saturating_sub(fixed));
    Ok((Arena::new(device, fixed + kv_bytes)?, kv_bytes))
}

/// The type that most of the weights have.
fn main_type(program: &Program) -> String {
    let of = |ty| program.matrices.iter().filter(|m| m.ty == ty).map(|m| m.bytes()).sum::<u64>();
    let largest = program.matrices.iter().map(|matrix| matrix.ty).max_by_key(|ty| of(*ty));
    largest.map(|ty| ty.to_string()).unwrap_or_default()
}

/// GB/s of a copy of so many bytes out of pinned memory, nothing done to them.
fn pinned_copy(arena: &Arena, bytes: u64) -> Result<f64, Failed> {
    let mut ring = StagingRing::new(arena.device(), STAGING_BYTES)?;
    let mut to = arena.allocate::<u8>(bytes as usize)?;
    let begun = Instant::now();
    ring.upload(to.all_mut(), |_, _: &mut [u8]| Ok::<_, CudaError>(()))?;
    ring.stream().wait()?;
    Ok(rate(bytes, begun.elapsed()))
}

/// Microseconds from a word that the host writes to the answer of a running kernel, on average.
fn round_trip(device: &Device) -> Result<f64, Failed> {
    let mailbox = Mailbox::new(device, 96)?;
    let stream = device.stream(Priority::High)?;
    let kernel = device.kernel(&ANSWER)?;
    let _residency = device.begin_residency();
    let launch = kernel.launch([1, 1, 1], [1, 1, 1]);
    launch.mailbox(&mailbox, 65).scalar(GIVE_UP_CYCLES).on(&stream)?;
    let ask = |number: u32| {
        mailbox.word(0).store(number, Ordering::Release);
        while mailbox.word(32).load(Ordering::Acquire) != number {
            if mailbox.word(64).load(Ordering::Acquire) != 0 {
                return Err("the kernel behind the mailbox gave up");
            }
            hint::spin_loop();
        }
        Ok(())
    };
    // The first answer waits for the launch.
    ask(1)?;
    let begun = Instant::now();
    (2..2 + ROUND_TRIPS).try_for_each(ask)?;
    let time = begun.elapsed();
    mailbox.word(0).store(u32::MAX, Ordering::Release);
    stream.wait()?;
    Ok(time.as_secs_f64() * 1e6 / f64::from(ROUND_TRIPS))
}

fn rate(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64() / 1e9
}

fn repeated(
    repeats: usize,
    mut measure: impl FnMut() -> Result<f64, Failed>,
) -> Result<Spread, Failed> {
    let figures = (0..repeats.max(1)).map(|_| measure()).collect::<Result<Vec<_>, _>>()?;
    Ok(Spread::of(&figures).ok_or("nothing was measured")?)
}

fn plain(name: &'static str, unit: &'static str, value: Spread) -> BenchRow {
    BenchRow::plain(BenchTest::Beside(name), unit, value)
}

fn title(model: &str, ty: &str, bytes: u64) {
    let name = Path::new(model).file_name().unwrap_or_default().to_string_lossy();
    println!();
    println!("{}: {ty}, {:.2} GB of weights", name.trim_end_matches(".gguf"), bytes as f64 / 1e9);
    println!();
}

fn heading() {
    println!("| | mean | ± | a sequence | weights GB/s | of copy | M40, predicted |");
    println!("|---|---|---|---|---|---|---|");
}

fn go_on(line: BenchLine) -> ControlFlow<()> {
    print(line);
    ControlFlow::Continue(())
}

fn print(line: BenchLine) {
    let number = |x: f64| if x < 100.0 { format!("{x:.2}") } else { format!("{x:.0}") };
    let optional = |x: Option<f64>| x.map(number).unwrap_or_default();
    match line {
        BenchLine::LeftOut { test, why } => println!("| {test} | left out: {why} |"),
        BenchLine::Row(row) => println!(
            "| {} | {} {} | {:.1} % | {} | {} | {} | {} |",
            row.test,
            number(row.value.mean),
            row.unit,
            50.0 * (row.value.max - row.value.min) / row.value.mean,
            optional(row.per_sequence),
            optional(row.weights_gb_per_s),
            row.copy_share.map(|share| format!("{:.0} %", 100.0 * share)).unwrap_or_default(),
            optional(row.m40_tokens_per_s),
        ),
    }
}
