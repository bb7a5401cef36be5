//! Runs a step and brings back what the engine wants of it.

use baichuan_engine::model::{HiddenRows, Rows, Sampling, StepBatch, StepEntry, StepOutput, Wants};
use baichuan_engine::{StepError, TokenId};
use baichuan_kernels::cuda::{Choice, Choices, GpuError, Graph};

use super::forward::Extent;
use super::memory::HEAD_ROWS;
use super::tables::{self, Arrangement};
use super::{CudaModel, step_error};

/// What becomes of logits where the step wants them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Head {
    /// They come to the host.
    Rows,
    /// Their most likely token comes to the host.
    Choose,
}

/// What of a row comes to the host.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Token,
    Logits,
    Hidden,
}

fn kind(wants: &Wants<'_>, head: Head) -> Kind {
    match wants {
        Wants::Hidden(_) => Kind::Hidden,
        Wants::Sample(_) => Kind::Token,
        Wants::Nothing | Wants::LastLogits | Wants::AllLogits if head == Head::Choose => Kind::Token,
        Wants::Nothing | Wants::LastLogits | Wants::AllLogits => Kind::Logits,
    }
}

/// Sizes that steps of single tokens are padded to.
const GRAPH_ROWS: [usize; 15] = [1, 2, 4, 8, 16, 32, 48, 64, 80, 96, 128, 160, 192, 224, 256];

/// The size that a step of nothing but single tokens is padded to.
pub(super) fn graph_rows(arrangement: &Arrangement) -> Option<usize> {
    let is_single = arrangement.n_single == arrangement.n_rows;
    let rows = GRAPH_ROWS.into_iter().find(|rows| *rows >= arrangement.n_rows);
    rows.filter(|_| is_single)
}

impl CudaModel {
    pub(super) fn run(&mut self, batch: &StepBatch<'_>, head: Head) -> Result<StepOutput, StepError> {
        let arrangement = Arrangement::new(batch);
        if arrangement.n_rows > self.activations.rows {
            let room = self.activations.rows;
            return Err(StepError::Compute(format!(
                "{} rows, there is room for {room}",
                arrangement.n_rows
            )));
        }
        match graph_rows(&arrangement) {
            Some(rows) => self.run_graph(batch, &arrangement, rows, head),
            None => self.run_plain(batch, &arrangement, head),
        }
    }

    /// Single tokens only: everything up to the choice of tokens is one recorded graph.
    fn run_graph(
        &mut self,
        batch: &StepBatch<'_>,
        arrangement: &Arrangement,
        rows: usize,
        head: Head,
    ) -> Result<StepOutput, StepError> {
        tables::fill(&mut self.tables, &self.spec, batch, arrangement, rows)?;
        let step = self.step.send(&self.device, &self.tables).map_err(step_error)?;
        match self.graphs.get(&rows) {
            Some(graph) => graph.launch().map_err(step_error)?,
            None => {
                // Issued plainly the first time, which also plans the products; recorded for the next.
                let issue = || -> Result<(), GpuError> {
                    self.issue_layers(step, Extent::single(rows))?;
                    self.issue_final_norm(None, rows)?;
                    self.issue_head(rows)
                };
                issue().map_err(step_error)?;
                self.device.synchronize().map_err(step_error)?;
                let graph = Graph::record(&self.device, issue).map_err(step_error)?;
                if let Some(graph) = graph {
                    self.graphs.insert(rows, graph);
                }
            }
        }
        self.collect_places(batch, arrangement, head)
    }

    /// Brings to the host what is wanted of a step of single tokens, whose head is issued for all rows.
    pub(super) fn collect_places(
        &mut self,
        batch: &StepBatch<'_>,
        arrangement: &Arrangement,
        head: Head,
    ) -> Result<StepOutput, StepError> {
        let places = arrangement.order.iter().copied().zip(0..);
        let wanted: Vec<(usize, usize)> = places
            .filter(|(entry, _)| batch.entries[*entry].wants != Wants::Nothing)
            .collect();
        let mut results = Results::new(batch.entries.len());
        self.collect(batch, &wanted, head, &mut results)?;
        Ok(results.finish(self.config.vocab_size, self.config.hidden_size, batch))
    }

    /// Any step: layers, then final norm and head for the rows wanted, some at a time.
    fn run_plain(
        &mut self,
        batch: &StepBatch<'_>,
        arrangement: &Arrangement,
        head: Head,
    ) -> Result<StepOutput, StepError> {
        tables::fill(&mut self.tables, &self.spec, batch, arrangement, 0)?;
        let wanted = self.want(batch, arrangement, head);
        let step = self.step.send(&self.device, &self.tables).map_err(step_error)?;
        let extent = Extent {
            ends: self.ends(batch, arrangement, &wanted),
            ..Extent::of(arrangement)
        };
        self.issue_layers(step, extent).map_err(step_error)?;
        self.finish(batch, &wanted, head)
    }

