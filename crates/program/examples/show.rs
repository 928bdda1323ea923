//! Prints the program of a GGUF file: `cargo run -p m40-program --example show -- FILE`.

use std::error::Error;

use m40_gguf::Gguf;
use m40_program::{BuildOptions, MemoryPlan, build};

#[expect(clippy::print_stdout, reason = "printing is what it is for")]
fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: show FILE")?;
    let program = build(&Gguf::parse(std::fs::read(path)?)?, BuildOptions::default())?;
    print!("{program}");
    println!("weights {} bytes", program.weight_bytes());
    println!("scratch {} bytes for 512 rows", MemoryPlan::new(&program, 512, 1).bytes());
    Ok(())
}
