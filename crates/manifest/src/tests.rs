//! What is taken, what is refused and where, and what counts of several files.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use m40_control::{Change, Effect, ManifestProblem};
use proptest::prelude::*;

use super::*;

/// Files by path; a template is right unless it is `bad`.
#[derive(Default)]
struct Files(BTreeMap<&'static str, &'static str>);

impl Surroundings for Files {
    fn read(&self, path: &Path, _: usize) -> Result<String, String> {
        let path = path.to_str().expect("paths of these tests are text");
        let text = self.0.get(path).map(|text| (*text).to_owned());
        // A file that nobody listed is there all the same, unless its name says otherwise.
        match text {
            Some(text) => Ok(text),
            None if path.contains("missing") => Err(format!("cannot read {path}: no such file")),
            None => Ok(format!("what is in {path}")),
        }
    }

    fn check_template(&self, template: &str) -> Result<(), String> {
        if template == "bad" { Err("line 1: unexpected end".to_owned()) } else { Ok(()) }
    }
}

fn input(file: &str, text: &str) -> Input {
    Input { file: file.into(), text: Ok(text.to_owned()) }
}

fn next(catalog: &Catalog, files: &[(&str, &str)]) -> Catalog {
    let inputs: Vec<Input> = files.iter().map(|(file, text)| input(file, text)).collect();
    catalog.next(&inputs, &Files::default())
}

/// The one model of a manifest `models.d/m.toml`.
#[track_caller]
pub(crate) fn definition(text: &str) -> Arc<Definition> {
    let catalog = next(&Catalog::default(), &[("models.d/m.toml", text)]);
    assert_eq!(catalog.problems(), [], "{text}");
    let model = catalog.models().next().expect("a model");
    Arc::clone(&model.definition)
}

fn problem(text: &str) -> ManifestProblem {
    let catalog = next(&Catalog::default(), &[("m.toml", text)]);
    let [problem] = catalog.problems() else { panic!("not one problem: {catalog:?}") };
    problem.clone()
}

/// A manifest that is wrong at this place and in a way that says all of this.
#[track_caller]
fn check(text: &str, line: usize, column: usize, says: &[&str]) {
    let problem = problem(text);
    let said = problem.to_string();
    let at = problem.place.map(|place| (place.line, place.column));
    assert_eq!(at, Some((line, column)), "{said}");
    for part in says {
        assert!(said.contains(part), "{said:?} lacks {part:?}");
    }
    assert!(!said.contains('\n') && !said.ends_with('.'), "{said:?}");
}

fn names(catalog: &Catalog) -> Vec<&str> {
    catalog.models().map(|model| model.definition.name.as_str()).collect()
}

#[test]
fn a_file_of_one_key_is_a_model_named_by_the_file() {
    let found = definition("source = \"/srv/m.gguf\"");
    assert_eq!(found.name, "m");
    assert_eq!(found.source.to_string(), "/srv/m.gguf");
    assert_eq!((found.priority, found.pin, found.preload), (0, false, false));
    assert_eq!((found.context_tokens, &found.template, found.kv_type), (None, &None, None));
    assert_eq!(found.sampling.params(), m40_sched::sampler::SamplingParams::default());
}

