//! What is given to the emulation, and what comes back.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use m40_gpu::Choice;
use m40_gpu::ops::Place;
use m40_sched::SamplingParams;

/// A sequence, and the rows of logits of its next tokens.
#[derive(Clone)]
pub(crate) struct Row {
    pub(crate) params: SamplingParams,
    pub(crate) seed: u64,
    pub(crate) history: Vec<u32>,
    /// `[steps][vocab]`
    pub(crate) logits: Vec<Vec<f32>>,
}

/// Rows sampled together, step by step, a block of `threads` each.
pub(crate) struct Case {
    pub(crate) vocab: usize,
    pub(crate) threads: u32,
    pub(crate) rows: Vec<Row>,
    /// What is chosen becomes part of the sequence.
    pub(crate) accept: bool,
}

/// What the device chose.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Drawn {
    pub(crate) token: u32,
    pub(crate) probability: f32,
}

impl Drawn {
    fn from_bytes(bytes: &[u8]) -> Self {
        let (words, _) = bytes.as_chunks::<4>();
        let [token, probability] = [0, 1].map(|i| u32::from_le_bytes(words[i]));
        Self { token, probability: f32::from_bits(probability) }
    }

    pub(crate) fn pair(self) -> (u32, f32) {
        (self.token, self.probability)
    }
}

/// State, biases and window of a sequence, as they lie on the device.
pub(crate) type State = (Vec<u8>, Vec<u8>, Vec<u8>);

pub(crate) struct Results {
    /// `[rows][steps]`
    pub(crate) drawn: Vec<Vec<Drawn>>,
    /// `[rows]`, afterwards.
    pub(crate) states: Vec<State>,
}

/// Where the states begin: not at the arena's start, so that offsets matter.
const CHOICES: usize = 3 * 16;

impl Case {
    fn steps(&self) -> usize {
        self.rows[0].logits.len()
    }

    /// The slot of a row: another order than that of rows, and one slot more than rows.
    fn slot(&self, row: usize) -> usize {
        self.rows.len() - row
    }

    fn choice(&self, row: &Row) -> Choice {
        let mut choice = Choice::new(&row.params, row.seed, self.vocab);
        row.history.iter().for_each(|&token| choice.accept(token));
        choice
    }

    /// Places of the biases and of the window of each row, and the arena's size.
    fn places(&self) -> (Vec<(Place, Place)>, usize) {
        let mut end = CHOICES + (self.rows.len() + 1) * Choice::BYTES;
        let mut place = |bytes: usize| {
            let place = Place::of_bytes(end as u64).expect("the arena is small");
            end += bytes.next_multiple_of(16);
            place
        };
        let places = self
            .rows
            .iter()
            .map(|row| {
                let choice = self.choice(row);
                (place(choice.biases().len()), place(choice.window().len()))
            })
            .collect();
        (places, end)
    }

    fn input(&self) -> Vec<u8> {
        let (places, bytes) = self.places();
        let stride = self.vocab.next_multiple_of(4) + 4;
        let mut arena = vec![0xff; bytes];
        for (i, (row, (biases, window))) in self.rows.iter().zip(&places).enumerate() {
            let choice = self.choice(row);
            let mut put = |at: usize, bytes: &[u8]| {
                arena[at..at + bytes.len()].copy_from_slice(bytes);
            };
            put(CHOICES + self.slot(i) * Choice::BYTES, &choice.state(*biases, *window));
            put(biases.bytes() as usize, &choice.biases());
            put(window.bytes() as usize, &choice.window());
        }
        let mut input = format!(
            "rows {} {} {} {stride} {} {} {bytes} {}\n",
            self.rows.len(),
            self.threads,
            self.vocab,
            self.steps(),
            u8::from(self.accept),
            CHOICES / 16,
        )
        .into_bytes();
        input.extend(&arena);
        for row in 0..self.rows.len() {
            input.extend((self.slot(row) as u32).to_le_bytes());
        }
        for step in 0..self.steps() {
            for row in &self.rows {
                // Large numbers behind the row: they must not be looked at.
                let padding = std::iter::repeat_n(&1e35f32, stride - self.vocab);
                let floats = row.logits[step].iter().chain(padding);
                input.extend(floats.flat_map(|x| x.to_le_bytes()));
            }
        }
        input
    }

    fn results(&self, output: &mut &[u8]) -> Results {
        let mut drawn = vec![Vec::new(); self.rows.len()];
        for _ in 0..self.steps() {
            for row in &mut drawn {
                row.push(Drawn::from_bytes(take(output, 8)));
            }
        }
        let (places, bytes) = self.places();
        let arena = take(output, bytes);
        let states = self
            .rows
            .iter()
            .zip(places)
            .enumerate()
            .map(|(i, (row, (biases, window)))| {
                let choice = self.choice(row);
                let at = |at: usize, length: usize| arena[at..at + length].to_vec();
                (
                    at(CHOICES + self.slot(i) * Choice::BYTES, Choice::BYTES),
                    at(biases.bytes() as usize, choice.biases().len()),
                    at(window.bytes() as usize, choice.window().len()),
                )
            })
            .collect();
        Results { drawn, states }
    }

    /// The states that there should be after these tokens.
    pub(crate) fn expected_states(&self, drawn: &[Vec<Drawn>]) -> Vec<State> {
        let (places, _) = self.places();
        self.rows
            .iter()
            .zip(places)
            .zip(drawn)
            .map(|((row, (biases, window)), drawn)| {
                let mut choice = self.choice(row);
                for drawn in drawn {
                    if self.accept && drawn.probability > 0.0 {
                        choice.accept(drawn.token);
                    }
                }
                (choice.state(biases, window).to_vec(), choice.biases(), choice.window())
            })
            .collect()
    }
}

fn take<'a>(output: &mut &'a [u8], bytes: usize) -> &'a [u8] {
    output.split_off(..bytes).expect("there is as much output as the cases make")
}

fn output_of(program: &Path, input: Vec<u8>) -> Vec<u8> {
    // Tests run side by side: each has a file of its own.
    static FILES: AtomicU32 = AtomicU32::new(0);
    let number = FILES.fetch_add(1, Ordering::Relaxed);
    let file = program.with_extension(format!("{number}.input"));
    fs::write(&file, input).expect("the folder of tests can be written to");
    let stdin = File::open(&file).expect("it has just been written");
    let output = Command::new(program).stdin(stdin).output().expect("it has been compiled");
    fs::remove_file(file).expect("it has just been read");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Runs cases in emulation.
pub(crate) fn run(program: &Path, cases: &[Case]) -> Vec<Results> {
    let output = output_of(program, cases.iter().flat_map(Case::input).collect());
    let mut rest = &output[..];
    let results = cases.iter().map(|case| case.results(&mut rest)).collect();
    assert!(rest.is_empty());
    results
}

/// The tokens of rows, from the largest value and its token in each part of a row.
pub(crate) fn maxima(program: &Path, threads: u32, rows: &[Vec<(f32, u32)>]) -> Vec<Drawn> {
    let mut input = format!("maxima {} {threads} {}\n", rows.len(), rows[0].len()).into_bytes();
    for (value, token) in rows.iter().flatten() {
        input.extend(value.to_le_bytes());
        input.extend(token.to_le_bytes());
    }
    let output = output_of(program, input);
    assert_eq!(output.len(), rows.len() * 8);
    output.chunks_exact(8).map(Drawn::from_bytes).collect()
}
