//! Writes the models of `tiny_golden` and `prompt.json` into a folder, for another engine to run.
//!
//!     cargo run -p m40-testkit --example write_tiny_models FOLDER

use std::path::PathBuf;

use m40_testkit::tiny_golden;

fn main() -> std::io::Result<()> {
    let folder = std::env::args_os().nth(1).map(PathBuf::from);
    let folder = folder.ok_or_else(|| std::io::Error::other("give a folder to write to"))?;
    std::fs::create_dir_all(&folder)?;
    let mut names = Vec::new();
    for (name, model) in tiny_golden::recipes() {
        std::fs::write(folder.join(format!("{name}.gguf")), model.build())?;
        names.push(name);
    }
    let prompt = serde_json::json!({
        "models": names,
        "context": tiny_golden::CONTEXT,
        "prompt": tiny_golden::prompt(),
    });
    std::fs::write(folder.join("prompt.json"), prompt.to_string())
}
