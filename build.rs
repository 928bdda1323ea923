//! Compiles kernels/*.cu for the Tesla M40 and leaves them to engine/gpu.rs to embed: `sm_52`
//! machine code, and PTX that the driver of a newer card compiles.
//!
//! The compiler is the first of: nvcc (`M40_NVCC`, `CUDA_HOME`, `PATH`), then the NVRTC library
//! (`M40_NVRTC`, `CUDA_HOME`, the cache that `make nvrtc` fills, the loader's path). CUDA 12 is the
//! last that knows Maxwell. Without a compiler the build warns once and goes on without kernels.
//!
//! All of them take minutes of compilation. So files are compiled side by side, by processes, since
//! NVRTC compiles one at a time in each; and what was compiled for one output folder is taken for all
//! others of the user (`Cache`).

use std::env;
use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, exit, id};
use std::ptr;
use std::sync::Mutex;
use std::thread;
use std::time::SystemTime;

use libloading::Library;

type Result<T> = std::result::Result<T, String>;

/// PTX as CUDA 11.0 wrote it, which every driver since takes. The kernels use nothing newer, so the
/// machine code is the same.
const PTX_VERSION: &str = ".version 7.0";

/// A pragma of PTX 8.3, which the compiler writes whatever the version.
const NEWER_PRAGMA: &str = ".pragma \"used_bytes_mask";

/// For nvcc and NVRTC alike. No line information: it would put this folder's path into the PTX.
/// `-w` because CUDA 12.9 calls every card of the M40's age deprecated.
const OPTIONS: [&str; 4] = ["-std=c++17", "-w", "-Ikernels", "-arch=sm_52"];

