//! Device memory, and host memory that the device copies from and to.

use std::marker::PhantomData;
use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::{CudaContext, result, sys};

use super::error::{During, GpuError};
use super::{Device, device};

/// Device memory of its own; freed when dropped.
pub struct Buffer {
    ptr: sys::CUdeviceptr,
    bytes: usize,
    context: Arc<CudaContext>,
}

/// A part of a [`Buffer`].
#[derive(Clone, Copy)]
pub struct Span<'a> {
    ptr: sys::CUdeviceptr,
    bytes: usize,
    buffer: PhantomData<&'a Buffer>,
}

impl Buffer {
    /// `bytes` zeros; `what` they are for, for the error.
    pub fn zeros(device: &Device, bytes: usize, what: &'static str) -> Result<Self, GpuError> {
        let context = device.context().clone();
        // SAFETY: a plain allocation in the context that `Device` made current; at least one byte.
        let ptr = unsafe { result::malloc_sync(bytes.max(1)) }.map_err(|source| {
            if source.0 != sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
                return GpuError::Driver { what, source };
            }
            GpuError::OutOfMemory {
                what,
                wanted: bytes as u64,
                free: device.free_bytes().unwrap_or(0),
            }
        })?;
        let buffer = Self { ptr, bytes, context };
        buffer.all().fill(device, 0)?;
        Ok(buffer)
    }

    /// A copy of `values`.
    pub fn of<T: Pod>(device: &Device, values: &[T], what: &'static str) -> Result<Self, GpuError> {
        let buffer = Self::zeros(device, size_of_val(values), what)?;
        buffer.all().upload(device, values)?;
        Ok(buffer)
    }

    /// Size in bytes.
    pub fn n_bytes(&self) -> usize {
        self.bytes
    }

    /// All of it.
    pub fn all(&self) -> Span<'_> {
        self.part(0, self.bytes)
    }

    /// `bytes` from `offset` on. Panics where the buffer ends before.
    pub fn part(&self, offset: usize, bytes: usize) -> Span<'_> {
        assert!(
            offset.checked_add(bytes).is_some_and(|end| end <= self.bytes),
            "bytes {offset}..+{bytes} of a buffer of {}",
            self.bytes
        );
        Span {
            ptr: self.ptr + offset as u64,
            bytes,
            buffer: PhantomData,
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: `ptr` came from malloc_sync, is freed once, and the driver waits for work that uses it.
            let _ = unsafe { result::free_sync(self.ptr) };
        }
    }
}

impl Span<'_> {
    pub(super) fn ptr(self) -> sys::CUdeviceptr {
        self.ptr
    }

    /// What comes after the first `bytes`. Panics where the span ends before.
    pub(super) fn after(self, bytes: usize) -> Self {
        assert!(bytes <= self.bytes, "after {bytes} bytes of {}", self.bytes);
        Self {
            ptr: self.ptr + bytes as u64,
            bytes: self.bytes - bytes,
            ..self
        }
    }

    /// The address, after a check that `count` values of `size` bytes fit.
    pub(super) fn holding(self, count: usize, size: usize) -> sys::CUdeviceptr {
        assert!(
            count.checked_mul(size).is_some_and(|bytes| bytes <= self.bytes),
            "{count} values of {size} bytes in a span of {}",
            self.bytes
        );
        self.ptr
    }

    /// Size in bytes.
    pub fn n_bytes(self) -> usize {
        self.bytes
    }

    /// Copies `values` to its beginning, and waits until they are there.
    pub fn upload<T: Pod>(self, device: &Device, values: &[T]) -> Result<(), GpuError> {
        let to = self.holding(values.len(), size_of::<T>());
        // In the device's own stream: a plain copy from pageable memory returns before it has arrived, and kernels of
        // this stream would not wait for it.
        // SAFETY: `to` has room for `values`, which live until the copy is waited for.
        unsafe { result::memcpy_htod_async(to, values, device.stream()) }.during("copying to the device")?;
        device.synchronize()
    }

    /// Its first `count` values, when all work issued so far is done.
    pub fn download<T: Pod>(self, device: &Device, count: usize) -> Result<Vec<T>, GpuError> {
        let from = self.holding(count, size_of::<T>());
        let mut values = vec![T::zeroed(); count];
        device.synchronize()?;
        // SAFETY: `from` holds as many bytes as `values`; any bits are a `Pod` value.
        unsafe { result::memcpy_dtoh_sync(&mut values, from) }.during("copying from the device")?;
        Ok(values)
    }

    /// Sets every byte.
    pub fn fill(self, device: &Device, byte: u8) -> Result<(), GpuError> {
        // SAFETY: the span lies in a live buffer, which frees only after the stream's work.
        unsafe { result::memset_d8_async(self.ptr, byte, self.bytes, device.stream()) }.during("filling")
    }

    /// Copies all of `from` to its beginning.
    pub fn copy(self, device: &Device, from: Span<'_>) -> Result<(), GpuError> {
        let to = self.holding(from.bytes, 1);
        // SAFETY: both lie in live buffers and are long enough.
        unsafe { result::memcpy_dtod_async(to, from.ptr, from.bytes, device.stream()) }
            .during("copying on the device")
    }
}

