//! Products with some tens of rows of activations by `narrow.cu`, on Hopper alone.

use super::device::{Grid, MAX_SHARED_BYTES, arguments};
use super::error::GpuError;
use super::tensor::TensorMap;
use super::{Device, Output};
use crate::ElementType;

/// Rows of activations that these kernels take, each by the tile that has room for them. Of more cuBLASLt's products are as fast.
const TILES: [usize; 3] = [32, 64, 96];
/// Rows of the matrix that shares begin at multiples of.
const UNIT: usize = 8;
/// A panel is 128 bytes of rows; a stage has so many.
const PANEL_BYTES: usize = 128;
const PANELS: usize = 2;
/// Rows of the matrix that an instruction multiplies, whether they were fetched or not.
const TILE_ROWS: usize = 64;
const MOST_STAGES: usize = 16;
/// Shared memory of a block: what it may have, less its barriers.
const SHARED_BYTES: usize = MAX_SHARED_BYTES as usize - 1024;

/// A product of some tens of rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Narrow {
    /// Type of activations and stored results, of sixteen bits, and of the matrix where that has no factors.
    pub(super) element: ElementType,
    pub(super) n_out: usize,
    pub(super) n_in: usize,
    pub(super) n_rows: usize,
    pub(super) becomes: Becomes,
    /// Addresses of the matrix, `[n_out][n_in]` (for SwiGLU gates before ups), of activations, `[n_rows][n_in]`, and of the
    /// result, `[n_rows][n_out]`.
    pub(super) operands: [u64; 3],
    /// Where numbers have eight bits: addresses of the factors of the matrix's rows and of the activations', f32.
    pub(super) factors: Option<[u64; 2]>,
}

/// What becomes of the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Becomes {
    Plain(Output),
    /// silu(gates) · ups, in the activations' type.
    SwiGlu,
}

/// Mirrors `Narrow` in narrow.cu.
#[repr(C)]
struct Raw {
    y: u64,
    matrix_factors: u64,
    x_factors: u64,
    n_out: i32,
    n_in: i32,
    n_rows: i32,
    n_passes: i32,
    pass_units: i32,
    stages: i32,
}

macro_rules! names {
    ($name:literal) => {
        [
            concat!($name, "_32"),
            concat!($name, "_64"),
            concat!($name, "_96"),
        ]
    };
}

/// Kernels of one kind, by [`TILES`]; how many matrices' rows, and how many tiles of each, they multiply at once.
struct Kernels {
    names: [&'static str; 3],
    n_matrices: usize,
    n_tiles: usize,
}

const fn kernels(names: [&'static str; 3], n_matrices: usize, n_tiles: usize) -> Kernels {
    Kernels {
        names,
        n_matrices,
        n_tiles,
    }
}

/// As instantiated in narrow.cu.
const STORE: Kernels = kernels(names!("narrow_store"), 1, 1);
const STORE_F32: Kernels = kernels(names!("narrow_store_f32"), 1, 2);
const ADD: Kernels = kernels(names!("narrow_add"), 1, 1);
const SWIGLU: Kernels = kernels(names!("narrow_swiglu"), 2, 1);
const EIGHTHS_STORE: Kernels = kernels(names!("narrow_eighths_store"), 1, 2);
const EIGHTHS_STORE_F32: Kernels = kernels(names!("narrow_eighths_store_f32"), 1, 2);
const EIGHTHS_ADD: Kernels = kernels(names!("narrow_eighths_add"), 1, 1);

impl Narrow {
    /// The tile that has room for so many rows of activations, if one has.
    fn tile(n_rows: usize) -> Option<usize> {
        TILES.iter().position(|rows| *rows >= n_rows)
    }

    fn kernels(&self) -> Option<&'static Kernels> {
        Some(match (self.becomes, self.factors.is_some()) {
            (Becomes::Plain(Output::Store), false) => &STORE,
            (Becomes::Plain(Output::StoreF32), false) => &STORE_F32,
            (Becomes::Plain(Output::AddF32), false) => &ADD,
            (Becomes::SwiGlu, false) => &SWIGLU,
            (Becomes::Plain(Output::Store), true) => &EIGHTHS_STORE,
            (Becomes::Plain(Output::StoreF32), true) => &EIGHTHS_STORE_F32,
            (Becomes::Plain(Output::AddF32), true) => &EIGHTHS_ADD,
            (Becomes::SwiGlu, true) => return None,
        })
    }
}

impl Device {
    /// Whether [`Device::multiply_narrow`] does a product of so many rows of activations, each of `row_bytes`.
    pub(super) fn suits_narrow(&self, n_rows: usize, row_bytes: usize) -> bool {
        self.has_wgmma() && row_bytes.is_multiple_of(PANEL_BYTES) && Narrow::tile(n_rows).is_some()
    }

    /// The product.
    ///
    /// # Safety
    /// Operands and factors are device addresses of what [`Narrow`] says, and the matrix (with its factors) was not written by work
    /// issued just before.
    pub(super) unsafe fn multiply_narrow(&self, p: &Narrow) -> Result<(), GpuError> {
        let (Some(tile), Some(kernels)) = (Narrow::tile(p.n_rows), p.kernels()) else {
            panic!("no kernel multiplies as {p:?}");
        };
        let (n_columns, n_tiles) = (TILES[tile], kernels.n_tiles);
        let n_blocks = self.n_multiprocessors;
        let share = p.n_out.div_ceil(UNIT).div_ceil(n_blocks);
        let n_passes = share.div_ceil(n_tiles * TILE_ROWS / UNIT);
        let pass_units = share.div_ceil(n_passes);
        let panel_bytes = pass_units * UNIT * PANEL_BYTES;
        let n_panels = kernels.n_matrices * PANELS;
        let stage_bytes = n_panels * panel_bytes + PANELS * n_columns * PANEL_BYTES;
        // The last panel is read in whole tiles.
        let read = (n_panels - 1) * panel_bytes + n_tiles * TILE_ROWS * PANEL_BYTES;
        // Stages are aligned by hand.
        let beside = read.saturating_sub(stage_bytes) + 1024;
        let stages = ((SHARED_BYTES - beside) / stage_bytes).min(MOST_STAGES);
        let [matrix, x, y] = p.operands;
        let row_panels = p.n_in * if p.factors.is_some() { 1 } else { 2 } / PANEL_BYTES;
        let of = |address, rows, box_rows| {
            // SAFETY: passed on to the caller; numbers of eight bits are described as pairs.
            unsafe { TensorMap::of_panels(p.element, address, (rows, row_panels), (box_rows, PANELS)) }
        };
        let of_units = |units| of(matrix, p.n_out * kernels.n_matrices, units * UNIT);
        let (most, less) = (of_units(pass_units)?, of_units((pass_units - 1).max(1))?);
        let x = of(x, p.n_rows, n_columns)?;
        let [matrix_factors, x_factors] = p.factors.unwrap_or_default();
        let raw = Raw {
            y,
            matrix_factors,
            x_factors,
            n_out: p.n_out as i32,
            n_in: p.n_in as i32,
            n_rows: p.n_rows as i32,
            n_passes: n_passes as i32,
            pass_units: pass_units as i32,
            stages: stages as i32,
        };
        let grid = Grid {
            blocks: [n_blocks, 1, 1],
            threads: 160,
            shared_bytes: (stages * stage_bytes + beside) as u32,
        };
        // SAFETY: parameters are as in narrow.cu; sizes are the caller's.
        unsafe {
            self.launch_for(
                p.element,
                kernels.names[tile],
                &grid,
                arguments![raw, most, less, x],
            )
        }
    }
}
