//! Tokens that decode passes choose and feed themselves with, against the host's sampler; and when
//! they stop.

use m40_gpu::Choice;
use m40_gpu::continuation::Continuation;
use m40_gpu::lower::Target;
use m40_gpu::ops::{End, Next, PASS_ROWS};
use m40_sched::{Sampler, SamplingParams};

use crate::model::{Model, Placed, Way};
use crate::passes::{emulation, tiny};

/// Fewer blocks than rows: some choose for several.
pub(crate) const TARGET: Target = Target { blocks: 2, context: 100 };

/// What is chosen and why it ends, [`Next`].
pub(crate) type Text = Vec<[u32; Next::WORDS]>;

/// A sequence of one token so far, and how it goes on.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) first: u32,
    params: SamplingParams,
    stops: Vec<u32>,
    pub(crate) most: u32,
}

impl Member {
    fn new(first: u32, params: SamplingParams) -> Self {
        Self { first, params, stops: vec![], most: u32::MAX }
    }

    fn seed(&self) -> u64 {
        1 << 40 | u64::from(self.first)
    }

    pub(crate) fn continuation(&self, vocab: usize) -> Continuation {
        let mut choice = Choice::new(&self.params, self.seed(), vocab);
        choice.accept(self.first);
        Continuation::new(choice, self.stops.clone(), self.most).unwrap()
    }
}

/// No filter, no penalty.
fn neutral() -> SamplingParams {
    SamplingParams { temperature: 1.0, ..SamplingParams::greedy() }
}

/// One of each kind of choice.
pub(crate) fn members() -> [Member; PASS_ROWS] {
    let penalties = SamplingParams {
        repeat_penalty: 1.5,
        presence_penalty: 0.5,
        frequency_penalty: 0.25,
        repeat_last_n: 3,
        ..SamplingParams::greedy()
    };
    let biased = vec![(20, 4.0), (21, 4.5), (30, -100.0), (20, 0.75)];
    let all = [
        SamplingParams::greedy(),
        neutral(),
        SamplingParams { temperature: 1.5, ..SamplingParams::default() },
        penalties.clone(),
        SamplingParams { logit_bias: biased.clone(), ..SamplingParams::greedy() },
        SamplingParams { top_p: 0.7, ..neutral() },
        SamplingParams { top_k: 5, min_p: 0.1, ..neutral() },
        SamplingParams { temperature: 0.9, top_k: 50, logit_bias: biased, ..penalties },
    ];
    let mut first = 10;
    all.map(|params| {
        first += 1;
        Member::new(first, params)
    })
}

pub(crate) fn model() -> Model {
    Model::new(&tiny("llama"))
}

pub(crate) fn vocab(model: &Model) -> usize {
    model.program.description.vocab
}

/// What sequences are given in launches of so many passes.
pub(crate) fn texts(
    model: &Model,
    placed: &mut Placed,
    way: Way,
    members: &[Member],
    launches: &[u32],
) -> Vec<Text> {
    let mut sequences: Vec<_> = members.iter().map(|_| placed.sequence()).collect();
    for (sequence, member) in sequences.iter_mut().zip(members) {
        placed.continue_with(sequence, &member.continuation(vocab(model)), 1);
    }
    let mut texts: Vec<Text> = vec![vec![]; members.len()];
    for passes in launches {
        let last = members.iter().zip(&texts);
        let last = last.map(|(member, text)| text.last().map_or(member.first, |next| next[0]));
        let rows = sequences.iter_mut().zip(last).collect();
        for (text, more) in texts.iter_mut().zip(placed.choose(way, rows, *passes)) {
            text.extend(more);
        }
    }
    sequences.into_iter().for_each(|sequence| placed.release(sequence));
    texts
}

fn tokens(text: &Text) -> Vec<u32> {
    text.iter().map(|next| next[0]).collect()
}

fn ends(text: &Text) -> Vec<u32> {
    text.iter().map(|next| next[2]).collect()
}

