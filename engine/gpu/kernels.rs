//! Decode kernels of models: compiled by NVRTC when a model is first loaded, and kept.
//!
//! What was compiled is kept in files. What the last programs have loaded stays loaded, as a model is often
//! back soon: the driver compiles PTX, or looks for what it made of it before, and copies of weights wait
//! meanwhile.

use std::collections::VecDeque;
use std::env;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::time::SystemTime;

use m40_cuda::{CompileError, Compiler, Device, ImageForm, KernelSource, Module};
use m40_gpu::executor::{BuildKernels, LoadError};
use sha2::{Digest, Sha256};

/// NVRTC's file name: the last that compiles for Maxwell.
const NVRTC: &str = "libnvrtc.so.12";

/// Where a package puts it.
const PACKAGED: &str = "/usr/lib/m40d";

/// Images that are kept, of 1 to 3 MB each.
const KEPT: usize = 64;

/// Modules that stay loaded when no model has them, of 1 to 3 MB of the card each.
const LOADED: usize = 8;

/// Compiles kernels, and keeps what came of it: images in a folder, and modules.
#[derive(Debug)]
pub(crate) struct Kernels {
    folder: Option<PathBuf>,
    compiler: Option<Compiler>,
    /// By their images' names; the last one was asked for last.
    loaded: VecDeque<(String, Arc<Module>)>,
}

impl Kernels {
    /// Keeps them where this process may: `$CACHE_DIRECTORY`, as systemd sets it, else the user's
    /// cache.
    pub(crate) fn of_environment() -> Self {
        let folder = set("CACHE_DIRECTORY").or_else(user_cache).map(|cache| cache.join("programs"));
        Self { folder, compiler: None, loaded: VecDeque::new() }
    }

    /// The image of that name: what was kept, or else what NVRTC makes now.
    fn image(
        &mut self,
        source: KernelSource<'_>,
        form: ImageForm,
        name: &str,
    ) -> Result<Vec<u8>, CompileError> {
        let kept = self.folder.as_ref().map(|folder| folder.join(name));
        if let Some(image) = kept.as_ref().and_then(|kept| take(kept)) {
            return Ok(image);
        }
        let image = self.compiler()?.compile(source, form)?;
        if let Some(kept) = kept {
            // What cannot be kept costs the next load its time, and this one nothing.
            let _ = keep(&kept, &image);
        }
        Ok(image)
    }

    fn compiler(&mut self) -> Result<&Compiler, CompileError> {
        match &mut self.compiler {
            Some(compiler) => Ok(compiler),
            none => Ok(none.insert(open_compiler()?)),
        }
    }
}

impl BuildKernels for Kernels {
    fn build(
        &mut self,
        source: KernelSource<'_>,
        device: &Device,
        kernels: &[&'static str],
    ) -> Result<Arc<Module>, LoadError> {
        let form = device.image_form();
        let name = file_name(source, form);
        let is_it = |(of, module): &(String, Arc<Module>)| *of == name && module.is_of(device);
        let known = self.loaded.iter().position(is_it);
        let module = match known.and_then(|at| self.loaded.remove(at)) {
            Some((_, module)) => module,
            None => device.load(source.name, &self.image(source, form, &name)?, kernels)?,
        };
        self.loaded.push_back((name, Arc::clone(&module)));
        if self.loaded.len() > LOADED {
            self.loaded.pop_front();
        }
        Ok(module)
    }
}

/// What was kept, if anything was; it counts as the newest then.
fn take(file: &Path) -> Option<Vec<u8>> {
    let image = fs::read(file).ok()?;
    // Where the file may not be written it counts as old, and is compiled again some day.
    let _ = File::options().append(true).open(file).and_then(|f| f.set_modified(SystemTime::now()));
    Some(image)
}

/// Whoever reads the file finds all of it: it is written aside. The oldest files give way.
fn keep(file: &Path, image: &[u8]) -> io::Result<()> {
    let folder = file.parent().unwrap_or_else(|| Path::new("."));
    fs::create_dir_all(folder)?;
    let aside = file.with_extension(format!("new-{}", process::id()));
    fs::write(&aside, image)?;
    fs::rename(&aside, file)?;
    let mut files = vec![];
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        files.push((entry.metadata()?.modified()?, entry.path()));
    }
    files.sort();
    let old = files.len().saturating_sub(KEPT);
    files[..old].iter().try_for_each(|(_, file)| fs::remove_file(file))
}