fn main() {
    let arguments: Vec<_> = env::args_os().skip(1).map(PathBuf::from).collect();
    if let [source, out] = &arguments[..] {
        if let Err(message) = compile(source, out) {
            let _ = writeln!(std::io::stderr(), "{message}");
            exit(1);
        }
        return;
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=kernels");
    for name in ["M40_NVCC", "M40_NVRTC", "CUDA_HOME", "XDG_CACHE_HOME", "HOME"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it for build scripts"));
    if let Err(message) = embed(&out) {
        message.lines().for_each(|line| println!("cargo::error={line}"));
        exit(1);
    }
}

/// Writes every kernel's PTX and machine code to `out`, and `out`/kernels.rs that names them.
fn embed(out: &Path) -> Result<()> {
    let Some(compiler) = Compiler::find() else {
        println!(
            "cargo::warning=no CUDA 12 compiler: this build has no GPU kernels (`make nvrtc` \
             fetches one)"
        );
        return write(&out.join("kernels.rs"), "None");
    };
    // What kernels/inspect-sm52 looks at is compiled too; nothing runs it.
    let (embedded, inspected) = (sources("kernels")?, sources("kernels/reference")?);
    let cache = Cache::of_user();
    let mut changed = vec![];
    for source in embedded.iter().chain(&inspected) {
        let images = Images::new(source, &compiler)?;
        let there = images.are_in(out) || cache.as_ref().is_some_and(|c| c.fetch(&images, out));
        if !there {
            changed.push(images);
        }
    }
    compile_all(&changed, &compiler, cache.as_ref(), out)?;
    let modules: String = embedded.iter().map(|source| module(source)).collect();
    let compiler = compiler.describe();
    write(
        &out.join("kernels.rs"),
        format!("Some(m40_cuda::KernelImage {{ compiler: {compiler:?}, modules: &[{modules}] }})"),
    )
}

/// The Rust expression for a kernel file's module.
fn module(source: &Path) -> String {
    let [ptx, machine_code] = ["ptx", "cubin"].map(|extension| file_name(source, extension));
    format!(
        "m40_cuda::ModuleImage {{ name: {:?}, ptx: include_str!({ptx:?}), machine_code: \
         include_bytes!({machine_code:?}) }}, ",
        source.file_stem().unwrap_or_default(),
    )
}

/// What a kernel file is compiled to, in `folder`.
fn file_name(source: &Path, extension: &str) -> PathBuf {
    Path::new(source.file_name().unwrap_or_default()).with_extension(extension)
}

/// What comes of a kernel file: its PTX, its machine code and, beside them, what they depend on.
struct Images {
    source: PathBuf,
    inputs: String,
}

impl Images {
    fn new(source: &Path, compiler: &Compiler) -> Result<Self> {
        let mut inputs =
            format!("{} {OPTIONS:?} {PTX_VERSION} {NEWER_PRAGMA}\n", compiler.describe());
        let mut files = vec![source.to_owned()];
        let mut next = 0;
        while let Some(file) = files.get(next) {
            let text = read(file)?;
            let included = text.lines().filter_map(|line| line.strip_prefix("#include \""));
            let included = included.filter_map(|line| line.split('"').next());
            // The emulation's are for the host's compiler.
            let included = included.filter(|name| !name.starts_with("emulate/"));
            for header in included.map(|name| Path::new("kernels").join(name)) {
                if !files.contains(&header) {
                    files.push(header);
                }
            }
            inputs += &format!("== {}\n{text}", files[next].display());
            next += 1;
        }
        Ok(Self { source: source.to_owned(), inputs })
    }

    /// The files that a folder has of them; the last one says that the others are whole.
    fn files(&self, folder: &Path) -> [PathBuf; 3] {
        ["ptx", "cubin", "inputs"].map(|extension| folder.join(file_name(&self.source, extension)))
    }

    fn are_in(&self, folder: &Path) -> bool {
        let [ptx, machine_code, inputs] = self.files(folder);
        ptx.exists() && machine_code.exists() && read(&inputs).is_ok_and(|old| old == self.inputs)
    }

    /// What is interrupted must not pass for what was compiled last.
    fn invalidate(&self, folder: &Path) {
        let [.., inputs] = self.files(folder);
        let _ = fs::remove_file(inputs);
    }
}

/// Images that builds of other output folders left: a folder of each, by a hash of their inputs.
struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// Folders that are kept. A version of all kernels takes some ten, of 10 MB together.
    const FOLDERS: usize = 100;

    fn of_user() -> Option<Self> {
        Some(Self { folder: cache_folder()?.join("kernels") })
    }

    fn folder_of(&self, images: &Images) -> PathBuf {
        // Two that have the same hash displace each other: inputs are compared in full.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in images.inputs.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        self.folder.join(format!("{hash:016x}"))
    }

    /// Copies them to `out`, if they are there.
    fn fetch(&self, images: &Images, out: &Path) -> bool {
        let folder = self.folder_of(images);
        images.invalidate(out);
        let mut pairs = images.files(&folder).into_iter().zip(images.files(out));
        let fetched = images.are_in(&folder) && pairs.all(|(from, to)| fs::copy(from, to).is_ok());
        if fetched {
            // So that it counts as the newest, where it may be written.
            let _ = fs::File::open(&folder).and_then(|f| f.set_modified(SystemTime::now()));
        }
        fetched
    }

    /// Copies them from `out`: first aside, so that nobody finds a part of them.
    fn store(&self, images: &Images, out: &Path) -> std::io::Result<()> {
        let folder = self.folder_of(images);
        let aside = folder.with_extension(format!("new-{}", id()));
        fs::create_dir_all(&aside)?;
        let mut pairs = images.files(out).into_iter().zip(images.files(&aside));
        let copied = pairs.try_for_each(|(from, to)| {
            fs::copy(from, &to)?;
            fs::File::open(to)?.sync_all()
        });
        let stored = copied.and_then(|()| {
            let _ = fs::remove_dir_all(&folder);
            fs::rename(&aside, &folder)
        });
        stored.or_else(|_| fs::remove_dir_all(&aside))
    }

    fn forget_old(&self) -> std::io::Result<()> {
        let mut folders = vec![];
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            folders.push((entry.metadata()?.modified()?, entry.path()));
        }
        folders.sort();
        let old = folders.len().saturating_sub(Self::FOLDERS);
        folders[..old].iter().try_for_each(|(_, folder)| fs::remove_dir_all(folder))
    }
}

/// Compiles to `out`, each file by a process of this program, as many at once as Cargo runs jobs.
fn compile_all(
    changed: &[Images],
    compiler: &Compiler,
    cache: Option<&Cache>,
    out: &Path,
) -> Result<()> {
    let program = env::current_exe().map_err(|error| format!("no build script: {error}"))?;
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    let queue = Mutex::new(changed.iter());
    let next = || queue.lock().unwrap_or_else(|broken| broken.into_inner()).next();
    let compile_some = || -> Result<()> {
        while let Some(images) = next() {
            let compiled = compile_one(&program, images, compiler, cache, out);
            if compiled.is_err() {
                // The others are not begun: they would take minutes.
                while next().is_some() {}
                return compiled;
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> =
            (0..changed.len().min(jobs)).map(|_| scope.spawn(compile_some)).collect();
        let mut ends = workers.into_iter().map(|worker| worker.join());
        ends.try_for_each(|end| end.unwrap_or_else(|_| Err("a compilation panicked".to_owned())))
    })
}

/// Has a process of `program` compile a file to `out`, and remembers what that was.
fn compile_one(
    program: &Path,
    images: &Images,
    compiler: &Compiler,
    cache: Option<&Cache>,
    out: &Path,
) -> Result<()> {
    images.invalidate(out);
    run(Command::new(program).arg(&images.source).arg(out))?;
    if Images::new(&images.source, compiler)?.inputs != images.inputs {
        // Somebody has written to it meanwhile, which Cargo will see.
        return Ok(());
    }
    let [.., inputs] = images.files(out);
    write(&inputs, &images.inputs)?;
    if let Some(cache) = cache {
        // What cannot be written costs the next build time, and this one nothing.
        let _ = cache.store(images, out).and_then(|()| cache.forget_old());
    }
    Ok(())
}

/// What such a process does: compiles one file to `out`.
fn compile(source: &Path, out: &Path) -> Result<()> {
    let compiler = Compiler::find().ok_or("the CUDA 12 compiler is gone")?;
    let [ptx, machine_code] =
        ["ptx", "cubin"].map(|extension| out.join(file_name(source, extension)));
    compiler.compile(source, &ptx, &machine_code)?;
    write(&ptx, lower_version(&read(&ptx)?)?)
}

/// Runs a command whose output is of interest only if it fails.
fn run(command: &mut Command) -> Result<()> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?}: {}\n{said}", output.status))
}

