//! `GET /openapi.json`: every route in OpenAPI's terms.
//!
//! Each API has its part in `openapi/`, kept by hand, with its paths and the schemas that they refer to;
//! a test holds them to the routes.

use std::sync::LazyLock;

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::Context;

const PARTS: [&str; 7] = [
    include_str!("openapi/m40d.json"),
    include_str!("openapi/guard.json"),
    include_str!("openapi/openai.json"),
    include_str!("openapi/embeddings.json"),
    include_str!("openapi/anthropic.json"),
    include_str!("openapi/llamacpp.json"),
    include_str!("openapi/ollama.json"),
];

static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| document(&PARTS).to_string().into());

/// The route of the document.
pub(super) fn routes() -> Router<Context> {
    Router::new().route("/openapi.json", get(serve))
}

async fn serve() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.clone())
}

fn document(parts: &[&str]) -> Value {
    let (mut paths, mut schemas) = (Map::new(), Map::new());
    for part in parts {
        let mut part: Value =
            serde_json::from_str(part).expect("a part is JSON, as a test of it says");
        for (into, from) in [(&mut paths, "paths"), (&mut schemas, "schemas")] {
            if let Value::Object(more) = part[from].take() {
                into.extend(more);
            }
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "m40d",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Language models of this machine, by the APIs that clients know.",
            "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        // Either kind of key, or none where the daemon wants none.
        "security": [{"bearer": []}, {"x-api-key": []}, {}],
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    const METHODS: [&str; 6] = ["get", "post", "put", "patch", "delete", "head"];

    /// Method and path of each operation.
    type Operations = BTreeSet<(String, String)>;

    fn described() -> Operations {
        let document = document(&PARTS);
        let paths = document["paths"].as_object().unwrap();
        let of_path = |(path, item): (&String, &Value)| {
            let methods: Vec<String> = item.as_object().unwrap().keys().cloned().collect();
            let path = path.clone();
            methods.into_iter().map(move |method| (method, path.clone()))
        };
        paths.iter().flat_map(of_path).collect()
    }

    /// What the source text of the routes says: axum does not tell a router's routes.
    fn routed(folder: &Path, found: &mut Operations) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                routed(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                routes_of(&fs::read_to_string(&path).unwrap(), found);
            }
        }
    }

    fn routes_of(source: &str, found: &mut Operations) {
        let source = source.split("#[cfg(test)]").next().unwrap();
        for route in source.split(".route(").skip(1) {
            let Some((_, rest)) = route.split_once('"') else { continue };
            let (path, rest) = rest.split_once('"').unwrap();
            let handlers = arguments(rest);
            // A wildcard is a parameter like any other to clients.
            let path = path.replace("{*", "{");
            for method in METHODS {
                let is_start = |before: &str| !before.ends_with(|c: char| c.is_alphanumeric());
                let call = format!("{method}(");
                let mut calls = handlers.match_indices(&call);
                if calls.any(|(at, _)| is_start(&handlers[..at])) {
                    found.insert((method.to_owned(), path.clone()));
                }
            }
        }
    }

    /// The text up to the parenthesis that closes the call.
    fn arguments(rest: &str) -> &str {
        let mut depth = 1;
        for (at, c) in rest.char_indices() {
            depth += match c {
                '(' => 1,
                ')' => -1,
                _ => 0,
            };
            if depth == 0 {
                return &rest[..at];
            }
        }
        rest
    }

    #[test]
    fn the_document_has_all_routes_and_no_others() {
        let http = Path::new(env!("CARGO_MANIFEST_DIR")).join("daemon/http");
        let mut routes = Operations::new();
        routed(&http, &mut routes);
        routes_of(&fs::read_to_string(http.with_extension("rs")).unwrap(), &mut routes);
        assert!(routes.contains(&("post".into(), "/generate".into())), "{routes:?}");
        let described = described();
        let missing: Vec<_> = routes.difference(&described).collect();
        let invented: Vec<_> = described.difference(&routes).collect();
        assert!(missing.is_empty() && invented.is_empty(), "no {missing:?}, but {invented:?}");
    }

    #[test]
    fn every_reference_is_to_a_schema_that_is_there() {
        let document = document(&PARTS);
        let text = document.to_string();
        let references = text.split("\"$ref\":\"#/components/schemas/").skip(1);
        let names: BTreeSet<&str> =
            references.map(|rest| rest.split('"').next().unwrap()).collect();
        assert!(names.contains("Error"));
        let schemas = &document["components"]["schemas"];
        let missing: Vec<_> = names.iter().filter(|name| schemas[**name].is_null()).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn every_operation_says_what_it_is_for_and_how_it_fails() {
        let document = document(&PARTS);
        for (method, path) in described() {
            let operation = &document["paths"][&path][&method];
            assert!(operation["summary"].is_string(), "{method} {path}");
            assert!(operation["responses"].is_object(), "{method} {path}");
        }
    }
}
