//! One GPU: its context, its stream, and the kernels loaded into it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};

use super::blas::Products;
use super::error::{During, GpuError};
use super::modules::{self, Module};
use crate::ElementType;

/// Shared memory of a block that has to be asked for beyond this many bytes.
const PLAIN_SHARED_BYTES: i32 = 48 << 10;
/// Most shared memory of a block on GPUs of compute capability 9.0 and up, in bytes.
pub(super) const MAX_SHARED_BYTES: u32 = 227 << 10;

/// One GPU, used by one thread at a time.
pub struct Device {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    /// By the type that they were compiled for and name.
    kernels: HashMap<(Option<ElementType>, &'static str), sys::CUfunction>,
    modules: Vec<sys::CUmodule>,
    pub(super) n_multiprocessors: usize,
    /// Blocks of a cluster, and how many such clusters run at once, each block alone on its multiprocessor.
    pub(super) clusters: Vec<(usize, usize)>,
    pub(super) products: RefCell<Option<Products>>,
}

// SAFETY: handles of the driver may be used from any thread; `bind` makes the context current there.
unsafe impl Send for Device {}

/// Waits for all work in the current context.
pub(super) fn wait_for_all() -> Result<(), DriverError> {
    result::ctx::synchronize()
}

/// The context of GPU `ordinal`, if the kernels run on it.
fn find(ordinal: usize) -> Result<Arc<CudaContext>, GpuError> {
    // SAFETY: looks whether a library can be opened.
    if !unsafe { sys::is_culib_present() } {
        return Err(GpuError::NoLibrary {
            library: "libcuda.so.1",
            hint: "it comes with NVIDIA's driver",
        });
    }
    // SAFETY: as above.
    if !unsafe { cudarc::cublaslt::sys::is_culib_present() } {
        return Err(GpuError::NoLibrary {
            library: "libcublasLt.so.13",
            hint: "it comes with CUDA; its folder must be in LD_LIBRARY_PATH or ld.so.conf",
        });
    }
    let found = CudaContext::device_count().during("counting GPUs")?;
    if ordinal >= found.max(0) as usize {
        let found = found.max(0) as usize;
        return Err(GpuError::NoDevice { ordinal, found });
    }
    let context = CudaContext::new(ordinal).during("opening the GPU")?;
    let built = env!("BAICHUAN_CUDA_COMPUTE_CAP").to_owned();
    let (major, minor) = context
        .compute_capability()
        .during("reading the compute capability")?;
    let found = format!("{major}{minor}");
    if built.trim_end_matches(char::is_alphabetic) != found {
        let device = context.name().during("reading the GPU's name")?;
        return Err(GpuError::WrongGeneration { built, found, device });
    }
    Ok(context)
}

/// An attribute of a launch, with no value yet.
fn attribute(id: sys::CUlaunchAttributeID) -> sys::CUlaunchAttribute {
    sys::CUlaunchAttribute {
        id,
        pad: [0; 4],
        // SAFETY: a union of plain data, for which zeros are valid.
        value: unsafe { std::mem::zeroed() },
    }
}

/// A kernel may be scheduled before the one before it has ended.
fn before_the_end() -> sys::CUlaunchAttribute {
    let mut attribute =
        attribute(sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION);
    attribute.value.programmaticStreamSerializationAllowed = 1;
    attribute
}

/// So many blocks are a cluster.
fn in_clusters(n: usize) -> sys::CUlaunchAttribute {
    let mut attribute = attribute(sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION);
    let [x, y, z] = [n as u32, 1, 1];
    attribute.value.clusterDim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y, z };
    attribute
}

/// A grid of blocks.
pub(super) struct Grid {
    pub(super) blocks: [usize; 3],
    pub(super) threads: usize,
    /// Dynamic shared memory of a block, bytes.
    pub(super) shared_bytes: u32,
}

impl Device {
    /// Opens GPU `ordinal` and loads the kernels.
    pub fn open(ordinal: usize) -> Result<Self, GpuError> {
        let context = find(ordinal)?;
        let attribute = sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let n_multiprocessors = context.attribute(attribute).during("counting multiprocessors")?;
        let stream = context.new_stream().during("making a stream")?;
        let mut device = Self {
            context,
            stream,
            kernels: HashMap::new(),
            modules: Vec::new(),
            n_multiprocessors: n_multiprocessors.max(1) as usize,
            clusters: Vec::new(),
            products: RefCell::new(None),
        };
        device.load_kernels()?;
        if device.has_wgmma() {
            device.clusters = device.count_clusters()?;
        }
        let products = Products::new(&device)?;
        device.products = RefCell::new(Some(products));
        Ok(device)
    }

