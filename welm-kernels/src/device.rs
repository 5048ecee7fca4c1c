//! [`Device`] and its memory, [`Buffer`].

use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytemuck::Pod;

use crate::driver::{DeviceInfo, Driver, Grid, Kernel, Ptr, TensorMap, TensorShape};
use crate::error::{Error, Result, expect};

/// An environment variable. If it is `1`, [`Device::open`] treats a Hopper device as [`Device::without_hopper`] does.
/// `0` and an empty value change nothing.
pub const NO_HOPPER: &str = "WELM_NO_HOPPER";

/// A device with one stream. Clones are handles of the same device.
#[derive(Clone)]
pub struct Device {
    driver: Arc<dyn Driver>,
    info: Arc<DeviceInfo>,
    hopper: bool,
    graphs: Arc<Mutex<Graphs>>,
}

/// Keeps recordings safe to repeat: while there is a recording, memory is not freed but put on a list. The list is freed
/// when the last recording is gone.
#[derive(Default)]
struct Graphs {
    alive: usize,
    given_up: Vec<Ptr>, // to be freed
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.info.fmt(f)
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.driver, &other.driver)
    }
}

impl Eq for Device {}

impl Device {
    /// Opens CUDA device `ordinal`: finds libcuda, makes a context and a stream. The environment variable
    /// [`NO_HOPPER`] is looked at here.
    ///
    /// # Errors
    /// [`Error::NoDevice`] without libcuda, without such a device, with a driver older than the device code, or
    /// with a device older than capability 8.0; [`Error::NoCode`] if the crate was built without device code;
    /// [`Error::Variable`], [`Error::Driver`], [`Error::ContextLost`].
    #[cfg(feature = "fatbin")]
    pub fn open(ordinal: usize) -> Result<Device> {
        let without_hopper = switch(NO_HOPPER, std::env::var_os(NO_HOPPER))?;
        let device = Self::with_driver(Arc::new(crate::cuda::Cuda::open(ordinal, !without_hopper)?));
        if without_hopper && device.is_hopper() {
            tracing::info!(device = ordinal, "{NO_HOPPER}=1: the kernels of sm_90a are not used");
            return Ok(device.without_hopper());
        }
        Ok(device)
    }

    /// As above; this build has no device code.
    ///
    /// # Errors
    /// [`Error::NoCode`].
    #[cfg(not(feature = "fatbin"))]
    pub fn open(_ordinal: usize) -> Result<Device> {
        Err(Error::NoCode)
    }

    /// A device that is called through another driver.
    pub fn with_driver(driver: Arc<dyn Driver>) -> Device {
        let info = Arc::new(driver.info());
        let hopper = info.capability == (9, 0);
        Device { driver, info, hopper, graphs: Arc::default() }
    }

    /// The same device without the kernels of `sm_90a`: launchers choose those that all other devices use.
    /// [`Device::info`] does not change. This is for tests of the other kernels on a Hopper, and to avoid a faulty
    /// kernel of `sm_90a`. The bits of prompts change. All operations of a model must use this device, or all must use
    /// the original one.
    pub fn without_hopper(self) -> Device {
        Device { hopper: false, ..self }
    }

    fn graphs(&self) -> MutexGuard<'_, Graphs> {
        self.graphs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the device is.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Whether launchers choose the kernels of `sm_90a`: on capability 9.0 only, and not after
    /// [`Device::without_hopper`].
    pub fn is_hopper(&self) -> bool {
        self.hopper
    }

    /// Free memory, in bytes.
    ///
    /// # Errors
    /// [`Error::Driver`], [`Error::ContextLost`].
    pub fn free_bytes(&self) -> Result<u64> {
        self.driver.free_bytes()
    }

    /// Waits until everything has run. Errors of earlier launches are reported here.
    ///
    /// # Errors
    /// [`Error::Driver`], [`Error::ContextLost`].
    pub fn synchronize(&self) -> Result<()> {
        self.driver.synchronize()
    }

    /// `len` elements, zeroed.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Driver`], [`Error::ContextLost`].
    pub fn zeros<T: Element>(&self, len: usize) -> Result<Buffer<T>> {
        let buffer = self.uninit(len)?;
        // SAFETY: the buffer's own bytes; zero is a value of every element type.
        unsafe { self.driver.fill(buffer.ptr, 0, buffer.bytes())? };
        Ok(buffer)
    }

