use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Source {
    text.parse().unwrap_or_else(|error| panic!("{text:?}: {error}"))
}

fn refusal(text: &str) -> String {
    match text.parse::<Source>() {
        Ok(source) => panic!("{text:?} was taken as {source:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn every_form_is_read_and_written_back() {
    for text in [
        "https://example.org/models/a.gguf",
        "http://10.0.0.7:8080/a%20b.gguf?download=true",
        "hf:bartowski/Some-Model-GGUF/some-model-Q4_K_M.gguf",
        "hf:org/repo/folder/file.gguf@refs/pr/1",
        "hf:org/repo:Q4_K_M",
        "hf:org/repo:Q8_0@a1b2c3d",
        "ollama:llama3.2",
        "ollama:llama3.2:1b-instruct-q4_0",
        "ollama:somebody/model:latest",
        "ollama:registry.lan:5000/library/m:7b",
        "/srv/models/one + two.gguf",
        "zip+https://example.org/w.whl!/package/model.gguf",
        "zip+/srv/models/w.zip!/model.gguf",
        "zip+hf:org/repo/w.zip@main!/model.gguf",
        "/srv/a.part1 + /srv/a.part2",
        "zip+/a.whl!/1.part + https://example.org/2.part",
    ] {
        assert_eq!(parse(text).to_string(), text);
    }
}

#[test]
fn what_a_text_leaves_out_has_the_usual_value() {
    let Source::Ollama(name) = parse("ollama:llama3.2") else { panic!("not an Ollama name") };
    assert_eq!(
        (name.host(), name.namespace(), name.name(), name.tag()),
        (None, "library", "llama3.2", "latest")
    );
    let Source::Ollama(name) = parse("ollama:lan:5000/me/m:q") else {
        panic!("not an Ollama name")
    };
    assert_eq!(
        (name.host(), name.namespace(), name.name(), name.tag()),
        (Some("lan:5000"), "me", "m", "q")
    );
    let Source::HuggingFace(file) = parse("hf:org/repo/dir/f.gguf") else { panic!("not hf") };
    assert_eq!((file.repository().as_str(), file.revision()), ("org/repo", "main"));
    assert_eq!(file.pick(), &Pick::File("dir/f.gguf".into()));
}

#[test]
fn a_file_is_known_by_its_own_name() {
    let name = |text: &str| parse(text).file_name().map(str::to_owned);
    assert_eq!(name("https://example.org/x/a.gguf?b=c").as_deref(), Some("a.gguf"));
    assert_eq!(name("hf:o/r/x/b.gguf").as_deref(), Some("b.gguf"));
    assert_eq!(name("/x/c.gguf").as_deref(), Some("c.gguf"));
    assert_eq!(name("zip+/x/c.zip!/y/d.gguf").as_deref(), Some("d.gguf"));
    assert_eq!(name("https://example.org/"), None);
    assert_eq!(name("hf:o/r:Q4_0"), None);
}

#[test]
fn what_is_no_source_is_refused_with_the_reason() {
    for (text, says) in [
        ("", "empty"),
        ("model.gguf", "must begin with"),
        ("ftp://example.org/a", "must begin with"),
        ("https://", "not a URL"),
        ("https://me:secret@example.org/a.gguf", "put a token"),
        ("https://example.org/a#b", "%23"),
        ("/srv/models/", "folder"),
        ("hf:repo", "no /"),
        ("hf:org/repo", "which file"),
        ("hf:org/repo/", "without empty parts"),
        ("hf:org/repo/../../etc/passwd", "without empty parts"),
        ("hf:../repo/a.gguf", "letters"),
        ("hf:org/repo:", "quantization"),
        ("hf:org/repo/a@../b", "revision"),
        ("ollama:", "letters"),
        ("ollama:a/b/c/d", "host"),
        ("ollama:lan:0/b/c", "host"),
        ("ollama:a b", "letters"),
        ("zip+/a.zip", "no !/"),
        ("zip+/a.zip!/../b", "relative path"),
        ("zip+/a.zip!//b", "relative path"),
        ("zip+ollama:m!/b", "one file"),
        ("zip+zip+/a.zip!/b.zip!/c", "one file"),
        ("/a\n/b", "control character"),
    ] {
        let error = refusal(text);
        assert!(error.contains(says), "{text:?}: {error}");
    }
    assert!(!refusal("https://me:secret@example.org/a").contains("secret"));
    assert!(refusal(&format!("/{}", "a".repeat(LENGTH_MAX))).contains("longer"));
    assert!(refusal(&["/a"; PARTS_MAX + 1].join(PLUS)).contains("parts"));
}

#[test]
fn a_list_is_one_file_in_parts() {
    let read = |json: &str| serde_json::from_str::<Source>(json);
    assert_eq!(read(r#"["/a", "/b"]"#).unwrap(), parse("/a + /b"));
    assert_eq!(read(r#"["/a"]"#).unwrap(), parse("/a"));
    assert_eq!(read(r#""hf:o/r:Q8_0""#).unwrap(), parse("hf:o/r:Q8_0"));
    assert!(read("[]").unwrap_err().to_string().contains("empty"));
    assert!(read(r#"["/a + /b", "/c"]"#).unwrap_err().to_string().contains("several"));
    assert!(read("7").unwrap_err().to_string().contains("a source, or a list"));
    assert_eq!(serde_json::to_string(&parse("/a + /b")).unwrap(), r#"["/a","/b"]"#);
    assert_eq!(serde_json::to_string(&parse("/a")).unwrap(), r#""/a""#);
}

proptest! {
    #[test]
    fn whatever_is_taken_is_written_back_as_an_equal_source(
        text in r"(https://h|http://1\.2\.3\.4|hf:|ollama:|zip\+/|/)[a-z:/@!+ .\PC]{0,24}( \+ /b)?"
    ) {
        if let Ok(source) = text.parse::<Source>() {
            let written = source.to_string();
            prop_assert_eq!(written.parse::<Source>(), Ok(source), "{} as {}", text, written);
        }
    }
}

#[test]
fn keys_in_urls_are_not_shown() {
    for (text, shown) in [
        ("https://h/m.gguf?key=secret", "https://h/m.gguf"),
        ("zip+https://h/w.whl?secret!/m.gguf", "zip+https://h/w.whl!/m.gguf"),
        ("https://h/a?secret + https://h/b", "https://h/a + https://h/b"),
        ("hf:org/repo:Q4_0", "hf:org/repo:Q4_0"),
    ] {
        assert_eq!(text.parse::<Source>().unwrap().shown(), shown);
    }
}
