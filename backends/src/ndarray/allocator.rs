//! The system's allocator, with large blocks beginning at a line of the cache.
//!
//! A vector that lies across two lines is read twice, and of vectors as wide as a line, in a block that begins elsewhere,
//! all do. The system aligns to 16 bytes; asked for more it keeps what is freed in pieces that it cannot give again for
//! the same size, so a large block is asked for with room for one line more, and begins within it.

#![allow(
    unsafe_code,
    reason = "an allocator is unsafe by its trait; what is added to the system's is how far into a block its values begin"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;

/// Bytes of a line of the cache.
const LINE: usize = 64;

/// Smaller blocks are as the system gives them.
const LARGE: usize = 4096;

/// To be the `#[global_allocator]` of a program that computes on the CPU.
pub struct CacheAligned;

// A large block is `[unused][distance][values]`: the values begin at a line, and the distance from where the system's
// block begins to there stands in the eight bytes before. The system's blocks begin at multiples of 16, so there is room.
unsafe impl GlobalAlloc for CacheAligned {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match roomy(layout) {
            Some(larger) => unsafe { placed(System.alloc(larger)) },
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match roomy(layout) {
            Some(larger) => unsafe { placed(System.alloc_zeroed(larger)) },
            None => unsafe { System.alloc_zeroed(layout) },
        }
    }

    unsafe fn dealloc(&self, values: *mut u8, layout: Layout) {
        match roomy(layout) {
            Some(larger) => unsafe { System.dealloc(values.sub(distance(values)), larger) },
            None => unsafe { System.dealloc(values, layout) },
        }
    }

    unsafe fn realloc(&self, values: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Ok(wanted) = Layout::from_size_align(size, layout.align()) else {
            return ptr::null_mut();
        };
        match (roomy(layout), roomy(wanted)) {
            (None, None) => unsafe { System.realloc(values, layout, size) },
            (Some(old), Some(new)) => unsafe {
                let before = distance(values);
                let block = System.realloc(values.sub(before), old, new.size());
                if block.is_null() {
                    return block;
                }
                // Moved within the new block if that begins otherwise than the old one did.
                let after = LINE - block as usize % LINE;
                let kept = layout.size().min(size);
                if before != after {
                    ptr::copy(block.add(before), block.add(after), kept);
                }
                placed(block)
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

/// What to ask the system for where a large block is wanted; `None` where the block is as the system gives it.
fn roomy(layout: Layout) -> Option<Layout> {
    match layout.size() >= LARGE && layout.align() <= LINE {
        true => Layout::from_size_align(layout.size() + LINE, 16).ok(),
        false => None,
    }
}

/// Where the values of a system's block begin, the distance noted before them.
///
/// # Safety
/// `block` is null, or begins at a multiple of 16 and has room for a line before its values.
unsafe fn placed(block: *mut u8) -> *mut u8 {
    if block.is_null() {
        return block;
    }
    let distance = LINE - block as usize % LINE;
    unsafe {
        let values = block.add(distance);
        values.cast::<usize>().sub(1).write(distance);
        values
    }
}

/// How far into the system's block the values of a large block begin.
///
/// # Safety
/// `values` come from [`placed`].
unsafe fn distance(values: *mut u8) -> usize {
    unsafe { values.cast::<usize>().sub(1).read() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    /// Grown and shrunk across both limits, a block keeps its values, and begins at a line while it is large.
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
                    if next >= LARGE && align <= LINE {
                        assert_eq!(block as usize % LINE, 0, "{size} to {next}");
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