#[test]
fn every_key_reaches_the_definition() {
    let found = definition(
        r#"
        name = "qwen3"
        aliases = ["qwen3:8b", "default"]
        source = "hf:Qwen/Qwen3-8B-GGUF/Qwen3-8B-Q4_K_M.gguf@main"
        sha256 = "ABababababababababababababababababababababababababababababababab"
        size_bytes = 5_027_783_488
        mirrors = ["https://mirror.lan/qwen3.gguf"]
        context_tokens = 16384
        sequences_max = 8
        kv_type = "int8"
        priority = -5
        pin = true
        preload = true
        idle_unload_after = "1h30m"
        template = { file = "templates/qwen3.jinja" }
        tokenizer = { file = "/srv/tokenizer.json" }
        system = "Be brief."
        stop = ["<|im_end|>", "\n\nUser:"]
        capabilities = ["completion", "tools"]

        [sampling]
        temperature = 1
        top_k = 20
        seed = 7
        "#,
    );
    assert_eq!(found.name, "qwen3");
    assert_eq!(found.aliases, ["qwen3:8b", "default"]);
    assert_eq!(found.sha256.unwrap().to_string(), "ab".repeat(32));
    assert_eq!(found.size_bytes, Some(5_027_783_488));
    assert_eq!(found.mirrors[0].url().as_str(), "https://mirror.lan/qwen3.gguf");
    assert_eq!((found.context_tokens, found.sequences_max), (Some(16384), Some(8)));
    assert_eq!((found.kv_type, found.priority), (Some(KvType::Int8), -5));
    assert!(found.pin && found.preload);
    assert_eq!(found.idle_unload, Some(IdleUnload::After(Duration::from_secs(5400))));
    let template = found.template.as_ref().unwrap();
    assert_eq!(template.file.as_deref(), Some(Path::new("models.d/templates/qwen3.jinja")));
    assert_eq!(&*template.content, "what is in models.d/templates/qwen3.jinja");
    assert_eq!(found.tokenizer.as_deref(), Some(Path::new("/srv/tokenizer.json")));
    assert_eq!(&*found.system.as_ref().unwrap().content, "Be brief.");
    assert_eq!(found.stop, ["<|im_end|>", "\n\nUser:"]);
    let wanted = [Capability::Completion, Capability::Tools];
    assert_eq!(found.capabilities.as_deref(), Some(&wanted[..]));
    let params = found.sampling.params();
    assert_eq!((params.temperature, params.top_k, params.seed), (1.0, 20, Some(7)));
    assert_eq!(params.top_p, 0.95, "what is not said is as always");
}

#[test]
fn a_file_may_hold_several_models_or_none() {
    let two = "[[model]]\nname = \"a\"\nsource = \"/a\"\n\n[[model]]\nname = \"b\"\nsource = [\"/b.1\", \"/b.2\"]\nsampling.top_k = 3\n";
    let catalog = next(&Catalog::default(), &[("two.toml", two), ("none.toml", "# source = 7\n")]);
    assert_eq!(catalog.problems(), []);
    assert_eq!(names(&catalog), ["a", "b"]);
    let b = catalog.find("b").unwrap();
    assert_eq!(b.definition.source.to_string(), "/b.1 + /b.2");
    assert_eq!(b.definition.sampling.top_k, Some(3));
}

#[test]
fn what_is_mistyped_is_named_with_its_place_and_a_guess() {
    check(
        "source = \"/m\"\ncontxt_tokens = 4",
        2,
        1,
        &["m.toml:2:1: unknown key `contxt_tokens`", "did you mean `context_tokens`?"],
    );
    check(
        "source = \"/m\"\nzebra = 1",
        2,
        1,
        &["unknown key `zebra`: known here are name, aliases"],
    );
    check("source = \"/m\"\n[sampling]\ntemprature = 1", 3, 1, &["did you mean `temperature`?"]);
    check("source = \"/m\"\nkv_type = \"int4\"", 2, 11, &["int4", "`f16`", "did you mean `int8`?"]);
    check("source = \"/m\"\ncapabilities = [\"tool\"]", 2, 17, &["did you mean `tools`?"]);
    check("[[models]]\nname = \"m\"", 1, 3, &["unknown key `models`", "did you mean `model`?"]);
    check("[[model]]\nname = \"m\"\nsorce = \"/m\"", 3, 1, &["did you mean `source`?"]);
    check("source = \"/m\"\ntemplate = { path = \"x\" }", 2, 12, &["{ file = \"PATH\" }"]);
}

