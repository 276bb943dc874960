//! The system's allocator, with large blocks aligned to cache lines.
//!
//! A vector that crosses a line is read twice, and in a block that is not aligned to a line every
//! vector as wide as a line does so. The system aligns to 16 bytes. If more is requested, it keeps
//! freed memory in pieces that it cannot reuse for the same size, so a large block is requested
//! with room for one more line, and its values start at the first line within it.

#![allow(
    unsafe_code,
    reason = "an allocator is unsafe by its trait; all it adds to the system's is the offset at which a block's values start"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;

/// Bytes of a cache line.
const CACHE_LINE: usize = 64;

/// Blocks below this many bytes are passed on to the system unchanged.
const LARGE_BLOCK: usize = 4096;

/// The `#[global_allocator]` of a program that computes on the CPU.
pub struct CacheAligned;

// A large block is `[unused][distance][values]`: the values start at a line, and the eight bytes
// before them hold the distance from the start of the system's block. That block starts at a
// multiple of 16, so there is room.
unsafe impl GlobalAlloc for CacheAligned {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match padded_layout(layout) {
            Some(larger) => unsafe { align_block(System.alloc(larger)) },
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match padded_layout(layout) {
            Some(larger) => unsafe { align_block(System.alloc_zeroed(larger)) },
            None => unsafe { System.alloc_zeroed(layout) },
        }
    }

    unsafe fn dealloc(&self, values: *mut u8, layout: Layout) {
        match padded_layout(layout) {
            Some(larger) => unsafe { System.dealloc(values.sub(distance(values)), larger) },
            None => unsafe { System.dealloc(values, layout) },
        }
    }

    unsafe fn realloc(&self, values: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Ok(wanted) = Layout::from_size_align(size, layout.align()) else {
            return ptr::null_mut();
        };
        match (padded_layout(layout), padded_layout(wanted)) {
            (None, None) => unsafe { System.realloc(values, layout, size) },
            (Some(old), Some(new)) => unsafe {
                let before = distance(values);
                let block = System.realloc(values.sub(before), old, new.size());
                if block.is_null() {
                    return block;
                }
                // Moved within the new block if its alignment differs from that of the old one.
                let after = CACHE_LINE - block as usize % CACHE_LINE;
                let kept = layout.size().min(size);
                if before != after {
                    ptr::copy(block.add(before), block.add(after), kept);
                }
                align_block(block)
            },
            _ => unsafe {
                let new = self.alloc(wanted);
                if !new.is_null() {
                    ptr::copy_nonoverlapping(values, new, layout.size().min(size));
                    self.dealloc(values, layout);
                }
                new
            },
        }
    }
}

/// Returns the layout to request from the system for a large block; `None` if the block is passed
/// on unchanged.
fn padded_layout(layout: Layout) -> Option<Layout> {
    if layout.size() >= LARGE_BLOCK && layout.align() <= CACHE_LINE {
        Layout::from_size_align(layout.size() + CACHE_LINE, 16).ok()
    } else {
        None
    }
}

/// Returns the start of the values in a system's block, after writing the distance before them.
///
/// # Safety
/// `block` is null, or starts at a multiple of 16 and has room for a line before its values.
unsafe fn align_block(block: *mut u8) -> *mut u8 {
    if block.is_null() {
        return block;
    }
    let distance = CACHE_LINE - block as usize % CACHE_LINE;
    unsafe {
        let values = block.add(distance);
        values.cast::<usize>().sub(1).write(distance);
        values
    }
}

/// Returns the distance from the start of the system's block to the values of a large block.
///
/// # Safety
/// `values` comes from [`align_block`].
unsafe fn distance(values: *mut u8) -> usize {
    unsafe { values.cast::<usize>().sub(1).read() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    /// A block that grows and shrinks across both limits keeps its values, and is aligned to a line
    /// while it is large.
    #[test]
    fn blocks_keep_their_values() {
        let allocator = CacheAligned;
        for align in [1, 4, 16, 64, 128] {
            for sizes in [
                [10, 5000, 70_000, 300],
                [4095, 4096, 4097, 4096],
                [1 << 20, 3 << 20, 5000, 1 << 21],
            ] {
                let mut size = sizes[0];
                let mut block = unsafe { allocator.alloc(layout(size, align)) };
                let byte = |at: usize| (at * 7 % 251) as u8;
                (0..size).for_each(|at| unsafe { block.add(at).write(byte(at)) });
                for next in sizes {
                    block = unsafe { allocator.realloc(block, layout(size, align), next) };
                    assert_eq!(block as usize % align, 0);
                    if next >= LARGE_BLOCK && align <= CACHE_LINE {
                        assert_eq!(block as usize % CACHE_LINE, 0, "{size} to {next}");
                    }
                    for at in 0..size.min(next) {
                        assert_eq!(unsafe { block.add(at).read() }, byte(at), "{size} to {next}");
                    }
                    (0..next).for_each(|at| unsafe { block.add(at).write(byte(at)) });
                    size = next;
                }
                unsafe { allocator.dealloc(block, layout(size, align)) };
            }
        }
    }

    #[test]
    fn zeroed_is_zero() {
        for size in [100, 5000, 1 << 20] {
            let block = unsafe { CacheAligned.alloc_zeroed(layout(size, 4)) };
            assert!((0..size).all(|at| unsafe { block.add(at).read() } == 0));
            unsafe { CacheAligned.dealloc(block, layout(size, 4)) };
        }
    }
}
