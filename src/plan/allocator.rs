//! Simulates the allocators of the backends, with their fragmentation: gaps in a heap, and pages
//! that are not full.

use std::collections::{BTreeMap, BTreeSet};

use arithmo_backends::Allocation;

/// The place of an allocation: its pool, page, offset and size.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placement {
    pool: usize,
    page: usize,
    start: u64,
    bytes: u64,
}

/// The allocator of a backend.
#[derive(Debug)]
pub(super) enum Allocator {
    Heap(Heap),
    Pools(Pools),
}

impl Allocator {
    pub(super) fn new(allocation: Allocation) -> Self {
        match allocation {
            Allocation::Heap => Self::Heap(Heap::default()),
            Allocation::Pools { page, alignment } => Self::Pools(Pools::new(page, alignment)),
        }
    }

    /// Allocates `bytes`; a `persistent` allocation lives as long as the run.
    pub(super) fn allocate(&mut self, bytes: u64, persistent: bool) -> Placement {
        match self {
            Self::Heap(heap) => {
                let small = !persistent && bytes < SMALL;
                heap.allocate(bytes, if small { Heap::SMALL } else { Heap::LARGE })
            }
            Self::Pools(pools) => pools.allocate(bytes, persistent),
        }
    }

    /// Allocates `bytes` on a helper thread; helper threads have a heap of their own.
    pub(super) fn allocate_on_helpers(&mut self, bytes: u64) -> Placement {
        match self {
            Self::Heap(heap) => heap.allocate(bytes, Heap::HELPERS),
            Self::Pools(pools) => pools.allocate(bytes, false),
        }
    }

    /// Frees an allocation.
    pub(super) fn free(&mut self, placement: Placement) {
        match self {
            Self::Heap(heap) => heap.free(placement),
            Self::Pools(pools) => pools.free(placement),
        }
    }

    /// Returns the bytes that the allocator has requested from the device; it never returns them.
    pub(super) fn reserved(&self) -> u64 {
        match self {
            Self::Heap(heap) => heap.peak,
            Self::Pools(pools) => pools.reserved,
        }
    }
}

/// The heap of the C library as [`crate::process`] configures it, so that no memory returns to the
/// system. A request takes the smallest gap that holds it; if there is none, the heap grows.
/// Neighboring gaps are merged.
///
/// Small requests are only counted, not placed: they use memory that was free when the program
/// started, or fill the gaps between large allocations, of which they can use about half.
#[derive(Debug, Default)]
pub(super) struct Heap {
    arenas: [Arena; 2],
    small: u64,
    /// The largest size so far.
    peak: u64,
}

#[derive(Debug, Default)]
struct Arena {
    gaps: Gaps,
    end: u64,
}

/// Requests below this many bytes are small.
const SMALL: u64 = 1 << 20;

impl Heap {
    const LARGE: usize = 0;
    const HELPERS: usize = 1;
    const SMALL: usize = 2;

    fn allocate(&mut self, bytes: u64, pool: usize) -> Placement {
        let bytes = bytes.next_multiple_of(16) + 16;
        let start = match self.arenas.get_mut(pool) {
            Some(arena) => arena.allocate(bytes),
            None => {
                self.small += bytes;
                0
            }
        };
        let ends: u64 = self.arenas.iter().map(|arena| arena.end).sum();
        let gaps = self.arenas[Self::LARGE].gaps.bytes();
        self.peak = self.peak.max(ends + self.small.saturating_sub(gaps / 2));
        Placement { pool, page: 0, start, bytes }
    }

    fn free(&mut self, placement: Placement) {
        match self.arenas.get_mut(placement.pool) {
            Some(arena) => arena.gaps.add(placement.start, placement.bytes),
            None => self.small -= placement.bytes,
        }
    }
}

impl Arena {
    fn allocate(&mut self, bytes: u64) -> u64 {
        let Self { gaps, end } = self;
        gaps.best_fit(bytes).unwrap_or_else(|| {
            // A gap at the end grows with the heap.
            let start = gaps.remove_last(*end).unwrap_or(*end);
            *end = start + bytes;
            start
        })
    }
}

