//! What all attention kernels share: a cube of 16 x 16 units multiplies tiles that lie in shared memory.
//!
//! The query heads of a key head are folded: row `r` of a key head is head `r % group` of query `r / group`, so that
//! rows of a tile have nearly the same keys, which are read once for all of them. Heads are taken in chunks of
//! [`CHUNK`] features, so that tiles fit in 32 KiB whatever the width of a head.

use cubecl::prelude::*;

use crate::cubecl::launch::UNITS;

/// Units along each side of a cube.
pub(super) const SIDE: usize = 16;

/// Features of a head that are in shared memory at once.
pub(super) const CHUNK: usize = 32;

/// Values from one row of a tile to the next: odd, so that rows start in different banks.
const PITCH: usize = CHUNK + 1;

/// Keys in a tile of the forward kernel, queries in a tile of the key kernel.
pub(super) const ACROSS: usize = 2 * SIDE;

/// Values from one row of a tile of weights to the next.
pub(super) const WEIGHT_PITCH: usize = ACROSS + 1;

/// Stands for the score of a hidden key; finite, so that a row that sees nothing stays finite.
pub(super) const HIDDEN: f32 = -1e30;

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Plan {
    /// Query heads of a key head.
    pub(super) group: usize,
    pub(super) head_dim: usize,
    /// First columns of the queries, keys and values in their tensors.
    pub(super) columns: [usize; 3],
    /// Whether keys are hidden one by one.
    pub(super) hidden: bool,
    /// Whether queries are chosen by index.
    pub(super) chosen: bool,
    /// Rows of a tile by 16.
    pub(super) down: usize,
    /// Whether the rows of a tile are keys, and its columns folded rows.
    pub(super) keys_down: bool,
}

impl Plan {
    /// Rows of a tile.
    pub(super) fn rows(&self) -> usize {
        self.down * SIDE
    }

    /// Chunks of a head.
    pub(super) fn chunks(&self) -> usize {
        self.head_dim.div_ceil(CHUNK)
    }

    /// Features of a head by 16, chunks rounded up: what a unit holds of a row.
    pub(super) fn wide(&self) -> usize {
        self.chunks() * CHUNK / SIDE
    }

    /// Values that a unit holds of all rows of a tile.
    pub(super) fn held(&self) -> usize {
        self.down * self.wide()
    }

    /// Folded rows and keys of a tile.
    fn rows_and_keys(&self) -> (usize, usize) {
        match self.keys_down {
            true => (ACROSS, self.rows()),
            false => (self.rows(), ACROSS),
        }
    }
}

/// What a cube keeps in shared memory.
#[derive(CubeType)]
pub(super) struct Tiles {
    left: SharedMemory<f32>,
    right: SharedMemory<f32>,
    /// Scores, then what is made of them.
    pub(super) weights: SharedMemory<f32>,
    /// The ranges of folded rows.
    pub(super) seen: SharedMemory<i32>,
    /// Which keys exist and are not hidden.
    pub(super) open: SharedMemory<i32>,
    /// The hull of the ranges.
    pub(super) hull: SharedMemory<i32>,
    /// Log-sum-exp and row sum of folded rows, in turns.
    pub(super) of_row: SharedMemory<f32>,
}

#[cube]
pub(super) fn tiles(#[comptime] plan: Plan) -> Tiles {
    let (rows, keys) = comptime!(plan.rows_and_keys());
    Tiles {
        left: SharedMemory::<f32>::new(comptime!(plan.rows() * PITCH)),
        right: SharedMemory::<f32>::new(comptime!(ACROSS * PITCH)),
        weights: SharedMemory::<f32>::new(comptime!(plan.rows() * WEIGHT_PITCH)),
        seen: SharedMemory::<i32>::new(comptime!(rows * 4)),
        open: SharedMemory::<i32>::new(keys),
        hull: SharedMemory::<i32>::new(4usize),
        of_row: SharedMemory::<f32>::new(comptime!(rows * 2)),
    }
}

/// Where a cube works, and the first columns of its heads.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Place {
    pub(super) kv_head: usize,
    /// Folded rows in all.
    pub(super) rows: usize,
    /// Keys in all.
    pub(super) keys: usize,
    pub(super) query: usize,
    pub(super) key: usize,
    pub(super) value: usize,
    /// Of outputs and their gradients.
    pub(super) head: usize,
}

#[cube]
pub(super) fn place<F: Float, I: Int>(
    keys: &Tensor<F>,
    ranges: &Tensor<I>,
    #[comptime] plan: Plan,
) -> Place {
    let kv_head = CUBE_POS_Y as usize;
    let head = kv_head * plan.group * plan.head_dim;
    Place {
        kv_head,
        rows: ranges.shape(0) * plan.group,
        keys: keys.shape(0),
        query: comptime!(plan.columns[0]) + head,
        key: comptime!(plan.columns[1]) + kv_head * plan.head_dim,
        value: comptime!(plan.columns[2]) + kv_head * plan.head_dim,
        head,
    }
}