/// The *.cu of a folder, in the order of their names.
fn sources(folder: &str) -> Result<Vec<PathBuf>> {
    let folder = fs::read_dir(folder).map_err(|error| format!("cannot list {folder}: {error}"))?;
    let mut files: Vec<_> = folder
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension() == Some(OsStr::new("cu")))
        .collect();
    files.sort();
    Ok(files)
}

/// PTX as older drivers take it: of their version, and without the pragma that says which bytes of a
/// load are used, which only newer ones know and which changes nothing.
fn lower_version(ptx: &str) -> Result<String> {
    let version =
        ptx.lines().find(|line| line.starts_with(".version ")).ok_or("PTX has no .version")?;
    let lines = ptx.lines().filter(|line| !line.trim_start().starts_with(NEWER_PRAGMA));
    let mut lowered = lines.collect::<Vec<_>>().join("\n").replacen(version, PTX_VERSION, 1);
    lowered.push('\n');
    Ok(lowered)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

fn write(path: &Path, bytes: impl AsRef<[u8]>) -> Result<()> {
    fs::write(path, bytes).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

enum Compiler {
    Nvcc { path: PathBuf, version: String },
    Nvrtc(Nvrtc),
}

impl Compiler {
    fn find() -> Option<Self> {
        let cuda_home = path_in("CUDA_HOME");
        let nvcc = [
            asked_for("M40_NVCC"),
            cuda_home.as_ref().map(|home| home.join("bin/nvcc")),
            Some("nvcc".into()),
        ];
        let nvrtc = [
            asked_for("M40_NVRTC"),
            cuda_home.map(|home| home.join("lib64/libnvrtc.so.12")),
            cache_folder().map(|cache| cache.join("nvrtc-12.9/libnvrtc.so.12")),
            Some("libnvrtc.so.12".into()),
        ];
        let nvcc = nvcc.into_iter().flatten().find_map(Self::nvcc);
        nvcc.or_else(|| nvrtc.into_iter().flatten().find_map(Nvrtc::open).map(Self::Nvrtc))
    }

    /// An nvcc that runs and can compile for the M40.
    fn nvcc(path: PathBuf) -> Option<Self> {
        let output = Command::new(&path).arg("--version").output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.split("release ").nth(1)?.split(',').next()?.to_owned();
        suits(&path, &version).then_some(Self::Nvcc { path, version })
    }

    fn describe(&self) -> String {
        match self {
            Self::Nvcc { version, .. } => format!("nvcc {version}"),
            Self::Nvrtc(nvrtc) => format!("nvrtc {}", nvrtc.version),
        }
    }

    /// Leaves PTX and machine code at `ptx` and `machine_code`.
    fn compile(&self, source: &Path, ptx: &Path, machine_code: &Path) -> Result<()> {
        match self {
            Self::Nvcc { path, .. } => {
                for (output, to) in [("-ptx", ptx), ("-cubin", machine_code)] {
                    let mut command = Command::new(path);
                    run(command.args(OPTIONS).arg(output).arg(source).arg("-o").arg(to))?;
                }
                Ok(())
            }
            Self::Nvrtc(nvrtc) => {
                let [text, code] = nvrtc.compile(source)?;
                write(ptx, text)?;
                write(machine_code, code)
            }
        }
    }
}

/// This program's among the user's caches.
fn cache_folder() -> Option<PathBuf> {
    let cache = path_in("XDG_CACHE_HOME").or_else(|| Some(path_in("HOME")?.join(".cache")));
    Some(cache?.join("m40d"))
}

fn path_in(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// A compiler that somebody named: silence about a wrong name would hide which one was used.
fn asked_for(variable: &str) -> Option<PathBuf> {
    let path = path_in(variable)?;
    if !path.is_file() {
        println!("cargo::warning={variable} names {}, which is not there", path.display());
    }
    Some(path)
}

/// Whether CUDA of this version can compile for the M40; says why when it cannot.
fn suits(path: &Path, version: &str) -> bool {
    let suits = version.split('.').next() == Some("12");
    if !suits {
        let path = path.display();
        println!(
            "cargo::warning={path} is of CUDA {version}, which is not used: the kernels are for sm_52, and 12.x compiles them; 13 dropped it"
        );
    }
    suits
}

/// NVIDIA's run-time compiler, a library of C functions. Each returns 0 or an error's number.
struct Nvrtc {
    library: Library,
    version: String,
}

type Program = *mut c_void;

impl Nvrtc {
    fn open(path: PathBuf) -> Option<Self> {
        // SAFETY: NVRTC's initialisers have no demands on their caller.
        let library = unsafe { Library::new(&path) }.ok()?;
        let mut version: (c_int, c_int) = (0, 0);
        let nvrtc = Self { library, version: String::new() };
        type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;
        // SAFETY: the type is that of nvrtc.h; both pointers are to integers.
        unsafe { nvrtc.get::<Version>("nvrtcVersion").ok()?(&mut version.0, &mut version.1) };
        let version = format!("{}.{}", version.0, version.1);
        suits(&path, &version).then_some(Self { version, ..nvrtc })
    }

    /// A function of the library. Every caller names its type as nvrtc.h has it.
    fn get<F: Copy>(&self, name: &str) -> Result<F> {
        // SAFETY: see above.
        let function = unsafe { self.library.get::<F>(name.as_bytes()) };
        function.map(|symbol| *symbol).map_err(|error| format!("NVRTC has no {name}: {error}"))
    }

    /// PTX and machine code of a file.
    fn compile(&self, source: &Path) -> Result<[Vec<u8>; 2]> {
        type Create = unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> c_int;
        type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
        type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;
        let text = |text: &str| CString::new(text).map_err(|_| "a NUL in a kernel".to_owned());
        let name = text(&source.display().to_string())?;
        let code = text(&read(source)?)?;
        let options = OPTIONS.iter().map(|option| text(option));
        let options = options.collect::<Result<Vec<_>>>()?;
        let options: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();

        let mut program: Program = ptr::null_mut();
        let create = self.get::<Create>("nvrtcCreateProgram")?;
        // SAFETY: as nvrtc.h declares it; two C strings, no headers.
        let code = unsafe {
            create(&mut program, code.as_ptr(), name.as_ptr(), 0, ptr::null(), ptr::null())
        };
        if code != 0 {
            return Err(format!(
                "NVRTC cannot start on {}: {}",
                source.display(),
                self.error(code)?
            ));
        }
        let compile = self.get::<Compile>("nvrtcCompileProgram")?;
        // SAFETY: as nvrtc.h declares it; the program was made above, the options outlive the call.
        let code = unsafe { compile(program, options.len() as c_int, options.as_ptr()) };
        let result = if code == 0 {
            let ptx = self.buffer(program, "nvrtcGetPTXSize", "nvrtcGetPTX");
            let machine_code = self.buffer(program, "nvrtcGetCUBINSize", "nvrtcGetCUBIN");
            ptx.and_then(|ptx| Ok([ptx, machine_code?]))
        } else {
            let log = self.buffer(program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog")?;
            let log = String::from_utf8_lossy(&log);
            Err(format!("{}: {}\n{log}", source.display(), self.error(code)?))
        };
        let destroy = self.get::<Destroy>("nvrtcDestroyProgram")?;
        // SAFETY: as nvrtc.h declares it; the program is not used again.
        unsafe { destroy(&mut program) };
        result
    }

    /// What `get` hands out of `program`, `size` bytes; text without its final NUL.
    fn buffer(&self, program: Program, size: &str, get: &str) -> Result<Vec<u8>> {
        type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
        type Get = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
        let mut bytes = 0;
        // SAFETY: as nvrtc.h declares it.
        let code = unsafe { self.get::<Size>(size)?(program, &mut bytes) };
        let mut buffer = vec![0; bytes];
        // SAFETY: as nvrtc.h declares it; the buffer has the size that NVRTC asked for.
        let got = unsafe { self.get::<Get>(get)?(program, buffer.as_mut_ptr().cast()) };
        if (code, got) != (0, 0) || bytes == 0 {
            return Err(format!("{get}: {}", self.error(code.max(got))?));
        }
        // Machine code ends where its last section does, text in a NUL.
        if !get.contains("CUBIN") {
            buffer.pop();
        }
        Ok(buffer)
    }

    fn error(&self, code: c_int) -> Result<String> {
        type ErrorString = unsafe extern "C" fn(c_int) -> *const c_char;
        // SAFETY: as nvrtc.h declares it.
        let text = unsafe { self.get::<ErrorString>("nvrtcGetErrorString")?(code) };
        // SAFETY: it returns a constant C string for every number.
        Ok(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    }
}
