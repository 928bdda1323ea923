//! Which rows go through the card together.

use std::ops::Range;

use crate::executor::Row;
use crate::ops::PASS_ROWS;

/// Cuts rows into decode passes, in order: a row's keys and values reach the cache during its pass,
/// where rows of the same sequence in that pass would not find them, so a pass has one row of a
/// sequence at most.
pub(crate) fn decode_passes(rows: &[Row]) -> Vec<Range<usize>> {
    let mut passes: Vec<Range<usize>> = vec![];
    for (index, row) in rows.iter().enumerate() {
        match passes.last_mut() {
            Some(pass)
                if pass.len() < PASS_ROWS
                    && rows[pass.clone()].iter().all(|other| other.sequence != row.sequence) =>
            {
                pass.end = index + 1;
            }
            _ => passes.push(index..index + 1),
        }
    }
    passes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(sequences: &[usize]) -> Vec<Row> {
        let row = |&sequence| Row { token: 0, position: 0, sequence, logits: false };
        sequences.iter().map(row).collect()
    }

    #[test]
    fn a_pass_has_eight_rows_of_different_sequences() {
        assert_eq!(decode_passes(&[]), []);
        assert_eq!(decode_passes(&rows(&[4])), [0..1]);
        let all: Vec<_> = (0..19).collect();
        assert_eq!(decode_passes(&rows(&all)), [0..8, 8..16, 16..19]);
        assert_eq!(decode_passes(&rows(&[0, 0, 0])), [0..1, 1..2, 2..3]);
        assert_eq!(decode_passes(&rows(&[0, 1, 0, 1, 2])), [0..2, 2..5]);
    }
}
