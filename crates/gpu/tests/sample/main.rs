//! Choosing tokens as kernels/sample.cuh does it, emulated on the host, against the host's sampler
//! and against a plain reference in double precision.

mod case;
mod reference;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use case::{Case, Drawn, Row, maxima, run};
use m40_gpu::{Choice, MAX_VOCAB};
use m40_sched::{Sampler, SamplingParams};
use m40_testkit::emulation::compile;
use m40_testkit::gguf::Noise;

/// The compiled kernels/emulate/sample.cpp; `None`, saying so, on a machine without g++. Under CI it
/// must be there.
fn emulation() -> Option<&'static Path> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    PROGRAM
        .get_or_init(|| compile("sample", env!("CARGO_TARGET_TMPDIR")).expect("it compiles"))
        .as_deref()
}

/// No filter, no penalty, temperature 1.
fn neutral() -> SamplingParams {
    SamplingParams { temperature: 1.0, ..SamplingParams::greedy() }
}

fn pick<T: Clone>(noise: &mut Noise, from: &[T]) -> T {
    from[noise.below(from.len())].clone()
}

/// From a few likely tokens to none more likely than others, with ties, and what broken models make.
fn logits(noise: &mut Noise, vocab: usize) -> Vec<f32> {
    let kind = noise.below(8);
    let spread = pick(noise, &[0.02, 0.5, 2.0, 6.0]);
    let mut row: Vec<f32> = (0..vocab).map(|_| noise.normal() * spread).collect();
    match kind {
        0 => row.sort_by(|a, b| b.total_cmp(a)),
        1 => row.sort_by(f32::total_cmp),
        // Ties; adding 0 leaves one zero.
        2 | 3 => row.iter_mut().for_each(|x| *x = (*x * 2.0).round() * 0.5 + 0.0),
        4 => row.fill(1.25),
        5 => {
            for x in &mut row {
                if noise.below(3) == 0 {
                    *x = pick(noise, &[f32::NAN, f32::NEG_INFINITY]);
                }
            }
        }
        6 => {
            let at = noise.below(vocab);
            row[at] = pick(noise, &[f32::INFINITY, f32::MAX, 1e30, 40.0]);
        }
        _ => {}
    }
    row
}

fn params(noise: &mut Noise, vocab: usize) -> SamplingParams {
    let share = |noise: &mut Noise| (noise.bits() >> 40) as f32 / (1u64 << 24) as f32;
    let mut params = SamplingParams {
        temperature: pick(noise, &[0.0, 0.05, 0.8, 0.8, 1.0, 1.7, 1e-30]),
        top_k: pick(noise, &[0, 0, 1, 2, 40, 40, 300, 700, vocab as u32 - 1, u32::MAX]),
        top_p: pick(noise, &[1.0, 1.0, 0.95, 0.5, 0.0]),
        min_p: pick(noise, &[0.0, 0.0, 0.05, 1.0, 1e-6]),
        ..SamplingParams::greedy()
    };
    if noise.below(4) == 0 {
        params.top_p = share(noise);
        params.min_p = share(noise) * share(noise);
    }
    if noise.below(3) == 0 {
        params.repeat_penalty = pick(noise, &[1.0, 1.3, 0.7]);
        params.presence_penalty = pick(noise, &[0.0, 0.4, -0.3]);
        params.frequency_penalty = pick(noise, &[0.0, 0.25, -0.1]);
        params.repeat_last_n = pick(noise, &[0, 1, 5, 64]);
    }
    if noise.below(3) == 0 {
        params.logit_bias = (0..noise.below(6))
            .map(|_| {
                let token = noise.below(vocab + 1) as u32;
                (token, pick(noise, &[-100.0, 5.0, -3.0, 0.1, f32::NEG_INFINITY]))
            })
            .collect();
    }
    params
}

fn row(noise: &mut Noise, params: SamplingParams, vocab: usize, steps: usize) -> Row {
    let history = (0..noise.below(80)).map(|_| noise.below(vocab) as u32).collect();
    let logits = (0..steps).map(|_| logits(noise, vocab)).collect();
    Row { params, seed: noise.bits(), history, logits }
}

/// How many tokens were compared with the host's, and how many differed.
#[derive(Default)]
struct Tally {
    tokens: usize,
    different: usize,
}

