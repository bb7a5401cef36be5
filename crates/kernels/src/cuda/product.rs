//! Products with weight matrices: own kernels for few rows of bf16, cuBLASLt for all else.

use std::collections::HashMap;
use std::ffi::c_void;
use std::time::{Duration, Instant};

use cudarc::cublaslt::{result, sys};

use super::device::{Grid, arguments};
use super::error::GpuError;
use super::{Buffer, Device, Span};
use crate::ElementType;

/// What becomes of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Output {
    /// Stored in the weights' type.
    Store,
    /// Stored as f32.
    StoreF32,
    /// Added to what is there, f32.
    AddF32,
}

/// `y[row] = matrix · x[row]` for rows of activations.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    /// Type of matrix and activations.
    pub element: ElementType,
    /// `[n_out][n_in]`, or gates and ups, `[2 · n_out][n_in]`, for [`Device::multiply_swiglu`].
    pub matrix: Span<'a>,
    /// Width of the result.
    pub n_out: usize,
    /// Width of the activations.
    pub n_in: usize,
}

/// Rows up to which own kernels are used.
const FEW_ROWS: usize = 16;
/// Algorithms of cuBLASLt that are tried for a shape.
const CANDIDATES: usize = 8;
const WORKSPACE_BYTES: usize = 64 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Shape {
    n_out: usize,
    n_in: usize,
    n_rows: usize,
    element: ElementType,
    output: Output,
}

/// cuBLASLt, and what was chosen for each shape so far.
pub(super) struct Products {
    handle: sys::cublasLtHandle_t,
    workspace: Buffer,
    plans: HashMap<Shape, Plan>,
}

struct Plan {
    operation: sys::cublasLtMatmulDesc_t,
    matrix: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    y: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
    beta: f32,
}

impl Product<'_> {
    fn suits_own_kernels(&self, n_rows: usize) -> bool {
        self.element == ElementType::Bf16 && n_rows <= FEW_ROWS && self.n_in.is_multiple_of(32)
    }
}

impl Device {
    /// `x`: `[n_rows][n_in]`; `y`: `[n_rows][n_out]`.
    pub fn multiply(
        &self,
        p: &Product<'_>,
        x: Span<'_>,
        y: Span<'_>,
        n_rows: usize,
        output: Output,
    ) -> Result<(), GpuError> {
        if p.suits_own_kernels(n_rows) {
            let (kernel, outputs) = match (output, n_rows <= 8) {
                (Output::Store, true) => ("gemv_store_8", 16),
                (Output::Store, false) => ("gemv_store_16", 16),
                (Output::StoreF32, true) => ("gemv_store_f32_8", 32),
                (Output::StoreF32, false) => ("gemv_store_f32_16", 32),
                (Output::AddF32, true) => ("gemv_add_8", 16),
                (Output::AddF32, false) => ("gemv_add_16", 16),
            };
            return self.gemv(kernel, outputs, 1, p, x, y, n_rows, output);
        }
        let shape = Shape {
            n_out: p.n_out,
            n_in: p.n_in,
            n_rows,
            element: p.element,
            output,
        };
        let matrix = p.matrix.holding(p.n_out * p.n_in, p.element.size());
        let x = x.holding(n_rows * p.n_in, p.element.size());
        let y = y.holding(n_rows * p.n_out, output.size(p.element));
        let mut products = self.products.borrow_mut();
        let Some(products) = products.as_mut() else {
            return Err(blas("closed", &shape, "the device is being closed"));
        };
        if !products.plans.contains_key(&shape) {
            let plan = products.choose(self, shape, matrix, x)?;
            products.plans.insert(shape, plan);
        }
        let plan = &products.plans[&shape];
        // SAFETY: sizes were checked above against the shape that the plan was made for.
        unsafe { products.run(self, plan, &plan.algorithm, [matrix, x, y]) }
            .map_err(|e| blas("product", &shape, e))
    }

