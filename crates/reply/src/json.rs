//! JSON followed while it comes: where a value ends, and whether it is one.

use std::ops::RangeInclusive;

/// Deepest nesting that is followed; `serde_json` reads a little more.
const DEPTH_MAX: usize = 100;

const HIGH_SURROGATES: RangeInclusive<u16> = 0xd800..=0xdbff;
const LOW_SURROGATES: RangeInclusive<u16> = 0xdc00..=0xdfff;

/// Follows one JSON value through any number of texts.
#[derive(Debug)]
pub(crate) struct Scan {
    open: Vec<Container>,
    at: At,
    /// Whether the string at hand is a key.
    is_key: bool,
}

/// What a text made of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Followed {
    /// It goes on after this text.
    Within,
    /// It ends after so many bytes of this text.
    Whole(usize),
    /// It is no JSON.
    Broken,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Container {
    Object,
    Array,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Value,
    /// A value, or the end of an empty array.
    FirstItem,
    /// A key, or the end of an empty object.
    FirstKey,
    Key,
    Colon,
    /// A comma, or the end of the container.
    Next,
    Text,
    Escape,
    /// Digits of `\u`: how many are missing, what they are so far, and whether they must make the second
    /// half of a character.
    Hex {
        missing: u8,
        code: u16,
        low: bool,
    },
    /// The second half of a character: its backslash, then its `u`.
    Low,
    LowU,
    Number(Number),
    /// What is missing of `true`, `false` or `null`.
    Word(&'static [u8]),
    Done,
}

/// The latest part of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Minus,
    Zero,
    Digits,
    Point,
    Fraction,
    E,
    Sign,
    Exponent,
}

impl Number {
    fn next(self, byte: u8) -> Option<Self> {
        match (self, byte) {
            (Self::Minus, b'0') => Some(Self::Zero),
            (Self::Minus | Self::Digits, b'0'..=b'9') => Some(Self::Digits),
            (Self::Zero | Self::Digits, b'.') => Some(Self::Point),
            (Self::Point | Self::Fraction, b'0'..=b'9') => Some(Self::Fraction),
            (Self::Zero | Self::Digits | Self::Fraction, b'e' | b'E') => Some(Self::E),
            (Self::E, b'+' | b'-') => Some(Self::Sign),
            (Self::E | Self::Sign | Self::Exponent, b'0'..=b'9') => Some(Self::Exponent),
            _ => None,
        }
    }

    fn may_end(self) -> bool {
        matches!(self, Self::Zero | Self::Digits | Self::Fraction | Self::Exponent)
    }
}

impl Scan {
    /// A value is to come, perhaps after white space.
    pub(crate) fn new() -> Self {
        Self { open: vec![], at: At::Value, is_key: false }
    }

    /// Takes the next text. After `Whole` or `Broken` nothing more is taken.
    pub(crate) fn follow(&mut self, text: &str) -> Followed {
        for (at, byte) in text.bytes().enumerate() {
            // A number ends before what is no part of it.
            if let At::Number(number) = self.at
                && number.next(byte).is_none()
            {
                if !number.may_end() {
                    return Followed::Broken;
                }
                self.end_value();
                if self.at == At::Done {
                    return Followed::Whole(at);
                }
            }
            match self.next(byte) {
                Some(next) => self.at = next,
                None => return Followed::Broken,
            }
            if self.at == At::Done {
                return Followed::Whole(at + 1);
            }
        }
        Followed::Within
    }

    /// What comes after this byte; `None` where it must not be.
    fn next(&mut self, byte: u8) -> Option<At> {
        match self.at {
            At::Text => self.in_text(byte),
            At::Escape => match byte {
                b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Some(At::Text),
                b'u' => Some(At::Hex { missing: 4, code: 0, low: false }),
                _ => None,
            },
            At::Hex { missing, code, low } => {
                let digit = char::from(byte).to_digit(16)?;
                let code = code << 4 | u16::try_from(digit).ok()?;
                after_hex(missing - 1, code, low)
            }
            At::Low => (byte == b'\\').then_some(At::LowU),
            At::LowU => (byte == b'u').then_some(At::Hex { missing: 4, code: 0, low: true }),
            At::Number(number) => number.next(byte).map(At::Number),
            At::Word(rest) => {
                let (first, rest) = rest.split_first()?;
                match (*first == byte, rest) {
                    (false, _) => None,
                    (true, []) => Some(self.after_value()),
                    (true, rest) => Some(At::Word(rest)),
                }
            }
            at if byte.is_ascii_whitespace() && byte != b'\x0c' => Some(at),
            At::FirstItem if byte == b']' => self.close(Container::Array),
            At::FirstKey if byte == b'}' => self.close(Container::Object),
            At::Value | At::FirstItem => self.begin_value(byte),
            At::FirstKey | At::Key => {
                self.is_key = true;
                (byte == b'"').then_some(At::Text)
            }
            At::Colon => (byte == b':').then_some(At::Value),
            At::Next => match (byte, self.open.last()) {
                (b',', Some(Container::Object)) => Some(At::Key),
                (b',', Some(Container::Array)) => Some(At::Value),
                (b'}', _) => self.close(Container::Object),
                (b']', _) => self.close(Container::Array),
                _ => None,
            },
            At::Done => None,
        }
    }

