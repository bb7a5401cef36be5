//! The integers of a step: which tokens, at which positions, of which sequences, with which blocks.

use super::error::GpuError;
use super::{Buffer, Device, Pinned, Span};

/// A step's integers on the host. Rows are new tokens, entries are sequences; entries of one token come first, each
/// at the row of its own number. Padding rows and entries have position -1.
#[derive(Default, Debug)]
pub struct StepTables {
    /// Token of each row.
    pub token: Vec<i32>,
    /// Position of each row; -1 for padding.
    pub pos: Vec<i32>,
    /// Entry of each row.
    pub entry: Vec<i32>,
    /// Slot of each entry.
    pub slot: Vec<i32>,
    /// Position of each entry's first row.
    pub start: Vec<i32>,
    /// First row of each entry.
    pub first_row: Vec<i32>,
    /// Rows of each entry.
    pub len: Vec<i32>,
    /// Where each entry's global blocks begin in `blocks`.
    pub global_offset: Vec<i32>,
    /// Where each entry's window blocks begin in `blocks`.
    pub window_offset: Vec<i32>,
    /// Rows that something is wanted of.
    pub wanted: Vec<i32>,
    /// Block tables of all entries.
    pub blocks: Vec<i32>,
}

/// A step's integers on the device, as kernels see them; mirrors `Step` in common.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Step {
    token: u64,
    pos: u64,
    entry: u64,
    slot: u64,
    start: u64,
    first_row: u64,
    len: u64,
    global_offset: u64,
    window_offset: u64,
    blocks: u64,
}

/// Where steps are copied to. Equal numbers of rows and entries give equal addresses, so that a recorded graph
/// finds the next step where it found the first.
pub struct StepBuffer {
    host: Pinned<i32>,
    device: Buffer,
    wanted_at: usize,
}

impl StepBuffer {
    /// Room for `ints` integers.
    pub fn new(device: &Device, ints: usize) -> Result<Self, GpuError> {
        Ok(Self {
            host: Pinned::zeros(device, ints)?,
            device: Buffer::zeros(device, ints * 4, "step tables")?,
            wanted_at: 0,
        })
    }

    /// Begins to copy `tables` to the device. The copy before must be done: [`Device::synchronize`].
    pub fn send(&mut self, device: &Device, tables: &StepTables) -> Result<Step, GpuError> {
        let t = tables;
        let parts = [
            &t.token,
            &t.pos,
            &t.entry,
            &t.slot,
            &t.start,
            &t.first_row,
            &t.len,
            &t.global_offset,
            &t.window_offset,
            &t.blocks,
        ];
        let mut at = 0;
        let mut offsets = [0; 10];
        let host = self.host.values_mut();
        for (number, part) in parts.into_iter().enumerate() {
            if number == 9 {
                self.wanted_at = at;
                host[at..at + t.wanted.len()].copy_from_slice(&t.wanted);
                at += t.wanted.len();
            }
            host[at..at + part.len()].copy_from_slice(part);
            offsets[number] = at;
            at += part.len();
        }
        self.host.send(device, at, self.device.all())?;
        let base = self.device.all().ptr();
        let [
            token,
            pos,
            entry,
            slot,
            start,
            first_row,
            len,
            global_offset,
            window_offset,
            blocks,
        ] = offsets.map(|offset| base + offset as u64 * 4);
        Ok(Step {
            token,
            pos,
            entry,
            slot,
            start,
            first_row,
            len,
            global_offset,
            window_offset,
            blocks,
        })
    }

    /// Of the last step sent: rows wanted, from number `first` on.
    pub fn wanted(&self, first: usize, n: usize) -> Span<'_> {
        self.device.part((self.wanted_at + first) * 4, n * 4)
    }
}
