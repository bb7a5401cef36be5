//! Products with weight matrices: own kernels for few rows of bf16, cuBLASLt for all else.

use std::collections::HashMap;
use std::ffi::c_void;
use std::time::{Duration, Instant};

use cudarc::cublaslt::{result, sys};

use super::error::GpuError;
use super::few::FEW_ROWS;
use super::{Buffer, Device, Few, FewRows, QuantMatrix, Span};
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

/// The matrix of a product.
#[derive(Clone, Copy)]
pub enum Weights<'a> {
    /// Numbers of the product's type.
    Plain(Span<'a>),
    /// Small integers; for bf16 activations.
    Quantized {
        /// The matrix.
        matrix: &'a QuantMatrix,
        /// Room for it in bf16, where many rows are multiplied.
        scratch: Span<'a>,
    },
}

/// `y[row] = matrix · x[row]` for rows of activations.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    /// Type of matrix and activations.
    pub element: ElementType,
    /// `[n_out][n_in]`, or gates and ups, `[2 · n_out][n_in]`, for [`Device::multiply_swiglu`].
    pub matrix: Weights<'a>,
    /// Width of the result.
    pub n_out: usize,
    /// Width of the activations.
    pub n_in: usize,
}

/// Rows up to which a quantised matrix is read anew for every sixteen rows: to make bf16 of it and read that takes as
/// long as three or four readings.
const FEW_READINGS_ROWS: usize = 48;
/// Algorithms of cuBLASLt that are tried for a shape.
const CANDIDATES: usize = 8;
/// How often each is timed, and how long a product takes that is timed less.
const ROUNDS: usize = 4;
const LONG: Duration = Duration::from_micros(400);
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

impl<'a> Product<'a> {
    /// Products of sixteen rows each, or fewer.
    fn slices(
        self,
        n_rows: usize,
        x: Span<'a>,
        y: Span<'a>,
        output: Output,
    ) -> impl Iterator<Item = FewRows<'a>> {
        (0..n_rows).step_by(FEW_ROWS).map(move |first| FewRows {
            product: self,
            n_rows: FEW_ROWS.min(n_rows - first),
            x: Few::Plain(x.after(first * self.n_in * 2)),
            y: y.after(first * self.n_out * output.size(self.element)),
        })
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
        if p.suits_few(n_rows) {
            let x = Few::Plain(x);
            return self.multiply_few(
                &FewRows {
                    product: *p,
                    n_rows,
                    x,
                    y,
                },
                output,
            );
        }
        match p.matrix {
            Weights::Plain(matrix) => self.multiply_many(p, matrix, x, y, n_rows, output),
            // Of f32 results there are many (the head's): no room for such a matrix.
            Weights::Quantized { .. } if n_rows <= FEW_READINGS_ROWS || output == Output::StoreF32 => p
                .slices(n_rows, x, y, output)
                .try_for_each(|few| self.multiply_few(&few, output)),
            Weights::Quantized { matrix, scratch } => {
                matrix.dequantize(self, scratch)?;
                self.multiply_many(p, scratch, x, y, n_rows, output)
            }
        }
    }

    /// By cuBLASLt.
    fn multiply_many(
        &self,
        p: &Product<'_>,
        matrix: Span<'_>,
        x: Span<'_>,
        y: Span<'_>,
        n_rows: usize,
        output: Output,
    ) -> Result<(), GpuError> {
        let shape = Shape {
            n_out: p.n_out,
            n_in: p.n_in,
            n_rows,
            element: p.element,
            output,
        };
        let matrix = matrix.holding(p.n_out * p.n_in, p.element.size());
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
        if p.suits_few(n_rows) {
            let (x, y) = (Few::Plain(x), act);
            return self.swiglu_few(&FewRows {
                product: *p,
                n_rows,
                x,
                y,
            });
        }
        if let Weights::Quantized { .. } = p.matrix
            && n_rows <= FEW_READINGS_ROWS
        {
            return p
                .slices(n_rows, x, act, Output::Store)
                .try_for_each(|few| self.swiglu_few(&few));
        }
        let both = Product {
            n_out: 2 * p.n_out,
            ..*p
        };
        self.multiply(&both, x, scratch, n_rows, Output::Store)?;
        self.swiglu(p.element, scratch, act, n_rows, p.n_out)
    }
}

impl Output {
    pub(super) fn size(self, element: ElementType) -> usize {
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
        'proposals: for algorithm in proposals {
            let mut fastest = Duration::MAX;
            // The first round loads the kernel. A step waits for this, so long products are run three times in all.
            for round in 0..ROUNDS {
                let is_long = fastest > LONG;
                if round > 2 && is_long {
                    break;
                }
                let runs = if is_long { 1 } else { 3 };
                device.synchronize()?;
                let begun = Instant::now();
                for _ in 0..runs {
                    // SAFETY: operands of the plan's shape, the result in a buffer of its own.
                    if unsafe { self.run(device, &plan, &algorithm, operands) }.is_err() {
                        continue 'proposals;
                    }
                }
                device.synchronize()?;
                fastest = fastest.min(begun.elapsed() / runs);
            }
            if fastest < best {
                best = fastest;
                plan.algorithm = algorithm;
            }
        }
        if best == Duration::MAX {
            return Err(blas("planning", &shape, "no algorithm runs"));
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
