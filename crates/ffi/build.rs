//! Gives the shared library the name by which programs that are linked with it ask for it.

fn main() {
    // The number is that of `M40LLM_ABI_VERSION`.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libm40llm.so.1");
    // What other crates would export for C is not this library's.
    println!("cargo:rustc-cdylib-link-arg=-Wl,--exclude-libs,ALL");
    println!("cargo:rerun-if-changed=build.rs");
}
