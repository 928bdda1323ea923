//! Wide passes: what they choose and when they end, against decode passes.

use m40_gpu::ops::{End, NO_SLOT, Next, Place, Row};

use crate::choosing::{Member, TARGET, Text, ends, members, model, texts, tokens, vocab};
use crate::model::{Model, Placed, Way};
use crate::passes;
use crate::prompt::{Prompts, emulation};

/// Passes.
const PASSES: usize = 4;

/// A wide pass over the first tokens of members, and others that feed themselves; behind the members'
/// rows one without a slot, and one without a sequence.
struct Wide<'a> {
    prompts: Prompts<'a>,
    rows: usize,
}

impl<'a> Wide<'a> {
    fn new(model: &'a Model, members: &[Member]) -> Option<Self> {
        let mut prompts = Prompts::new(&emulation()?, model, members.len() + 1, 1);
        let mut words = vec![];
        let mut row = |token, pages, slot| {
            words.extend(Row { token, position: 0, pages, slot }.words());
        };
        for ((member, slot), table) in members.iter().zip(0..).zip(&prompts.tables) {
            let continuation = member.continuation(vocab(model));
            for (at, bytes) in prompts.states.contents(slot, &continuation, 1) {
                prompts.card.write(Place(prompts.states_start.0 + (at / 16) as u32), &bytes);
            }
            row(member.first, *table, slot);
        }
        row(members[0].first, prompts.tables[members.len()], NO_SLOT);
        row(0, Place::NOWHERE, NO_SLOT);
        let rows = members.len() + 2;
        let [at_rows, at_tiles, at_ran] =
            [prompts.prefill.rows, prompts.prefill.tiles, prompts.prefill.ran]
                .map(|buffer| prompts.buffers[buffer.0]);
        prompts.card.write_words(at_rows, &words);
        let tiles: Vec<_> = (0..rows as u32).flat_map(|row| [row, 1]).collect();
        prompts.card.write_words(at_tiles, &tiles);
        prompts.card.write_words(at_ran, &vec![0; rows]);
        Some(Self { prompts, rows })
    }

    /// What each row was given in so many passes.
    fn texts(mut self, passes: usize) -> Vec<Text> {
        let place = self.prompts.buffers[self.prompts.prefill.nexts.0];
        let words = self.prompts.card.read_words(place, passes * self.rows * Next::WORDS);
        self.prompts.card.end();
        let nexts = words.as_chunks().0;
        let of_row = |row| nexts.iter().skip(row).step_by(self.rows).copied().collect();
        (0..self.rows).map(of_row).collect()
    }
}

/// What decode passes choose.
fn expected(model: &Model, members: &[Member]) -> Option<Vec<Text>> {
    let mut placed = Placed::new(&passes::emulation()?, model, TARGET, members.len());
    let texts = texts(model, &mut placed, Way::Resident, members, &[PASSES as u32]);
    placed.end();
    Some(texts)
}

#[test]
fn wide_passes_choose_what_decode_passes_do() {
    let model = model();
    let members = members();
    let Some(expected) = expected(&model, &members) else { return };
    let Some(mut wide) = Wide::new(&model, &members) else { return };
    wide.prompts.wide(wide.rows, PASSES);
    let found = wide.texts(PASSES);
    for (i, text) in expected.iter().enumerate() {
        assert_eq!(tokens(&found[i]), tokens(text), "sequence {i}");
        assert_eq!(ends(&found[i]), [0; PASSES], "sequence {i}");
    }
    // Without a slot the likeliest tokens are chosen, as the first member asks for.
    assert_eq!(tokens(&found[members.len()]), tokens(&expected[0]));
    let none = &found[members.len() + 1];
    assert_eq!(ends(none), [End::Before as u32; PASSES]);
}

#[test]
fn sequences_end_in_wide_passes_as_in_decode_passes() {
    let model = model();
    let mut members = members();
    let Some(free) = expected(&model, &members) else { return };
    members[0].stops = vec![free[0][1][0]];
    members[1].most = 3;
    members[2].stops = vec![free[2][0][0]];
    let Some(expected) = expected(&model, &members) else { return };
    let Some(mut wide) = Wide::new(&model, &members) else { return };
    wide.prompts.wide(wide.rows, 1);
    wide.prompts.card.write_words(wide.prompts.cancels, &[0, 0, 0, 0, 0, 1]);
    wide.prompts.wide(wide.rows, PASSES - 1);
    let found = wide.texts(PASSES);
    for (i, text) in expected.iter().enumerate().filter(|(i, _)| *i != 5) {
        let (now, after) = found[i].split_at(text.len());
        assert_eq!((tokens(now), ends(now)), (tokens(text), ends(text)), "sequence {i}");
        assert!(after.iter().all(|next| *next == [0, 0, End::Before as u32, 0]), "sequence {i}");
    }
    let [cancelled, before] = [End::Cancelled, End::Before].map(|end| end as u32);
    assert_eq!(ends(&found[5]), [0, cancelled, before, before]);
    assert_eq!(tokens(&found[5])[..2], tokens(&free[5])[..2]);
}
