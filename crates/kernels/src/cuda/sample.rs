//! Choice of tokens on the device: penalties, temperature, filters and the draw.

use bytemuck::{Pod, Zeroable};

use super::device::{Grid, arguments};
use super::error::GpuError;
use super::{Buffer, Device, Pinned, Span};

/// How one row's token is chosen; mirrors `Choice` in sample.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Choice {
    /// Where in what is left of the probability the token lies, in [0, 1).
    pub draw: f64,
    /// Row of the logits; at most one choice per row.
    pub row: i32,
    /// Where in the result the token goes.
    pub place: i32,
    /// Number of its first pair in [`Choices::edits`].
    pub first_edit: i32,
    /// Pairs of a token and how often it was generated.
    pub n_seen: i32,
    /// Pairs after them whose token cannot be chosen.
    pub n_forbidden: i32,
    /// 0: the likeliest token.
    pub temperature: f32,
    /// Only the k likeliest; 0: off.
    pub top_k: i32,
    /// The fewest that reach this share; 1: off.
    pub top_p: f32,
    /// Least share of the likeliest one's probability; 0: off.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen.
    pub repetition: f32,
    /// Subtracted from logits of tokens generated.
    pub presence: f32,
    /// The same, times how often.
    pub frequency: f32,
}

/// A step's choices.
#[derive(Clone, Debug, Default)]
pub struct Choices {
    /// One per row that a token is chosen of.
    pub choices: Vec<Choice>,
    /// Pairs that the choices point into; distinct tokens among one choice's seen ones.
    pub edits: Vec<[i32; 2]>,
}

impl Choices {
    /// Forgets all.
    pub fn clear(&mut self) {
        self.choices.clear();
        self.edits.clear();
    }
}

/// Integers of a [`Choice`].
const CHOICE_INTS: usize = size_of::<Choice>() / 4;

/// Where choices are copied to; grows as they need.
pub struct ChoiceBuffer {
    host: Pinned<i32>,
    device: Buffer,
}

impl ChoiceBuffer {
    /// Room for `n_choices` without edits.
    pub fn new(device: &Device, n_choices: usize) -> Result<Self, GpuError> {
        let ints = n_choices * CHOICE_INTS;
        Ok(Self {
            host: Pinned::zeros(device, ints)?,
            device: Buffer::zeros(device, ints * 4, "choices of tokens")?,
        })
    }

    /// Issues the choice of a token for each of `choices` of `logits`, `[rows][vocab]` f32, whose rows it changes.
    /// `chosen[place]` becomes the token, or -1 where a logit is not finite.
    ///
    /// What was sent before must be done: [`Device::synchronize`].
    ///
    /// # Panics
    /// If a choice names a row, place, pair or token that is not there.
    pub fn choose(
        &mut self,
        device: &Device,
        choices: &Choices,
        logits: Span<'_>,
        vocab: usize,
        chosen: Span<'_>,
    ) -> Result<(), GpuError> {
        let (n_rows, n_places) = (logits.n_bytes() / 4 / vocab, chosen.n_bytes() / 4);
        for choice in &choices.choices {
            let edits = choice.first_edit as usize + (choice.n_seen + choice.n_forbidden) as usize;
            assert!(
                (choice.row as usize) < n_rows
                    && (choice.place as usize) < n_places
                    && edits <= choices.edits.len(),
                "{choice:?} of {n_rows} rows, {n_places} places and {} pairs",
                choices.edits.len()
            );
        }
        assert!(
            choices.edits.iter().all(|[id, _]| (*id as usize) < vocab),
            "a token beyond {vocab}"
        );
        let n_choice_ints = choices.choices.len() * CHOICE_INTS;
        let n_ints = n_choice_ints + choices.edits.len() * 2;
        if n_ints > self.host.values().len() {
            *self = Self::new(device, n_ints.next_power_of_two().div_ceil(CHOICE_INTS))?;
        }
        let host = self.host.values_mut();
        host[..n_choice_ints].copy_from_slice(bytemuck::cast_slice(&choices.choices));
        host[n_choice_ints..n_ints].copy_from_slice(choices.edits.as_flattened());
        self.host.send(device, n_ints, self.device.all())?;

        let grid = Grid {
            blocks: [choices.choices.len(), 1, 1],
            threads: 1024,
            shared_bytes: 0,
        };
        let (logits, chosen) = (logits.ptr(), chosen.ptr());
        let sent = self.device.all().ptr();
        let edits = sent + n_choice_ints as u64 * 4;
        let vocab = vocab as i32;
        // SAFETY: parameter types as in sample.cu; rows, places, pairs and tokens checked above.
        unsafe { device.launch("sample", &grid, arguments![logits, sent, edits, chosen, vocab]) }
    }
}