    /// How many GPUs the driver sees.
    pub fn count() -> Result<usize, GpuError> {
        find(0)?;
        let found = CudaContext::device_count().during("counting GPUs")?;
        Ok(found.max(0) as usize)
    }

    /// Free memory of GPU `ordinal`, and all it has, bytes.
    pub fn memory_of(ordinal: usize) -> Result<(u64, u64), GpuError> {
        let context = find(ordinal)?;
        context.bind_to_thread().during("binding the GPU to a thread")?;
        let (free, total) = context.mem_get_info().during("reading free memory")?;
        Ok((free as u64, total as u64))
    }

    /// Whether GPU `ordinal` is there and these kernels run on it.
    pub fn probe(ordinal: usize) -> Result<(), GpuError> {
        find(ordinal).map(drop)
    }

    fn load_kernels(&mut self) -> Result<(), GpuError> {
        for Module {
            code,
            element,
            kernels,
        } in modules::all()
        {
            let is_of_hopper = is_of(kernels[0], &["attend_wgmma", "narrow_"]);
            if is_of_hopper && !self.has_wgmma() {
                continue;
            }
            // SAFETY: `code` is a whole cubin made by nvcc, and names its own length.
            let module =
                unsafe { result::module::load_data(code.as_ptr().cast()) }.during("loading kernels")?;
            self.modules.push(module);
            for name in kernels {
                let symbol = CString::new(*name).unwrap_or_default();
                // SAFETY: the module was loaded above and lives as long as the device.
                let kernel =
                    unsafe { result::module::get_function(module, symbol) }.during("finding a kernel")?;
                if is_of(name, &["attend_", "gemv_", "narrow_"]) {
                    let attribute =
                        sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                    // Static shared memory counts too: leave it room.
                    let bytes = MAX_SHARED_BYTES as i32 - 1024;
                    debug_assert!(bytes > PLAIN_SHARED_BYTES);
                    // SAFETY: a live function.
                    unsafe { result::function::set_function_attribute(kernel, attribute, bytes) }
                        .during("asking for shared memory")?;
                }
                self.kernels.insert((element, name), kernel);
            }
        }
        Ok(())
    }

    /// Whether the kernels were compiled for Hopper's own instructions.
    pub(super) fn has_wgmma(&self) -> bool {
        env!("BAICHUAN_CUDA_COMPUTE_CAP") == "90a"
    }

    /// Makes the device usable from the calling thread.
    pub fn bind(&self) -> Result<(), GpuError> {
        self.context
            .bind_to_thread()
            .during("binding the GPU to a thread")
    }

    /// Waits until all work issued so far is done, and says whether it failed.
    pub fn synchronize(&self) -> Result<(), GpuError> {
        self.stream.synchronize().during("running on the GPU")
    }

    /// The device's name, e.g. `NVIDIA H200`.
    pub fn name(&self) -> Result<String, GpuError> {
        self.context.name().during("reading the GPU's name")
    }

    /// Device memory that is free, bytes.
    pub fn free_bytes(&self) -> Result<u64, GpuError> {
        self.memory().map(|(free, _)| free)
    }

    /// Device memory that is free, and all there is, bytes.
    pub fn memory(&self) -> Result<(u64, u64), GpuError> {
        let (free, total) = self.context.mem_get_info().during("reading free memory")?;
        Ok((free as u64, total as u64))
    }

    pub(super) fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    pub(super) fn stream(&self) -> sys::CUstream {
        self.stream.cu_stream()
    }