/// The pools of Burn's GPU backends. One pool serves allocations that live as long as the run, each
/// from a buffer of its own size; the others cut pages into slices, with larger pages for larger
/// requests. Pages are never released.
#[derive(Debug)]
pub(super) struct Pools {
    alignment: u64,
    pools: Vec<PagePool>,
    /// Free buffers of the first pool by size, and the sizes it has.
    free: BTreeMap<u64, usize>,
    sizes: BTreeSet<u64>,
    reserved: u64,
}

/// The pages of one size.
#[derive(Debug)]
struct PagePool {
    page: u64,
    longest: u64,
    pages: Vec<Gaps>,
}

/// The pool of a [`Placement`] that has a buffer of its own.
const DEDICATED: usize = usize::MAX;

impl Pools {
    fn new(largest: u64, alignment: u64) -> Self {
        let alignment = alignment.max(1);
        let (mut pools, mut page, mut shift) = (Vec::new(), largest, 1);
        while page >= 32 << 20 {
            page = (page / 4).next_multiple_of(alignment);
            let longest = page >> shift;
            let pages = Vec::new();
            pools.push(PagePool { page, longest, pages });
            shift += 1;
        }
        pools.reverse();
        let page = largest / alignment * alignment;
        pools.push(PagePool { page, longest: page, pages: Vec::new() });
        Self { alignment, pools, free: BTreeMap::new(), sizes: BTreeSet::new(), reserved: 0 }
    }

    fn allocate(&mut self, bytes: u64, persistent: bool) -> Placement {
        let bytes = bytes.max(1).next_multiple_of(self.alignment);
        // A request of the same size as a persistent allocation is served from the same pool.
        if persistent || self.sizes.contains(&bytes) {
            return self.allocate_dedicated(bytes);
        }
        let fits = |pages: &PagePool| {
            let left = pages.page.checked_sub(bytes);
            pages.longest >= bytes || left.is_some_and(|left| left * 5 < pages.page)
        };
        let Some(pool) = self.pools.iter().position(fits) else {
            // The request is longer than any buffer; `too_long` reports it.
            return self.allocate_dedicated(bytes);
        };
        let PagePool { page, pages, .. } = &mut self.pools[pool];
        for (index, gaps) in pages.iter_mut().enumerate() {
            if let Some(start) = gaps.first_fit(bytes) {
                return Placement { pool, page: index, start, bytes };
            }
        }
        self.reserved += *page;
        let mut gaps = Gaps::default();
        gaps.add(bytes, *page - bytes);
        pages.push(gaps);
        Placement { pool, page: pages.len() - 1, start: 0, bytes }
    }

    /// Allocates a buffer of exactly `bytes`, or reuses a free one.
    fn allocate_dedicated(&mut self, bytes: u64) -> Placement {
        self.sizes.insert(bytes);
        match self.free.get_mut(&bytes).filter(|count| **count > 0) {
            Some(count) => *count -= 1,
            None => self.reserved += bytes,
        }
        Placement { pool: DEDICATED, page: 0, start: 0, bytes }
    }

    fn free(&mut self, placement: Placement) {
        match placement.pool {
            DEDICATED => *self.free.entry(placement.bytes).or_default() += 1,
            pool => self.pools[pool].pages[placement.page].add(placement.start, placement.bytes),
        }
    }
}

/// Free ranges, keyed by their start.
#[derive(Debug, Default)]
struct Gaps(BTreeMap<u64, u64>);

impl Gaps {
    /// Adds a free range and merges it with its neighbors.
    fn add(&mut self, mut start: u64, mut bytes: u64) {
        if bytes == 0 {
            return;
        }
        if let Some((before, length)) = self.0.range(..start).next_back()
            && before + length == start
        {
            (start, bytes) = (*before, bytes + length);
        }
        if let Some(length) = self.0.remove(&(start + bytes)) {
            bytes += length;
        }
        self.0.insert(start, bytes);
    }

