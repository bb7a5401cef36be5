//! A block of memory aligned to cache lines, so that no vector load straddles two of them.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use memmap2::MmapMut;

const ALIGN: usize = 64;

/// A slice of plain numbers on its own cache lines.
pub(crate) struct Buffer<T> {
    block: Block,
    ptr: NonNull<T>,
    len: usize,
    owns: PhantomData<T>,
}

/// Where a buffer's memory is from.
enum Block {
    /// Of the allocator: somewhat more than is used, so that `ptr` can be aligned within it.
    Heap(NonNull<u8>),
    /// Of the system, held for its release.
    #[allow(dead_code, reason = "held for its release")]
    Pages(MmapMut),
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
unsafe impl Plain for i16 {}
// SAFETY: a number.
unsafe impl Plain for i32 {}
// SAFETY: a number.
unsafe impl Plain for u32 {}
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
                block: Block::Heap(NonNull::dangling()),
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
            block: Block::Heap(block),
            ptr,
            len,
            owns: PhantomData,
        }
    }

    /// As [`Self::zeroed`], for memory that will be read again and again: in large pages where the system has them, so
    /// that reading it does not wait for address translation. What is written first then takes a large page.
    pub(crate) fn zeroed_in_large_pages(len: usize) -> Self {
        const WORTH_LARGE_PAGES: usize = 4 << 20;
        let bytes = len.saturating_mul(size_of::<T>());
        if cfg!(miri) || bytes < WORTH_LARGE_PAGES {
            return Self::zeroed(len);
        }
        let Ok(mut pages) = MmapMut::map_anon(bytes) else {
            return Self::zeroed(len);
        };
        #[cfg(target_os = "linux")]
        // What the system does not grant costs time only.
        let _ = pages.advise(memmap2::Advice::HugePage);
        let Some(ptr) = NonNull::new(pages.as_mut_ptr().cast()) else {
            return Self::zeroed(len);
        };
        Self {
            block: Block::Pages(pages),
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
        if let (Block::Heap(block), Some(layout)) = (&self.block, Self::layout(self.len)) {
            // SAFETY: `zeroed` allocated the block with this very layout.
            unsafe { dealloc(block.as_ptr(), layout) }
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
        let ways = [Buffer::<f32>::zeroed, Buffer::zeroed_in_large_pages];
        for (len, zeroed) in [0, 1, 3, 64, 1000, (1 << 20) + 1]
            .into_iter()
            .flat_map(|len| ways.map(|way| (len, way)))
        {
            let mut buffer = zeroed(len);
            assert_eq!(buffer.as_ptr() as usize % if len == 0 { 1 } else { ALIGN }, 0);
            assert!(buffer.iter().all(|&x| x == 0.0));
            buffer.fill(1.0);
            assert_eq!(buffer.iter().sum::<f32>(), len as f32);
        }
    }
}