#[test]
fn what_is_illegal_is_named_with_its_place_and_what_is_legal() {
    check("name = \"m\"", 1, 1, &["`source` is missing"]);
    check("# no name\n[[model]]\nsource = \"/m\"", 2, 1, &["`name` is missing"]);
    check("source = \"/m\"\nname = \"a b\"", 2, 8, &["name: ", "' '", "letter or digit"]);
    check(
        "source = \"/m\"\naliases = [\"ok\",\n  \"../x\"]",
        3,
        3,
        &["aliases: ", "letter or digit"],
    );
    check("source = \"m.gguf\"", 1, 10, &["source: ", "must begin with", "hf:"]);
    check("source = [\"/a\", \"hf:x\"]", 1, 17, &["source: ", "hf:org/repo"]);
    check("source = []", 1, 10, &["empty"]);
    check("source = 7", 1, 10, &["a source, or a list"]);
    check("source = \"/m\"\nsha256 = \"abc\"", 2, 10, &["64 hexadecimal digits"]);
    check("source = \"/m\"\nsize_bytes = 0", 2, 14, &["is 0", "from 1"]);
    check("source = \"hf:o/r:Q4\"\nmirrors = [\"/m\"]", 2, 12, &["HTTP or HTTPS"]);
    check("source = \"/m\"\nmirrors = [\"http://h/m\"]", 2, 11, &["has mirrors"]);
    check("source = \"/m\"\ncontext_tokens = -1", 2, 18, &["is -1", "from 1 to 16777216"]);
    check("source = \"/m\"\npriority = 101", 2, 12, &["from -100 to 100"]);
    check("source = \"/m\"\nidle_unload_after = \"10 min\"", 2, 21, &["\"10m\"", "\"never\""]);
    check("source = \"/m\"\nidle_unload_after = 600", 2, 21, &["expected a string"]);
    check("source = \"/m\"\ntemplate = \"bad\"", 2, 12, &["template", "unexpected end"]);
    check("source = \"/m\"\nsystem = { file = \"missing\" }", 2, 10, &["cannot read missing"]);
    check("source = \"/m\"\ntokenizer = { file = \"\" }", 2, 13, &["`file` must be a path"]);
    check("source = \"/m\"\nstop = [\"a\", \"\"]", 2, 14, &["1 to 1024 bytes"]);
    check("source = \"/m\"\n[sampling]\nx = 1\ntop_p = 1.5", 3, 1, &["unknown key `x`"]);
    check("source = \"/m\"\n[sampling]\ntop_p = 1.5", 3, 9, &["top_p is 1.5", "0 to 1"]);
    check("source = \"/m\"\nsampling.min_p = nan", 2, 18, &["min_p is NaN"]);
    check("source = \"/m\"\nsource = \"/n\"", 2, 1, &["duplicate key"]);
    check("source = \"/m", 1, 13, &["string"]);
}

#[test]
fn everything_has_a_bound() {
    let list = |item: &str, count: usize| vec![item; count].join(", ");
    let aliases: Vec<String> = (0..=ALIASES_MAX).map(|n| format!("\"a{n}\"")).collect();
    let aliases = format!("source = \"/m\"\naliases = [{}]", aliases.join(", "));
    check(&aliases, 2, 11, &["33 items", "32"]);
    let stop = format!("source = \"/m\"\nstop = [{}]", list("\"x\"", STOPS_MAX + 1));
    check(&stop, 2, 8, &["17 items", "16"]);
    let mirrors = list("\"http://h/m\"", MIRRORS_MAX + 1);
    check(&format!("source = \"http://h/n\"\nmirrors = [{mirrors}]"), 2, 11, &["17 items", "16"]);
    let system = format!("source = \"/m\"\nsystem = \"{}\"", "x".repeat(TEXT_BYTES_MAX + 1));
    check(&system, 2, 10, &["262145 bytes", "262144"]);
    let models: Vec<String> = (0..=MODELS_MAX)
        .map(|n| format!("[[model]]\nname = \"m{n}\"\nsource = \"/m\"\n"))
        .collect();
    check(&models.concat(), 3 * MODELS_MAX + 1, 1, &["257 models", "256"]);
    let long = format!("source = \"/m\"\n#{}", "x".repeat(FILE_BYTES_MAX));
    assert!(problem(&long).to_string().contains("the most is 1048576"));
    // Nor does depth cost a stack.
    let deep = format!("source = {}", "[".repeat(100_000));
    assert!(problem(&deep).place.is_some());
    let key = format!("{} = 1", "a.".repeat(100_000) + "a");
    assert!(problem(&key).to_string().len() < 1000);
}

#[test]
fn a_mistake_shows_the_line_and_steers_no_terminal() {
    let shown = problem("source = \"/m\"\n  contxt = 4 # é").excerpt();
    assert_eq!(shown, "2 |   contxt = 4 # é\n  |   ^\n");
    let hostile = problem("source = \"/m\"\n\"a\\u001b[2J\" = 1");
    assert!(!hostile.to_string().contains('\x1b') && !hostile.excerpt().contains('\x1b'));
}

