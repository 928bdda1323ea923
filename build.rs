//! Compiles kernels/*.cu for the Tesla M40 and leaves them to engine/gpu.rs to embed: `sm_52`
//! machine code, and `compute_52` PTX that the driver of a newer card compiles.
//!
//! The compiler is the first of: nvcc (`M40_NVCC`, `CUDA_HOME`, `PATH`), then the NVRTC library
//! (`M40_NVRTC`, `CUDA_HOME`, the cache that `make nvrtc` fills, the loader's path). CUDA 12 is the
//! last that knows Maxwell. Without a compiler the build warns once and goes on without kernels.

use std::env;
use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::ptr;

use libloading::Library;

type Result<T> = std::result::Result<T, String>;

/// PTX as CUDA 11.0 wrote it, which every driver since takes. The kernels use nothing newer, so the
/// machine code is the same.
const PTX_VERSION: &str = ".version 7.0";

/// A pragma of PTX 8.3, which the compiler writes whatever the version.
const NEWER_PRAGMA: &str = ".pragma \"used_bytes_mask";
/// For nvcc and NVRTC alike. No line information: it would put this folder's path into the PTX.
/// `-w` because CUDA 12.9 calls every card of the M40's age deprecated.
const OPTIONS: [&str; 3] = ["-std=c++17", "-w", "-Ikernels"];

fn main() {
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
    let sources = files("cu")?;
    let headers: String = files("cuh")?.iter().map(|path| read(path)).collect::<Result<_>>()?;
    let common = format!("{} {OPTIONS:?} {headers}", compiler.describe());
    for source in &sources {
        for target in Target::ALL {
            compile_if_changed(&compiler, source, target, out, &common)?;
        }
    }
    let modules: String = sources.iter().map(|source| module(source)).collect();
    let compiler = compiler.describe();
    write(
        &out.join("kernels.rs"),
        format!("Some(m40_cuda::KernelImage {{ compiler: {compiler:?}, modules: &[{modules}] }})"),
    )
}

/// The Rust expression for a kernel file's module.
fn module(source: &Path) -> String {
    let [ptx, machine_code] = Target::ALL.map(|target| target.file_name(source));
    format!(
        "m40_cuda::ModuleImage {{ name: {:?}, ptx: include_str!({ptx:?}), machine_code: \
         include_bytes!({machine_code:?}) }}, ",
        source.file_stem().unwrap_or_default(),
    )
}

/// Compiles, unless what was compiled last was the same. `common`: what all kernels depend on.
fn compile_if_changed(
    compiler: &Compiler,
    source: &Path,
    target: Target,
    out: &Path,
    common: &str,
) -> Result<()> {
    let image = out.join(target.file_name(source));
    let stamp = image.with_added_extension("inputs");
    let inputs = format!("{common} {}", read(source)?);
    if image.exists() && read(&stamp).is_ok_and(|old| old == inputs) {
        return Ok(());
    }
    // What is interrupted must not pass for what was compiled last.
    let _ = fs::remove_file(&stamp);
    compiler.compile(source, target, &image)?;
    if let Target::Ptx = target {
        write(&image, lower_version(&read(&image)?)?)?;
    }
    write(&stamp, inputs)
}

/// kernels/*.`extension`, in the order of their names.
fn files(extension: &str) -> Result<Vec<PathBuf>> {
    let folder =
        fs::read_dir("kernels").map_err(|error| format!("cannot list kernels/: {error}"))?;
    let mut files: Vec<_> = folder
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension() == Some(OsStr::new(extension)))
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

#[derive(Clone, Copy)]
enum Target {
    Ptx,
    MachineCode,
}

impl Target {
    const ALL: [Self; 2] = [Self::Ptx, Self::MachineCode];

    fn file_name(self, source: &Path) -> PathBuf {
        let extension = match self {
            Self::Ptx => "ptx",
            Self::MachineCode => "cubin",
        };
        Path::new(source.file_name().unwrap_or_default()).with_extension(extension)
    }
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
        let cache = path_in("XDG_CACHE_HOME").or_else(|| Some(path_in("HOME")?.join(".cache")));
        let nvrtc = [
            asked_for("M40_NVRTC"),
            cuda_home.map(|home| home.join("lib64/libnvrtc.so.12")),
            cache.map(|cache| cache.join("m40d/nvrtc-12.9/libnvrtc.so.12")),
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

    fn compile(&self, source: &Path, target: Target, out: &Path) -> Result<()> {
        match self {
            Self::Nvcc { path, .. } => {
                let target = match target {
                    Target::Ptx => ["-ptx", "-arch=compute_52"],
                    Target::MachineCode => ["-cubin", "-arch=sm_52"],
                };
                let mut command = Command::new(path);
                command.args(OPTIONS).args(target).arg(source).arg("-o").arg(out);
                let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
                let said = String::from_utf8_lossy(&output.stderr);
                if output.status.success() {
                    Ok(())
                } else {
                    Err(format!("{command:?} failed\n{said}"))
                }
            }
            Self::Nvrtc(nvrtc) => write(out, nvrtc.compile(source, target)?),
        }
    }
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

    fn compile(&self, source: &Path, target: Target) -> Result<Vec<u8>> {
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
        let (architecture, size, get) = match target {
            Target::Ptx => ("-arch=compute_52", "nvrtcGetPTXSize", "nvrtcGetPTX"),
            Target::MachineCode => ("-arch=sm_52", "nvrtcGetCUBINSize", "nvrtcGetCUBIN"),
        };
        let text = |text: &str| CString::new(text).map_err(|_| "a NUL in a kernel".to_owned());
        let name = text(&source.display().to_string())?;
        let code = text(&read(source)?)?;
        let options = OPTIONS.iter().chain([&architecture]).map(|option| text(option));
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
            self.buffer(program, size, get)
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