    /// Adds the rows that something is wanted of to the tables, and names their entries and rows.
    pub(super) fn want(
        &mut self,
        batch: &StepBatch<'_>,
        arrangement: &Arrangement,
        head: Head,
    ) -> Vec<(usize, usize)> {
        let mut wanted = Vec::new();
        for (&entry, &first) in arrangement.order.iter().zip(&arrangement.first_rows) {
            let rows = wanted_rows(&batch.entries[entry], head).map(|row| (entry, first + row));
            wanted.extend(rows);
        }
        self.tables
            .wanted
            .extend(wanted.iter().map(|(_, row)| *row as i32));
        wanted
    }

    /// The number of rows wanted, if each is the last of its entry and leaving out the others is worth their gathering.
    pub(super) fn ends(
        &self,
        batch: &StepBatch<'_>,
        arrangement: &Arrangement,
        wanted: &[(usize, usize)],
    ) -> Option<usize> {
        let places = arrangement.order.iter().zip(&arrangement.first_rows);
        let last_rows: Vec<usize> = places
            .map(|(&entry, first)| first + batch.entries[entry].tokens.len() - 1)
            .collect();
        let is_worth_it = wanted.len() <= HEAD_ROWS
            && 2 * wanted.len() <= arrangement.n_rows
            && (self.config.hidden_size * self.element.size()).is_multiple_of(16);
        let are_last = || wanted.iter().all(|(_, row)| last_rows.binary_search(row).is_ok());
        (is_worth_it && are_last()).then_some(wanted.len())
    }

    /// When all layers are issued: final norm and head of the rows wanted, some at a time.
    pub(super) fn finish(
        &mut self,
        batch: &StepBatch<'_>,
        wanted: &[(usize, usize)],
        head: Head,
    ) -> Result<StepOutput, StepError> {
        let mut results = Results::new(batch.entries.len());
        for (part, rows) in wanted.chunks(HEAD_ROWS).enumerate() {
            let places = self.step.wanted(part * HEAD_ROWS, rows.len());
            self.issue_final_norm(Some(places), rows.len())
                .map_err(step_error)?;
            let rows: Vec<(usize, usize)> = rows.iter().map(|(entry, _)| *entry).zip(0..).collect();
            let needs_head =
                |(entry, _): &(usize, usize)| kind(&batch.entries[*entry].wants, head) != Kind::Hidden;
            if rows.iter().any(needs_head) {
                self.issue_head(rows.len()).map_err(step_error)?;
            }
            self.collect(batch, &rows, head, &mut results)?;
        }
        self.device.synchronize().map_err(step_error)?;
        Ok(results.finish(self.config.vocab_size, self.config.hidden_size, batch))
    }

    /// Brings to the host what is wanted of rows whose final norm, and head if they need it, have been issued:
    /// pairs of an entry and a row. Waits until it is there.
    fn collect(
        &mut self,
        batch: &StepBatch<'_>,
        rows: &[(usize, usize)],
        head: Head,
        results: &mut Results,
    ) -> Result<(), StepError> {
        let of_kind = |wanted: Kind| -> Vec<(usize, usize)> {
            let is_wanted = |(entry, _): &(usize, usize)| kind(&batch.entries[*entry].wants, head) == wanted;
            rows.iter().copied().filter(is_wanted).collect()
        };
        for wanted in [Kind::Logits, Kind::Hidden] {
            let rows = of_kind(wanted);
            if rows.is_empty() {
                continue;
            }
            let values = self.fetch(wanted, &rows)?;
            for ((entry, _), row) in rows.iter().zip(values.iter()) {
                results.push(batch, *entry, row);
            }
        }
        let rows = of_kind(Kind::Token);
        for (&(entry, _), token) in rows.iter().zip(self.fetch_tokens(batch, &rows)?) {
            results.chosen[entry] = token;
        }
        self.device.synchronize().map_err(step_error)
    }

    /// The token chosen of each row; none where logits are not numbers. Most likely ones were chosen with the head.
    fn fetch_tokens(
        &mut self,
        batch: &StepBatch<'_>,
        rows: &[(usize, usize)],
    ) -> Result<Vec<Option<TokenId>>, StepError> {
        let Some(n_rows) = rows.iter().map(|(_, row)| row + 1).max() else {
            return Ok(Vec::new());
        };
        self.choices.clear();
        for &(entry, row) in rows {
            if let Wants::Sample(sampling) = batch.entries[entry].wants
                && !sampling.is_plain_greedy()
            {
                choose_row(&mut self.choices, &sampling, row);
            }
        }
        let (device, a) = (&self.device, &mut self.activations);
        if !self.choices.choices.is_empty() {
            let (logits, chosen) = (a.logits.all(), a.chosen.all());
            let vocab = self.config.vocab_size;
            a.choices
                .choose(device, &self.choices, logits, vocab, chosen)
                .map_err(step_error)?;
        }
        a.host_chosen
            .fetch(device, n_rows, a.chosen.all())
            .map_err(step_error)?;
        device.synchronize().map_err(step_error)?;
        let chosen = a.host_chosen.values();
        Ok(rows
            .iter()
            .map(|(_, row)| u32::try_from(chosen[*row]).ok())
            .collect())
    }