#[test]
fn a_name_is_taken_once_in_a_file_and_in_all_files() {
    let two = "[[model]]\nname = \"a\"\nsource = \"/a\"\n[[model]]\nname = \"b\"\naliases = [\"c\", \"a\"]\nsource = \"/b\"\n";
    check(two, 6, 17, &["\"a\" is taken in line 2"]);
    check("source = \"/m\"\naliases = [\"m\"]", 2, 12, &["\"m\" is taken in line 1"]);

    let files = [
        ("a.toml", "source = \"/a\"\naliases = [\"x\"]"),
        ("b.toml", "source = \"/b\"\naliases = [\"y\", \"x\"]"),
    ];
    let catalog = next(&Catalog::default(), &files);
    assert_eq!(names(&catalog), ["a"]);
    let said = catalog.problems()[0].to_string();
    assert_eq!(said, "b.toml:2:17: the name \"x\" is taken by a.toml:2:12");
    assert!(!catalog.problems()[0].serving_old);
    // Another file gave the name back, and nothing had to be touched in this one.
    let catalog = next(&catalog, &[("a.toml", "source = \"/a\""), files[1]]);
    assert_eq!(catalog.problems(), []);
    assert_eq!(catalog.find("x").unwrap().definition.name, "b");
}

#[test]
fn of_two_files_that_want_a_name_the_one_that_changed_gives_way() {
    let (a, b) = (("a.toml", "source = \"/a\""), ("b.toml", "source = \"/b\""));
    let catalog = next(&Catalog::default(), &[a, b]);
    let greedy = ("a.toml", "source = \"/a\"\npriority = 3\naliases = [\"b\"]");
    let after = next(&catalog, &[greedy, b]);
    assert_eq!(names(&after), ["a", "b"]);
    assert_eq!(after.problems()[0].file, Path::new("a.toml"));
    assert!(after.problems()[0].serving_old);
    assert_eq!(after.find("a").unwrap().definition.priority, 0, "a file counts as a whole");
    assert!(catalog.changes(&after).is_empty());

    // It holds on when the other gives way for a reason of its own.
    let broken = ("b.toml", "source = \"/c\"\naliases = [\"a\"]");
    let after = next(&catalog, &[greedy, broken]);
    assert_eq!(after.problems().len(), 2);
    assert!(catalog.changes(&after).is_empty());

    // Two files may change names with each other.
    let swapped = next(
        &catalog,
        &[("a.toml", "name = \"b\"\nsource = \"/a\""), ("b.toml", "name = \"a\"\nsource = \"/b\"")],
    );
    assert_eq!(swapped.problems(), []);
    assert_eq!(swapped.find("a").unwrap().file, Path::new("b.toml"));
}

#[test]
fn a_bad_file_leaves_its_old_models_and_all_others_alone() {
    let (a, b) = (("a.toml", "source = \"/a\""), ("b.toml", "source = \"/b\"\npin = true"));
    let catalog = next(&Catalog::default(), &[a, b]);
    for bad in ["source = \"/c", "", " \n", "source = \"/c\"\nx = 1"] {
        let after = next(&catalog, &[("a.toml", "source = \"/a2\""), ("b.toml", bad)]);
        assert_eq!(names(&after), ["a", "b"]);
        assert_eq!(after.find("a").unwrap().definition.source.to_string(), "/a2");
        assert_eq!(after.find("b").unwrap().definition, catalog.find("b").unwrap().definition);
        let [problem] = after.problems() else { panic!("{:?}", after.problems()) };
        assert!(problem.serving_old && problem.file == Path::new("b.toml"));
        // Mended, it counts again.
        let mended = next(&after, &[a, ("b.toml", "source = \"/c\"")]);
        assert_eq!(mended.problems(), []);
        assert_eq!(mended.find("b").unwrap().definition.source.to_string(), "/c");
    }
    let unreadable = Input { file: "b.toml".into(), text: Err("permission denied".to_owned()) };
    let after = catalog.next(&[input(a.0, a.1), unreadable], &Files::default());
    assert_eq!(after.problems()[0].to_string(), "b.toml: permission denied");
    assert_eq!(names(&after), ["a", "b"]);
    // A file that is gone is meant to be gone.
    assert_eq!(names(&next(&after, &[a])), ["a"]);
}