/// A name that says all that the image depends on.
fn file_name(source: KernelSource<'_>, form: ImageForm) -> String {
    let mut hash = Sha256::new();
    let headers = source.headers.iter().flat_map(|(name, text)| [*name, *text]);
    for part in [source.text].into_iter().chain(headers) {
        // Lengths first, so that no two sources hash the same bytes.
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let hash: String = hash.finalize().iter().take(16).map(|b| format!("{b:02x}")).collect();
    let extension = match form {
        ImageForm::MachineCode => "cubin",
        ImageForm::Ptx => "ptx",
    };
    format!("{hash}.{extension}")
}

/// The first that there is: `M40_NVRTC`, of `CUDA_HOME`, the package's, what `make nvrtc` fetched, the
/// loader's.
pub(super) fn open_compiler() -> Result<Compiler, CompileError> {
    if let Some(named) = set("M40_NVRTC") {
        return Compiler::open(&named);
    }
    let files = [
        set("CUDA_HOME").map(|home| home.join("lib64").join(NVRTC)),
        Some(Path::new(PACKAGED).join(NVRTC)),
        user_cache().map(|cache| cache.join("nvrtc-12.9").join(NVRTC)),
    ];
    let found = files.into_iter().flatten().find_map(|file| Compiler::open(&file).ok());
    found.map_or_else(|| Compiler::open(Path::new(NVRTC)), Ok)
}

/// This program's among the user's caches.
fn user_cache() -> Option<PathBuf> {
    let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    Some(cache?.join("m40d"))
}

fn set(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const SOURCE: KernelSource<'_> = KernelSource {
        name: "test",
        text: "#include \"one.cuh\"\nextern \"C\" __global__ void one(int* x) { *x = kOne; }\n",
        headers: &[("one.cuh", "enum { kOne = 1 };\n")],
    };

    fn in_folder(folder: &Path) -> Kernels {
        Kernels { folder: Some(folder.to_owned()), compiler: None, loaded: VecDeque::new() }
    }

    #[test]
    fn what_was_compiled_is_kept_and_taken_again() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("name.ptx");
        fs::write(&file, b"kept\0").expect("a file");
        let image = in_folder(folder.path()).image(SOURCE, ImageForm::Ptx, "name.ptx");
        assert_eq!(image.expect("no compiler is asked for"), b"kept\0");
    }

    #[test]
    fn the_oldest_images_give_way() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = |number: usize| folder.path().join(format!("{number}.ptx"));
        for number in 0..KEPT {
            keep(&file(number), b"kept\0").expect("there is room");
            let age = std::time::Duration::from_secs((KEPT - number) as u64);
            let opened = File::options().append(true).open(file(number)).expect("it was kept");
            opened.set_modified(SystemTime::now() - age).expect("it is ours");
        }
        assert!(take(&file(0)).is_some(), "the oldest, which is the newest now");
        keep(&file(KEPT), b"kept\0").expect("there is room");
        assert_eq!([0, 1, 2, KEPT].map(|number| file(number).exists()), [true, false, true, true]);
    }

    #[test]
    fn the_compiler_makes_ptx_and_machine_code_and_says_what_it_does_not_take() {
        if let Err(error) = open_compiler() {
            assert!(env::var_os("CI").is_none(), "{error}");
            let said = format!("NVRTC: skipped: make nvrtc fetches it ({error})\n");
            io::stderr().write_all(said.as_bytes()).expect("stderr is open");
            return;
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut kernels = in_folder(folder.path());
        let mut image = |source, form| kernels.image(source, form, &file_name(source, form));
        let ptx = image(SOURCE, ImageForm::Ptx).expect("it compiles");
        let text = String::from_utf8_lossy(&ptx);
        assert!(text.contains(".entry one(") && text.contains(".target sm_52"), "{text}");
        assert_eq!(fs::read(folder.path().join(file_name(SOURCE, ImageForm::Ptx))).ok(), Some(ptx));
        let code = image(SOURCE, ImageForm::MachineCode).expect("it compiles");
        assert!(code.starts_with(b"\x7fELF"));
        let wrong = KernelSource { text: "void wrong(", ..SOURCE };
        let error = image(wrong, ImageForm::Ptx).expect_err("no CUDA").to_string();
        assert!(error.contains("test") && error.contains("expected"), "{error}");
    }
}
