//! The manifests in `etc/models.d` and the manual page are right, and say all there is to say.

use std::path::{Path, PathBuf};

use m40_manifest::{Catalog, Input, Surroundings};

/// Nothing there takes a text from another file.
struct Nothing;

impl Surroundings for Nothing {
    fn read(&self, path: &Path, _: usize) -> Result<String, String> {
        Err(format!("there is no {}", path.display()))
    }

    fn check_template(&self, _: &str) -> Result<(), String> {
        Ok(())
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn the_shipped_examples_are_right() {
    let dir = root().join("etc/models.d");
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let file = entry.unwrap().path();
        let text = Ok(std::fs::read_to_string(&file).unwrap());
        Input { file, text }
    };
    let inputs: Vec<Input> = std::fs::read_dir(dir).unwrap().map(read).collect();
    let catalog = Catalog::default().next(&inputs, &Nothing);
    assert_eq!(catalog.problems(), []);
    let names: Vec<&str> = catalog.models().map(|model| &*model.definition.name).collect();
    assert_eq!(names, ["chat", "code", "one-model"]);
    assert_eq!(catalog.find("default").unwrap().definition.name, "one-model");
}

/// Every key that is known in a manifest that begins so.
fn keys(before: &str) -> Vec<String> {
    // The mistake lists them all when no guess is near.
    let text = Ok(format!("{before}zzzzzzzzzzzzzzzz = 1"));
    let inputs = [Input { file: "m.toml".into(), text }];
    let catalog = Catalog::default().next(&inputs, &Nothing);
    let message = &catalog.problems()[0].message;
    let (_, keys) = message.split_once("known here are ").expect("a list of keys");
    keys.split(", ").map(str::to_owned).collect()
}

#[test]
fn the_manual_page_explains_every_key() {
    let page = std::fs::read_to_string(root().join("packaging/man/m40d-manifest.5")).unwrap();
    let keys = [keys(""), keys("[sampling]\n")].concat();
    assert!(keys.len() > 25 && keys.contains(&"top_k".to_owned()), "{keys:?}");
    for key in keys {
        let heading = format!(".B {}\n", key.replace('-', "\\-"));
        assert!(page.contains(&heading), "m40d-manifest.5 lacks {key}");
    }
}