/// Some keys from the first on, and the first column of what is read of them.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Keys {
    pub(super) first: usize,
    pub(super) column: usize,
}

/// Some folded rows from the first on, and the first column of what is read of them.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Rows {
    pub(super) first: usize,
    /// In all.
    pub(super) rows: usize,
    pub(super) column: usize,
}

#[cube]
pub(super) fn keys_at(first: usize, column: usize) -> Keys {
    Keys { first, column }
}

#[cube]
pub(super) fn rows_at(first: usize, rows: usize, column: usize) -> Rows {
    Rows { first, rows, column }
}

/// Copies a chunk of `count` keys (or values) into `tile`, zeros beyond the last.
#[cube]
fn load_keys<F: Float>(
    from: &Tensor<F>,
    tile: &mut SharedMemory<f32>,
    keys: Keys,
    #[comptime] head_dim: usize,
    #[comptime] chunk: usize,
    #[comptime] count: usize,
) {
    let mut i = UNIT_POS as usize;
    while i < comptime!(count * CHUNK) {
        let row = i / CHUNK;
        let within = i % CHUNK;
        let feature = chunk * CHUNK + within;
        let key = keys.first + row;
        let mut value = 0.0f32;
        if key < from.shape(0) && feature < head_dim {
            value = f32::cast_from(from[key * from.stride(0) + keys.column + feature]);
        }
        tile[row * PITCH + within] = value;
        i += UNITS;
    }
}

/// Copies a chunk of `count` folded rows of a key head into `tile`, zeros beyond the last. With `chosen`, row `i` of
/// the queries is row `queries[i]` of the tensor.
#[cube]
fn load_rows<F: Float, I: Int>(
    from: &Tensor<F>,
    queries: &Tensor<I>,
    tile: &mut SharedMemory<f32>,
    rows: Rows,
    #[comptime] plan: Plan,
    #[comptime] chosen: bool,
    #[comptime] chunk: usize,
    #[comptime] count: usize,
) {
    let mut i = UNIT_POS as usize;
    while i < comptime!(count * CHUNK) {
        let row = i / CHUNK;
        let within = i % CHUNK;
        let feature = chunk * CHUNK + within;
        let folded = rows.first + row;
        let mut value = 0.0f32;
        if folded < rows.rows && feature < plan.head_dim {
            let mut token = folded / plan.group;
            if comptime!(chosen) {
                token = usize::cast_from(queries[token]);
            }
            let head = folded % plan.group;
            let start = token * from.stride(0) + rows.column + head * plan.head_dim;
            value = f32::cast_from(from[start + feature]);
        }
        tile[row * PITCH + within] = value;
        i += UNITS;
    }
}

/// `sums += rows keys^T` of one tile, or its transpose where keys are the rows of tiles.
#[cube]
pub(super) fn add_products<F: Float, I: Int>(
    of_rows: &Tensor<F>,
    of_keys: &Tensor<F>,
    queries: &Tensor<I>,
    tiles: &mut Tiles,
    sums: &mut Array<f32>,
    rows: Rows,
    keys: Keys,
    #[comptime] plan: Plan,
    #[comptime] chosen: bool,
) {
    let down = comptime!(plan.rows());
    #[unroll]
    for chunk in 0..comptime!(plan.chunks()) {
        if comptime!(plan.keys_down) {
            load_keys::<F>(of_keys, &mut tiles.left, keys, plan.head_dim, chunk, down);
            load_rows::<F, I>(
                of_rows,
                queries,
                &mut tiles.right,
                rows,
                plan,
                chosen,
                chunk,
                ACROSS,
            );
        } else {
            load_rows::<F, I>(of_rows, queries, &mut tiles.left, rows, plan, chosen, chunk, down);
            load_keys::<F>(of_keys, &mut tiles.right, keys, plan.head_dim, chunk, ACROSS);
        }
        sync_cube();
        multiply(&tiles.left, &tiles.right, sums, plan.down);
        sync_cube();
    }
}

/// `sums += weights keys` of one tile.
#[cube]
pub(super) fn add_keys<F: Float>(
    of_keys: &Tensor<F>,
    tiles: &mut Tiles,
    sums: &mut Array<f32>,
    keys: Keys,
    #[comptime] plan: Plan,
) {
    #[unroll]
    for chunk in 0..comptime!(plan.chunks()) {
        load_keys::<F>(of_keys, &mut tiles.right, keys, plan.head_dim, chunk, ACROSS);
        sync_cube();
        accumulate(&tiles.weights, &tiles.right, sums, chunk, plan);
        sync_cube();
    }
}