    fn begin_value(&mut self, byte: u8) -> Option<At> {
        self.is_key = false;
        match byte {
            b'{' => self.descend(Container::Object, At::FirstKey),
            b'[' => self.descend(Container::Array, At::FirstItem),
            b'"' => Some(At::Text),
            b'-' => Some(At::Number(Number::Minus)),
            b'0' => Some(At::Number(Number::Zero)),
            b'1'..=b'9' => Some(At::Number(Number::Digits)),
            b't' => Some(At::Word(b"rue")),
            b'f' => Some(At::Word(b"alse")),
            b'n' => Some(At::Word(b"ull")),
            _ => None,
        }
    }

    fn in_text(&self, byte: u8) -> Option<At> {
        match byte {
            b'"' if self.is_key => Some(At::Colon),
            b'"' => Some(self.after_value()),
            b'\\' => Some(At::Escape),
            0..0x20 => None,
            _ => Some(At::Text),
        }
    }

    fn descend(&mut self, into: Container, at: At) -> Option<At> {
        self.open.push(into);
        (self.open.len() <= DEPTH_MAX).then_some(at)
    }

    fn close(&mut self, container: Container) -> Option<At> {
        (self.open.pop() == Some(container)).then(|| self.after_value())
    }

    fn after_value(&self) -> At {
        if self.open.is_empty() { At::Done } else { At::Next }
    }

    fn end_value(&mut self) {
        self.at = self.after_value();
    }
}

fn after_hex(missing: u8, code: u16, low: bool) -> Option<At> {
    match missing {
        1.. => Some(At::Hex { missing, code, low }),
        0 if LOW_SURROGATES.contains(&code) != low => None,
        0 if HIGH_SURROGATES.contains(&code) => Some(At::Low),
        0 => Some(At::Text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follow(text: &str) -> Followed {
        let whole = Scan::new().follow(text);
        let mut scan = Scan::new();
        let mut done = 0;
        for piece in text.split_inclusive(|_| true) {
            match scan.follow(piece) {
                Followed::Within => done += piece.len(),
                Followed::Whole(n) => {
                    assert_eq!(whole, Followed::Whole(done + n), "{text}");
                    return whole;
                }
                Followed::Broken => {
                    assert_eq!(whole, Followed::Broken, "{text}");
                    return whole;
                }
            }
        }
        assert_eq!(whole, Followed::Within, "{text}");
        whole
    }

    #[test]
    fn a_value_ends_where_it_ends() {
        for value in [
            r#"{"a": [1, -0.5e+3, {"b": "}\"]\\"}], "c": {}, "é\u00e9": []}"#,
            r#""\ud83d\ude00""#,
            "true",
            " null",
            "[[], [0], [10]]",
        ] {
            let text = format!("{value}, more");
            assert_eq!(follow(&text), Followed::Whole(value.len()), "{value}");
            for end in (1..value.len()).filter(|at| value.is_char_boundary(*at)) {
                assert_eq!(follow(&value[..end]), Followed::Within, "{}", &value[..end]);
            }
        }
        assert_eq!(follow("-12.5 "), Followed::Whole(5));
        assert_eq!(follow("-12.5"), Followed::Within);
    }

    #[test]
    fn what_is_no_json_is_told() {
        for text in [
            "{a: 1}",
            r#"{"a" 1}"#,
            r#"{"a": 1,}"#,
            "[1,]",
            "[1}",
            "[01]",
            "1.]",
            "-]",
            "tru ",
            "'a'",
            "\"a\nb\"",
            r#""\x""#,
            r#""\ud83d!""#,
            r#""\ud83d\n""#,
            r#""\ude00""#,
            "\u{c}1",
        ] {
            assert_eq!(follow(text), Followed::Broken, "{text}");
        }
        assert_eq!(follow(&"[".repeat(DEPTH_MAX)), Followed::Within);
        assert_eq!(follow(&"[".repeat(DEPTH_MAX + 1)), Followed::Broken);
    }

    #[test]
    fn it_agrees_with_another_reader() {
        let parts = [
            "{", "}", "[", "]", ",", ":", "\"", "a", "\\", "u", "00e9", "1", "0", "-", ".", "e",
            "true", "null", " ", "\"k\":", "\"v\"",
        ];
        let mut seed = 1_u64;
        for _ in 0..20_000 {
            let mut text = String::new();
            for _ in 0..6 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                text += parts[(seed >> 33) as usize % parts.len()];
            }
            let valid = serde_json::from_str::<serde_json::Value>(&text).is_ok();
            let ours = match follow(&format!("{text}\n")) {
                Followed::Whole(n) => text[n..].trim().is_empty(),
                Followed::Within | Followed::Broken => false,
            };
            assert_eq!(ours, valid, "{text}");
        }
    }
}
