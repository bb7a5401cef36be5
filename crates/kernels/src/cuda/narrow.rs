//! Products with some tens of rows of activations by `narrow.cu` and `narrow_quant.cu`, on Hopper alone.

use super::device::{Grid, MAX_SHARED_BYTES, arguments};
use super::error::GpuError;
use super::quantized::Codes;
use super::tensor::TensorMap;
use super::{Device, Output, Product};
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
/// Warpgroups that multiply with quantised matrices, by the tile; the last of [`TILES`] has no such kernels.
const GROUPS: [usize; 2] = [4, 2];
/// Shared memory of a block: what it may have, less its barriers.
const SHARED_BYTES: usize = MAX_SHARED_BYTES as usize - 1024;

/// A product of some tens of rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Narrow {
    /// Type of activations and stored results, of sixteen bits.
    pub(super) element: ElementType,
    pub(super) n_out: usize,
    pub(super) n_in: usize,
    pub(super) n_rows: usize,
    pub(super) becomes: Becomes,
    /// Addresses of the matrix, `[n_out][n_in]` (for SwiGLU gates before ups), of activations, `[n_rows][n_in]`, and of the
    /// result, `[n_rows][n_out]`.
    pub(super) operands: [u64; 3],
    pub(super) numbers: Numbers,
}

/// What matrix and activations are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Numbers {
    /// Both of the product's type.
    Halves,
    /// Both of floats of eight bits, with factors of the matrix's rows and of the activations', f32, at these addresses.
    Eighths([u64; 2]),
    /// Activations of the product's type, the matrix of codes and what lies beside them, at this address.
    Codes(Codes, u64),
}

/// What becomes of the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Becomes {
    Plain(Output),
    /// silu(gates) · ups, in the activations' type.
    SwiGlu,
}

/// Mirrors `Narrow` in narrow.cuh.
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
    ($name:literal $(, $tile:literal)+) => {
        &[$(concat!($name, "_", $tile)),+]
    };
}

/// Kernels of one kind, by [`TILES`]; how many matrices' rows, and how many tiles of each, they multiply at once.
struct Kernels {
    names: &'static [&'static str],
    n_matrices: usize,
    n_tiles: usize,
}

const fn kernels(names: &'static [&'static str], n_matrices: usize, n_tiles: usize) -> Kernels {
    Kernels {
        names,
        n_matrices,
        n_tiles,
    }
}

/// As instantiated in narrow.cu: of kinds of results those of [`Narrow::kernels`].
const HALVES: [Kernels; 4] = [
    kernels(names!("narrow_store", 32, 64, 96), 1, 1),
    kernels(names!("narrow_store_f32", 32, 64, 96), 1, 2),
    kernels(names!("narrow_add", 32, 64, 96), 1, 1),
    kernels(names!("narrow_swiglu", 32, 64, 96), 2, 1),
];
const EIGHTHS: [Kernels; 3] = [
    kernels(names!("narrow_eighths_store", 32, 64, 96), 1, 2),
    kernels(names!("narrow_eighths_store_f32", 32, 64, 96), 1, 2),
    kernels(names!("narrow_eighths_add", 32, 64, 96), 1, 1),
];
/// As instantiated in narrow_quant.cu.
const BYTES: [Kernels; 4] = [
    kernels(names!("narrow_bytes_store", 32, 64), 1, 1),
    kernels(names!("narrow_bytes_store_f32", 32, 64), 1, 1),
    kernels(names!("narrow_bytes_add", 32, 64), 1, 1),
    kernels(names!("narrow_bytes_swiglu", 32, 64), 2, 1),
];
const NIBBLES: [Kernels; 4] = [
    kernels(names!("narrow_nibbles_store", 32, 64), 1, 1),
    kernels(names!("narrow_nibbles_store_f32", 32, 64), 1, 1),
    kernels(names!("narrow_nibbles_add", 32, 64), 1, 1),
    kernels(names!("narrow_nibbles_swiglu", 32, 64), 2, 1),
];
const SIXES: [Kernels; 4] = [
    kernels(names!("narrow_sixes_store", 32, 64), 1, 1),
    kernels(names!("narrow_sixes_store_f32", 32, 64), 1, 1),
    kernels(names!("narrow_sixes_add", 32, 64), 1, 1),
    kernels(names!("narrow_sixes_swiglu", 32, 64), 2, 1),
];

/// The tile that has room for so many rows of activations, if one has.
fn tile(n_rows: usize) -> Option<usize> {
    TILES.iter().position(|rows| *rows >= n_rows)
}

impl Narrow {
    /// Of a product, `n_rows` of its rows.
    pub(super) fn of(
        p: &Product<'_>,
        n_rows: usize,
        becomes: Becomes,
        operands: [u64; 3],
        numbers: Numbers,
    ) -> Self {
        Self {
            element: p.element,
            n_out: p.n_out,
            n_in: p.n_in,
            n_rows,
            becomes,
            operands,
            numbers,
        }
    }

    fn kernels(&self) -> Option<&'static Kernels> {
        let kinds: &[Kernels] = match self.numbers {
            Numbers::Halves => &HALVES,
            Numbers::Eighths(_) => &EIGHTHS,
            Numbers::Codes(Codes::Bytes, _) => &BYTES,
            Numbers::Codes(Codes::Nibbles, _) => &NIBBLES,
            Numbers::Codes(Codes::Sixes, _) => &SIXES,
            Numbers::Codes(Codes::Floats, _) => return None,
        };
        kinds.get(match self.becomes {
            Becomes::Plain(Output::Store) => 0,
            Becomes::Plain(Output::StoreF32) => 1,
            Becomes::Plain(Output::AddF32) => 2,
            Becomes::SwiGlu => 3,
        })
    }
}