    /// Returns the bytes of all gaps.
    fn bytes(&self) -> u64 {
        self.0.values().sum()
    }

    /// Cuts `bytes` from the smallest gap that holds them and returns their start.
    fn best_fit(&mut self, bytes: u64) -> Option<u64> {
        let holding = self.0.iter().filter(|(_, length)| **length >= bytes);
        let start = *holding.min_by_key(|(_, length)| **length)?.0;
        Some(self.cut(start, bytes))
    }

    /// Cuts `bytes` from the first gap that holds them and returns their start.
    fn first_fit(&mut self, bytes: u64) -> Option<u64> {
        let start = *self.0.iter().find(|(_, length)| **length >= bytes)?.0;
        Some(self.cut(start, bytes))
    }

    fn cut(&mut self, start: u64, bytes: u64) -> u64 {
        let length = self.0.remove(&start).unwrap_or(bytes);
        if length > bytes {
            self.0.insert(start + bytes, length - bytes);
        }
        start
    }

    /// Removes the gap that ends at `end` and returns its start.
    fn remove_last(&mut self, end: u64) -> Option<u64> {
        let (start, length) = self.0.last_key_value()?;
        let start = (start + length == end).then_some(*start)?;
        self.0.remove(&start);
        Some(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heap_fills_its_gaps_before_it_grows() {
        let mut heap = Heap::default();
        let a = heap.allocate(1000, Heap::LARGE);
        let b = heap.allocate(2000, Heap::LARGE);
        let c = heap.allocate(500, Heap::LARGE);
        assert_eq!((a.start, b.start, c.start), (0, 1024, 3040));
        heap.free(a);
        heap.free(b);
        // The two gaps are merged.
        assert_eq!(heap.allocate(3000, Heap::LARGE).start, 0);
        assert_eq!(heap.peak, 3568);
        heap.free(c);
        // The gap at the end grows.
        let a = heap.allocate(600, Heap::LARGE);
        assert_eq!((a.start, heap.peak), (3024, 3648));
        assert_eq!((heap.allocate(600, Heap::HELPERS).start, heap.peak), (0, 4272));
        // Half of the gap, 312 bytes, is filled before the heap grows.
        heap.free(a);
        let _ = heap.allocate(400, Heap::SMALL);
        assert_eq!(heap.peak, 4272 + 416 - 312);
    }

    /// A device with buffers of at most 128 MiB has pages of 8, 32 and 128 MiB.
    #[test]
    fn pools_take_whole_pages() {
        let mut pools = Pools::new(128 << 20, 64);
        let pages =
            |pools: &Pools| -> Vec<_> { pools.pools.iter().map(|p| p.page >> 20).collect() };
        assert_eq!(pages(&pools), [8, 32, 128]);
        let small = pools.allocate(2 << 20, false);
        assert_eq!(pools.reserved, 8 << 20);
        // A second request fits into the same page, and one of 16 MiB takes a page of 32.
        let _ = pools.allocate(2 << 20, false);
        let _ = pools.allocate(16 << 20, false);
        assert_eq!(pools.reserved, 40 << 20);
        // 27 of 32 MiB leave less than a fifth unused; 20 MiB take a page of 128.
        let _ = pools.allocate(27 << 20, false);
        assert_eq!(pools.reserved, 72 << 20);
        let _ = pools.allocate(20 << 20, false);
        assert_eq!(pools.reserved, 200 << 20);
        // Weights take exactly their size, and a request of the same size uses the same pool.
        let _ = pools.allocate(3 << 20, true);
        let passing = pools.allocate(3 << 20, false);
        assert_eq!((passing.pool, pools.reserved), (DEDICATED, 206 << 20));
        pools.free(passing);
        let _ = pools.allocate(3 << 20, false);
        pools.free(small);
        let _ = pools.allocate(2 << 20, false);
        assert_eq!(pools.reserved, 206 << 20);
    }
}
