//! The choice of tokens on the device against the engine's definition of it, draw by draw.

use std::time::Instant;

use baichuan_engine::model::{Sampling, Seen};
use baichuan_kernels::cuda::{Buffer, ChoiceBuffer, Choices, Device};
use baichuan_m1::cuda::choose_row;

use crate::{Outcome, say};

/// How far shares may be off on the device, where exponentials are f32: tokens as unlikely as 2^-40 have an exponent of
/// 28, with an error of two roundings, 3.4e-6; the exponential of it adds 2.4e-7.
const SLACK: f64 = 4e-6;

/// The shape of rows of nothing but equals.
const FLAT: usize = 4;

/// Whole numbers of a fixed sequence.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f32 {
        ((0..4).map(|_| self.unit()).sum::<f64>() - 2.0) as f32 * 1.73
    }
}

/// Random rows under random parameters, vocabularies of several sizes (or these), flat and peaked and full of equals.
pub(crate) fn check(vocabularies: &[&str]) -> Outcome {
    let device = Device::open(0)?;
    let mut noise = Noise(1);
    let mut sizes = vec![133_120, 64_003, 1000, 37, 2];
    if !vocabularies.is_empty() {
        sizes = vocabularies
            .iter()
            .map(|size| size.parse())
            .collect::<Result<_, _>>()?;
    }
    for vocab in sizes {
        let (mut equal, mut near, mut greedy) = (0, 0, 0);
        let n_rows = 64;
        for shape in 0..6 {
            let rows: Vec<Vec<f32>> = (0..n_rows).map(|_| logits(&mut noise, vocab, shape)).collect();
            let mut wishes = Vec::new();
            for _ in 0..n_rows {
                wishes.push(wish(&mut noise, vocab));
            }
            let samplings: Vec<Sampling<'_>> = wishes.iter().map(Wish::sampling).collect();
            let got = on_device(&device, &rows, &samplings)?;
            for ((row, sampling), got) in rows.iter().zip(&samplings).zip(got) {
                let expected = sampling.choose(row)?;
                if got == expected as i32 {
                    equal += 1;
                    greedy += usize::from(sampling.temperature == 0.0);
                    continue;
                }
                if is_exact(sampling, shape) || !beside(sampling, row).contains(&u32::try_from(got).ok()) {
                    return Err(format!(
                        "vocabulary {vocab}, shape {shape}: {got} instead of {expected} for {:?} of {} seen, {} forbidden",
                        Sampling { seen: &[], forbidden: &[], ..*sampling },
                        sampling.seen.len(),
                        sampling.forbidden.len()
                    )
                    .into());
                }
                near += 1;
            }
        }
        say(format_args!(
            "vocabulary {vocab}: {equal} tokens equal ({greedy} greedy), {near} where a share lies within {SLACK} of a border"
        ))?;
        if near * 100 > equal {
            return Err("too many".into());
        }
    }
    let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    for value in bad {
        let mut row = vec![0.5; 1000];
        row[777] = value;
        for temperature in [0.0, 1.0] {
            let sampling = Sampling {
                temperature,
                seen: &[Seen { id: 3, generated: 1 }],
                presence_penalty: 1.0,
                ..Sampling::GREEDY
            };
            let got = on_device(&device, &[row.clone()], &[sampling])?;
            if got != [-1] {
                return Err(format!("{value} among the logits gave {got:?}").into());
            }
        }
    }
    say(format_args!("logits that are no numbers are told"))?;
    if vocabularies.is_empty() {
        time(&device)?;
    }
    Ok(())
}

/// Whether nothing is rounded: no share matters, or every token that is left is as likely as the likeliest.
fn is_exact(sampling: &Sampling<'_>, shape: usize) -> bool {
    sampling.temperature == 0.0 || (shape == FLAT && sampling.seen.is_empty())
}

/// What is chosen where draw, `top_p` and `min_p` are up to [`SLACK`] off.
fn beside(sampling: &Sampling<'_>, row: &[f32]) -> Vec<Option<u32>> {
    let off = [-SLACK, 0.0, SLACK];
    let mut beside = Vec::new();
    for draw in off.map(|off| (sampling.draw + off).clamp(0.0, 1.0 - f64::EPSILON)) {
        for top_p in off.map(|off| share(sampling.top_p, off, 1.0)) {
            for min_p in off.map(|off| share(sampling.min_p, off, 0.0)) {
                let turned = Sampling {
                    draw,
                    top_p,
                    min_p,
                    ..*sampling
                };
                beside.push(turned.choose(row).ok());
            }
        }
    }
    beside
}

/// A share moved by a part of itself, unless it is `none`.
fn share(share: f32, by: f64, none: f32) -> f32 {
    if share == none {
        none
    } else {
        share * (1.0 + by) as f32
    }
}

