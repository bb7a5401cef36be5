//! Makes one vector of an input's hidden states, chunk after chunk.

use crate::model::{HiddenRows, Rows};
use crate::request::Pooling;

/// One input's pooling so far. Sums are kept in f64, so that how the input was cut does not show.
#[derive(Debug)]
pub(crate) struct Pooler {
    pooling: Pooling,
    /// How many tokens went in.
    n_tokens: usize,
    sum: Vec<f64>,
    rows: Vec<f32>,
}

impl Pooler {
    pub(crate) fn new(pooling: Pooling) -> Self {
        Self {
            pooling,
            n_tokens: 0,
            sum: Vec::new(),
            rows: Vec::new(),
        }
    }

    /// What is needed of a chunk that begins at `start` and may be the last one.
    pub(crate) fn wants(&self, start: usize, completes: bool) -> Option<HiddenRows> {
        match self.pooling {
            Pooling::Last => completes.then_some(HiddenRows::Last),
            Pooling::First => (start == 0).then_some(HiddenRows::First),
            Pooling::Mean => Some(HiddenRows::Sum),
            Pooling::WeightedMean => Some(HiddenRows::WeightedSum),
            Pooling::None => Some(HiddenRows::All),
        }
    }

    /// Takes what was wanted of a chunk of `n_tokens`; empty if nothing was.
    pub(crate) fn push(&mut self, n_tokens: usize, rows: Rows) {
        self.n_tokens += n_tokens;
        let values = rows.into_values();
        match self.pooling {
            Pooling::Last | Pooling::First | Pooling::None => self.rows.extend(values),
            Pooling::Mean | Pooling::WeightedMean => {
                self.sum.resize(values.len(), 0.0);
                self.sum
                    .iter_mut()
                    .zip(values)
                    .for_each(|(sum, value)| *sum += f64::from(value));
            }
        }
    }

    /// Begins anew, after a preemption.
    pub(crate) fn reset(&mut self) {
        *self = Self::new(self.pooling);
    }

    /// The vector; without pooling one per token, one after another.
    pub(crate) fn finish(&mut self) -> Vec<f32> {
        let n = self.n_tokens as f64;
        let weight = match self.pooling {
            Pooling::Mean => n,
            Pooling::WeightedMean => n * (n + 1.0) / 2.0,
            Pooling::Last | Pooling::First | Pooling::None => return std::mem::take(&mut self.rows),
        };
        self.sum.iter().map(|sum| (sum / weight) as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a model would answer for rows `start .. end` of `hidden`.
    fn answer(hidden: &[[f32; 2]], start: usize, end: usize, wants: HiddenRows) -> Rows {
        let rows = &hidden[start..end];
        let sum = |weight: &dyn Fn(usize) -> f32| {
            let mut out = vec![0.0; 2];
            for (i, row) in rows.iter().enumerate() {
                out.iter_mut()
                    .zip(row)
                    .for_each(|(o, r)| *o += weight(start + i + 1) * r);
            }
            out
        };
        let values = match wants {
            HiddenRows::First => rows[0].to_vec(),
            HiddenRows::Last => rows[rows.len() - 1].to_vec(),
            HiddenRows::All => rows.concat(),
            HiddenRows::Sum => sum(&|_| 1.0),
            HiddenRows::WeightedSum => sum(&|position| position as f32),
        };
        Rows::new(2, values)
    }

    #[test]
    fn any_chunking_gives_the_definition() {
        let hidden = [[1.0, 0.0], [2.0, 4.0], [6.0, -1.0]];
        let table = [
            (Pooling::Last, vec![6.0, -1.0]),
            (Pooling::First, vec![1.0, 0.0]),
            (Pooling::Mean, vec![3.0, 1.0]),
            (Pooling::WeightedMean, vec![23.0 / 6.0, 5.0 / 6.0]),
            (Pooling::None, vec![1.0, 0.0, 2.0, 4.0, 6.0, -1.0]),
        ];
        for (pooling, expected) in table {
            for cuts in [&[3][..], &[1, 3], &[2, 3], &[1, 2, 3]] {
                let mut pooler = Pooler::new(pooling);
                let mut start = 0;
                for end in cuts {
                    let wants = pooler.wants(start, *end == 3);
                    let rows = wants.map_or_else(Rows::default, |w| answer(&hidden, start, *end, w));
                    pooler.push(end - start, rows);
                    start = *end;
                }
                assert_eq!(pooler.finish(), expected, "{pooling:?} cut at {cuts:?}");
            }
        }
    }
}