impl Span<'_> {
    /// Copies all of `from`, which lies on `other`, to its beginning, once what was issued there is done. What is issued to
    /// `device` afterwards finds it; `device` is the current one then.
    pub fn copy_from(self, device: &Device, from: Span<'_>, other: &Device) -> Result<(), GpuError> {
        let to = self.holding(from.bytes, 1);
        other.synchronize()?;
        device.bind()?;
        let (to_context, from_context) = (device.context().cu_ctx(), other.context().cu_ctx());
        // SAFETY: both lie in live buffers of these contexts and are long enough; nothing writes `from` any more.
        unsafe {
            sys::cuMemcpyPeerAsync(
                to,
                to_context,
                from.ptr,
                from_context,
                from.bytes,
                device.stream(),
            )
        }
        .result()
        .during("copying between GPUs")?;
        // The other GPU may overwrite `from` in its next step: wait here rather than there.
        device.synchronize()
    }
}

/// Host memory that does not move, so that copies from and to it need not wait. Freed when dropped.
pub struct Pinned<T> {
    ptr: *mut T,
    len: usize,
    context: Arc<CudaContext>,
}

// SAFETY: it owns its memory, as a Vec does.
unsafe impl<T: Send> Send for Pinned<T> {}

impl<T: Pod> Pinned<T> {
    /// `len` zeros.
    pub fn zeros(device: &Device, len: usize) -> Result<Self, GpuError> {
        let bytes = (len * size_of::<T>()).max(1);
        // SAFETY: a plain allocation in the current context, aligned to pages; zeros are a `Pod` value.
        let ptr = unsafe {
            let ptr = result::malloc_host(bytes, 0).during("allocating pinned host memory")?;
            std::ptr::write_bytes(ptr.cast::<u8>(), 0, bytes);
            ptr.cast()
        };
        Ok(Self {
            ptr,
            len,
            context: device.context().clone(),
        })
    }

    /// The values. Nothing may be on its way from or to the device.
    pub fn values(&self) -> &[T] {
        // SAFETY: `len` initialised values of its own.
        unsafe { std::slice::from_raw_parts(self.ptr, self.len) }
    }

    /// The values, to be changed. Nothing may be on its way from or to the device.
    pub fn values_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.ptr, self.len) }
    }

    /// Begins to copy the first `count` values to a span.
    pub fn send(&self, device: &Device, count: usize, to: Span<'_>) -> Result<(), GpuError> {
        let to = to.holding(count, size_of::<T>());
        // SAFETY: pinned memory lives until a synchronisation (Drop waits for the device), `to` is long enough.
        unsafe { result::memcpy_htod_async(to, &self.values()[..count], device.stream()) }
            .during("copying to the device")
    }

    /// Begins to copy `count` values from a span to its beginning; they are there after [`Device::synchronize`].
    pub fn fetch(&mut self, device: &Device, count: usize, from: Span<'_>) -> Result<(), GpuError> {
        self.fetch_at(device, 0, count, from)
    }

    /// The same, to its values from `at` on.
    pub fn fetch_at(
        &mut self,
        device: &Device,
        at: usize,
        count: usize,
        from: Span<'_>,
    ) -> Result<(), GpuError> {
        let from = from.holding(count, size_of::<T>());
        // SAFETY: as in `send`.
        unsafe { result::memcpy_dtoh_async(&mut self.values_mut()[at..at + count], from, device.stream()) }
            .during("copying from the device")
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            let _ = device::wait_for_all();
            // SAFETY: allocated by malloc_host and freed once, with nothing on its way from or to it.
            let _ = unsafe { result::free_host(self.ptr.cast()) };
        }
    }
}