/// The host's samplers choose the same, with about the same probabilities, from the logits that
/// passes over these tokens make.
fn check_against_host(model: &Model, placed: &mut Placed, members: &[Member], texts: &[Text]) {
    let sampler = |m: &Member| Sampler::new(m.params.clone(), m.seed(), vocab(model));
    let mut samplers: Vec<_> = members.iter().map(sampler).collect();
    let mut sequences: Vec<_> = members.iter().map(|_| placed.sequence()).collect();
    let mut fed: Vec<_> = members.iter().map(|member| member.first).collect();
    for step in 0..texts[0].len() {
        let mut rows: Vec<_> = sequences.iter_mut().zip(fed.iter().copied()).collect();
        let results = placed.pass(Way::Resident, &mut rows);
        let nexts = texts.iter().map(|text| text[step]);
        for (i, ((mut logits, _), next)) in results.into_iter().zip(nexts).enumerate() {
            let [token, probability, ..] = next;
            samplers[i].accept(fed[i]);
            let host = samplers[i].sample(&mut logits);
            let apart = (host.probability - f32::from_bits(probability)).abs();
            let told = || format!("{:?}: {host:?}, chosen {token}", members[i].params);
            assert_eq!(host.id, token, "{}", told());
            assert!(apart <= 4e-6 * host.probability, "{}", told());
            fed[i] = token;
        }
    }
    sequences.into_iter().for_each(|sequence| placed.release(sequence));
}

#[test]
fn passes_choose_what_the_hosts_sampler_does_alone_and_beside_others_however_launched() {
    let Some(emulation) = emulation() else { return };
    let model = model();
    let mut placed = Placed::new(&emulation, &model, TARGET, PASS_ROWS);
    let members = members();
    let together = texts(&model, &mut placed, Way::Resident, &members, &[5]);
    assert!(together.iter().all(|text| ends(text) == [0; 5]));
    check_against_host(&model, &mut placed, &members, &together);
    // The window of penalties goes on from launch to launch.
    let cut = texts(&model, &mut placed, Way::Resident, &members[2..5], &[1, 3, 1]);
    assert_eq!(cut, together[2..5]);
    let launched = texts(&model, &mut placed, Way::OpByOp, &members[1..], &[3]);
    for (text, whole) in launched.iter().zip(&together[1..]) {
        assert_eq!(text[..], whole[..3]);
    }
    for i in [1, 2, 7] {
        let alone = texts(&model, &mut placed, Way::Resident, &members[i..=i], &[4]);
        assert_eq!(alone[0], together[i][..4], "{:?}", members[i].params);
    }
    placed.end();
}

#[test]
fn logits_that_are_asked_for_between_choices_change_nothing() {
    let Some(emulation) = emulation() else { return };
    let model = model();
    let mut placed = Placed::new(&emulation, &model, TARGET, 2);
    let members = &members()[7..];
    let expected = texts(&model, &mut placed, Way::Resident, members, &[3]);
    let mut sequence = placed.sequence();
    placed.continue_with(&mut sequence, &members[0].continuation(vocab(&model)), 1);
    let mut fed = members[0].first;
    for next in &expected[0] {
        // The same keys and values, written twice.
        placed.pass_for_logits(&mut sequence, fed);
        let found = placed.choose(Way::Resident, vec![(&mut sequence, fed)], 1);
        assert_eq!(found[0], [*next]);
        fed = next[0];
    }
    placed.release(sequence);
    placed.end();
}

#[test]
fn sequences_end_at_their_tokens_their_count_and_when_nothing_can_be_chosen() {
    let Some(emulation) = emulation() else { return };
    let model = model();
    let mut placed = Placed::new(&emulation, &model, TARGET, PASS_ROWS);
    let mut members = members()[..5].to_vec();
    let free = texts(&model, &mut placed, Way::Resident, &members, &[5]);
    // At the first one's third token, or where it came before.
    let stop = free[0][2][0];
    members[0].stops = vec![289, stop, 288];
    members[1].most = 4;
    members[2].stops = vec![free[2][1][0]];
    members[2].most = 2;
    members[4].params.logit_bias = (0..vocab(&model) as u32).map(|id| (id, -100.0)).collect();
    let first = |text: &Text, stop| tokens(text).iter().position(|token| *token == stop).unwrap();
    let lengths = [first(&free[0], stop) + 1, 4, first(&free[2], free[2][1][0]) + 1, 5, 1];
    let reasons = [
        End::StopToken as u32,
        End::LastToken as u32,
        End::StopToken as u32,
        0,
        End::NoToken as u32,
    ];
    for way in [Way::Resident, Way::OpByOp] {
        let found = texts(&model, &mut placed, way, &members, &[5]);
        for (i, text) in found.iter().enumerate() {
            let mut expected = vec![0; lengths[i]];
            expected[lengths[i] - 1] = reasons[i];
            assert_eq!(ends(text), expected, "sequence {i}");
            if i < 4 {
                assert_eq!(tokens(text), tokens(&free[i])[..lengths[i]], "sequence {i}");
            }
        }
        assert_eq!(found[4][0][..2], [0, 0]);
    }
    placed.end();
}

