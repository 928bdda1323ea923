//! NVIDIA's run-time compiler of CUDA C++, NVRTC: a library of C functions, loaded when it is needed.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt;
use std::path::{Path, PathBuf};
use std::ptr;

use libloading::Library;

use crate::device::ImageForm;

/// The last major version that compiles for Maxwell.
const MAJOR: c_int = 12;

/// PTX as CUDA 11.0 wrote it, which every driver since takes. The kernels use nothing newer.
const PTX_VERSION: &str = ".version 7.0";

/// A pragma of PTX 8.3, which the compiler writes whatever the version; it changes nothing.
const NEWER_PRAGMA: &str = ".pragma \"used_bytes_mask";

/// What went wrong with the compiler.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CompileError {
    /// There is no such library.
    #[error("the compiler of GPU kernels, NVRTC 12, is not at {}: {why}; install it, or name it in M40_NVRTC", path.display())]
    NotThere {
        /// The library's file, or its name for the loader's path.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It cannot compile for Maxwell.
    #[error("{} is of CUDA {major}, which does not compile for the kernels' sm_52; 12 does", path.display())]
    Version {
        /// The library's file.
        path: PathBuf,
        /// Its major version.
        major: c_int,
    },
    /// It does not take the source.
    #[error("NVRTC does not compile {name}: {why}\n{log}")]
    Source {
        /// The source's name.
        name: String,
        /// NVRTC's name of the error.
        why: String,
        /// What it said.
        log: String,
    },
}

/// The compiler.
pub struct Compiler {
    library: Library,
    path: PathBuf,
    version: (c_int, c_int),
}

impl fmt::Debug for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Compiler").field(&self.path).field(&self.version).finish()
    }
}

/// CUDA C++ to be compiled.
#[derive(Clone, Copy, Debug)]
pub struct KernelSource<'a> {
    /// For messages.
    pub name: &'a str,
    /// The source.
    pub text: &'a str,
    /// What it may include: names and texts.
    pub headers: &'a [(&'a str, &'a str)],
}

type Program = *mut c_void;
type Status = c_int;
type Create = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> Status;
type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status;
type Destroy = unsafe extern "C" fn(*mut Program) -> Status;
type Size = unsafe extern "C" fn(Program, *mut usize) -> Status;
type Get = unsafe extern "C" fn(Program, *mut c_char) -> Status;
type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status;
type ErrorString = unsafe extern "C" fn(Status) -> *const c_char;

impl Compiler {
    /// Loads the library: a file, or a name for the loader to find.
    ///
    /// # Errors
    /// [`CompileError::NotThere`] or [`CompileError::Version`].
    pub fn open(path: &Path) -> Result<Self, CompileError> {
        let not_there = |why: String| CompileError::NotThere { path: path.into(), why };
        // SAFETY: NVRTC's initialisers have no demands on their caller.
        let library = unsafe { Library::new(path) }.map_err(|e| not_there(e.to_string()))?;
        let mut compiler = Self { library, path: path.into(), version: (0, 0) };
        let version = compiler.get::<Version>("nvrtcVersion").map_err(not_there)?;
        // SAFETY: as nvrtc.h declares it; both pointers are to integers.
        unsafe { version(&mut compiler.version.0, &mut compiler.version.1) };
        match compiler.version.0 {
            MAJOR => Ok(compiler),
            major => Err(CompileError::Version { path: path.into(), major }),
        }
    }

    /// Its name and version, as in `nvrtc 12.9`.
    pub fn describe(&self) -> String {
        format!("nvrtc {}.{}", self.version.0, self.version.1)
    }

    /// Compiles for `sm_52`, or to PTX for any newer device, with a NUL behind.
    ///
    /// # Errors
    /// [`CompileError`].
    pub fn compile(
        &self,
        source: KernelSource<'_>,
        form: ImageForm,
    ) -> Result<Vec<u8>, CompileError> {
        let failed = |why: String, log| {
            let name = source.name.to_owned();
            CompileError::Source { name, why, log }
        };
        let run = Run { compiler: self, program: ptr::null_mut() };
        run.compile(source, form).map_err(|(why, log)| failed(why, log))
    }

    /// A function of the library. Every caller names its type as nvrtc.h has it.
    fn get<F: Copy>(&self, name: &str) -> Result<F, String> {
        // SAFETY: see above.
        let function = unsafe { self.library.get::<F>(name.as_bytes()) };
        function.map(|symbol| *symbol).map_err(|error| error.to_string())
    }
}

/// One compilation.
struct Run<'a> {
    compiler: &'a Compiler,
    program: Program,
}

/// What went wrong, and what the compiler said.
type Failure = (String, String);

impl Drop for Run<'_> {
    fn drop(&mut self) {
        if let (false, Ok(destroy)) =
            (self.program.is_null(), self.compiler.get::<Destroy>("nvrtcDestroyProgram"))
        {
            // SAFETY: as nvrtc.h declares it; the program is not used again.
            unsafe { destroy(&mut self.program) };
        }
    }
}

