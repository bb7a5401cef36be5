//! A step of the engine as integers for the device: entries of one token first, then chunks.

use baichuan_engine::model::{ModelSpec, StepBatch, StepEntry};
use baichuan_engine::{BlockId, StepError};
use baichuan_kernels::cuda::StepTables;

/// How a step's rows lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Arrangement {
    /// The batch's entry at each place.
    pub(super) order: Vec<usize>,
    /// First row of each place.
    pub(super) first_rows: Vec<usize>,
    /// Places with one token.
    pub(super) n_single: usize,
    /// Rows of all places.
    pub(super) n_rows: usize,
    /// Tokens of the longest chunk.
    pub(super) longest: usize,
}

impl Arrangement {
    pub(super) fn new(batch: &StepBatch<'_>) -> Self {
        let (single, chunks): (Vec<usize>, Vec<usize>) =
            (0..batch.entries.len()).partition(|&entry| batch.entries[entry].tokens.len() == 1);
        let n_single = single.len();
        let order: Vec<usize> = single.into_iter().chain(chunks).collect();
        let mut n_rows = 0;
        let first_rows = order
            .iter()
            .map(|&entry| {
                let first = n_rows;
                n_rows += batch.entries[entry].tokens.len();
                first
            })
            .collect();
        let longest = batch.entries.iter().map(|entry| entry.tokens.len()).max();
        Self {
            order,
            first_rows,
            n_single,
            n_rows,
            longest: longest.unwrap_or(0),
        }
    }
}

/// Writes a step into `tables`, padded with rows that do nothing to `padded` single entries if it has fewer.
///
/// Everything the device will index with is checked here.
pub(super) fn fill(
    tables: &mut StepTables,
    spec: &ModelSpec,
    batch: &StepBatch<'_>,
    arrangement: &Arrangement,
    padded: usize,
) -> Result<(), StepError> {
    for list in [
        &mut tables.token,
        &mut tables.pos,
        &mut tables.entry,
        &mut tables.slot,
        &mut tables.start,
        &mut tables.first_row,
        &mut tables.len,
        &mut tables.global_offset,
        &mut tables.window_offset,
        &mut tables.wanted,
        &mut tables.blocks,
    ] {
        list.clear();
    }
    for (place, &index) in arrangement.order.iter().enumerate() {
        let entry = &batch.entries[index];
        check(spec, entry)?;
        for (token, pos) in entry.tokens.iter().zip(entry.start..) {
            tables.token.push(*token as i32);
            tables.pos.push(pos as i32);
            tables.entry.push(place as i32);
        }
        tables.slot.push(entry.slot.0 as i32);
        tables.start.push(entry.start as i32);
        tables.first_row.push(arrangement.first_rows[place] as i32);
        tables.len.push(entry.tokens.len() as i32);
        tables.global_offset.push(tables.blocks.len() as i32);
        tables
            .blocks
            .extend(BlockId::as_u32s(entry.global).iter().map(|&block| block as i32));
        tables.window_offset.push(tables.blocks.len() as i32);
        tables
            .blocks
            .extend(BlockId::as_u32s(entry.window).iter().map(|&block| block as i32));
    }
    for row in tables.pos.len()..padded {
        tables.token.push(0);
        tables.pos.push(-1);
        tables.entry.push(row as i32);
        tables.slot.push(0);
        tables.start.push(-1);
        tables.first_row.push(row as i32);
        tables.len.push(1);
        tables.global_offset.push(0);
        tables.window_offset.push(0);
    }
    Ok(())
}

/// Whether an entry names nothing that is not there.
fn check(spec: &ModelSpec, entry: &StepEntry<'_>) -> Result<(), StepError> {
    let plan = &spec.cache;
    let refuse = |what: String| Err(StepError::Compute(what));
    if let Some(token) = entry
        .tokens
        .iter()
        .find(|token| **token as usize >= spec.vocab_size)
    {
        return refuse(format!("token {token} in a vocabulary of {}", spec.vocab_size));
    }
    if entry.slot.0 as usize >= plan.slots {
        return refuse(format!("slot {} of {}", entry.slot.0, plan.slots));
    }
    let end = entry.start + entry.tokens.len();
    if end > spec.max_context {
        return refuse(format!("{end} tokens in a context of {}", spec.max_context));
    }
    let pools = [
        (entry.global, plan.global_blocks, plan.global_blocks_for(end)),
        (
            entry.window,
            plan.window_blocks,
            if plan.window_blocks == 0 {
                0
            } else {
                plan.window_blocks_for(end)
            },
        ),
    ];
    for (blocks, in_pool, needed) in pools {
        if blocks.len() < needed {
            return refuse(format!(
                "{} blocks for {end} tokens, which need {needed}",
                blocks.len()
            ));
        }
        if let Some(block) = blocks.iter().find(|block| block.0 as usize >= in_pool) {
            return refuse(format!("block {} of {in_pool}", block.0));
        }
    }
    Ok(())
}
