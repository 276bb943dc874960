//! The memory of a card that is not there: counted, and held by the host where kernels are executed.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::HashMap;

use cubecl::backtrace::BackTrace;
use cubecl::server::IoError;
use cubecl_runtime::storage::{ComputeStorage, StorageHandle, StorageId, StorageUtilization};

use super::card::ALIGNMENT;

/// Counts the bytes of the pages that a card would have to give, and refuses more than it has.
#[derive(Debug)]
pub struct DryStorage {
    capacity: u64,
    /// Whether the host holds the pages.
    is_held: bool,
    pages: HashMap<StorageId, Page>,
}

#[derive(Debug)]
struct Page {
    size: u64,
    memory: Option<Memory>,
}

/// A tensor's bytes.
#[derive(Clone, Copy, Debug)]
pub struct TensorBytes {
    /// Where they are on the host; 0 if they are only counted.
    pub(super) address: usize,
    /// How many there are.
    pub(super) size: usize,
}

impl DryStorage {
    pub(super) fn new(capacity: u64, is_held: bool) -> Self {
        Self { capacity, is_held, pages: HashMap::new() }
    }

    fn page(&self, size: u64) -> Option<Page> {
        let used = self.pages.values().map(|page| page.size).sum::<u64>();
        if used + size > self.capacity {
            return None;
        }
        let memory = if self.is_held { Some(Memory::new(size as usize)?) } else { None };
        Some(Page { size, memory })
    }
}

impl ComputeStorage for DryStorage {
    type Resource = TensorBytes;

    fn alignment(&self) -> usize {
        ALIGNMENT
    }

    fn get(&mut self, handle: &StorageHandle) -> TensorBytes {
        let memory = self.pages.get(&handle.id).and_then(|page| page.memory.as_ref());
        let address = memory.map_or(0, |memory| memory.address + handle.offset() as usize);
        TensorBytes { address, size: handle.size() as usize }
    }

    fn alloc(&mut self, size: u64) -> Result<StorageHandle, IoError> {
        let Some(page) = self.page(size) else {
            return Err(IoError::BufferTooBig { size, backtrace: BackTrace::capture() });
        };
        let id = StorageId::new();
        self.pages.insert(id, page);
        Ok(StorageHandle::new(id, StorageUtilization { offset: 0, size }))
    }

    fn dealloc(&mut self, id: StorageId) {
        self.pages.remove(&id);
    }

    fn flush(&mut self) {}
}

/// Memory of the host with a card's alignment. The system gives it page by page, when it is written to.
#[derive(Debug)]
struct Memory {
    address: usize,
    layout: Layout,
}

#[allow(unsafe_code, reason = "memory with an alignment that no Vec has")]
impl Memory {
    fn new(size: usize) -> Option<Self> {
        let layout = Layout::from_size_align(size.max(ALIGNMENT), ALIGNMENT).ok()?;
        // SAFETY: the size is not zero.
        let memory = unsafe { alloc_zeroed(layout) };
        (!memory.is_null()).then_some(Self { address: memory as usize, layout })
    }
}

#[allow(unsafe_code, reason = "as above")]
impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `new` allocated it with this layout.
        unsafe { dealloc(self.address as *mut u8, self.layout) };
    }
}