    pub(super) fn stream_arc(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Launches a kernel of a file that is compiled once, allowing it to be scheduled before the one before it has
    /// ended: every kernel of ours waits for that itself (`begin` in common.cuh).
    ///
    /// # Safety
    /// `arguments` point to values of the kernel's parameter types, in order, and what they point to on the device
    /// is as large as the kernel assumes.
    pub(super) unsafe fn launch(
        &self,
        kernel: &'static str,
        grid: &Grid,
        arguments: &mut [*mut c_void],
    ) -> Result<(), GpuError> {
        // SAFETY: passed on to the caller.
        unsafe { self.launch_any((None, kernel), grid, 1, arguments) }
    }

    /// The same of a kernel of a file that is compiled for several types.
    ///
    /// # Safety
    /// As of [`Device::launch`], parameter types being those of the file as compiled for `element`.
    pub(super) unsafe fn launch_for(
        &self,
        element: ElementType,
        kernel: &'static str,
        grid: &Grid,
        arguments: &mut [*mut c_void],
    ) -> Result<(), GpuError> {
        // SAFETY: passed on to the caller.
        unsafe { self.launch_any((Some(element), kernel), grid, 1, arguments) }
    }

    /// The same in clusters of so many blocks, which run at once and reach for each other's shared memory.
    ///
    /// # Safety
    /// As of [`Device::launch_for`].
    pub(super) unsafe fn launch_clusters(
        &self,
        element: ElementType,
        kernel: &'static str,
        grid: &Grid,
        cluster: usize,
        arguments: &mut [*mut c_void],
    ) -> Result<(), GpuError> {
        // SAFETY: passed on to the caller.
        unsafe { self.launch_any((Some(element), kernel), grid, cluster, arguments) }
    }

    /// A launch on the stream.
    fn config(&self, grid: &Grid, attributes: &mut [sys::CUlaunchAttribute]) -> sys::CUlaunchConfig {
        let [x, y, z] = grid.blocks.map(|n| n as u32);
        sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: grid.threads as u32,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared_bytes,
            hStream: self.stream(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        }
    }

    /// Sizes of clusters that `narrow.rs` may use, and how many of each run at once.
    fn count_clusters(&self) -> Result<Vec<(usize, usize)>, GpuError> {
        let count = |cluster| {
            if cluster == 1 {
                return Ok((1, self.n_multiprocessors));
            }
            let grid = Grid {
                blocks: [self.n_multiprocessors / cluster * cluster, 1, 1],
                threads: 160,
                shared_bytes: MAX_SHARED_BYTES - 2048,
            };
            let mut attributes = [in_clusters(cluster)];
            let config = self.config(&grid, &mut attributes);
            let (kernel, mut n) = (self.kernels[&(Some(ElementType::Bf16), "narrow_store_32")], 0);
            // SAFETY: a live function; the configuration and its attributes live through the call.
            unsafe { sys::cuOccupancyMaxActiveClusters(&mut n, kernel, &config) }
                .result()
                .during("counting clusters")?;
            Ok((cluster, n.max(0) as usize))
        };
        [1, 2, 4].into_iter().map(count).collect()
    }

    /// # Safety
    /// As of [`Device::launch`].
    unsafe fn launch_any(
        &self,
        kernel: (Option<ElementType>, &'static str),
        grid: &Grid,
        cluster: usize,
        arguments: &mut [*mut c_void],
    ) -> Result<(), GpuError> {
        let [x, y, z] = grid.blocks.map(|n| n as u32);
        if x == 0 || y == 0 || z == 0 {
            return Ok(());
        }
        let mut attributes = [before_the_end(), in_clusters(cluster)];
        let n_attributes = if cluster > 1 { 2 } else { 1 };
        let config = self.config(grid, &mut attributes[..n_attributes]);
        // SAFETY: passed on to the caller; all pointers live through the call, which copies what they point to.
        unsafe {
            sys::cuLaunchKernelEx(
                &config,
                self.kernels[&kernel],
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
        .result()
        .during(kernel.1)
    }
}

/// Whether a kernel is of one of these kinds, by its name.
fn is_of(name: &str, kinds: &[&str]) -> bool {
    kinds.iter().any(|kind| name.starts_with(kind))
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.bind().is_err() || self.synchronize().is_err() {
            return;
        }
        self.products.take();
        for module in self.modules.drain(..) {
            // SAFETY: loaded by `load_kernels`, unloaded once, with nothing running.
            let _ = unsafe { result::module::unload(module) };
        }
    }
}

/// Pointers to a kernel's arguments.
macro_rules! arguments {
    ($($value:expr),+ $(,)?) => { &mut [$((&raw const $value).cast_mut().cast::<std::ffi::c_void>()),+] };
}
pub(super) use arguments;