    /// These rows of logits or hidden states.
    fn fetch(&mut self, what: Kind, rows: &[(usize, usize)]) -> Result<Rows, StepError> {
        let (device, a) = (&self.device, &mut self.activations);
        let (from, width) = match what {
            Kind::Hidden => (&a.hidden_f32, self.config.hidden_size),
            Kind::Logits | Kind::Token => (&a.logits, self.config.vocab_size),
        };
        for (place, (_, row)) in rows.iter().enumerate() {
            let from = from.part(row * width * 4, width * 4);
            a.host
                .fetch_at(device, place * width, width, from)
                .map_err(step_error)?;
        }
        device.synchronize().map_err(step_error)?;
        Ok(Rows::new(width, a.host.values()[..rows.len() * width].to_vec()))
    }
}

/// Adds the choice of a token of a row, as the engine wants it.
pub fn choose_row(choices: &mut Choices, sampling: &Sampling<'_>, row: usize) {
    let first_edit = choices.edits.len() as i32;
    let seen = sampling.seen.iter();
    choices
        .edits
        .extend(seen.map(|seen| [seen.id as i32, seen.generated as i32]));
    choices
        .edits
        .extend(sampling.forbidden.iter().map(|id| [*id as i32, 0]));
    choices.choices.push(Choice {
        draw: sampling.draw,
        row: row as i32,
        place: row as i32,
        first_edit,
        n_seen: sampling.seen.len() as i32,
        n_forbidden: sampling.forbidden.len() as i32,
        temperature: sampling.temperature,
        top_k: i32::try_from(sampling.top_k).unwrap_or(i32::MAX),
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        repetition: sampling.repetition_penalty,
        presence: sampling.presence_penalty,
        frequency: sampling.frequency_penalty,
    });
}

/// Rows of an entry that something is wanted of, counted from its first.
fn wanted_rows(entry: &StepEntry<'_>, head: Head) -> std::ops::Range<usize> {
    let n = entry.tokens.len();
    match entry.wants {
        Wants::Nothing => 0..0,
        Wants::AllLogits if head == Head::Choose => n - 1..n,
        Wants::LastLogits | Wants::Sample(_) | Wants::Hidden(HiddenRows::Last) => n - 1..n,
        Wants::Hidden(HiddenRows::First) => 0..1,
        Wants::AllLogits | Wants::Hidden(HiddenRows::Sum | HiddenRows::WeightedSum | HiddenRows::All) => 0..n,
    }
}

/// What came back so far, by entry.
struct Results {
    values: Vec<Vec<f32>>,
    n_rows: Vec<usize>,
    chosen: Vec<Option<TokenId>>,
}

impl Results {
    fn new(n_entries: usize) -> Self {
        Self {
            values: vec![Vec::new(); n_entries],
            n_rows: vec![0; n_entries],
            chosen: vec![None; n_entries],
        }
    }

    /// Gives a row to `entry`: its next one, or a part of its sum.
    fn push(&mut self, batch: &StepBatch<'_>, entry: usize, row: &[f32]) {
        let values = &mut self.values[entry];
        self.n_rows[entry] += 1;
        let position = (batch.entries[entry].start + self.n_rows[entry]) as f32;
        let weight = match batch.entries[entry].wants {
            Wants::Hidden(HiddenRows::Sum) => 1.0,
            Wants::Hidden(HiddenRows::WeightedSum) => position,
            _ => return values.extend_from_slice(row),
        };
        values.resize(row.len(), 0.0);
        values.iter_mut().zip(row).for_each(|(sum, x)| *sum += weight * x);
    }

    fn finish(self, vocab_size: usize, hidden_size: usize, batch: &StepBatch<'_>) -> StepOutput {
        let rows = |(values, entry): (Vec<f32>, &StepEntry<'_>)| match entry.wants {
            _ if values.is_empty() => Rows::default(),
            Wants::Hidden(_) => Rows::new(hidden_size, values),
            _ => Rows::new(vocab_size, values),
        };
        let entries = self.values.into_iter().zip(batch.entries).map(rows).collect();
        StepOutput {
            entries,
            chosen: self.chosen,
        }
    }
}
