//! Runs a step and brings back what the engine wants of it.

use baichuan_engine::model::{HiddenRows, Rows, StepBatch, StepEntry, StepOutput, Wants};
use baichuan_engine::{StepError, TokenId};
use baichuan_kernels::cuda::{GpuError, Graph};

use super::forward::Extent;
use super::memory::HEAD_ROWS;
use super::tables::{self, Arrangement};
use super::{CudaModel, step_error};

/// What becomes of logits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Head {
    /// They come to the host.
    Rows,
    /// Their most likely token comes to the host.
    Choose,
}

/// Sizes that steps of single tokens are padded to.
const GRAPH_ROWS: [usize; 15] = [1, 2, 4, 8, 16, 32, 48, 64, 80, 96, 128, 160, 192, 224, 256];

impl CudaModel {
    pub(super) fn run(
        &mut self,
        batch: &StepBatch<'_>,
        head: Head,
    ) -> Result<(StepOutput, Vec<Option<TokenId>>), StepError> {
        let arrangement = Arrangement::new(batch);
        if arrangement.n_rows > self.activations.rows {
            let room = self.activations.rows;
            return Err(StepError::Compute(format!(
                "{} rows, there is room for {room}",
                arrangement.n_rows
            )));
        }
        let graph_rows = GRAPH_ROWS.into_iter().find(|rows| *rows >= arrangement.n_rows);
        match graph_rows {
            Some(rows) if arrangement.n_single == arrangement.n_rows => {
                self.run_graph(batch, &arrangement, rows, head)
            }
            _ => self.run_plain(batch, &arrangement, head),
        }
    }

    /// Single tokens only: everything up to the choice of tokens is one recorded graph.
    fn run_graph(
        &mut self,
        batch: &StepBatch<'_>,
        arrangement: &Arrangement,
        rows: usize,
        head: Head,
    ) -> Result<(StepOutput, Vec<Option<TokenId>>), StepError> {
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
        let wanted: Vec<usize> = arrangement
            .order
            .iter()
            .enumerate()
            .filter(|(_, entry)| batch.entries[**entry].wants != Wants::Nothing)
            .map(|(place, _)| place)
            .collect();
        let is_hidden =
            |place: &&usize| matches!(batch.entries[arrangement.order[**place]].wants, Wants::Hidden(_));
        let n_hidden = wanted.iter().filter(is_hidden).count();
        let mut results = Results::new(batch.entries.len());
        if head == Head::Choose && n_hidden < wanted.len() {
            let chosen = self.fetch_chosen(arrangement.n_rows)?;
            for &place in &wanted {
                results.chosen[arrangement.order[place]] = token(chosen[place])?;
            }
        }
        if head == Head::Rows && n_hidden < wanted.len() {
            let logits = self.fetch(Rowed::Logits, arrangement.n_rows)?;
            for &place in wanted.iter().filter(|place| !is_hidden(place)) {
                results.push(batch, arrangement.order[place], place, &logits);
            }
        }
        if n_hidden > 0 {
            let hidden = self.fetch(Rowed::Hidden, arrangement.n_rows)?;
            for &place in wanted.iter().filter(is_hidden) {
                results.push(batch, arrangement.order[place], place, &hidden);
            }
        }
        self.device.synchronize().map_err(step_error)?;
        Ok(results.finish(self.config.vocab_size, self.config.hidden_size, batch))
    }