    /// `act[row]` = silu(gates · `x[row]`) · (ups · `x[row]`), `[n_rows][n_out]`; `scratch` holds twice that.
    pub fn multiply_swiglu(
        &self,
        p: &Product<'_>,
        x: Span<'_>,
        scratch: Span<'_>,
        act: Span<'_>,
        n_rows: usize,
    ) -> Result<(), GpuError> {
        if p.suits_own_kernels(n_rows) {
            let kernel = if n_rows <= 8 {
                "gemv_swiglu_8"
            } else {
                "gemv_swiglu_16"
            };
            return self.gemv(kernel, 16, 2, p, x, act, n_rows, Output::Store);
        }
        let both = Product {
            n_out: 2 * p.n_out,
            ..*p
        };
        self.multiply(&both, x, scratch, n_rows, Output::Store)?;
        self.swiglu(p.element, scratch, act, n_rows, p.n_out)
    }

    #[allow(clippy::too_many_arguments)]
    fn gemv(
        &self,
        kernel: &'static str,
        outputs_of_block: usize,
        n_matrices: usize,
        p: &Product<'_>,
        x: Span<'_>,
        y: Span<'_>,
        n_rows: usize,
        output: Output,
    ) -> Result<(), GpuError> {
        let grid = Grid {
            blocks: [p.n_out.div_ceil(outputs_of_block), 1, 1],
            threads: 256,
            shared_bytes: 0,
        };
        let matrix = p.matrix.holding(n_matrices * p.n_out * p.n_in, 2);
        let x = x.holding(n_rows * p.n_in, 2);
        let y = y.holding(n_rows * p.n_out, output.size(p.element));
        let (n_out, n_in, n_rows) = (p.n_out as i32, p.n_in as i32, n_rows as i32);
        // SAFETY: parameter types as in gemv.cu; sizes checked above.
        unsafe { self.launch(kernel, &grid, arguments![matrix, x, y, n_out, n_in, n_rows]) }
    }
}

impl Output {
    fn size(self, element: ElementType) -> usize {
        match self {
            Output::Store => element.size(),
            Output::StoreF32 | Output::AddF32 => 4,
        }
    }
}

fn blas(what: &str, shape: &Shape, status: impl ToString) -> GpuError {
    GpuError::Blas {
        what: format!("{what} {}×{} with {} rows", shape.n_out, shape.n_in, shape.n_rows),
        status: status.to_string(),
    }
}

impl Products {
    pub(super) fn new(device: &Device) -> Result<Self, GpuError> {
        let handle = result::create_handle().map_err(|e| GpuError::Blas {
            what: "opening".into(),
            status: e.to_string(),
        })?;
        Ok(Self {
            handle,
            workspace: Buffer::zeros(device, WORKSPACE_BYTES, "the workspace of matrix products")?,
            plans: HashMap::new(),
        })
    }

