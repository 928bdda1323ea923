//! Lark grammars before the parser has them: tokens by name become tokens by id, and brackets are
//! counted.

use m40_tokenizer::Tokenizer;

use crate::GrammarError;

/// Brackets in brackets.
const MAX_DEPTH: usize = 64;

/// Writes each token that `text` names as its id, which the parser takes for any token:
/// `<|tool_call>` becomes `<[49]>`.
pub(crate) fn resolve(text: &str, tokenizer: &Tokenizer) -> Result<String, GrammarError> {
    let mut resolved = String::with_capacity(text.len());
    let mut depth = 0_usize;
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let end = match first {
            '"' => quoted(rest, b'"'),
            '#' => line(rest),
            '/' if rest.starts_with("//") => line(rest),
            '/' => quoted(rest, b'/'),
            _ => first.len_utf8(),
        };
        match first {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            let (what, unit) = ("the grammar", "brackets in brackets");
            return Err(GrammarError::TooLarge { what, limit: MAX_DEPTH, unit });
        }
        let name = if first == '<' { name(rest) } else { None };
        let end = match name {
            Some(name) if is_ids(name) => {
                resolved.push_str(name);
                name.len()
            }
            Some(name) => {
                let id = id(name, tokenizer);
                let unknown = || GrammarError::UnknownToken { name: name.to_owned() };
                resolved.push_str(&format!("<[{}]>", id.ok_or_else(unknown)?));
                name.len()
            }
            None => {
                resolved.push_str(&rest[..end]);
                end
            }
        };
        rest = &rest[end..];
    }
    Ok(resolved)
}

/// Bytes of a string or regular expression, both quotes included; all that is left if it has no end.
fn quoted(text: &str, quote: u8) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        if !escaped && byte == quote {
            return at + 1;
        }
        escaped = !escaped && byte == b'\\';
    }
    text.len()
}

/// Bytes up to the end of the line.
fn line(text: &str) -> usize {
    text.find('\n').unwrap_or(text.len())
}

/// A token's name at the start of `text`, its angle brackets included.
fn name(text: &str) -> Option<&str> {
    let inside = text.strip_prefix('<')?;
    let end = inside.find(|c: char| c == '<' || c == '>' || c.is_whitespace())?;
    (end > 0 && inside[end..].starts_with('>')).then(|| &text[..end + 2])
}

/// Whether it is by ids, as `<[3,5-7]>` or `<[*]>`.
fn is_ids(name: &str) -> bool {
    let inside = name.strip_prefix("<[").and_then(|name| name.strip_suffix("]>"));
    inside.is_some_and(|inside| inside.chars().all(|c| c.is_ascii_digit() || "^*,-".contains(c)))
}

fn id(name: &str, tokenizer: &Tokenizer) -> Option<u32> {
    tokenizer.token_id(name).or_else(|| tokenizer.token_id(&name[1..name.len() - 1]))
}