#[test]
fn the_host_ends_a_sequence_while_a_launch_runs() {
    let Some(emulation) = emulation() else { return };
    let model = model();
    for (kind, ticket) in [(0, 7), (1, 7), (1, 8)] {
        let mut placed = Placed::new(&emulation, &model, TARGET, 2);
        let member = &members()[kind];
        let mut sequences = [placed.sequence(), placed.sequence()];
        for sequence in &mut sequences {
            placed.continue_with(sequence, &member.continuation(vocab(&model)), 7);
        }
        // Polled twice, so two tokens were chosen without it.
        placed.cancel_after(2, &sequences[1], ticket);
        let rows = sequences.iter_mut().map(|sequence| (sequence, member.first)).collect();
        let found = placed.choose(Way::Resident, rows, 5);
        assert_eq!(ends(&found[0]), [0; 5]);
        // A ticket of another time is nobody's.
        let expected: &[u32] =
            if ticket == 7 { &[0, 0, End::Cancelled as u32] } else { &[0, 0, 0, 0, 0] };
        assert_eq!(ends(&found[1]), expected);
        assert_eq!(tokens(&found[1]), tokens(&found[0])[..expected.len()]);
        placed.end();
    }
}

#[test]
fn a_launch_ends_with_its_last_sequence_and_what_has_ended_can_go_on() {
    let Some(emulation) = emulation() else { return };
    let model = Model::new(&tiny("qwen3").layers(2));
    let mut placed = Placed::new(&emulation, &model, TARGET, 3);
    let all = [11, 12, 13].map(|first| Member::new(first, SamplingParams::greedy()));
    let free = texts(&model, &mut placed, Way::Resident, &all, &[6]);
    let mut sequences = [(); 3].map(|()| placed.sequence());
    let mosts = [1, 3, 2];
    for ((sequence, member), most) in sequences.iter_mut().zip(&all).zip(mosts) {
        let member = Member { most, ..member.clone() };
        placed.continue_with(sequence, &member.continuation(vocab(&model)), 1);
    }
    placed.forget_chosen();
    let firsts = all.each_ref().map(|member| member.first);
    let found = placed.choose(Way::Resident, sequences.iter_mut().zip(firsts).collect(), 9);
    for ((text, free), most) in found.iter().zip(&free).zip(mosts) {
        assert_eq!(tokens(text), tokens(free)[..most as usize]);
    }
    let nexts = placed.nexts(9);
    let of_pass = |pass: usize| nexts[pass * PASS_ROWS..][..3].iter().map(|next| next[2]);
    let (last, before) = (End::LastToken as u32, End::Before as u32);
    assert_eq!(of_pass(0).collect::<Vec<_>>(), [last, 0, 0]);
    assert_eq!(of_pass(1).collect::<Vec<_>>(), [before, 0, last]);
    assert_eq!(of_pass(2).collect::<Vec<_>>(), [before, last, before]);
    assert!(nexts[3 * PASS_ROWS..].iter().all(|next| *next == [u32::MAX; Next::WORDS]));
    // What an ended row computed once more has left its keys and values as they were.
    for (sequence, member) in sequences.iter_mut().zip(&all) {
        placed.continue_with(sequence, &member.continuation(vocab(&model)), 2);
    }
    let last = found.iter().map(|text| text[text.len() - 1][0]);
    let more = placed.choose(Way::Resident, sequences.iter_mut().zip(last).collect(), 3);
    for ((more, free), most) in more.iter().zip(&free).zip(mosts) {
        assert_eq!(tokens(more), tokens(free)[most as usize..][..3]);
    }
    sequences.into_iter().for_each(|sequence| placed.release(sequence));
    placed.end();
}