    /// Lays a shape out and picks the fastest of cuBLASLt's proposals by trying them on the operands given.
    fn choose(&self, device: &Device, shape: Shape, matrix: u64, x: u64) -> Result<Plan, GpuError> {
        let failed = |e: result::CublasError| blas("planning", &shape, e);
        let number = match shape.element {
            ElementType::F32 => sys::cudaDataType_t::CUDA_R_32F,
            _ => sys::cudaDataType_t::CUDA_R_16BF,
        };
        let f32 = sys::cudaDataType_t::CUDA_R_32F;
        let out = if shape.output == Output::Store {
            number
        } else {
            f32
        };
        let (n_out, n_in, n_rows) = (shape.n_out as u64, shape.n_in as u64, shape.n_rows as u64);
        // Row-major [n][m] is column-major [m][n]: y = matrixᵀ-of-columns · x.
        let operation =
            result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, f32).map_err(failed)?;
        let mut plan = Plan {
            operation,
            matrix: result::create_matrix_layout(number, n_in, n_out, n_in as i64).map_err(failed)?,
            x: result::create_matrix_layout(number, n_in, n_rows, n_in as i64).map_err(failed)?,
            y: result::create_matrix_layout(out, n_out, n_rows, n_out as i64).map_err(failed)?,
            // SAFETY: plain data; replaced below by a proposal, or the plan is dropped.
            algorithm: unsafe { std::mem::zeroed() },
            beta: if shape.output == Output::AddF32 { 1.0 } else { 0.0 },
        };
        let transposed: i32 = 1;
        let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
        // SAFETY: a live descriptor, and a value of the attribute's type.
        unsafe { result::set_matmul_desc_attribute(operation, attribute, (&raw const transposed).cast(), 4) }
            .map_err(failed)?;
        let proposals = self.proposals(&plan).map_err(failed)?;
        let result_bytes = shape.n_out * shape.n_rows * 4;
        let result = Buffer::zeros(device, result_bytes, "trying matrix products")?;
        let operands = [matrix, x, result.all().ptr()];
        let mut best = Duration::MAX;
        for algorithm in proposals {
            let mut fastest = Duration::MAX;
            for _ in 0..4 {
                device.synchronize()?;
                let begun = Instant::now();
                for _ in 0..3 {
                    // SAFETY: operands of the plan's shape, the result in a buffer of its own.
                    if unsafe { self.run(device, &plan, &algorithm, operands) }.is_err() {
                        break;
                    }
                }
                device.synchronize()?;
                fastest = fastest.min(begun.elapsed());
            }
            if fastest < best {
                best = fastest;
                plan.algorithm = algorithm;
            }
        }
        Ok(plan)
    }

    fn proposals(&self, plan: &Plan) -> Result<Vec<sys::cublasLtMatmulAlgo_t>, result::CublasError> {
        let preference = result::create_matmul_pref()?;
        let workspace_bytes = WORKSPACE_BYTES;
        let attribute = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        // SAFETY: a live preference and a value of the attribute's type; `found` has room for CANDIDATES results.
        let (found, count) = unsafe {
            result::set_matmul_pref_attribute(preference, attribute, (&raw const workspace_bytes).cast(), 8)?;
            let mut found: [sys::cublasLtMatmulHeuristicResult_t; CANDIDATES] = std::mem::zeroed();
            let mut count = 0;
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                plan.operation,
                plan.matrix,
                plan.x,
                plan.y,
                plan.y,
                preference,
                CANDIDATES as i32,
                found.as_mut_ptr(),
                &mut count,
            )
            .result()?;
            result::destroy_matmul_pref(preference)?;
            (found, count)
        };
        if count < 1 {
            return Err(result::CublasError(
                sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED,
            ));
        }
        Ok(found[..count as usize]
            .iter()
            .map(|proposal| proposal.algo)
            .collect())
    }

    /// # Safety
    /// `[matrix, x, y]` are device addresses of operands of the plan's shape.
    unsafe fn run(
        &self,
        device: &Device,
        plan: &Plan,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        [matrix, x, y]: [u64; 3],
    ) -> Result<(), result::CublasError> {
        let alpha = 1.0f32;
        // SAFETY: passed on to the caller; descriptors live as long as the plan.
        unsafe {
            result::matmul(
                self.handle,
                plan.operation,
                (&raw const alpha).cast(),
                (&raw const plan.beta).cast(),
                matrix as *const c_void,
                plan.matrix,
                x as *const c_void,
                plan.x,
                y as *const c_void,
                plan.y,
                y as *mut c_void,
                plan.y,
                algorithm,
                self.workspace.all().ptr() as *mut c_void,
                WORKSPACE_BYTES,
                device.stream().cast(),
            )
        }
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made by `choose`, destroyed once.
        unsafe {
            let _ = result::destroy_matrix_layout(self.matrix);
            let _ = result::destroy_matrix_layout(self.x);
            let _ = result::destroy_matrix_layout(self.y);
            let _ = result::destroy_matmul_desc(self.operation);
        }
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        self.plans.clear();
        if !self.handle.is_null() {
            // SAFETY: made by `new`, destroyed once.
            let _ = unsafe { result::destroy_handle(self.handle) };
        }
    }
}