/// Owns what a [`Sampling`] borrows.
struct Wish {
    seen: Vec<Seen>,
    forbidden: Vec<u32>,
    numbers: Sampling<'static>,
}

impl Wish {
    fn sampling(&self) -> Sampling<'_> {
        Sampling {
            seen: &self.seen,
            forbidden: &self.forbidden,
            ..self.numbers
        }
    }
}

fn wish(noise: &mut Noise, vocab: usize) -> Wish {
    let mut numbers = Sampling {
        temperature: [0.0, 0.1, 0.3, 0.7, 1.0, 2.0][noise.next() as usize % 6],
        draw: noise.unit(),
        ..Sampling::GREEDY
    };
    let coin = |noise: &mut Noise| noise.next().is_multiple_of(2);
    if coin(noise) {
        numbers.top_k = [1, 2, 5, 50, 1000, 1_000_000][noise.next() as usize % 6];
    }
    if coin(noise) {
        numbers.top_p = [0.01, 0.5, 0.85, 0.95, 0.999][noise.next() as usize % 5];
    }
    if coin(noise) {
        numbers.min_p = [0.001, 0.05, 0.5, 1.0][noise.next() as usize % 4];
    }
    let mut seen = Vec::new();
    if coin(noise) {
        numbers.repetition_penalty = 0.8 + noise.unit() as f32 * 0.7;
        numbers.presence_penalty = noise.unit() as f32;
        numbers.frequency_penalty = noise.unit() as f32 - 0.5;
        let step = 1 + vocab / 300;
        seen = (0..vocab as u32)
            .step_by(step)
            .map(|id| Seen {
                id,
                generated: noise.next() as u32 % 4,
            })
            .collect();
    }
    let mut forbidden = Vec::new();
    if coin(noise) {
        forbidden = (0..vocab as u32 / 2).step_by(1 + vocab / 40).collect();
    }
    Wish {
        seen,
        forbidden,
        numbers,
    }
}

fn logits(noise: &mut Noise, vocab: usize, shape: usize) -> Vec<f32> {
    let one = |noise: &mut Noise, id: usize| match shape {
        0 => noise.normal(),
        1 => noise.normal() * 4.0,
        // A trained model's: a few far above a broad rest.
        2 => {
            noise.normal()
                + if id.is_multiple_of(vocab / 7 + 1) {
                    12.0
                } else {
                    0.0
                }
        }
        // Many equals.
        3 => (noise.next() % 5) as f32,
        FLAT => 1.5,
        // One outlier stretches the bins.
        _ => noise.normal() * 0.01 - if id == vocab / 2 { 1e4 } else { 0.0 },
    };
    (0..vocab).map(|id| one(noise, id)).collect()
}

fn on_device(device: &Device, rows: &[Vec<f32>], samplings: &[Sampling<'_>]) -> Outcome<Vec<i32>> {
    let vocab = rows[0].len();
    let logits = Buffer::of(device, &rows.concat(), "logits")?;
    let chosen = Buffer::zeros(device, rows.len() * 4, "tokens")?;
    let mut choices = Choices::default();
    for (row, sampling) in samplings.iter().enumerate() {
        choose_row(&mut choices, sampling, row);
    }
    let mut buffer = ChoiceBuffer::new(device, 1)?;
    buffer.choose(device, &choices, logits.all(), vocab, chosen.all())?;
    Ok(chosen.all().download(device, rows.len())?)
}

/// How long a step's choices take, with what the published model asks for by default.
fn time(device: &Device) -> Outcome {
    let mut noise = Noise(2);
    let vocab = 133_120;
    let rows: Vec<Vec<f32>> = (0..128).map(|_| logits(&mut noise, vocab, 2)).collect();
    let seen: Vec<Seen> = (0..1000)
        .map(|id| Seen {
            id: id * 100,
            generated: 1,
        })
        .collect();
    let buffer = Buffer::of(device, &rows.concat(), "logits")?;
    let chosen = Buffer::zeros(device, rows.len() * 4, "tokens")?;
    for n in [1, 64, 128] {
        let mut choices = Choices::default();
        for row in 0..n {
            let sampling = Sampling {
                temperature: 0.3,
                top_k: 5,
                top_p: 0.85,
                repetition_penalty: 1.05,
                seen: &seen,
                draw: noise.unit(),
                ..Sampling::GREEDY
            };
            choose_row(&mut choices, &sampling, row);
        }
        let mut sent = ChoiceBuffer::new(device, 1)?;
        let mut best = f64::MAX;
        for _ in 0..20 {
            device.synchronize()?;
            let begun = Instant::now();
            sent.choose(device, &choices, buffer.all(), vocab, chosen.all())?;
            device.synchronize()?;
            best = best.min(begun.elapsed().as_secs_f64());
        }
        say(format_args!(
            "choosing {n} tokens of {vocab} with the published defaults: {:.0} µs",
            best * 1e6
        ))?;
    }
    Ok(())
}
