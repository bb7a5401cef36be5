//! Products with some tens of rows of activations by `narrow.cu` and `narrow_quant.cu`, on Hopper alone.

use super::device::{Grid, MAX_SHARED_BYTES, arguments};
use super::error::GpuError;
use super::quantized::Codes;
use super::tensor::TensorMap;
use super::{Device, Output, Product};
use crate::ElementType;

/// Rows of activations that these kernels take, each by the tile that has room for them. Of more cuBLASLt's products are as fast.
const TILES: [usize; 3] = [32, 64, 96];
/// The same with quantised matrices, of more rows in several readings.
const CODES_TILES: [usize; 3] = [32, 64, 128];
/// Rows of the matrix that shares begin at multiples of.
const UNIT: usize = 8;
/// A panel is 128 bytes of rows; a stage has so many.
const PANEL_BYTES: usize = 128;
const PANELS: usize = 2;
/// Rows of the matrix that a warpgroup multiplies at once, whether they were fetched or not.
const TILE_ROWS: usize = 64;
const MOST_STAGES: usize = 16;
/// Shared memory of a block: what it may have, less its barriers.
const SHARED_BYTES: usize = MAX_SHARED_BYTES as usize - 1024;
/// What it costs the blocks of a cluster to wait for each other, in bytes that one of them could have fetched from the L2 cache
/// meanwhile: 2 µs.
const MEETING_BYTES: usize = 80_000;

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
    inbox: i32,
}

macro_rules! names {
    ($name:literal $(, $tile:literal)+) => {
        &[$(concat!($name, "_", $tile)),+]
    };
}

/// Kernels of one kind, by the tile; how many matrices' rows they multiply at once, and how many tiles in all.
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
    kernels(names!("narrow_swiglu", 32, 64, 96), 2, 2),
];
const EIGHTHS: [Kernels; 3] = [
    kernels(names!("narrow_eighths_store", 32, 64, 96), 1, 2),
    kernels(names!("narrow_eighths_store_f32", 32, 64, 96), 1, 2),
    kernels(names!("narrow_eighths_add", 32, 64, 96), 1, 1),
];
/// As instantiated in narrow_quant.cu, where a tile's rows are both matrices' and each tile has a warpgroup.
const BYTES: [Kernels; 4] = [
    kernels(names!("narrow_bytes_store", 32, 64, 128), 1, 3),
    kernels(names!("narrow_bytes_store_f32", 32, 64, 128), 1, 3),
    kernels(names!("narrow_bytes_add", 32, 64, 128), 1, 3),
    kernels(names!("narrow_bytes_swiglu", 32, 64, 128), 2, 3),
];
const NIBBLES: [Kernels; 4] = [
    kernels(names!("narrow_nibbles_store", 32, 64, 128), 1, 3),
    kernels(names!("narrow_nibbles_store_f32", 32, 64, 128), 1, 3),
    kernels(names!("narrow_nibbles_add", 32, 64, 128), 1, 3),
    kernels(names!("narrow_nibbles_swiglu", 32, 64, 128), 2, 3),
];
const SIXES: [Kernels; 4] = [
    kernels(names!("narrow_sixes_store", 32, 64, 128), 1, 3),
    kernels(names!("narrow_sixes_store_f32", 32, 64, 128), 1, 3),
    kernels(names!("narrow_sixes_add", 32, 64, 128), 1, 3),
    kernels(names!("narrow_sixes_swiglu", 32, 64, 128), 2, 3),
];

impl Narrow {
    /// Bytes of one of the activations' numbers.
    fn x_bytes(&self) -> usize {
        if matches!(self.numbers, Numbers::Eighths(_)) {
            1
        } else {
            2
        }
    }

    /// Stages that an output takes.
    fn n_chunks(&self) -> usize {
        (self.n_in * self.x_bytes()).div_ceil(PANELS * PANEL_BYTES)
    }

