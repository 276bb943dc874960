//! What allocators make of requests: the gaps between them, and pages that are not full.

use std::collections::{BTreeMap, BTreeSet};

use arithmo_backends::Allocation;

/// Where something lies: which pool, which page, where in it, and how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pool: usize,
    page: usize,
    start: u64,
    bytes: u64,
}

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

    /// `persistent`: for as long as the run.
    pub(super) fn take(&mut self, bytes: u64, persistent: bool) -> Place {
        match self {
            Self::Heap(heap) => {
                let small = !persistent && bytes < SMALL;
                heap.take(bytes, if small { Heap::SMALL } else { Heap::LARGE })
            }
            Self::Pools(pools) => pools.take(bytes, persistent),
        }
    }

    /// For a thread that helps: those have a heap of their own.
    pub(super) fn take_elsewhere(&mut self, bytes: u64) -> Place {
        match self {
            Self::Heap(heap) => heap.take(bytes, Heap::HELPERS),
            Self::Pools(pools) => pools.take(bytes, false),
        }
    }

    pub(super) fn give(&mut self, place: Place) {
        match self {
            Self::Heap(heap) => heap.give(place),
            Self::Pools(pools) => pools.give(place),
        }
    }

    /// Bytes the device has given so far, which it never gets back.
    pub(super) fn reserved(&self) -> u64 {
        match self {
            Self::Heap(heap) => heap.most,
            Self::Pools(pools) => pools.reserved,
        }
    }
}

/// The C library's heap where nothing is handed back to the system ([`crate::process`]): a request takes the smallest gap
/// that holds it, else the heap grows; neighbouring gaps become one.
///
/// Small requests find room in what the program left when it started, or fill gaps of large ones, about half of which they
/// can use; they are not placed.
#[derive(Debug, Default)]
pub(super) struct Heap {
    stretches: [Stretch; 2],
    small: u64,
    /// The most it has been.
    most: u64,
}

#[derive(Debug, Default)]
struct Stretch {
    gaps: Gaps,
    end: u64,
}

/// Requests below this are small.
const SMALL: u64 = 1 << 20;

impl Heap {
    const LARGE: usize = 0;
    const HELPERS: usize = 1;
    const SMALL: usize = 2;

    fn take(&mut self, bytes: u64, pool: usize) -> Place {
        let bytes = bytes.next_multiple_of(16) + 16;
        let start = match self.stretches.get_mut(pool) {
            Some(stretch) => stretch.take(bytes),
            None => {
                self.small += bytes;
                0
            }
        };
        let ends: u64 = self.stretches.iter().map(|stretch| stretch.end).sum();
        let gaps = self.stretches[Self::LARGE].gaps.bytes();
        self.most = self.most.max(ends + self.small.saturating_sub(gaps / 2));
        Place { pool, page: 0, start, bytes }
    }

    fn give(&mut self, place: Place) {
        match self.stretches.get_mut(place.pool) {
            Some(stretch) => stretch.gaps.add(place.start, place.bytes),
            None => self.small -= place.bytes,
        }
    }
}

impl Stretch {
    fn take(&mut self, bytes: u64) -> u64 {
        let Self { gaps, end } = self;
        gaps.best(bytes).unwrap_or_else(|| {
            // A gap at the end grows with the heap.
            let start = gaps.take_last(*end).unwrap_or(*end);
            *end = start + bytes;
            start
        })
    }
}

/// The pools of Burn's GPU backends: one for what lives as long as the run, whose buffers are as large as what is in them; and pages,
/// the larger the longer a request, each cut into slices. Pages stay.
#[derive(Debug)]
pub(super) struct Pools {
    alignment: u64,
    pools: Vec<Pages>,
    /// Buffers of the first pool that are free, by size; and the sizes it has.
    free: BTreeMap<u64, usize>,
    sizes: BTreeSet<u64>,
    reserved: u64,
}

#[derive(Debug)]
struct Pages {
    page: u64,
    longest: u64,
    pages: Vec<Gaps>,
}

/// A [`Place`] in the pool of buffers by themselves.
const BY_ITSELF: usize = usize::MAX;

impl Pools {
    fn new(largest: u64, alignment: u64) -> Self {
        let alignment = alignment.max(1);
        let (mut pools, mut page, mut shift) = (Vec::new(), largest, 1);
        while page >= 32 << 20 {
            page = (page / 4).next_multiple_of(alignment);
            let longest = page >> shift;
            let pages = Vec::new();
            pools.push(Pages { page, longest, pages });
            shift += 1;
        }
        pools.reverse();
        let page = largest / alignment * alignment;
        pools.push(Pages { page, longest: page, pages: Vec::new() });
        Self { alignment, pools, free: BTreeMap::new(), sizes: BTreeSet::new(), reserved: 0 }
    }

