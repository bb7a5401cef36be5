//! What the tensor memory unit has to know of a matrix that it fetches parts of.

use cudarc::driver::sys;

use super::Span;
use super::error::{During, GpuError};
use crate::ElementType;

/// A matrix of sixteen bits in boxes, laid out in shared memory as wgmma.cuh says.
#[repr(transparent)]
pub(super) struct TensorMap(sys::CUtensorMap);

impl TensorMap {
    /// The first `rows` rows of `width` columns of `data`, in boxes of 16 rows and 64 columns. What a box has beyond them is
    /// zeros.
    pub(super) fn new(
        element: ElementType,
        data: Span<'_>,
        width: usize,
        rows: usize,
    ) -> Result<Self, GpuError> {
        let address = data.holding(width * rows, 2);
        // SAFETY: checked above.
        unsafe { Self::encode(element, address, &[width, rows], &[width * 2], &[64, 16]) }
    }

    /// `rows` rows of `panels` panels, each of 128 or 64 bytes, that lie at an address, in boxes of so many of both; `[panel][row]` in
    /// shared memory. What a box has beyond them is zeros.
    ///
    /// # Safety
    /// There are so many.
    pub(super) unsafe fn of_panels(
        element: ElementType,
        address: u64,
        panel_bytes: usize,
        (rows, panels): (usize, usize),
        (box_rows, box_panels): (usize, usize),
    ) -> Result<Self, GpuError> {
        // SAFETY: passed on to the caller.
        unsafe {
            Self::encode(
                element,
                address,
                &[panel_bytes / 2, rows, panels],
                &[panels * panel_bytes, panel_bytes],
                &[panel_bytes / 2, box_rows, box_panels],
            )
        }
    }

    /// # Safety
    /// Memory at the address has numbers of sixteen bits as the sizes say, and the steps in bytes of all but the first.
    unsafe fn encode<const RANK: usize>(
        element: ElementType,
        address: u64,
        sizes: &[usize; RANK],
        steps: &[usize],
        part: &[usize; RANK],
    ) -> Result<Self, GpuError> {
        use sys::CUtensorMapDataType as Type;
        assert_eq!(steps.len(), RANK - 1, "steps of a tensor map");
        let data_type = match element {
            ElementType::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            ElementType::Bf16 | ElementType::F32 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        };
        let swizzle = match part[0] {
            32 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
            _ => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        };
        let sizes = sizes.map(|n| n as u64);
        let steps: Vec<u64> = steps.iter().map(|n| *n as u64).collect();
        let part = part.map(|n| n as u32);
        // SAFETY: plain data, which the call below fills.
        let mut map: sys::CUtensorMap = unsafe { std::mem::zeroed() };
        // SAFETY: arrays as long as the rank; that of steps has one less.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                data_type,
                RANK as u32,
                address as *mut std::ffi::c_void,
                sizes.as_ptr(),
                steps.as_ptr(),
                part.as_ptr(),
                [1u32; RANK].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .during("describing a matrix to the tensor memory unit")?;
        Ok(Self(map))
    }
}
