//! Which rows go through the card together.

use std::ops::Range;

use crate::executor::Row;
use crate::ops::PASS_ROWS;

/// Rows from which on a wide pass takes less time than decode passes of [`PASS_ROWS`] rows: on a card of
/// few SMs. On one of many, with a small model, it does from 24 on.
const WIDE_FROM: usize = 16;

/// How many of so many sequences that wait for a token go through the card together, where wide
/// passes have `wide` rows at most.
pub(crate) fn rows_at_once(waiting: usize, wide: usize) -> usize {
    let most = if waiting >= WIDE_FROM { wide.max(PASS_ROWS) } else { PASS_ROWS };
    waiting.min(most)
}

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

/// Whether some sequence has several rows, as prompts have.
pub(crate) fn is_prompt(rows: &[Row]) -> bool {
    let mut sequences: Vec<_> = rows.iter().map(|row| row.sequence).collect();
    sequences.sort_unstable();
    sequences.windows(2).any(|pair| pair[0] == pair[1])
}

/// Cuts rows into passes of at most `most` rows, `most_wanted` of which want their logits, in order.
pub(crate) fn prompt_passes(rows: &[Row], most: usize, most_wanted: usize) -> Vec<Range<usize>> {
    let mut passes: Vec<Range<usize>> = vec![];
    let mut wanted = 0;
    for (index, row) in rows.iter().enumerate() {
        let wants = usize::from(row.logits);
        match passes.last_mut() {
            Some(pass) if pass.len() < most && wanted + wants <= most_wanted => {
                pass.end = index + 1;
                wanted += wants;
            }
            _ => {
                passes.push(index..index + 1);
                wanted = wants;
            }
        }
    }
    passes
}

/// A pass in the order in which rows go through it: those of a sequence side by side.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ordered {
    /// Indices into the pass's rows.
    pub(crate) order: Vec<usize>,
    /// Rows of each sequence.
    pub(crate) counts: Vec<usize>,
    /// Places in the order of the rows that want their logits, in the order in which they came.
    pub(crate) wanted: Vec<u32>,
}

impl Ordered {
    pub(crate) fn new(rows: &[Row]) -> Self {
        let mut order: Vec<_> = (0..rows.len()).collect();
        order.sort_by_key(|&i| (rows[i].sequence, rows[i].position));
        let counts = order.chunk_by(|&a, &b| rows[a].sequence == rows[b].sequence);
        let counts = counts.map(<[usize]>::len).collect();
        let mut places = vec![0; rows.len()];
        (0..).zip(&order).for_each(|(place, &i)| places[i] = place);
        let wanted = rows.iter().zip(places).filter(|(row, _)| row.logits).map(|(_, place)| place);
        let wanted = wanted.collect();
        Self { order, counts, wanted }
    }
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
        assert_eq!(decode_passes(&rows(&[4])), std::iter::once(0..1).collect::<Vec<_>>());
        let all: Vec<_> = (0..19).collect();
        assert_eq!(decode_passes(&rows(&all)), [0..8, 8..16, 16..19]);
        assert_eq!(decode_passes(&rows(&[0, 0, 0])), [0..1, 1..2, 2..3]);
        assert_eq!(decode_passes(&rows(&[0, 1, 0, 1, 2])), [0..2, 2..5]);
    }

    #[test]
    fn few_sequences_take_decode_passes_and_more_take_wide_ones() {
        let found = [0, 1, 8, 15, 16, 65].map(|waiting| rows_at_once(waiting, 64));
        assert_eq!(found, [0, 1, 8, 8, 16, 64]);
        // A context of few tokens has few rows.
        assert_eq!([rows_at_once(20, 4), rows_at_once(20, 12)], [8, 12]);
    }

    #[test]
    fn a_prompt_has_several_rows_of_a_sequence() {
        assert!(!is_prompt(&rows(&[])));
        assert!(!is_prompt(&rows(&[3, 1, 2])));
        assert!(is_prompt(&rows(&[3, 1, 3])));
    }

    #[test]
    fn prompts_are_cut_by_rows_and_by_logits() {
        let mut all = rows(&[0; 10]);
        assert_eq!(prompt_passes(&all, 4, 1), [0..4, 4..8, 8..10]);
        for i in [1, 2, 9] {
            all[i].logits = true;
        }
        assert_eq!(prompt_passes(&all, 100, 2), [0..9, 9..10]);
        assert_eq!(prompt_passes(&all, 5, 1), [0..2, 2..7, 7..10]);
    }

    #[test]
    fn rows_of_a_sequence_go_side_by_side_and_logits_come_in_the_order_asked() {
        let mut all = rows(&[1, 0, 1, 0, 0]);
        for (row, position) in all.iter_mut().zip([4, 7, 5, 8, 9]) {
            row.position = position;
        }
        for i in [0, 2, 4] {
            all[i].logits = true;
        }
        let Ordered { order, counts, wanted } = Ordered::new(&all);
        assert_eq!((order, counts), (vec![1, 3, 4, 0, 2], vec![3, 2]));
        assert_eq!(wanted, [3, 4, 2]);
    }
}