    /// `len` elements that are not initialised, for outputs.
    ///
    /// # Errors
    /// As [`Device::zeros`].
    pub fn uninit<T: Element>(&self, len: usize) -> Result<Buffer<T>> {
        let bytes = (len * size_of::<T>()) as u64;
        let ptr = self.driver.alloc(bytes.max(1))?;
        let memory = Arc::new(Memory { device: self.clone(), ptr });
        Ok(Buffer { memory, ptr, len, element: PhantomData })
    }

    /// A copy of `values`.
    ///
    /// # Errors
    /// As [`Device::zeros`].
    pub fn upload<T: Element>(&self, values: &[T]) -> Result<Buffer<T>> {
        let mut buffer = self.uninit(values.len())?;
        buffer.write(0, values)?;
        Ok(buffer)
    }

    /// Records what `f` launches; see [`Graph`].
    ///
    /// # Errors
    /// Whatever `f` returns, or the driver.
    pub fn capture<E: From<Error>>(&self, f: impl FnOnce() -> Result<(), E>) -> Result<Graph, E> {
        /// Ends the recording, also if `f` panics. Memory that `f` frees is kept until the recording is gone.
        struct Recording<'a>(&'a Device);
        impl Drop for Recording<'_> {
            fn drop(&mut self) {
                if let Ok(id) = self.0.driver.end_capture() {
                    self.0.driver.free_graph(id);
                }
                self.0.forget_graph();
            }
        }
        self.driver.begin_capture()?;
        self.graphs().alive += 1;
        let recording = Recording(self);
        f()?;
        std::mem::forget(recording);
        match self.driver.end_capture() {
            Ok(id) => Ok(Graph { device: self.clone(), id }),
            Err(error) => {
                self.forget_graph();
                Err(error.into())
            }
        }
    }

    /// To be called when a recording is gone. After the last one, frees the memory that was kept.
    fn forget_graph(&self) {
        let mut graphs = self.graphs();
        graphs.alive -= 1;
        if graphs.alive == 0 {
            for ptr in graphs.given_up.drain(..) {
                // SAFETY: its buffer is gone, and no recording is left that could use it.
                unsafe { self.driver.free(ptr) };
            }
        }
    }

    /// Starts a kernel.
    ///
    /// # Safety
    /// As [`Driver::launch`].
    pub(crate) unsafe fn launch<P: Copy>(&self, kernel: Kernel, grid: Grid, params: &P) -> Result<()> {
        // SAFETY: the bytes of a `repr(C)` struct, padding included, are only copied.
        let bytes = unsafe { std::slice::from_raw_parts((&raw const *params).cast(), size_of::<P>()) };
        tracing::trace!(%kernel, ?grid, "launch");
        // SAFETY: the caller's promise.
        unsafe { self.driver.launch(kernel, grid, bytes) }
    }

    /// Describes a buffer, or its beginning, to the copy engine.
    pub(crate) fn tensor_map<T: Element>(&self, buffer: &Buffer<T>, shape: TensorShape) -> Result<TensorMap> {
        self.tensor_map_at(buffer, 0, shape)
    }

    /// Describes part of a buffer, from element `first` on, to the copy engine.
    pub(crate) fn tensor_map_at<T: Element>(
        &self,
        buffer: &Buffer<T>,
        first: usize,
        shape: TensorShape,
    ) -> Result<TensorMap> {
        let skipped = (first * size_of::<T>()) as u64;
        let need = skipped + shape.rows * shape.row_bytes;
        expect(need <= buffer.bytes(), "tensor_map", "buffer", format!("{need} bytes"), buffer.bytes())?;
        self.driver.tensor_map(buffer.ptr + skipped, shape)
    }
}

/// Whether a variable of the environment switches something on.
#[cfg(feature = "fatbin")]
pub(crate) fn switch(name: &'static str, value: Option<std::ffi::OsString>) -> Result<bool> {
    let value = value.unwrap_or_default();
    match value.to_str() {
        Some("" | "0") => Ok(false),
        Some("1") => Ok(true),
        _ => Err(Error::Variable { name, expected: "0 or 1", got: value.to_string_lossy().into_owned() }),
    }
}

/// A recording of launches (a CUDA graph), which can be run again as one launch. The memory that it uses is kept while
/// there is a recording, even if its buffers are dropped.
#[derive(Debug)]
pub struct Graph {
    device: Device,
    id: u64,
}

impl Graph {
    /// Runs it.
    ///
    /// # Errors
    /// [`Error::Driver`], [`Error::ContextLost`].
    pub fn launch(&self) -> Result<()> {
        // SAFETY: the id is ours; all memory that was there when it was recorded still is, see `Graphs`.
        unsafe { self.device.driver.launch_graph(self.id) }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.device.driver.free_graph(self.id);
        self.device.forget_graph();
    }
}

