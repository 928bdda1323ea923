//! Tokens chosen on the device, against the host's sampler; and sequences that end there.

use std::thread;

use m40_gpu::continuation::Continuation;
use m40_gpu::executor::{Canceller, Chosen, Executor, Launches, PassError, Row};
use m40_gpu::ops::End;
use m40_gpu::{Choice, Sequence};
use m40_sched::{Sampler, SamplingParams};

use super::models::{LAUNCHES, Model, arena, begin, forward, mixed, rows};
use super::{gpu, say};

const PASSES: u32 = 40;

/// A sequence of three tokens so far, and how it goes on.
#[derive(Clone)]
pub(super) struct Member {
    pub(super) prompt: [u32; 3],
    params: SamplingParams,
    stops: Vec<u32>,
    most: u32,
}

impl Member {
    fn new(number: u32, params: SamplingParams) -> Self {
        let prompt = [7 + number, 9 + 2 * number, 100 - number];
        Self { prompt, params, stops: vec![], most: u32::MAX }
    }

    fn seed(&self) -> u64 {
        u64::from(self.prompt[0]) << 33 | 5
    }

    fn continuation(&self, vocab: usize) -> Continuation {
        let mut choice = Choice::new(&self.params, self.seed(), vocab);
        self.prompt.iter().for_each(|&token| choice.accept(token));
        let continuation = Continuation::new(choice, self.stops.clone(), self.most);
        continuation.unwrap_or_else(|error| panic!("{error}"))
    }
}

/// One of each kind of choice.
pub(super) fn members() -> [Member; 8] {
    let neutral = SamplingParams { temperature: 1.0, ..SamplingParams::greedy() };
    let penalties = SamplingParams {
        repeat_penalty: 1.5,
        presence_penalty: 0.5,
        frequency_penalty: 0.25,
        repeat_last_n: 5,
        ..SamplingParams::greedy()
    };
    let logit_bias = vec![(20, 4.0), (21, 4.5), (30, -100.0), (20, 0.75)];
    let all = [
        SamplingParams::greedy(),
        neutral.clone(),
        SamplingParams { temperature: 1.5, ..SamplingParams::default() },
        penalties.clone(),
        SamplingParams { logit_bias: logit_bias.clone(), ..SamplingParams::greedy() },
        SamplingParams { top_p: 0.7, ..neutral.clone() },
        SamplingParams { top_k: 5, min_p: 0.1, ..neutral },
        SamplingParams { temperature: 0.9, top_k: 50, logit_bias, ..penalties },
    ];
    let mut number = 0;
    all.map(|params| {
        number += 1;
        Member::new(number, params)
    })
}

fn vocab(executor: &Executor) -> usize {
    executor.program().description.vocab
}

/// A member's sequence, all of its prompt computed but the last token, and what cancels it.
pub(super) fn started(executor: &mut Executor, member: &Member) -> (Sequence, Canceller) {
    let mut sequence = begin(executor);
    forward(executor, &rows(&member.prompt[..2], 0, 0, false), &mut [&mut sequence]);
    let continuation = member.continuation(vocab(executor));
    let canceller = executor.continue_with(&mut sequence, &continuation);
    (sequence, canceller.unwrap_or_else(|error| panic!("{error}")))
}

/// What sequences are given until they end, in calls of so many passes; and that they hold what was
/// fed to them.
pub(super) fn texts(
    executor: &mut Executor,
    members: &[Member],
    calls: &[u32],
) -> Vec<Vec<Chosen>> {
    let mut sequences: Vec<_> = members.iter().map(|member| started(executor, member).0).collect();
    let mut texts: Vec<Vec<Chosen>> = vec![vec![]; members.len()];
    for passes in calls {
        let goes_on = |i: &usize| texts[*i].last().is_none_or(|chosen| chosen.end.is_none());
        let going: Vec<_> = (0..members.len()).filter(goes_on).collect();
        if going.is_empty() {
            break;
        }
        let row = |&sequence: &usize| {
            let token =
                texts[sequence].last().map_or(members[sequence].prompt[2], |chosen| chosen.token);
            Row { token, position: sequences[sequence].len(), sequence, logits: false }
        };
        let rows: Vec<_> = going.iter().map(row).collect();
        let mut sequences: Vec<_> = sequences.iter_mut().collect();
        let chosen = executor.choose(&rows, &mut sequences, *passes);
        let chosen = chosen.unwrap_or_else(|error| panic!("{error}"));
        for pass in chosen.chunks_exact(going.len()) {
            for (&i, chosen) in going.iter().zip(pass) {
                if chosen.end != Some(End::Before) {
                    texts[i].push(*chosen);
                }
            }
        }
    }
    for (sequence, text) in sequences.iter().zip(&texts) {
        assert_eq!(sequence.len(), 2 + text.len());
    }
    texts
}

