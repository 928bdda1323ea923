//! Writes the models and texts of `tiny_encoders` into a folder, for another engine to run.
//!
//!     cargo run -p m40-testkit --example write_tiny_encoders FOLDER

use std::path::PathBuf;

use m40_testkit::tiny_encoders;

fn main() -> std::io::Result<()> {
    let folder = std::env::args_os().nth(1).map(PathBuf::from);
    let folder = folder.ok_or_else(|| std::io::Error::other("give a folder to write to"))?;
    std::fs::create_dir_all(&folder)?;
    for (name, model) in tiny_encoders::recipes() {
        std::fs::write(folder.join(format!("{name}.gguf")), model.build())?;
    }
    let text = |text: tiny_encoders::EncoderText| serde_json::json!({"tokens": text.tokens, "segments": text.segments});
    let texts: Vec<_> = tiny_encoders::texts().into_iter().map(text).collect();
    std::fs::write(folder.join("texts.json"), serde_json::json!(texts).to_string())
}
