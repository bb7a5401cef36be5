//! A model whose layers live on several devices: GPUs, or GPUs and the host.
//!
//! Each GPU has a [`CudaModel`] of its layers alone; the first one has the embedding, the last norm and the head too.
//! The residual stream goes from device to device where neighbouring layers live on different ones: 20 KiB a row of
//! the published model. Caches live beside their layers, and a block's number means the same on every device.

mod load;

use std::collections::BTreeMap;

use baichuan_engine::model::{CacheCopy, Freed, ModelSpec, StepBatch, StepEntry, StepOutput, Wants};
use baichuan_engine::{CausalLm, SlotId, StepError};
use baichuan_kernels::cuda::{Graph, Pinned, Step};

use super::forward::Extent;
use super::host_part::HostPart;
use super::output::{Head, graph_rows};
use super::tables::{self, Arrangement};
use super::{CudaModel, step_error};
use crate::device_map::{Segment, segments};
use crate::place::Place;

/// A loaded Baichuan-M1 on several devices.
pub(crate) struct MappedModel {
    spec: ModelSpec,
    /// Of each layer.
    places: Vec<Place>,
    stages: Vec<Stage>,
    /// Recorded stages of steps of single tokens, by stage and number of rows.
    graphs: BTreeMap<(usize, usize), Graph>,
    /// The residual stream on its way from and to the host; empty if no layer lives there.
    carried: Pinned<f32>,
    host: Option<HostPart>,
    /// In the order in which layers need them; the first has both ends of the model. Last, so that devices are there
    /// while what belongs to them is freed.
    shards: Vec<CudaModel>,
}

/// Layers that follow one another on one device, counted among that device's own.
#[derive(Clone, Copy, Debug)]
struct Stage {
    on: On,
    first: usize,
    end: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    Shard(usize),
    Host,
}

impl CausalLm for MappedModel {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn forward(&mut self, batch: &StepBatch<'_>) -> Result<StepOutput, StepError> {
        let arrangement = Arrangement::new(batch);
        let room = self.shards[0].activations.rows;
        if arrangement.n_rows > room {
            return Err(StepError::Compute(format!(
                "{} rows, there is room for {room}",
                arrangement.n_rows
            )));
        }
        // Hidden states and prompts' logits go the plain way.
        let is_plain = batch
            .entries
            .iter()
            .any(|entry| !matches!(entry.wants, Wants::Nothing | Wants::LastLogits | Wants::Sample(_)));
        let padded = graph_rows(&arrangement).filter(|_| !is_plain);
        let mut wanted = Vec::new();
        let mut steps = Vec::with_capacity(self.shards.len());
        for shard in &mut self.shards {
            shard.device.bind().map_err(step_error)?;
            tables::fill(
                &mut shard.tables,
                &self.spec,
                batch,
                &arrangement,
                padded.unwrap_or(0),
            )?;
            if padded.is_none() {
                wanted = shard.want(batch, &arrangement, Head::Rows);
            }
            steps.push(
                shard
                    .step
                    .send(&shard.device, &shard.tables)
                    .map_err(step_error)?,
            );
        }
        let extent = match padded {
            Some(rows) => Extent::single(rows),
            None => Extent {
                ends: self.shards[0].ends(batch, &arrangement, &wanted),
                ..Extent::of(&arrangement)
            },
        };
        self.run_stages(batch, &arrangement, &steps, extent, padded.is_some())?;
        let base = &mut self.shards[0];
        base.device.bind().map_err(step_error)?;
        match padded {
            None => base.finish(batch, &wanted, Head::Rows),
            Some(rows) => {
                base.issue_final_norm(None, rows).map_err(step_error)?;
                base.issue_head(rows).map_err(step_error)?;
                base.collect_places(batch, &arrangement, Head::Rows)
            }
        }
    }

    fn reset_slot(&mut self, slot: SlotId) {
        self.shards.iter_mut().for_each(|shard| shard.reset_slot(slot));
        if let Some(host) = &mut self.host {
            host.caches.reset(slot);
        }
    }

    fn copy(&mut self, copy: &CacheCopy<'_>) -> Result<(), StepError> {
        self.shards.iter_mut().try_for_each(|shard| shard.copy(copy))?;
        if let Some(host) = &mut self.host {
            host.caches.copy(copy);
        }
        Ok(())
    }