/// `sums += weights rows` of one tile, where keys are the rows of tiles.
#[cube]
pub(super) fn add_rows<F: Float, I: Int>(
    of_rows: &Tensor<F>,
    queries: &Tensor<I>,
    tiles: &mut Tiles,
    sums: &mut Array<f32>,
    rows: Rows,
    #[comptime] plan: Plan,
    #[comptime] chosen: bool,
) {
    #[unroll]
    for chunk in 0..comptime!(plan.chunks()) {
        load_rows::<F, I>(of_rows, queries, &mut tiles.right, rows, plan, chosen, chunk, ACROSS);
        sync_cube();
        accumulate(&tiles.weights, &tiles.right, sums, chunk, plan);
        sync_cube();
    }
}

/// `sums += left right^T` over one chunk: a unit holds rows `y, y + 16, ..` and columns `x, x + 16`.
#[cube]
fn multiply(
    left: &SharedMemory<f32>,
    right: &SharedMemory<f32>,
    sums: &mut Array<f32>,
    #[comptime] down: usize,
) {
    let x = UNIT_POS as usize % SIDE;
    let y = UNIT_POS as usize / SIDE;
    for k in 0..CHUNK {
        let b0 = right[x * PITCH + k];
        let b1 = right[(x + SIDE) * PITCH + k];
        #[unroll]
        for i in 0..down {
            let a = left[(y + i * SIDE) * PITCH + k];
            sums[i * 2] += a * b0;
            sums[i * 2 + 1] += a * b1;
        }
    }
}

/// `sums += weights tile` for one chunk of features: a unit holds rows `y, y + 16, ..` and features `x, x + 16, ..`.
#[cube]
fn accumulate(
    weights: &SharedMemory<f32>,
    tile: &SharedMemory<f32>,
    sums: &mut Array<f32>,
    #[comptime] chunk: usize,
    #[comptime] plan: Plan,
) {
    let x = UNIT_POS as usize % SIDE;
    let y = UNIT_POS as usize / SIDE;
    let wide = comptime!(plan.wide());
    for k in 0..ACROSS {
        let b0 = tile[k * PITCH + x];
        let b1 = tile[k * PITCH + x + SIDE];
        #[unroll]
        for i in 0..plan.down {
            let a = weights[(y + i * SIDE) * WEIGHT_PITCH + k];
            sums[i * wide + chunk * 2] += a * b0;
            sums[i * wide + chunk * 2 + 1] += a * b1;
        }
    }
}

/// Sums of a unit, at zero.
#[cube]
pub(super) fn sums(#[comptime] count: usize) -> Array<f32> {
    let mut sums = Array::<f32>::new(count);
    clear(&mut sums, count);
    sums
}

#[cube]
pub(super) fn clear(sums: &mut Array<f32>, #[comptime] count: usize) {
    #[unroll]
    for i in 0..count {
        sums[i] = 0.0f32;
    }
}

/// The features that a unit holds of its rows of a tile, written to folded rows: the inverse of `load_rows`.
#[cube]
pub(super) fn store_rows<F: Float, I: Int>(
    sums: &Array<f32>,
    to: &mut Tensor<F>,
    queries: &Tensor<I>,
    rows: Rows,
    #[comptime] plan: Plan,
    #[comptime] chosen: bool,
) {
    let x = UNIT_POS as usize % SIDE;
    let y = UNIT_POS as usize / SIDE;
    let wide = comptime!(plan.wide());
    #[unroll]
    for i in 0..plan.down {
        let folded = rows.first + y + i * SIDE;
        if folded < rows.rows {
            let mut token = folded / plan.group;
            if comptime!(chosen) {
                token = usize::cast_from(queries[token]);
            }
            let start = token * to.stride(0) + rows.column + folded % plan.group * plan.head_dim;
            #[unroll]
            for j in 0..wide {
                let feature = x + j * SIDE;
                if feature < plan.head_dim {
                    to[start + feature] = F::cast_from(sums[i * wide + j]);
                }
            }
        }
    }
}

/// The features that a unit holds of its rows of a tile, written to keys: the inverse of `load_keys`.
#[cube]
pub(super) fn store_keys<F: Float>(
    sums: &Array<f32>,
    to: &mut Tensor<F>,
    keys: Keys,
    #[comptime] plan: Plan,
) {
    let x = UNIT_POS as usize % SIDE;
    let y = UNIT_POS as usize / SIDE;
    let wide = comptime!(plan.wide());
    #[unroll]
    for i in 0..plan.down {
        let key = keys.first + y + i * SIDE;
        if key < to.shape(0) {
            #[unroll]
            for j in 0..wide {
                let feature = x + j * SIDE;
                if feature < plan.head_dim {
                    let at = key * to.stride(0) + keys.column + feature;
                    to[at] = F::cast_from(sums[i * wide + j]);
                }
            }
        }
    }
}