    /// Any step: layers, then final norm and head for the rows wanted, some at a time.
    fn run_plain(
        &mut self,
        batch: &StepBatch<'_>,
        arrangement: &Arrangement,
        head: Head,
    ) -> Result<(StepOutput, Vec<Option<TokenId>>), StepError> {
        tables::fill(&mut self.tables, &self.spec, batch, arrangement, 0)?;
        let mut of_row = Vec::new();
        for (&entry, &first) in arrangement.order.iter().zip(&arrangement.first_rows) {
            let rows = wanted_rows(&batch.entries[entry], head).map(|row| (entry, first + row));
            of_row.extend(rows);
        }
        self.tables
            .wanted
            .extend(of_row.iter().map(|(_, row)| *row as i32));
        let step = self.step.send(&self.device, &self.tables).map_err(step_error)?;
        self.issue_layers(step, Extent::of(arrangement))
            .map_err(step_error)?;
        let mut results = Results::new(batch.entries.len());
        for (part, rows) in of_row.chunks(HEAD_ROWS).enumerate() {
            let wanted = self.step.wanted(part * HEAD_ROWS, rows.len());
            self.issue_final_norm(Some(wanted), rows.len())
                .map_err(step_error)?;
            let is_hidden = |entry: usize| matches!(batch.entries[entry].wants, Wants::Hidden(_));
            if rows.iter().any(|(entry, _)| !is_hidden(*entry)) {
                self.issue_head(rows.len()).map_err(step_error)?;
                if head == Head::Choose {
                    let chosen = self.fetch_chosen(rows.len())?;
                    for (index, (entry, _)) in rows
                        .iter()
                        .enumerate()
                        .filter(|(_, (entry, _))| !is_hidden(*entry))
                    {
                        results.chosen[*entry] = token(chosen[index])?;
                    }
                } else {
                    let logits = self.fetch(Rowed::Logits, rows.len())?;
                    for (index, (entry, _)) in rows
                        .iter()
                        .enumerate()
                        .filter(|(_, (entry, _))| !is_hidden(*entry))
                    {
                        results.push(batch, *entry, index, &logits);
                    }
                }
            }
            if rows.iter().any(|(entry, _)| is_hidden(*entry)) {
                let hidden = self.fetch(Rowed::Hidden, rows.len())?;
                for (index, (entry, _)) in rows
                    .iter()
                    .enumerate()
                    .filter(|(_, (entry, _))| is_hidden(*entry))
                {
                    results.push(batch, *entry, index, &hidden);
                }
            }
        }
        self.device.synchronize().map_err(step_error)?;
        Ok(results.finish(self.config.vocab_size, self.config.hidden_size, batch))
    }

    fn fetch_chosen(&mut self, n: usize) -> Result<Vec<i32>, StepError> {
        let a = &mut self.activations;
        a.host_chosen
            .fetch(&self.device, n, a.chosen.all())
            .map_err(step_error)?;
        self.device.synchronize().map_err(step_error)?;
        Ok(a.host_chosen.values()[..n].to_vec())
    }

    /// The first `n` rows of logits or hidden states.
    fn fetch(&mut self, what: Rowed, n: usize) -> Result<Rows, StepError> {
        let a = &mut self.activations;
        let (from, width) = match what {
            Rowed::Logits => (&a.logits, self.config.vocab_size),
            Rowed::Hidden => (&a.hidden_f32, self.config.hidden_size),
        };
        a.host
            .fetch(&self.device, n * width, from.all())
            .map_err(step_error)?;
        self.device.synchronize().map_err(step_error)?;
        Ok(Rows::new(width, a.host.values()[..n * width].to_vec()))
    }
}

enum Rowed {
    Logits,
    Hidden,
}

/// A chosen token; the device says -1 where logits were not numbers.
fn token(chosen: i32) -> Result<Option<TokenId>, StepError> {
    u32::try_from(chosen).map(Some).map_err(|_| StepError::NotFinite)
}

/// Rows of an entry that something is wanted of, counted from its first.
fn wanted_rows(entry: &StepEntry<'_>, head: Head) -> std::ops::Range<usize> {
    let n = entry.tokens.len();
    match entry.wants {
        Wants::Nothing => 0..0,
        Wants::AllLogits if head == Head::Choose => n - 1..n,
        Wants::LastLogits | Wants::Hidden(HiddenRows::Last) => n - 1..n,
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

    /// Gives row `index` of `rows` to `entry`: its next one, or a part of its sum.
    fn push(&mut self, batch: &StepBatch<'_>, entry: usize, index: usize, rows: &Rows) {
        let Some(row) = rows.iter().nth(index) else { return };
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

    fn finish(
        self,
        vocab_size: usize,
        hidden_size: usize,
        batch: &StepBatch<'_>,
    ) -> (StepOutput, Vec<Option<TokenId>>) {
        let rows = |(values, entry): (Vec<f32>, &StepEntry<'_>)| match entry.wants {
            _ if values.is_empty() => Rows::default(),
            Wants::Hidden(_) => Rows::new(hidden_size, values),
            _ => Rows::new(vocab_size, values),
        };
        let entries = self.values.into_iter().zip(batch.entries).map(rows).collect();
        (StepOutput { entries }, self.chosen)
    }
}