    fn scrub(&mut self, freed: &Freed<'_>) {
        self.shards.iter_mut().for_each(|shard| shard.scrub(freed));
        if let Some(host) = &mut self.host {
            host.caches.scrub(freed);
        }
    }
}

impl MappedModel {
    /// Which layers are where, as operators are told.
    pub(super) fn device(&self) -> String {
        let of_segment = |segment: Segment| {
            let (first, last) = (segment.layers.start, segment.layers.end - 1);
            match segment.place {
                Place::Host => format!("cpu[{first}-{last}]"),
                Place::Gpu(ordinal) => format!("cuda:{ordinal}[{first}-{last}]"),
            }
        };
        let segments: Vec<String> = segments(&self.places).into_iter().map(of_segment).collect();
        segments.join(" ")
    }

    /// Embedding and all layers; the residual stream ends on the first GPU.
    fn run_stages(
        &mut self,
        batch: &StepBatch<'_>,
        arrangement: &Arrangement,
        steps: &[Step],
        extent: Extent,
        recorded: bool,
    ) -> Result<(), StepError> {
        self.shards[0].device.bind().map_err(step_error)?;
        self.shards[0]
            .issue_embedding(steps[0], extent)
            .map_err(step_error)?;
        let mut at = 0;
        for number in 0..self.stages.len() {
            let stage = self.stages[number];
            match stage.on {
                On::Host => self.run_on_host(batch, arrangement, stage, at)?,
                On::Shard(shard) => {
                    self.move_rows(at, shard, extent.n_rows)?;
                    at = shard;
                    let ends = extent.ends.filter(|_| number + 1 == self.stages.len());
                    let extent = Extent { ends, ..extent };
                    self.run_on_gpu(number, stage, shard, steps[shard], extent, recorded)?;
                }
            }
        }
        self.move_rows(at, 0, extent.n_rows)
    }

    fn run_on_gpu(
        &mut self,
        number: usize,
        stage: Stage,
        shard: usize,
        step: Step,
        extent: Extent,
        recorded: bool,
    ) -> Result<(), StepError> {
        let model = &self.shards[shard];
        model.device.bind().map_err(step_error)?;
        let issue = || model.issue_range(step, extent, stage.first..stage.end);
        let key = (number, extent.n_rows);
        if !recorded {
            return issue().map_err(step_error);
        }
        if let Some(graph) = self.graphs.get(&key) {
            return graph.launch().map_err(step_error);
        }
        // Issued plainly the first time, which also plans the products; recorded for the next.
        issue().map_err(step_error)?;
        model.device.synchronize().map_err(step_error)?;
        if let Some(graph) = Graph::record(&model.device, issue).map_err(step_error)? {
            self.graphs.insert(key, graph);
        }
        Ok(())
    }

    /// The rows are on GPU `at` before and after.
    fn run_on_host(
        &mut self,
        batch: &StepBatch<'_>,
        arrangement: &Arrangement,
        stage: Stage,
        at: usize,
    ) -> Result<(), StepError> {
        let Some(host) = &mut self.host else {
            return Err(StepError::Compute(
                "a stage is on the host, which has no layers".into(),
            ));
        };
        let entries: Vec<StepEntry<'_>> = arrangement
            .order
            .iter()
            .map(|entry| batch.entries[*entry])
            .collect();
        let model = &self.shards[at];
        let n = arrangement.n_rows * host.config.hidden_size;
        model.device.bind().map_err(step_error)?;
        self.carried
            .fetch(&model.device, n, model.activations.x.all())
            .map_err(step_error)?;
        model.device.synchronize().map_err(step_error)?;
        let x = self.carried.values()[..n].to_vec();
        let x = host.forward(&StepBatch { entries: &entries }, (stage.first, stage.end), x)?;
        self.carried.values_mut()[..n].copy_from_slice(&x);
        self.carried
            .send(&model.device, n, model.activations.x.all())
            .map_err(step_error)?;
        model.device.synchronize().map_err(step_error)
    }

    /// Brings the residual stream from one GPU to another.
    fn move_rows(&self, from: usize, to: usize, n_rows: usize) -> Result<(), StepError> {
        if from == to {
            return Ok(());
        }
        let (from, to) = (&self.shards[from], &self.shards[to]);
        let rows = from.activations.x.part(0, n_rows * from.config.hidden_size * 4);
        to.activations
            .x
            .all()
            .copy_from(&to.device, rows, &from.device)
            .map_err(step_error)
    }
}