/// A type whose values go to the device as they are: it has no padding, and every bit pattern is a value.
pub trait Element: Pod + Send {}

impl<T: Pod + Send> Element for T {}

/// An allocation of [`Driver::alloc`], freed when the last buffer that shares it is dropped.
struct Memory {
    device: Device,
    ptr: Ptr,
}

impl Drop for Memory {
    fn drop(&mut self) {
        let mut graphs = self.device.graphs();
        if graphs.alive > 0 {
            return graphs.given_up.push(self.ptr);
        }
        // SAFETY: this allocation is ours, and nothing uses it any more.
        unsafe { self.device.driver.free(self.ptr) };
    }
}

/// `len` elements of device memory.
pub struct Buffer<T: Element> {
    memory: Arc<Memory>,
    ptr: Ptr,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Element> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer<{}>({} at {:#x})", std::any::type_name::<T>(), self.len, self.ptr)
    }
}

impl<T: Element> Buffer<T> {
    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes.
    pub fn bytes(&self) -> u64 {
        (self.len * size_of::<T>()) as u64
    }

    /// Its address.
    pub fn ptr(&self) -> Ptr {
        self.ptr
    }

    /// The device that it is on.
    pub fn device(&self) -> &Device {
        &self.memory.device
    }

    /// `len` elements from byte `first` on, as a buffer that shares the memory of this one: what is written to one can be
    /// read from the other. The memory is freed when the last buffer that shares it is dropped.
    ///
    /// # Errors
    /// [`Error::Shape`] if the elements are not inside this buffer, or if `first` is not aligned for them.
    pub fn part<U: Element>(&self, first: usize, len: usize) -> Result<Buffer<U>> {
        let end = len.checked_mul(size_of::<U>()).and_then(|bytes| bytes.checked_add(first));
        let fits = end.is_some_and(|end| end as u64 <= self.bytes());
        let range = format!("within {} bytes", self.bytes());
        expect(fits, "part", "range", range, format!("{first}, {len} elements"))?;
        let ptr = self.ptr + first as u64;
        let aligned = ptr.is_multiple_of(align_of::<U>() as u64);
        expect(aligned, "part", "first", format!("a multiple of {}", align_of::<U>()), first)?;
        Ok(Buffer { memory: Arc::clone(&self.memory), ptr, len, element: PhantomData })
    }

    fn check(&self, operation: &'static str, first: usize, len: usize) -> Result<()> {
        let fits = first.checked_add(len).is_some_and(|end| end <= self.len);
        expect(fits, operation, "range", format!("within {} elements", self.len), format!("{first}+{len}"))
    }

    /// Copies `values` to elements `first..`.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Driver`], [`Error::ContextLost`].
    pub fn write(&mut self, first: usize, values: &[T]) -> Result<()> {
        self.check("write", first, values.len())?;
        // SAFETY: checked above.
        unsafe {
            self.device()
                .driver
                .upload(self.ptr + (first * size_of::<T>()) as u64, bytemuck::cast_slice(values))
        }
    }

    /// Copies elements `first..` to `values`, after everything before it has run.
    ///
    /// # Errors
    /// As [`Buffer::write`].
    pub fn read(&self, first: usize, values: &mut [T]) -> Result<()> {
        self.check("read", first, values.len())?;
        let bytes = bytemuck::cast_slice_mut(values);
        // SAFETY: checked above.
        unsafe { self.device().driver.download(bytes, self.ptr + (first * size_of::<T>()) as u64) }
    }

    /// All elements.
    ///
    /// # Errors
    /// As [`Buffer::write`].
    pub fn to_vec(&self) -> Result<Vec<T>> {
        let mut values = vec![T::zeroed(); self.len];
        self.read(0, &mut values)?;
        Ok(values)
    }

    /// Copies `len` elements from one place to another in the same buffer; the two must not overlap.
    ///
    /// # Errors
    /// As [`Buffer::write`].
    pub fn copy_within(&mut self, from: usize, to: usize, len: usize) -> Result<()> {
        self.check("copy_within", from, len)?;
        self.check("copy_within", to, len)?;
        let apart = from + len <= to || to + len <= from;
        expect(apart, "copy_within", "ranges", "apart", format!("{from} and {to}, {len} elements"))?;
        let at = |i: usize| self.ptr + (i * size_of::<T>()) as u64;
        // SAFETY: checked above.
        unsafe { self.device().driver.copy(at(to), at(from), (len * size_of::<T>()) as u64) }
    }
}
