//! A block of memory aligned to cache lines, so that no vector load straddles two of them.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

const ALIGN: usize = 64;

/// A slice of plain numbers on its own cache lines.
pub(crate) struct Buffer<T> {
    /// What the allocator gave: somewhat more than is used, so that `ptr` can be aligned within it.
    block: NonNull<u8>,
    ptr: NonNull<T>,
    len: usize,
    owns: PhantomData<T>,
}

/// Types for which any bytes, and so zeros, are a value.
///
/// # Safety
/// All-zero bytes are a valid value, and dropping does nothing.
pub(crate) unsafe trait Plain: Copy + Send + Sync + 'static {}

// SAFETY: a number.
unsafe impl Plain for u8 {}
// SAFETY: a number.
unsafe impl Plain for i8 {}
// SAFETY: a number.
unsafe impl Plain for i32 {}
// SAFETY: a number.
unsafe impl Plain for f32 {}
// SAFETY: a number, stored as u16.
unsafe impl Plain for half::bf16 {}
// SAFETY: a number, stored as u16.
unsafe impl Plain for half::f16 {}

impl<T: Plain> Buffer<T> {
    /// `len` zeros. The system hands out large blocks lazily: pages never written cost no memory.
    pub(crate) fn zeroed(len: usize) -> Self {
        let Some(layout) = Self::layout(len) else {
            return Self {
                block: NonNull::dangling(),
                ptr: NonNull::dangling(),
                len,
                owns: PhantomData,
            };
        };
        // SAFETY: the layout's size is not zero.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(block) = NonNull::new(raw) else {
            handle_alloc_error(layout)
        };
        // SAFETY: the block is larger than the values by what aligning can skip.
        let ptr = unsafe { block.add(block.align_offset(ALIGN)) }.cast();
        Self {
            block,
            ptr,
            len,
            owns: PhantomData,
        }
    }
}

impl<T> Buffer<T> {
    /// The allocator's block for `len` values; none for no bytes. It asks for no alignment, because the standard
    /// library writes the zeros of strictly aligned blocks itself, and so touches every page.
    #[allow(
        clippy::expect_used,
        reason = "a length no address space holds is out of memory"
    )]
    fn layout(len: usize) -> Option<Layout> {
        let bytes = len.checked_mul(size_of::<T>()).expect("buffer length overflows");
        let padded = bytes.checked_add(ALIGN).expect("buffer length overflows");
        let layout = Layout::from_size_align(padded, 1).expect("buffer length overflows");
        (bytes > 0).then_some(layout)
    }
}

impl<T> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `ptr` holds `len` values (made as zeros, only ever overwritten), or is dangling and `len` is 0.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        if let Some(layout) = Self::layout(self.len) {
            // SAFETY: `zeroed` allocated the block with this very layout.
            unsafe { dealloc(self.block.as_ptr(), layout) }
        }
    }
}

// SAFETY: a buffer owns its memory, as a Vec does.
unsafe impl<T: Send> Send for Buffer<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Buffer<T> {}

impl<T> std::fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} values)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_zeroed_and_aligned_at_any_length() {
        for len in [0, 1, 3, 64, 1000] {
            let mut buffer = Buffer::<f32>::zeroed(len);
            assert_eq!(buffer.as_ptr() as usize % if len == 0 { 1 } else { ALIGN }, 0);
            assert!(buffer.iter().all(|&x| x == 0.0));
            buffer.fill(1.0);
            assert_eq!(buffer.iter().sum::<f32>(), len as f32);
        }
    }
}