    /// The rows of activations that the kernel has room for, and its number.
    fn tile(&self) -> Option<(usize, usize)> {
        let tiles: &[usize] = match self.numbers {
            Numbers::Codes(..) => &CODES_TILES,
            _ => &TILES,
        };
        let tile = tiles.iter().position(|rows| *rows >= self.n_rows)?;
        Some((tiles[tile], tile))
    }

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

/// How a product is shared out, and how blocks use their shared memory.
struct Plan {
    /// Blocks of a cluster, which split the inputs, and how many clusters there are.
    n_splits: usize,
    n_clusters: usize,
    /// In how many passes a cluster makes its outputs, and units of the largest.
    n_passes: usize,
    pass_units: usize,
    /// Warpgroups that multiply.
    n_groups: usize,
    n_stages: usize,
    /// Where from the ring's beginning the inbox is, its bytes, and bytes of all.
    inbox: usize,
    inbox_bytes: usize,
    shared_bytes: usize,
    /// Bytes of a matrix row's panel, and panels of a stage.
    matrix_panels: (usize, usize),
}

impl Plan {
    /// With `clusters`, blocks of one and how many run at once, the way for which a block fetches least of the activations.
    fn of(p: &Narrow, kernels: &Kernels, n_columns: usize, clusters: &[(usize, usize)]) -> Self {
        // Only kernels for codes join a cluster's sums: others gain nothing by it.
        let most_splits = match p.numbers {
            Numbers::Codes(..) => p.n_chunks(),
            Numbers::Halves | Numbers::Eighths(_) => 1,
        };
        let plans = clusters
            .iter()
            .filter(|(n_splits, n_clusters)| *n_clusters > 0 && *n_splits <= most_splits)
            .map(|clusters| Self::in_clusters(p, kernels, n_columns, *clusters));
        let cost = |plan: &Self| {
            let fetched = p.n_in / plan.n_splits * p.x_bytes() * n_columns;
            let exchanged = if plan.n_splits > 1 {
                MEETING_BYTES + 2 * plan.inbox_bytes
            } else {
                0
            };
            plan.n_passes * (fetched + exchanged)
        };
        let best = plans.min_by_key(cost);
        best.expect("a block may be a cluster of its own")
    }

    fn in_clusters(
        p: &Narrow,
        kernels: &Kernels,
        n_columns: usize,
        (n_splits, n_clusters): (usize, usize),
    ) -> Self {
        let n_matrices = kernels.n_matrices;
        let share = p.n_out.div_ceil(UNIT).div_ceil(n_clusters);
        let n_passes = share.div_ceil(kernels.n_tiles * TILE_ROWS / UNIT / n_matrices);
        let pass_units = share.div_ceil(n_passes);
        let rows = pass_units * UNIT;
        let x_bytes = PANELS * n_columns * PANEL_BYTES;
        let (stage_bytes, read, matrix_panels, n_groups) = match p.numbers {
            Numbers::Halves | Numbers::Eighths(_) => {
                let n_panels = n_matrices * PANELS;
                // The last panel is read in whole tiles.
                let read = ((n_panels - 1) * rows + kernels.n_tiles / n_matrices * TILE_ROWS) * PANEL_BYTES;
                let bytes = n_panels * rows * PANEL_BYTES + x_bytes;
                (bytes, read, (PANEL_BYTES, PANELS), 1)
            }
            Numbers::Codes(codes, _) => {
                let (row_bytes, beside) = codes.chunk_bytes();
                let bytes = (x_bytes + n_matrices * rows * (row_bytes + beside)).next_multiple_of(1024);
                let n_groups = (n_matrices * rows).div_ceil(TILE_ROWS);
                (bytes, bytes, (row_bytes, 1), n_groups)
            }
        };
        let inbox_bytes = (n_splits - 1) * n_groups * TILE_ROWS * n_columns / n_splits * 4;
        // With one pass the inbox may be where the ring was.
        let apart = if n_passes == 1 { 0 } else { inbox_bytes };
        let beside = apart.max(read.saturating_sub(stage_bytes)) + 1024;
        let n_stages = ((SHARED_BYTES - beside) / stage_bytes).min(MOST_STAGES);
        let ring_bytes = n_stages * stage_bytes;
        Self {
            n_splits,
            n_clusters,
            n_passes,
            pass_units,
            n_groups,
            n_stages,
            inbox: if n_passes == 1 { 0 } else { ring_bytes },
            inbox_bytes,
            shared_bytes: (ring_bytes + beside).max(inbox_bytes + 1024),
            matrix_panels,
        }
    }
}

impl Device {
    /// Whether [`Device::multiply_narrow`] does a product of so many rows of activations, each of `row_bytes`.
    pub(super) fn suits_narrow(&self, n_rows: usize, row_bytes: usize) -> bool {
        self.has_wgmma() && row_bytes.is_multiple_of(PANEL_BYTES) && n_rows <= TILES[TILES.len() - 1]
    }