    fn take(&mut self, bytes: u64, persistent: bool) -> Place {
        let bytes = bytes.max(1).next_multiple_of(self.alignment);
        // What is as long as something that lives long goes where that does.
        if persistent || self.sizes.contains(&bytes) {
            return self.by_itself(bytes);
        }
        let fits = |pages: &Pages| {
            let left = pages.page.checked_sub(bytes);
            pages.longest >= bytes || left.is_some_and(|left| left * 5 < pages.page)
        };
        let Some(pool) = self.pools.iter().position(fits) else {
            // Longer than any buffer may be, which the check of limits says.
            return self.by_itself(bytes);
        };
        let Pages { page, pages, .. } = &mut self.pools[pool];
        for (index, gaps) in pages.iter_mut().enumerate() {
            if let Some(start) = gaps.first(bytes) {
                return Place { pool, page: index, start, bytes };
            }
        }
        self.reserved += *page;
        let mut gaps = Gaps::default();
        gaps.add(bytes, *page - bytes);
        pages.push(gaps);
        Place { pool, page: pages.len() - 1, start: 0, bytes }
    }

    fn by_itself(&mut self, bytes: u64) -> Place {
        self.sizes.insert(bytes);
        match self.free.get_mut(&bytes).filter(|count| **count > 0) {
            Some(count) => *count -= 1,
            None => self.reserved += bytes,
        }
        Place { pool: BY_ITSELF, page: 0, start: 0, bytes }
    }

    fn give(&mut self, place: Place) {
        match place.pool {
            BY_ITSELF => *self.free.entry(place.bytes).or_default() += 1,
            pool => self.pools[pool].pages[place.page].add(place.start, place.bytes),
        }
    }
}

/// Free stretches, by where they start.
#[derive(Debug, Default)]
struct Gaps(BTreeMap<u64, u64>);

impl Gaps {
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

    /// All of them together.
    fn bytes(&self) -> u64 {
        self.0.values().sum()
    }

    /// Cuts `bytes` from the smallest stretch that has them.
    fn best(&mut self, bytes: u64) -> Option<u64> {
        let holding = self.0.iter().filter(|(_, length)| **length >= bytes);
        let start = *holding.min_by_key(|(_, length)| **length)?.0;
        Some(self.cut(start, bytes))
    }

    /// Cuts `bytes` from the first stretch that has them.
    fn first(&mut self, bytes: u64) -> Option<u64> {
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

    /// Takes the whole of a stretch that ends at `end`.
    fn take_last(&mut self, end: u64) -> Option<u64> {
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
        let a = heap.take(1000, Heap::LARGE);
        let b = heap.take(2000, Heap::LARGE);
        let c = heap.take(500, Heap::LARGE);
        assert_eq!((a.start, b.start, c.start), (0, 1024, 3040));
        heap.give(a);
        heap.give(b);
        // One gap now.
        assert_eq!(heap.take(3000, Heap::LARGE).start, 0);
        assert_eq!(heap.most, 3568);
        heap.give(c);
        // The gap at the end grows.
        let a = heap.take(600, Heap::LARGE);
        assert_eq!((a.start, heap.most), (3024, 3648));
        assert_eq!((heap.take(600, Heap::HELPERS).start, heap.most), (0, 4272));
        // Half of the gap, 312 bytes, is filled before the heap grows.
        heap.give(a);
        let _ = heap.take(400, Heap::SMALL);
        assert_eq!(heap.most, 4272 + 416 - 312);
    }

    /// The pages of a device that takes 128 MiB in one piece: 8, 32 and 128 MiB.
    #[test]
    fn pools_take_whole_pages() {
        let mut pools = Pools::new(128 << 20, 64);
        let pages =
            |pools: &Pools| -> Vec<_> { pools.pools.iter().map(|p| p.page >> 20).collect() };
        assert_eq!(pages(&pools), [8, 32, 128]);
        let small = pools.take(2 << 20, false);
        assert_eq!(pools.reserved, 8 << 20);
        // A second finds room in the same page, and one of 16 MiB takes a page of 32.
        let _ = pools.take(2 << 20, false);
        let _ = pools.take(16 << 20, false);
        assert_eq!(pools.reserved, 40 << 20);
        // 27 of 32 MiB leave less than a fifth unused; 20 take a page of 128.
        let _ = pools.take(27 << 20, false);
        assert_eq!(pools.reserved, 72 << 20);
        let _ = pools.take(20 << 20, false);
        assert_eq!(pools.reserved, 200 << 20);
        // Weights take what they need, and what is as long as one goes beside it.
        let _ = pools.take(3 << 20, true);
        let passing = pools.take(3 << 20, false);
        assert_eq!((passing.pool, pools.reserved), (BY_ITSELF, 206 << 20));
        pools.give(passing);
        let _ = pools.take(3 << 20, false);
        pools.give(small);
        let _ = pools.take(2 << 20, false);
        assert_eq!(pools.reserved, 206 << 20);
    }
}
