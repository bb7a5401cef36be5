//! What the tensor memory unit has to know of a matrix that it fetches parts of.

use cudarc::driver::sys;

use super::Span;
use super::error::{During, GpuError};
use crate::ElementType;

/// A matrix of sixteen bits in boxes of 16 rows and 64 columns, laid out in shared memory as wgmma.cuh says.
#[repr(transparent)]
pub(super) struct TensorMap(sys::CUtensorMap);

impl TensorMap {
    /// The first `rows` rows of `width` columns of `data`. What a box has beyond them is zeros.
    pub(super) fn new(
        element: ElementType,
        data: Span<'_>,
        width: usize,
        rows: usize,
    ) -> Result<Self, GpuError> {
        use sys::CUtensorMapDataType as Type;
        let data_type = match element {
            ElementType::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            ElementType::Bf16 | ElementType::F32 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        };
        let address = data.holding(width * rows, 2) as *mut std::ffi::c_void;
        let sizes = [width as u64, rows as u64];
        let row_bytes = [width as u64 * 2];
        let (part, steps) = ([64u32, 16], [1u32, 1]);
        // SAFETY: plain data, which the call below fills.
        let mut map: sys::CUtensorMap = unsafe { std::mem::zeroed() };
        // SAFETY: arrays as long as the rank, which is 2; a strides array has one less.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                data_type,
                2,
                address,
                sizes.as_ptr(),
                row_bytes.as_ptr(),
                part.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .during("describing a matrix to the tensor memory unit")?;
        Ok(Self(map))
    }
}