/// Every token must be one that the reference allows: drawn with a number, and cut with a mass, not
/// further from the exact ones than rounding accounts for. If the host's token is another one, it
/// must be allowed too: then both are at a boundary. As the device does, the host goes on from the
/// device's token.
fn compare(case: &Case, drawn: &[Vec<Drawn>], tally: &mut Tally) {
    for (index, (row, drawn)) in case.rows.iter().zip(drawn).enumerate() {
        let mut sampler = Sampler::new(row.params.clone(), row.seed, case.vocab);
        let mut history = row.history.clone();
        for &token in &history {
            sampler.accept(token);
        }
        for (step, (logits, device)) in row.logits.iter().zip(drawn).enumerate() {
            let host = sampler.sample(&mut logits.clone());
            let told = || {
                format!(
                    "row {index} of {}, step {step}, {} threads: {device:?}, host {host:?}, {:?}",
                    case.vocab, case.threads, row.params
                )
            };
            let exact = reference::Row::new(logits, row, &history);
            assert!(exact.allows(device.token, device.probability), "{}", told());
            assert!(exact.allows(host.id, host.probability), "{}", told());
            tally.tokens += 1;
            if host.id == device.token {
                let difference = (host.probability - device.probability).abs();
                assert!(difference <= 4e-6 * host.probability, "{}", told());
            } else {
                tally.different += 1;
            }
            if case.accept && device.probability > 0.0 {
                sampler.accept(device.token);
                history.push(device.token);
            }
        }
    }
}

/// Runs the cases and compares them. A boundary is met by chance about once in 2^20 tokens, so of
/// some hundreds one may differ.
fn check(program: &Path, cases: &[Case]) {
    let mut tally = Tally::default();
    for (case, results) in cases.iter().zip(run(program, cases)) {
        compare(case, &results.drawn, &mut tally);
        assert_eq!(results.states, case.expected_states(&results.drawn));
    }
    assert!(tally.different <= 1, "{} of {}", tally.different, tally.tokens);
}

#[test]
fn tokens_are_those_of_the_hosts_sampler() {
    let Some(program) = emulation() else { return };
    let mut noise = Noise::new(31);
    let sizes = [1, 2, 5, 33, 479, 480, 481, 1000, 4099];
    let cases: Vec<_> = (0..90)
        .map(|i| {
            let vocab = sizes[i % sizes.len()];
            let threads = pick(&mut noise, &[32, 64, 96, 128]);
            let rows = (0..2)
                .map(|_| {
                    let params = params(&mut noise, vocab);
                    row(&mut noise, params, vocab, 2)
                })
                .collect();
            Case { vocab, threads, rows, accept: noise.below(4) > 0 }
        })
        .collect();
    check(program, &cases);
}

#[test]
fn whole_blocks_choose_from_large_vocabularies() {
    let Some(program) = emulation() else { return };
    let mut noise = Noise::new(5);
    let normals = |noise: &mut Noise, vocab, spread: f32| {
        (0..vocab).map(|_| noise.normal() * spread + 0.0).collect::<Vec<_>>()
    };
    // Few candidates; all of them; a mass of many; a cut among more than can be listed; equal ones.
    let settings = [
        (MAX_VOCAB, 3.0, SamplingParams { temperature: 0.8, ..SamplingParams::default() }),
        (MAX_VOCAB, 0.5, neutral()),
        (128_256, 1.5, SamplingParams { top_p: 0.9, ..neutral() }),
        (151_936, 4.0, SamplingParams { top_p: 0.9, ..neutral() }),
        (50_257, 2.0, SamplingParams { top_k: 5000, top_p: 0.7, ..neutral() }),
        (32_000, 0.0, SamplingParams { top_k: 9001, top_p: 0.6, ..neutral() }),
        (32_001, 2.0, SamplingParams { min_p: 0.05, temperature: 1.5, ..neutral() }),
    ];
    let cases: Vec<_> = settings
        .into_iter()
        .map(|(vocab, spread, params)| {
            let logits = vec![normals(&mut noise, vocab, spread)];
            let rows = vec![Row { params, seed: noise.bits(), history: vec![3, 5], logits }];
            Case { vocab, threads: 512, rows, accept: true }
        })
        .collect();
    check(program, &cases);
}

