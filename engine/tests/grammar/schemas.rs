//! Random JSON schemas whose answers are short, whatever is drawn.

use fastrand::Rng;
use serde_json::{Map, Value, json};

/// Values in each other.
const DEPTH: u32 = 3;

/// The next schema: an object, as clients ask for.
pub(super) fn random(rng: &mut Rng) -> Value {
    object(rng, DEPTH)
}

fn any(rng: &mut Rng, depth: u32) -> Value {
    match rng.u32(0..if depth == 0 { 9 } else { 13 }) {
        0 => json!({"type": "boolean"}),
        1 => json!({"type": "null"}),
        2 => integer(rng),
        3 => number(rng),
        4 => json!({"enum": (0..rng.u32(1..5)).map(|_| constant(rng)).collect::<Vec<_>>()}),
        5 => json!({"const": constant(rng)}),
        6 => json!({"type": "string", "pattern": pattern(rng)}),
        7 => json!({"type": ["string", "null"], "maxLength": rng.u32(1..6)}),
        8 => string(rng),
        9 => json!({"anyOf": [any(rng, depth - 1), any(rng, depth - 1)]}),
        10 => array(rng, depth - 1),
        _ => object(rng, depth - 1),
    }
}

fn integer(rng: &mut Rng) -> Value {
    let least = rng.i32(-300..300);
    let mut schema =
        json!({"type": "integer", "minimum": least, "maximum": least + rng.i32(0..900)});
    if rng.bool() {
        schema["maximum"] = json!(least + 100);
        schema["multipleOf"] = json!(rng.u32(1..8));
    }
    schema
}

fn number(rng: &mut Rng) -> Value {
    let least = f64::from(rng.i32(-40..40)) / 4.0;
    let bounds = ["minimum", "exclusiveMinimum"];
    json!({"type": "number", *rng.choice(&bounds).expect("two"): least, "maximum": least + 2.5})
}

fn string(rng: &mut Rng) -> Value {
    let least = rng.u32(0..4);
    json!({"type": "string", "minLength": least, "maxLength": least + rng.u32(0..6)})
}

fn pattern(rng: &mut Rng) -> &'static str {
    let patterns =
        ["^[a-z]{1,4}$", "^(foo|bar)[0-9]?$", "^\\d{3}-\\d{2}$", "^[^x\"\\\\]{2}$", "^A.B$"];
    rng.choice(&patterns).expect("some")
}

fn constant(rng: &mut Rng) -> Value {
    match rng.u32(0..6) {
        0 => json!(null),
        1 => json!(rng.bool()),
        2 => json!(rng.i32(-99..99)),
        3 => json!({"k": [rng.u8(..), "v"]}),
        4 => json!("é\"\n\\"),
        _ => json!(format!("word{}", rng.u8(..))),
    }
}

fn array(rng: &mut Rng, depth: u32) -> Value {
    let least = rng.u32(0..3);
    let most = least + rng.u32(0..2);
    json!({"type": "array", "items": any(rng, depth), "minItems": least, "maxItems": most})
}

fn object(rng: &mut Rng, depth: u32) -> Value {
    let names = ["id", "the name", "é", "a\"b", "x"];
    let (mut properties, mut required) = (Map::new(), vec![]);
    for name in &names[..rng.usize(1..4)] {
        properties.insert((*name).to_owned(), any(rng, depth));
        if rng.bool() {
            required.push(*name);
        }
    }
    json!({
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}
