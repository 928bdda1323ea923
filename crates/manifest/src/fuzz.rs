//! What the fuzz target and the replay test do with bytes.

use std::path::Path;

use crate::{Catalog, Input, Surroundings};

/// Every file is there and says this.
struct Anything;

impl Surroundings for Anything {
    fn read(&self, _: &Path, _: usize) -> Result<String, String> {
        Ok("a text".to_owned())
    }

    fn check_template(&self, _: &str) -> Result<(), String> {
        Ok(())
    }
}

/// Takes `bytes` for a manifest. Must return for any input, and what it accepts must hold what a
/// catalog promises.
pub fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let input = Input { file: "models.d/fuzz.toml".into(), text: Ok(text.to_owned()) };
    let before = Catalog::default();
    let catalog = before.next(&[input.clone(), other()], &Anything);
    assert!(catalog.find("other").is_some(), "a file suffers from another's mistake");
    for problem in catalog.problems() {
        let said = problem.to_string();
        assert!(!said.chars().any(char::is_control), "{said:?} is not one harmless line");
        if let Some(place) = &problem.place {
            assert!(place.line >= 1 && place.line <= text.matches('\n').count() + 1);
            assert!(place.caret <= place.text.chars().count(), "the caret is outside of {place:?}");
            assert_eq!(problem.excerpt().lines().count(), 2);
        }
    }
    for model in catalog.models() {
        let definition = &model.definition;
        for name in std::iter::once(&definition.name).chain(&definition.aliases) {
            assert_eq!(m40_control::check_model_name(name), Ok(()));
            let found = catalog.find(name).map(|model| &model.definition.name);
            assert_eq!(found, Some(&definition.name), "{name} is found");
        }
        assert_eq!(definition.sampling.params().validate(), Ok(()));
    }
    let again = catalog.next(&[input, other()], &Anything);
    assert!(catalog.changes(&again).is_empty(), "the same files change something");
    let added = before.changes(&catalog).len();
    assert_eq!(added, catalog.models().count());
    assert_eq!(catalog.changes(&before).len(), added, "what was added can be removed");
}

fn other() -> Input {
    // Last by path, so that it is the one to give way were both new: its name is out of the way.
    let text = "name = \"other\"\nsource = \"/other.gguf\"".to_owned();
    Input { file: "models.d/other.toml".into(), text: Ok(text) }
}