impl Run<'_> {
    fn compile(mut self, source: KernelSource<'_>, form: ImageForm) -> Result<Vec<u8>, Failure> {
        let quiet = |why: String| (why, String::new());
        self.create(source).map_err(quiet)?;
        let arch = match form {
            ImageForm::MachineCode => "--gpu-architecture=sm_52",
            ImageForm::Ptx => "--gpu-architecture=compute_52",
        };
        // `-w` because CUDA 12.9 calls every card of the M40's age deprecated.
        let options = [arch, "-std=c++17", "-w"].map(CString::new);
        let options: Vec<_> = options.into_iter().map(Result::unwrap_or_default).collect();
        let pointers: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
        let compile = self.compiler.get::<Compile>("nvrtcCompileProgram").map_err(quiet)?;
        // SAFETY: as nvrtc.h declares it; the program is alive, the options outlive the call.
        let status = unsafe { compile(self.program, pointers.len() as c_int, pointers.as_ptr()) };
        if let Err(why) = self.check(status) {
            let log = self.buffer("nvrtcGetProgramLogSize", "nvrtcGetProgramLog");
            return Err((why, text(&log.unwrap_or_default())));
        }
        match form {
            ImageForm::MachineCode => self.buffer("nvrtcGetCUBINSize", "nvrtcGetCUBIN"),
            ImageForm::Ptx => self.buffer("nvrtcGetPTXSize", "nvrtcGetPTX").map(|ptx| older(&ptx)),
        }
        .map_err(quiet)
    }

    fn create(&mut self, source: KernelSource<'_>) -> Result<(), String> {
        let c_string = |text: &str| CString::new(text).map_err(|_| "a NUL in it".to_owned());
        let both = source.headers.iter().map(|(name, text)| Ok((c_string(name)?, c_string(text)?)));
        let (names, texts): (Vec<_>, Vec<_>) =
            both.collect::<Result<Vec<_>, String>>()?.into_iter().unzip();
        let pointers = |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let (texts_at, names_at) = (pointers(&texts), pointers(&names));
        let (code, name) = (c_string(source.text)?, c_string(source.name)?);
        let create = self.compiler.get::<Create>("nvrtcCreateProgram")?;
        // SAFETY: as nvrtc.h declares it; all strings end in NULs and outlive the call, and there are
        // as many names as texts.
        let status = unsafe {
            create(
                &mut self.program,
                code.as_ptr(),
                name.as_ptr(),
                names.len() as c_int,
                texts_at.as_ptr(),
                names_at.as_ptr(),
            )
        };
        self.check(status)
    }

    /// What `get` hands out, `size` bytes.
    fn buffer(&self, size: &str, get: &str) -> Result<Vec<u8>, String> {
        let mut bytes = 0;
        let size = self.compiler.get::<Size>(size)?;
        // SAFETY: as nvrtc.h declares it; the pointer is to an integer.
        self.check(unsafe { size(self.program, &mut bytes) })?;
        let mut buffer = vec![0; bytes];
        let get = self.compiler.get::<Get>(get)?;
        // SAFETY: as nvrtc.h declares it; the buffer has the size that NVRTC asked for.
        self.check(unsafe { get(self.program, buffer.as_mut_ptr().cast()) })?;
        Ok(buffer)
    }

    fn check(&self, status: Status) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        let describe = self.compiler.get::<ErrorString>("nvrtcGetErrorString")?;
        // SAFETY: as nvrtc.h declares it.
        let said = unsafe { describe(status) };
        // SAFETY: it returns a constant C string for every number.
        Err(unsafe { CStr::from_ptr(said) }.to_string_lossy().into_owned())
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
}

/// PTX as older drivers take it.
fn older(ptx: &[u8]) -> Vec<u8> {
    let ptx = text(ptx);
    let lines = ptx.lines().filter(|line| !line.trim_start().starts_with(NEWER_PRAGMA));
    let lines = lines.map(|line| if line.starts_with(".version ") { PTX_VERSION } else { line });
    let mut ptx: Vec<u8> = lines.flat_map(|line| [line.as_bytes(), b"\n"].concat()).collect();
    ptx.push(0);
    ptx
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_nvrtc_is_said_to_be_none() {
        let error = Compiler::open(Path::new("/dev/null")).unwrap_err();
        assert!(matches!(error, CompileError::NotThere { .. }), "{error}");
        assert!(error.to_string().contains("/dev/null"), "{error}");
    }

    #[test]
    fn ptx_is_of_a_version_that_old_drivers_know() {
        let new = b"// made by NVRTC\n.version 8.8\n  .pragma \"used_bytes_mask 0x0F\";\nret;\n\0";
        assert_eq!(older(new), b"// made by NVRTC\n.version 7.0\nret;\n\0");
    }
}