#[test]
fn penalties_follow_what_the_device_itself_accepted() {
    let Some(program) = emulation() else { return };
    let mut noise = Noise::new(77);
    let vocab = 6;
    let rows = [1, 2, 5, 64].map(|repeat_last_n| Row {
        params: SamplingParams {
            repeat_penalty: 1.4,
            frequency_penalty: 0.3,
            presence_penalty: 0.2,
            repeat_last_n,
            ..neutral()
        },
        seed: noise.bits(),
        history: vec![0, 4, 4],
        logits: (0..40).map(|_| (0..vocab).map(|_| noise.normal() * 0.5).collect()).collect(),
    });
    check(program, &[Case { vocab, threads: 32, rows: rows.into(), accept: true }]);
}

#[test]
fn a_choice_depends_on_its_row_alone() {
    let Some(program) = emulation() else { return };
    let mut noise = Noise::new(9);
    let vocab = 3001;
    let rows: Vec<_> = (0..12)
        .map(|_| {
            let params = params(&mut noise, vocab);
            row(&mut noise, params, vocab, 1)
        })
        .collect();
    let together = Case { vocab, threads: 64, rows: rows.clone(), accept: true };
    let [expected] = &run(program, &[together])[..] else { panic!("one case") };
    // Alone, and by blocks of other sizes.
    for threads in [32, 160, 512] {
        let cases: Vec<_> = rows
            .iter()
            .map(|row| Case { vocab, threads, rows: vec![row.clone()], accept: true })
            .collect();
        for (results, expected) in run(program, &cases).iter().zip(&expected.drawn) {
            let [drawn] = &results.drawn[..] else { panic!("one row") };
            assert_eq!(drawn.len(), 1);
            assert_eq!(drawn[0].token, expected[0].token);
            assert_eq!(drawn[0].probability.to_bits(), expected[0].probability.to_bits());
        }
    }
}

#[test]
fn nothing_usable_is_told_by_a_probability_of_zero() {
    let Some(program) = emulation() else { return };
    let (none, nan) = (f32::NEG_INFINITY, f32::NAN);
    let banned = vec![(2, f32::NEG_INFINITY)];
    let rows = [SamplingParams::greedy(), neutral(), SamplingParams::default()].map(|params| Row {
        params: SamplingParams { logit_bias: banned.clone(), ..params },
        seed: 1,
        history: vec![],
        logits: vec![vec![nan, none, 7.0, none, nan]],
    });
    let case = Case { vocab: 5, threads: 32, rows: rows.into(), accept: true };
    let [results] = &run(program, &[case])[..] else { panic!("one case") };
    for drawn in &results.drawn {
        assert_eq!(drawn[..], [Drawn { token: 0, probability: 0.0 }]);
    }
    // Nothing was chosen, so nothing was accepted.
    let fresh = Choice::new(&SamplingParams::greedy(), 1, 5);
    assert_eq!(results.states.len(), 3);
    assert_eq!(results.states[0].0[8..16], fresh.position().to_le_bytes());
}

#[test]
fn the_largest_of_maxima_wins_and_the_lowest_token_of_equal_ones() {
    let Some(program) = emulation() else { return };
    let mut noise = Noise::new(4);
    let mut rows = vec![
        vec![(1.0, 900), (2.5, 70), (-3.0, 2), (2.5, 8)],
        vec![(f32::NEG_INFINITY, 3), (-1e30, 4), (f32::NEG_INFINITY, 1), (f32::NEG_INFINITY, 9)],
        vec![(f32::NEG_INFINITY, 3); 4],
        vec![(-0.0, 50), (0.0, 60), (-1.0, 1), (f32::NAN, 0)],
    ];
    let mut expected = vec![(8, 1.0), (4, 1.0), (0, 0.0), (50, 1.0)];
    for (token, probability) in maxima(program, 32, &rows).into_iter().map(Drawn::pair) {
        let wanted = expected.remove(0);
        assert_eq!((token, probability), wanted);
    }
    // More parts than threads.
    rows = (0..3)
        .map(|_| (0..200).map(|i| (noise.below(20) as f32, 1000 - i as u32)).collect())
        .collect();
    for (row, drawn) in rows.iter().zip(maxima(program, 64, &rows)) {
        let largest = row.iter().map(|(value, _)| *value).fold(0.0, f32::max);
        let lowest = row.iter().filter(|(value, _)| *value == largest).map(|(_, token)| *token);
        assert_eq!(Some(drawn.token), lowest.min());
    }
}