#[test]
fn changes_are_told_by_model() {
    let old = next(
        &Catalog::default(),
        &[
            ("a.toml", "source = \"/a\""),
            ("b.toml", "source = \"/b\""),
            ("c.toml", "source = \"/c\""),
        ],
    );
    let new = next(
        &old,
        &[
            ("moved.toml", "# the same, elsewhere\nname = \"a\"\nsource = \"/a\""),
            ("b.toml", "source = \"/b2\"\ncontext_tokens = 9"),
            ("d.toml", "source = \"/d\""),
        ],
    );
    let changes = old.changes(&new);
    let short: Vec<_> =
        changes.iter().map(|c| (c.model.as_str(), c.file.to_str().unwrap())).collect();
    assert_eq!(short, [("b", "b.toml"), ("c", "c.toml"), ("d", "d.toml")]);
    let Change::Changed { keys } = &changes[0].change else { panic!("{changes:?}") };
    let keys: Vec<_> = keys.iter().map(|key| (key.key.as_str(), key.effect)).collect();
    assert_eq!(keys, [("source", Effect::Reload), ("context_tokens", Effect::NextLoad)]);
    assert_eq!((&changes[1].change, &changes[2].change), (&Change::Removed, &Change::Added));
}

#[test]
fn a_template_in_a_file_counts_by_what_is_in_it() {
    let text = "source = \"/m\"\ntemplate = { file = \"t.jinja\" }";
    let with = |content| Files(BTreeMap::from([("t.jinja", content)]));
    let of = |catalog: &Catalog, content| catalog.next(&[input("m.toml", text)], &with(content));
    let old = of(&Catalog::default(), "one");
    assert!(old.changes(&of(&old, "one")).is_empty());
    assert_eq!(old.changes(&of(&old, "two")).len(), 1);
    let bad = of(&old, "bad");
    assert!(bad.problems()[0].serving_old);
    assert_eq!(&*bad.find("m").unwrap().definition.template.as_ref().unwrap().content, "one");
}

/// A manifest out of pieces that mean something, in an order that need not.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "[[model]]\n",
        "name = ",
        "aliases = ",
        "source = ",
        "stop = ",
        "[sampling]\n",
        "top_p = ",
        "idle_unload_after = ",
        "template = ",
        "\"a\"\n",
        "\"/m\"\n",
        "\"other\"\n",
        "[\"b\", \"c\"]\n",
        "{ file = \"x\" }\n",
        "0.5\n",
        "-1\n",
        "\"10m\"\n",
        "# é\n",
        "\u{1b}",
        "\"\\u0000\"",
    ]);
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn any_text_is_a_catalog_or_a_problem_with_a_place(text in "\\PC{0,200}") {
        fuzz::check(text.as_bytes());
    }

    #[test]
    fn any_order_of_pieces_is_a_catalog_or_a_problem_with_a_place(text in pieces()) {
        fuzz::check(text.as_bytes());
    }

    /// Whatever files change to, models of the others stay, and each name means one model.
    #[test]
    fn names_mean_one_model_through_any_changes(
        states in prop::collection::vec(prop::collection::vec((0..4_usize, 0..6_usize), 0..4), 1..8)
    ) {
        const FILES: [&str; 4] = ["a.toml", "b.toml", "c.toml", "d.toml"];
        const TEXTS: [&str; 6] = [
            "source = \"/1\"",
            "name = \"x\"\nsource = \"/2\"",
            "name = \"y\"\naliases = [\"x\"]\nsource = \"/3\"",
            "[[model]]\nname = \"x\"\nsource = \"/4\"\n[[model]]\nname = \"z\"\nsource = \"/5\"",
            "nonsense",
            "",
        ];
        let mut catalog = Catalog::default();
        for state in states {
            let files: BTreeMap<&str, &str> =
                state.into_iter().map(|(file, text)| (FILES[file], TEXTS[text])).collect();
            let files: Vec<(&str, &str)> = files.into_iter().collect();
            let after = next(&catalog, &files);
            let mut taken = std::collections::BTreeSet::new();
            for model in after.models() {
                let definition = &model.definition;
                for name in std::iter::once(&definition.name).chain(&definition.aliases) {
                    prop_assert!(taken.insert(name.clone()), "{} means two models", name);
                    let found = after.find(name).map(|found| &found.definition.name);
                    prop_assert_eq!(found, Some(&definition.name));
                }
            }
            for problem in after.problems() {
                let file = problem.file.to_str();
                prop_assert!(files.iter().any(|(name, _)| Some(*name) == file));
            }
            // Nothing counts that no file says now or said before.
            for model in after.models() {
                prop_assert!(files.iter().any(|(name, _)| model.file.to_str() == Some(name)));
            }
            catalog = after;
        }
    }
}
