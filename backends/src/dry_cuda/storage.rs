//! Memory that is counted and does not exist.

use std::collections::HashMap;

use cubecl::backtrace::BackTrace;
use cubecl::server::IoError;
use cubecl_runtime::storage::{ComputeStorage, StorageHandle, StorageId, StorageUtilization};

use super::card::ALIGNMENT;

/// Counts the bytes of the pages that a card would have to give, and refuses more than it has.
#[derive(Debug)]
pub struct DryStorage {
    capacity: u64,
    pages: HashMap<StorageId, u64>,
}

impl DryStorage {
    pub(super) fn new(capacity: u64) -> Self {
        Self { capacity, pages: HashMap::new() }
    }
}

impl ComputeStorage for DryStorage {
    /// The place of a tensor in its page.
    type Resource = StorageHandle;

    fn alignment(&self) -> usize {
        ALIGNMENT
    }

    fn get(&mut self, handle: &StorageHandle) -> StorageHandle {
        handle.clone()
    }

    fn alloc(&mut self, size: u64) -> Result<StorageHandle, IoError> {
        if self.pages.values().sum::<u64>() + size > self.capacity {
            return Err(IoError::BufferTooBig { size, backtrace: BackTrace::capture() });
        }
        let id = StorageId::new();
        self.pages.insert(id, size);
        Ok(StorageHandle::new(id, StorageUtilization { offset: 0, size }))
    }

    fn dealloc(&mut self, id: StorageId) {
        self.pages.remove(&id);
    }

    fn flush(&mut self) {}
}