pub(super) fn tokens(text: &[Chosen]) -> Vec<u32> {
    text.iter().map(|chosen| chosen.token).collect()
}

/// The host's sampler chooses the same from the logits that the same passes make.
fn check_against_host(executor: &mut Executor, member: &Member, text: &[Chosen]) {
    let mut sampler = Sampler::new(member.params.clone(), member.seed(), vocab(executor));
    let mut sequence = begin(executor);
    forward(executor, &rows(&member.prompt[..2], 0, 0, false), &mut [&mut sequence]);
    member.prompt[..2].iter().for_each(|&token| sampler.accept(token));
    let mut fed = member.prompt[2];
    for chosen in text {
        sampler.accept(fed);
        let row = rows(&[fed], sequence.len(), 0, true);
        let mut logits = forward(executor, &row, &mut [&mut sequence]);
        let host = sampler.sample(&mut logits);
        assert_eq!(host.id, chosen.token, "{:?}", member.params);
        let apart = (host.probability - chosen.probability).abs();
        assert!(apart <= 4e-6 * host.probability, "{apart} of {host:?}");
        fed = chosen.token;
    }
}

#[test]
fn the_device_samples_as_the_host_does_alone_and_beside_others_however_it_is_launched() {
    let Some(gpu) = gpu() else { return };
    let arena = arena(&gpu);
    let model = Model::new(&mixed("llama"));
    let members = members();
    let mut all = vec![];
    for launches in LAUNCHES {
        let mut executor = model.load(&arena, launches, 2000);
        for calls in [vec![PASSES], vec![1, 30, 9]] {
            all.push(texts(&mut executor, &members, &calls));
        }
        let alone = members.iter().map(|member| {
            let mut texts = texts(&mut executor, std::slice::from_ref(member), &[PASSES]);
            texts.remove(0)
        });
        let alone = alone.collect();
        all.push(alone);
        for (member, text) in members.iter().zip(&all[0]) {
            check_against_host(&mut executor, member, text);
        }
    }
    for (way, texts) in all.iter().enumerate() {
        assert!(texts.iter().all(|text| text.len() == PASSES as usize));
        assert!(*texts == all[0], "way {way} differs");
    }
}

#[test]
fn sequences_end_on_the_device_and_go_on_when_told() {
    let Some(gpu) = gpu() else { return };
    let arena = arena(&gpu);
    let model = Model::new(&mixed("qwen3"));
    for launches in LAUNCHES {
        let mut executor = model.load(&arena, launches, 2000);
        let mut members = members()[..4].to_vec();
        let free = texts(&mut executor, &members, &[PASSES]);
        let stop = free[1][20].token;
        members[1].stops = vec![stop];
        members[2].most = 7;
        members[3].most = 1;
        let found = texts(&mut executor, &members, &[PASSES]);
        let stopped = tokens(&free[1]).iter().position(|token| *token == stop);
        let lengths = [PASSES as usize, stopped.expect("it was there") + 1, 7, 1];
        let ends = [None, Some(End::StopToken), Some(End::LastToken), Some(End::LastToken)];
        for i in 0..4 {
            assert_eq!(tokens(&found[i]), tokens(&free[i])[..lengths[i]], "sequence {i}");
            assert_eq!(found[i][lengths[i] - 1].end, ends[i], "sequence {i}");
        }

        // It knows no further than it was told.
        let (mut sequence, _) = started(&mut executor, &members[3]);
        let row = |position, token| [Row { token, position, sequence: 0, logits: false }];
        forward(&mut executor, &row(2, members[3].prompt[2]), &mut [&mut sequence]);
        let refused = executor.choose(&row(3, 5), &mut [&mut sequence], 1);
        let unknown = matches!(refused, Err(PassError::Unknown { accepted: 3, position: 3 }));
        assert!(unknown, "{refused:?}");
    }
}

/// Sequences of all kinds of choices, more than decode passes have rows; some end by themselves.
fn many() -> Vec<Member> {
    let kinds = members();
    let mut many: Vec<_> = (0..32)
        .map(|number| Member::new(number + 1, kinds[number as usize % 8].params.clone()))
        .collect();
    for (i, member) in many.iter_mut().enumerate() {
        match i % 4 {
            1 => member.most = 1 + i as u32,
            2 => member.stops = (i as u32..290).step_by(40).collect(),
            _ => {}
        }
    }
    many
}

