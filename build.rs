//! Compiles kernels/*.cu for the GPU and embeds them. No kernels exist yet: see kernels/README.md.
fn main() {
    println!("cargo:rerun-if-changed=kernels");
}
