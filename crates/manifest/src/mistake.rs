//! A mistake in a TOML text: where it is, and what was probably meant.

use m40_control::Place;

/// Longest message, in characters: it may quote a text that has no bound of its own.
const MESSAGE_CHARS_MAX: usize = 400;
/// Longest part of a line that is shown, in characters.
const LINE_CHARS_MAX: usize = 120;
/// Of a longer line, characters that are shown before the place.
const LINE_CHARS_BEFORE: usize = 60;

/// A mistake in one line of text without control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Where it is; absent when it is about the text as a whole.
    pub place: Option<Place>,
    /// What is wrong.
    pub message: String,
}

impl Mistake {
    /// A mistake at this byte of the text.
    pub(crate) fn at(text: &str, byte: usize, message: &str) -> Self {
        Self { place: Some(place(text, byte)), message: one_line(message) }
    }

    /// A mistake at a place that is known.
    pub(crate) fn there(place: &Place, message: &str) -> Self {
        Self { place: Some(place.clone()), message: one_line(message) }
    }

    /// A mistake in the text as a whole.
    pub(crate) fn whole(message: &str) -> Self {
        Self { place: None, message: one_line(message) }
    }

    /// What the parser of TOML, or serde behind it, says of the text.
    pub fn of(text: &str, error: &toml::de::Error) -> Self {
        let byte = error.span().map_or(0, |span| span.start);
        Self::at(text, byte, &explain(error.message()))
    }
}

/// The place of a byte of a text.
pub(crate) fn place(text: &str, byte: usize) -> Place {
    let before = text.get(..byte).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = text[line_start..].lines().next().unwrap_or_default();
    // The place may be the line's end, and that two characters.
    let chars_before = before[line_start..].chars().count().min(line.chars().count());
    let (text, caret) = window(line, chars_before);
    Place { line: before.matches('\n').count() + 1, column: chars_before + 1, text, caret }
}

/// The part of a line around a character, and where that is in it.
fn window(line: &str, at: usize) -> (String, usize) {
    let short = line.chars().nth(LINE_CHARS_MAX).is_none();
    let skipped = if short { 0 } else { at.saturating_sub(LINE_CHARS_BEFORE) };
    let shown = line.chars().skip(skipped).take(LINE_CHARS_MAX);
    // One character each, so that the caret stays below its place.
    let harmless = shown.map(|c| if c.is_control() { ' ' } else { c });
    (harmless.collect(), at - skipped)
}

fn one_line(message: &str) -> String {
    let mut line = String::new();
    for (count, c) in message.replace('\n', "; ").chars().enumerate() {
        if count == MESSAGE_CHARS_MAX {
            line.push('…');
            break;
        }
        match c.is_control() {
            true => line.extend(c.escape_default()),
            false => line.push(c),
        }
    }
    line
}

// serde's text for an unknown key lists every key; people want the one they meant.
fn explain(message: &str) -> String {
    if let Some(key) = quoted(message, "missing field `") {
        return format!("the key `{key}` is missing");
    }
    if let Some(key) = quoted(message, "unknown field `") {
        let known = words_after(message, key);
        return match closest(key, &known) {
            Some(guess) => format!("unknown key `{key}`: did you mean `{guess}`?"),
            None => format!("unknown key `{key}`: known here are {}", known.join(", ")),
        };
    }
    let value = quoted(message, "unknown variant `");
    match value.and_then(|value| closest(value, &words_after(message, value))) {
        Some(guess) => format!("{message}: did you mean `{guess}`?"),
        None => message.to_owned(),
    }
}

fn quoted<'a>(message: &'a str, start: &str) -> Option<&'a str> {
    message.strip_prefix(start)?.split_once('`').map(|(word, _)| word)
}

/// What is in backticks behind the first word that is.
fn words_after<'a>(message: &'a str, first: &str) -> Vec<&'a str> {
    let rest = message.split_once(first).map_or("", |(_, rest)| rest);
    rest.split('`').skip(2).step_by(2).collect()
}

/// The known word that is nearest, unless even that one is far off.
pub(crate) fn closest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let length = word.chars().count();
    // Longer than any word that is known: the distance would cost time and find nothing.
    if length > 64 {
        return None;
    }
    let nearest = known.iter().map(|known| (distance(word, known), *known)).min()?;
    (nearest.0 <= (length / 3).max(2)).then_some(nearest.1)
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("same", "same"), 0);
    }

    #[test]
    fn the_nearest_word_is_guessed_and_a_far_one_is_not() {
        let known = ["context_tokens", "aliases", "source"];
        assert_eq!(closest("contxt_tokens", &known), Some("context_tokens"));
        assert_eq!(closest("alias", &known), Some("aliases"));
        assert_eq!(closest("zebra", &known), None);
        assert_eq!(closest(&"x".repeat(100_000), &known), None);
    }

    #[test]
    fn the_caret_is_below_its_place_in_short_and_in_long_lines() {
        let short = place("a = 1\nbé\t= 2\n", 11);
        assert_eq!((short.line, short.column, short.caret), (2, 5, 4));
        assert_eq!(short.text, "bé = 2", "a tab is a column wide");

        let line = format!("{}!{}", "x".repeat(1000), "y".repeat(1000));
        let long = place(&line, 1000);
        assert_eq!((long.line, long.column), (1, 1001));
        assert_eq!(long.text.chars().nth(long.caret), Some('!'));
        assert_eq!(long.text.chars().count(), LINE_CHARS_MAX);
        // Behind the end, or inside a character: somewhere, and no panic.
        assert_eq!(place("a", 99).column, 2);
        assert_eq!(place("é", 1).column, 2);
    }

    #[test]
    fn a_message_is_one_harmless_line() {
        let said = Mistake::whole(&format!("a\nb\x1b[2J{}", "x".repeat(9999))).message;
        assert!(said.starts_with("a; b\\u{1b}[2Jx"), "{said}");
        assert!(said.chars().count() < MESSAGE_CHARS_MAX + 20);
    }
}
