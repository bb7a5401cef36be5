//! cuBLASLt: products of many rows, by whichever of its algorithms is fastest for a shape.

use std::collections::HashMap;
use std::ffi::c_void;
use std::time::{Duration, Instant};

use cudarc::cublaslt::{result, sys};

use super::error::GpuError;
use super::{Buffer, Device, Output, Product};
use crate::ElementType;

/// Algorithms of cuBLASLt that are tried for a shape.
const CANDIDATES: usize = 8;
/// How often each is timed, and how long a product takes that is timed less.
const ROUNDS: usize = 4;
const LONG: Duration = Duration::from_micros(400);
const WORKSPACE_BYTES: usize = 64 << 20;

/// What is multiplied.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Numbers {
    Plain(ElementType),
    /// Eight bits, with a factor for each row of the matrix and of the activations; results as of this type.
    Fp8(ElementType),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Shape {
    n_out: usize,
    n_in: usize,
    n_rows: usize,
    numbers: Numbers,
    output: Output,
}

impl Shape {
    pub(super) fn of(p: &Product<'_>, n_rows: usize, numbers: Numbers, output: Output) -> Self {
        Self {
            n_out: p.n_out,
            n_in: p.n_in,
            n_rows,
            numbers,
            output,
        }
    }
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

impl Device {
    /// `y[row] = matrix · x[row]`; `factors` of the matrix's rows and of the activations' where numbers have such.
    ///
    /// # Safety
    /// `[matrix, x, y]` and `factors` are device addresses of operands of the shape.
    pub(super) unsafe fn multiply_by_blas(
        &self,
        shape: Shape,
        [matrix, x, y]: [u64; 3],
        factors: Option<[u64; 2]>,
    ) -> Result<(), GpuError> {
        let mut products = self.products.borrow_mut();
        let Some(products) = products.as_mut() else {
            return Err(blas("closed", &shape, "the device is being closed"));
        };
        if !products.plans.contains_key(&shape) {
            let plan = products.choose(self, shape, matrix, x, factors)?;
            products.plans.insert(shape, plan);
        }
        let plan = &products.plans[&shape];
        // SAFETY: passed on to the caller.
        unsafe { products.run(self, plan, &plan.algorithm, [matrix, x, y], factors) }
            .map_err(|e| blas("product", &shape, e))
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
    fn choose(
        &self,
        device: &Device,
        shape: Shape,
        matrix: u64,
        x: u64,
        factors: Option<[u64; 2]>,
    ) -> Result<Plan, GpuError> {
        let failed = |e: result::CublasError| blas("planning", &shape, e);
        let f32 = sys::cudaDataType_t::CUDA_R_32F;
        let type_of = |element| match element {
            ElementType::F32 => f32,
            ElementType::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
            ElementType::F16 => sys::cudaDataType_t::CUDA_R_16F,
        };
        let (number, stored) = match shape.numbers {
            Numbers::Plain(element) => (type_of(element), type_of(element)),
            Numbers::Fp8(element) => (sys::cudaDataType_t::CUDA_R_8F_E4M3, type_of(element)),
        };
        let out = if shape.output == Output::Store {
            stored
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
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let set = |attribute, value: i32| {
            // SAFETY: a live descriptor, and a value of the attribute's type.
            unsafe { result::set_matmul_desc_attribute(operation, attribute, (&raw const value).cast(), 4) }
                .map_err(failed)
        };
        set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, 1)?;
        if let Some(factors) = factors {
            let of_rows = sys::cublasLtMatmulMatrixScale_t::CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F as i32;
            set(Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_MODE, of_rows)?;
            set(Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_MODE, of_rows)?;
            plan.set_factors(factors).map_err(failed)?;
        }
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
                    if unsafe { self.run(device, &plan, &algorithm, operands, factors) }.is_err() {
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
    /// `[matrix, x, y]` and `factors` are device addresses of operands of the plan's shape.
    unsafe fn run(
        &self,
        device: &Device,
        plan: &Plan,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        [matrix, x, y]: [u64; 3],
        factors: Option<[u64; 2]>,
    ) -> Result<(), result::CublasError> {
        if let Some(factors) = factors {
            plan.set_factors(factors)?;
        }
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

impl Plan {
    /// Where factors of the matrix's rows and of the activations' lie.
    fn set_factors(&self, factors: [u64; 2]) -> Result<(), result::CublasError> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let attributes = [
            Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER,
            Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER,
        ];
        for (attribute, address) in attributes.into_iter().zip(factors) {
            // SAFETY: a live descriptor, and a pointer, which such an attribute is.
            unsafe {
                result::set_matmul_desc_attribute(self.operation, attribute, (&raw const address).cast(), 8)?;
            }
        }
        Ok(())
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