    /// Most rows of activations that [`Device::multiply_narrow`] multiplies with codes of a matrix `[n_out][n_in]`; none: it has no
    /// kernels for it.
    pub(super) fn narrow_codes_rows(&self, codes: Codes, n_out: usize) -> Option<usize> {
        let does = self.has_wgmma() && codes != Codes::Floats && n_out.is_multiple_of(2);
        does.then_some(CODES_TILES[CODES_TILES.len() - 1])
    }

    /// The product.
    ///
    /// # Safety
    /// Operands and factors are device addresses of what [`Narrow`] says, and the matrix (with its factors) was not written by work
    /// issued just before.
    pub(super) unsafe fn multiply_narrow(&self, p: &Narrow) -> Result<(), GpuError> {
        let (Some((n_columns, tile)), Some(kernels)) = (p.tile(), p.kernels()) else {
            panic!("no kernel multiplies as {p:?}");
        };
        let plan = Plan::of(p, kernels, n_columns, &self.clusters);
        let factors = match p.numbers {
            Numbers::Halves => [0; 2],
            Numbers::Eighths(factors) => factors,
            Numbers::Codes(_, beside) => [beside, 0],
        };
        let [matrix, x, y] = p.operands;
        let map = |address, rows, row_bytes: usize, box_rows, (panel_bytes, box_panels)| {
            let sizes = (rows, row_bytes / panel_bytes);
            // SAFETY: passed on to the caller; numbers of eight bits and codes are described as pairs.
            unsafe { TensorMap::of_panels(p.element, address, panel_bytes, sizes, (box_rows, box_panels)) }
        };
        let row_bytes = match p.numbers {
            Numbers::Codes(codes, _) => p.n_in / 128 * codes.chunk_bytes().0,
            Numbers::Halves | Numbers::Eighths(_) => p.n_in * p.x_bytes(),
        };
        let n_matrix_rows = p.n_out * kernels.n_matrices;
        let of_units = |units: usize| map(matrix, n_matrix_rows, row_bytes, units * UNIT, plan.matrix_panels);
        let (most, less) = (
            of_units(plan.pass_units)?,
            of_units((plan.pass_units - 1).max(1))?,
        );
        let x = map(
            x,
            p.n_rows,
            p.n_in * p.x_bytes(),
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
            n_passes: plan.n_passes as i32,
            pass_units: plan.pass_units as i32,
            stages: plan.n_stages as i32,
            inbox: plan.inbox as i32,
        };
        let grid = Grid {
            blocks: [plan.n_clusters * plan.n_splits, 1, 1],
            threads: (plan.n_groups * 4 + 1) * 32,
            shared_bytes: plan.shared_bytes as u32,
        };
        // SAFETY: parameters are as in narrow.cuh; sizes are the caller's.
        unsafe {
            self.launch_clusters(
                p.element,
                kernels.names[tile],
                &grid,
                plan.n_splits,
                arguments![raw, most, less, x],
            )
        }
    }
}
