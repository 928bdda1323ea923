//! Names of the files of a split model: `NAME-00001-of-00003.gguf`.

/// The names of all shards of a model, in order, given the name of one of them.
///
/// `None` when `file_name` does not end in `-NNNNN-of-NNNNN.gguf` (five digits, counted from 1) or
/// the number lies outside the count.
///
/// ```
/// let names = m40_gguf::split::shard_names("m-00002-of-00002.gguf").unwrap();
/// assert_eq!(names, ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]);
/// ```
pub fn shard_names(file_name: &str) -> Option<Vec<String>> {
    let (rest, count) = number_at_end(file_name.strip_suffix(".gguf")?)?;
    let (rest, number) = number_at_end(rest.strip_suffix("-of-")?)?;
    let prefix = rest.strip_suffix('-')?;
    if !(1..=count).contains(&number) {
        return None;
    }
    Some((1..=count).map(|i| format!("{prefix}-{i:05}-of-{count:05}.gguf")).collect())
}

/// Splits five digits from the end.
fn number_at_end(text: &str) -> Option<(&str, u32)> {
    let (rest, digits) = text.split_at_checked(text.len().checked_sub(5)?)?;
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some((rest, digits.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::shard_names;

    #[test]
    fn names_every_shard_in_order() {
        let names = shard_names("Big Model-Q4_K_M-00002-of-00003.gguf").unwrap();
        assert_eq!(
            names,
            [
                "Big Model-Q4_K_M-00001-of-00003.gguf",
                "Big Model-Q4_K_M-00002-of-00003.gguf",
                "Big Model-Q4_K_M-00003-of-00003.gguf"
            ]
        );
    }

    #[test]
    fn other_names_are_not_split() {
        for name in [
            "model.gguf",
            "model-00000-of-00003.gguf",
            "model-00004-of-00003.gguf",
            "model-00001-of-00000.gguf",
            "model-0001-of-0003.gguf",
            "model-00001-of-00003.bin",
            "model-+0001-of-00003.gguf",
            "-of-.gguf",
            "é0001-of-00003.gguf",
            "",
        ] {
            assert_eq!(shard_names(name), None, "{name:?}");
        }
    }
}