#[test]
fn many_sequences_have_in_wide_passes_what_they_have_alone() {
    let Some(gpu) = gpu() else { return };
    let arena = arena(&gpu);
    let model = Model::new(&mixed("llama"));
    let many = many();
    let mut all = vec![];
    for launches in LAUNCHES {
        let mut executor = model.load(&arena, launches, 4000);
        assert_eq!(executor.rows_at_once(many.len()), many.len());
        let together = texts(&mut executor, &many, &[1, 7, PASSES]);
        assert_eq!(texts(&mut executor, &many, &[1, 7, PASSES]), together, "{launches:?}");
        // Products are cut otherwise for more rows, and numbers of decode passes have marks in their last
        // bits: where rounding falls the other way in a draw, a text goes on otherwise.
        let mut apart = 0;
        for (member, text) in many.iter().zip(&together) {
            let alone = &texts(&mut executor, std::slice::from_ref(member), &[8 + PASSES])[0];
            let ends = |text: &[Chosen]| text.iter().map(|chosen| chosen.end).collect::<Vec<_>>();
            if tokens(alone) == tokens(text) {
                assert_eq!(ends(alone), ends(text), "{launches:?}");
            } else {
                apart += 1;
            }
        }
        say(&format!("{launches:?}: {apart} of {} texts are others", many.len()));
        assert!(apart <= many.len() / 8, "{launches:?}: {apart} texts");
        all.push(together);
    }
    assert!(all.iter().all(|texts| *texts == all[0]));
}

#[test]
fn a_sequence_is_cancelled_among_many() {
    let Some(gpu) = gpu() else { return };
    let arena = arena(&gpu);
    let model = Model::new(&mixed("qwen3"));
    let member = &members()[1];
    const ROWS: usize = 20;
    for launches in LAUNCHES {
        let mut executor = model.load(&arena, launches, 2000);
        let (mut sequences, cancellers): (Vec<_>, Vec<_>) =
            (0..ROWS).map(|_| started(&mut executor, member)).unzip();
        cancellers[5].cancel();
        let row = |sequence| Row { token: member.prompt[2], position: 2, sequence, logits: false };
        let rows: Vec<_> = (0..ROWS).map(row).collect();
        let mut borrowed: Vec<_> = sequences.iter_mut().collect();
        let chosen = executor.choose(&rows, &mut borrowed, 3);
        let chosen = chosen.unwrap_or_else(|error| panic!("{error}"));
        let ends = |i: usize| chosen.iter().skip(i).step_by(ROWS).map(|chosen| chosen.end);
        for i in 0..ROWS {
            let expected = match i {
                5 => [Some(End::Cancelled), Some(End::Before), Some(End::Before)],
                _ => [None; 3],
            };
            assert!(ends(i).eq(expected), "{launches:?}: sequence {i}");
        }
        let lengths: Vec<_> = sequences.iter().map(Sequence::len).collect();
        assert_eq!((lengths[4], lengths[5]), (5, 3));
        // Equal sequences are given equal tokens.
        assert!(chosen[..ROWS].iter().all(|first| first.token == chosen[0].token));
    }
}

#[test]
fn a_sequence_is_cancelled_before_and_while_a_launch_runs() {
    let Some(gpu) = gpu() else { return };
    let arena = arena(&gpu);
    let model = Model::new(&mixed("llama"));
    let member = &members()[1];
    for launches in LAUNCHES {
        let mut executor = model.load(&arena, launches, 2000);
        let free = tokens(&texts(&mut executor, std::slice::from_ref(member), &[300])[0]);
        let row = [Row { token: member.prompt[2], position: 2, sequence: 0, logits: false }];
        let (mut sequence, early) = started(&mut executor, member);
        early.cancel();
        let chosen = executor.choose(&row, &mut [&mut sequence], 300);
        let chosen = chosen.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((tokens(&chosen), chosen[0].end), (free[..1].to_vec(), Some(End::Cancelled)));
        drop(sequence);

        // The same slot, and a handle of what it was before.
        let (mut sequence, late) = started(&mut executor, member);
        early.cancel();
        let chosen = thread::scope(|scope| {
            scope.spawn(|| late.cancel());
            executor.choose(&row, &mut [&mut sequence], 300)
        });
        let chosen = chosen.unwrap_or_else(|error| panic!("{error}"));
        say(&format!("{launches:?}: cancelled after {} tokens", chosen.len()));
        assert_eq!(tokens(&chosen), free[..chosen.len()]);
        let end = chosen.last().and_then(|chosen| chosen.end);
        assert_eq!(end, (chosen.len() < 300).then_some(End::Cancelled));
    }
}

#[test]
fn what_the_device_does_not_sample_is_refused() {
    let Some(gpu) = gpu() else { return };
    let arena = arena(&gpu);
    let mut executor = Model::new(&mixed("llama")).load(&arena, Launches::OpByOp, 64);
    let typical = SamplingParams { typical_p: 0.9, ..SamplingParams::default() };
    assert!(executor.samples(&SamplingParams::default()) && !executor.samples(&typical));
    let continuation = Member::new(1, typical).continuation(vocab(&executor));
    let refused = executor.continue_with(&mut begin(&executor), &continuation);
    assert!(matches!(refused, Err(PassError::Unsampled)), "{refused:?}");
}
