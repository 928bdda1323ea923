//! Writes a model of random weights: `write_shape NAME FILE [THREADS]`.
#![expect(clippy::print_stdout, reason = "a tool for people")]

use std::env;
use std::error::Error;
use std::time::Instant;

use m40_testkit::shapes::Shape;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let names = Shape::all().map(|shape| shape.name).join(", ");
    let [name, file, threads @ ..] = arguments.as_slice() else {
        return Err(format!("usage: write_shape NAME FILE [THREADS]; names: {names}").into());
    };
    let shape = Shape::by_name(name).ok_or_else(|| format!("{name} is none of {names}"))?;
    let threads = match threads.first() {
        Some(threads) => threads.parse()?,
        None => std::thread::available_parallelism()?.get(),
    };
    let start = Instant::now();
    shape.write(file, threads)?;
    let (bytes, seconds) = (shape.tensor_bytes(), start.elapsed().as_secs_f64());
    println!("{file}: {bytes} bytes of weights in {seconds:.1} s with {threads} threads");
    Ok(())
}