/// How a block uses its shared memory.
struct Stages {
    /// A multiple of the groups that take them by turns.
    n: usize,
    bytes: usize,
    /// Beside them: what is read beyond the last, sums, and for stages that are aligned by hand.
    beside: usize,
    /// Bytes of a matrix row's panel, and panels of a stage.
    matrix_panels: (usize, usize),
}

impl Stages {
    fn of(numbers: Numbers, kernels: &Kernels, tile: usize, pass_units: usize) -> Self {
        let (rows, n_matrices, n_columns) = (pass_units * UNIT, kernels.n_matrices, TILES[tile]);
        let x_bytes = PANELS * n_columns * PANEL_BYTES;
        let (bytes, read, sums, matrix_panels, groups) = match numbers {
            Numbers::Halves | Numbers::Eighths(_) => {
                let n_panels = n_matrices * PANELS;
                // The last panel is read in whole tiles.
                let read = ((n_panels - 1) * rows + kernels.n_tiles * TILE_ROWS) * PANEL_BYTES;
                let bytes = n_panels * rows * PANEL_BYTES + x_bytes;
                (bytes, read, 0, (PANEL_BYTES, PANELS), 1)
            }
            Numbers::Codes(codes, _) => {
                let (row_bytes, beside) = codes.chunk_bytes();
                let scales_at = x_bytes + n_matrices * rows * row_bytes;
                let bytes = (scales_at + n_matrices * rows * beside).next_multiple_of(1024);
                let sums = (GROUPS[tile] - 1) * n_matrices * TILE_ROWS * n_columns * 4;
                (bytes, bytes, sums, (row_bytes, 1), GROUPS[tile])
            }
        };
        let beside = sums.max(read.saturating_sub(bytes)) + 1024;
        let n = ((SHARED_BYTES - beside) / bytes).min(MOST_STAGES);
        Self {
            n: n / groups * groups,
            bytes,
            beside,
            matrix_panels,
        }
    }
}

impl Device {
    /// Whether [`Device::multiply_narrow`] does a product of so many rows of activations, each of `row_bytes`.
    pub(super) fn suits_narrow(&self, n_rows: usize, row_bytes: usize) -> bool {
        self.has_wgmma() && row_bytes.is_multiple_of(PANEL_BYTES) && tile(n_rows).is_some()
    }

    /// Most rows of activations that [`Device::multiply_narrow`] multiplies with codes of a matrix `[n_out][n_in]`; none: it has no
    /// kernels for it.
    pub(super) fn narrow_codes_rows(&self, codes: Codes, n_out: usize) -> Option<usize> {
        let does = self.has_wgmma() && codes != Codes::Floats && n_out.is_multiple_of(2);
        does.then_some(TILES[GROUPS.len() - 1])
    }

    /// The product.
    ///
    /// # Safety
    /// Operands and factors are device addresses of what [`Narrow`] says, and the matrix (with its factors) was not written by work
    /// issued just before.
    pub(super) unsafe fn multiply_narrow(&self, p: &Narrow) -> Result<(), GpuError> {
        let (Some(tile), Some(kernels)) = (tile(p.n_rows), p.kernels()) else {
            panic!("no kernel multiplies as {p:?}");
        };
        let n_columns = TILES[tile];
        let n_blocks = self.n_multiprocessors;
        let share = p.n_out.div_ceil(UNIT).div_ceil(n_blocks);
        let n_passes = share.div_ceil(kernels.n_tiles * TILE_ROWS / UNIT);
        let pass_units = share.div_ceil(n_passes);
        let stages = Stages::of(p.numbers, kernels, tile, pass_units);
        let (element_bytes, factors, threads) = match p.numbers {
            Numbers::Halves => (2, [0; 2], 160),
            Numbers::Eighths(factors) => (1, factors, 160),
            Numbers::Codes(_, beside) => (2, [beside, 0], (GROUPS[tile] * 4 + 1) * 32),
        };
        let [matrix, x, y] = p.operands;
        let map = |address, rows, row_bytes: usize, box_rows, (panel_bytes, box_panels)| {
            let sizes = (rows, row_bytes / panel_bytes);
            // SAFETY: passed on to the caller; numbers of eight bits and codes are described as pairs.
            unsafe { TensorMap::of_panels(p.element, address, panel_bytes, sizes, (box_rows, box_panels)) }
        };
        let row_bytes = match p.numbers {
            Numbers::Codes(codes, _) => p.n_in / 128 * codes.chunk_bytes().0,
            Numbers::Halves | Numbers::Eighths(_) => p.n_in * element_bytes,
        };
        let n_matrix_rows = p.n_out * kernels.n_matrices;
        let of_units = |units: usize| {
            map(
                matrix,
                n_matrix_rows,
                row_bytes,
                units * UNIT,
                stages.matrix_panels,
            )
        };
        let (most, less) = (of_units(pass_units)?, of_units((pass_units - 1).max(1))?);
        let x = map(
            x,
            p.n_rows,
            p.n_in * element_bytes,
            n_columns,
            (PANEL_BYTES, PANELS),
        )?;
        let raw = Raw {
            y,
            matrix_factors: factors[0],
            x_factors: factors[1],
            n_out: p.n_out as i32,
            n_in: p.n_in as i32,
            n_rows: p.n_rows as i32,
            n_passes: n_passes as i32,
            pass_units: pass_units as i32,
            stages: stages.n as i32,
        };
        let grid = Grid {
            blocks: [n_blocks, 1, 1],
            threads,
            shared_bytes: (stages.n * stages.bytes + stages.beside) as u32,
        };
        // SAFETY: parameters are as in narrow.cuh; sizes are the caller's.
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
