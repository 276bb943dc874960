//! Building blocks of the attention kernels: a block of 16 x 16 threads multiplies tiles in shared memory.
//!
//! The query heads that share a key head are folded: row `r` of a key head is head `r % group` of query `r / group`.
//! The rows of a tile then see nearly the same keys, which are read once for all of them. Heads are processed in
//! chunks of [`CHUNK`] features so that the tiles fit in 32 KiB for any head width.

use cubecl::prelude::*;

use crate::cubecl::launch::THREADS;

/// Threads along each side of a block.
pub(super) const SIDE: usize = 16;

/// Features of a head in shared memory at once.
pub(super) const CHUNK: usize = 32;

/// Values between the starts of two rows of a tile. It is odd so that rows start in different banks.
const PITCH: usize = CHUNK + 1;

/// Columns of a tile: keys in the forward kernel and in the query gradient, folded rows in the gradient of keys and
/// values.
pub(super) const TILE_COLUMNS: usize = 2 * SIDE;

/// Values between the starts of two rows of the tile of attention weights.
pub(super) const WEIGHT_PITCH: usize = TILE_COLUMNS + 1;

/// The score of a key that a row does not see. It is finite so that a row that sees nothing stays finite.
pub(super) const HIDDEN: f32 = -1e30;

/// The compile-time parameters of an attention kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Plan {
    /// Query heads per key head.
    pub(super) group: usize,
    pub(super) head_dim: usize,
    /// First columns of the queries, keys and values in their tensors.
    pub(super) first_columns: [usize; 3],
    /// Whether single keys are hidden (`AttentionMask::hidden`).
    pub(super) hidden: bool,
    /// Whether the queries are a subset of the tokens (`AttentionMask::queries`).
    pub(super) gather: bool,
    /// Rows of a tile per thread; a tile has 16 times as many.
    pub(super) rows_per_thread: usize,
    /// Whether the rows of a tile are keys and its columns folded rows, instead of the reverse.
    pub(super) keys_as_rows: bool,
}

impl Plan {
    /// Returns the number of rows of a tile.
    pub(super) fn tile_rows(&self) -> usize {
        self.rows_per_thread * SIDE
    }

    /// Returns the number of chunks of a head.
    pub(super) fn chunks(&self) -> usize {
        self.head_dim.div_ceil(CHUNK)
    }

    /// Returns how many features of a row a thread holds, with the last chunk rounded up.
    pub(super) fn features_per_row(&self) -> usize {
        self.chunks() * CHUNK / SIDE
    }

    /// Returns how many features a thread holds of all rows of a tile.
    pub(super) fn features_per_thread(&self) -> usize {
        self.rows_per_thread * self.features_per_row()
    }

    /// Returns the number of folded rows and of keys of a tile.
    fn rows_and_keys(&self) -> (usize, usize) {
        if self.keys_as_rows {
            (TILE_COLUMNS, self.tile_rows())
        } else {
            (self.tile_rows(), TILE_COLUMNS)
        }
    }
}

/// The shared memory of a block.
#[derive(CubeType)]
pub(super) struct Tiles {
    left: SharedMemory<f32>,
    right: SharedMemory<f32>,
    /// The scores, which are overwritten by the attention weights or their gradient.
    pub(super) weights: SharedMemory<f32>,
    /// The ranges of keys that each folded row sees, four bounds per row.
    pub(super) ranges: SharedMemory<i32>,
    /// 1 for each key that exists and is not hidden, else 0.
    pub(super) visible: SharedMemory<i32>,
    /// The bounds of all ranges in the tile: see `bounding_ranges`.
    pub(super) bounds: SharedMemory<i32>,
    /// The log-sum-exp and the row sum of each folded row, interleaved.
    pub(super) stats: SharedMemory<f32>,
}

/// Allocates the shared memory of a block.
#[cube]
pub(super) fn new_tiles(#[comptime] plan: Plan) -> Tiles {
    let (rows, keys) = comptime!(plan.rows_and_keys());
    Tiles {
        left: SharedMemory::<f32>::new(comptime!(plan.tile_rows() * PITCH)),
        right: SharedMemory::<f32>::new(comptime!(TILE_COLUMNS * PITCH)),
        weights: SharedMemory::<f32>::new(comptime!(plan.tile_rows() * WEIGHT_PITCH)),
        ranges: SharedMemory::<i32>::new(comptime!(rows * 4)),
        visible: SharedMemory::<i32>::new(keys),
        bounds: SharedMemory::<i32>::new(4usize),
        stats: SharedMemory::<f32>::new(comptime!(rows * 2)),
    }
}

/// The position of a block: its key head, the first columns of its heads, and the sizes of the whole problem.
#[derive(CubeType, Clone, Copy)]
pub(super) struct BlockPosition {
    pub(super) kv_head: usize,
    /// The number of folded rows of the whole problem.
    pub(super) row_count: usize,
    /// The number of keys of the whole problem.
    pub(super) key_count: usize,
    pub(super) query_column: usize,
    pub(super) key_column: usize,
    pub(super) value_column: usize,
    /// The first column of the heads in the output and in its gradient.
    pub(super) output_column: usize,
}

/// Returns the position of the current block.
#[cube]
pub(super) fn block_position<V: CubePrimitive, I: Int>(
    keys: &Tensor<V>,
    ranges: &Tensor<I>,
    #[comptime] plan: Plan,
) -> BlockPosition {
    let kv_head = CUBE_POS_Y as usize;
    let output_column = kv_head * plan.group * plan.head_dim;
    BlockPosition {
        kv_head,
        row_count: ranges.shape(0) * plan.group,
        key_count: keys.shape(0),
        query_column: comptime!(plan.first_columns[0]) + output_column,
        key_column: comptime!(plan.first_columns[1]) + kv_head * plan.head_dim,
        value_column: comptime!(plan.first_columns[2]) + kv_head * plan.head_dim,
        output_column,
    }
}

/// A slice of keys: the index of the first one, and the first column to read or write.
#[derive(CubeType, Clone, Copy)]
pub(super) struct KeySlice {
    pub(super) first: usize,
    pub(super) column: usize,
}

/// A slice of folded rows: the index of the first one, and the first column to read or write.
#[derive(CubeType, Clone, Copy)]
pub(super) struct RowSlice {
    pub(super) first: usize,
    /// The number of folded rows of the whole problem.
    pub(super) row_count: usize,
    pub(super) column: usize,
}

/// Creates a slice of keys.
#[cube]
pub(super) fn key_slice(first: usize, column: usize) -> KeySlice {
    KeySlice { first, column }
}

/// Creates a slice of folded rows.
#[cube]
pub(super) fn row_slice(first: usize, row_count: usize, column: usize) -> RowSlice {
    RowSlice { first, row_count, column }
}

/// Copies a chunk of `count` keys (or values) into `tile`, with zeros beyond the last key.
#[cube]
fn load_keys<F: Float>(
    source: &Tensor<F>,
    tile: &mut SharedMemory<f32>,
    keys: KeySlice,
    #[comptime] head_dim: usize,
    #[comptime] chunk: usize,
    #[comptime] count: usize,
) {
    let mut i = UNIT_POS as usize;
    while i < comptime!(count * CHUNK) {
        let row = i / CHUNK;
        let chunk_feature = i % CHUNK;
        let feature = chunk * CHUNK + chunk_feature;
        let key = keys.first + row;
        let mut value = 0.0f32;
        if key < source.shape(0) && feature < head_dim {
            value = f32::cast_from(source[key * source.stride(0) + keys.column + feature]);
        }
        tile[row * PITCH + chunk_feature] = value;
        i += THREADS;
    }
}

/// Copies a chunk of `count` folded rows of a key head into `tile`, with zeros beyond the last row. With
/// `gather`, query `i` is row `queries[i]` of the tensor.
#[cube]
fn load_rows<F: Float, I: Int>(
    source: &Tensor<F>,
    queries: &Tensor<I>,
    tile: &mut SharedMemory<f32>,
    rows: RowSlice,
    #[comptime] plan: Plan,
    #[comptime] gather: bool,
    #[comptime] chunk: usize,
    #[comptime] count: usize,
) {
    let mut i = UNIT_POS as usize;
    while i < comptime!(count * CHUNK) {
        let row = i / CHUNK;
        let chunk_feature = i % CHUNK;
        let feature = chunk * CHUNK + chunk_feature;
        let folded = rows.first + row;
        let mut value = 0.0f32;
        if folded < rows.row_count && feature < plan.head_dim {
            let mut token = folded / plan.group;
            if comptime!(gather) {
                token = usize::cast_from(queries[token]);
            }
            let head = folded % plan.group;
            let start = token * source.stride(0) + rows.column + head * plan.head_dim;
            value = f32::cast_from(source[start + feature]);
        }
        tile[row * PITCH + chunk_feature] = value;
        i += THREADS;
    }
}

/// Computes `sums += rows keys^T` of one tile, or its transpose if keys are the rows of the tiles.
#[cube]
pub(super) fn add_row_key_products<F: Float, I: Int>(
    row_source: &Tensor<F>,
    key_source: &Tensor<F>,
    queries: &Tensor<I>,
    tiles: &mut Tiles,
    sums: &mut Array<f32>,
    rows: RowSlice,
    keys: KeySlice,
    #[comptime] plan: Plan,
    #[comptime] gather: bool,
) {
    let tile_rows = comptime!(plan.tile_rows());
    #[unroll]
    for chunk in 0..comptime!(plan.chunks()) {
        if comptime!(plan.keys_as_rows) {
            load_keys::<F>(key_source, &mut tiles.left, keys, plan.head_dim, chunk, tile_rows);
            load_rows::<F, I>(
                row_source,
                queries,
                &mut tiles.right,
                rows,
                plan,
                gather,
                chunk,
                TILE_COLUMNS,
            );
        } else {
            load_rows::<F, I>(
                row_source,
                queries,
                &mut tiles.left,
                rows,
                plan,
                gather,
                chunk,
                tile_rows,
            );
            load_keys::<F>(key_source, &mut tiles.right, keys, plan.head_dim, chunk, TILE_COLUMNS);
        }
        sync_cube();
        multiply_chunk(&tiles.left, &tiles.right, sums, plan.rows_per_thread);
        sync_cube();
    }
}

/// Computes `sums += weights keys` of one tile.
#[cube]
pub(super) fn add_weighted_keys<F: Float>(
    key_source: &Tensor<F>,
    tiles: &mut Tiles,
    sums: &mut Array<f32>,
    keys: KeySlice,
    #[comptime] plan: Plan,
) {
    #[unroll]
    for chunk in 0..comptime!(plan.chunks()) {
        load_keys::<F>(key_source, &mut tiles.right, keys, plan.head_dim, chunk, TILE_COLUMNS);
        sync_cube();
        accumulate_chunk(&tiles.weights, &tiles.right, sums, chunk, plan);
        sync_cube();
    }
}

/// Computes `sums += weights rows` of one tile whose rows are keys.
#[cube]
pub(super) fn add_weighted_rows<F: Float, I: Int>(
    row_source: &Tensor<F>,
    queries: &Tensor<I>,
    tiles: &mut Tiles,
    sums: &mut Array<f32>,
    rows: RowSlice,
    #[comptime] plan: Plan,
    #[comptime] gather: bool,
) {
    #[unroll]
    for chunk in 0..comptime!(plan.chunks()) {
        load_rows::<F, I>(
            row_source,
            queries,
            &mut tiles.right,
            rows,
            plan,
            gather,
            chunk,
            TILE_COLUMNS,
        );
        sync_cube();
        accumulate_chunk(&tiles.weights, &tiles.right, sums, chunk, plan);
        sync_cube();
    }
}

/// Computes `sums += left right^T` over one chunk of features: a thread holds rows `y, y + 16, ..` and columns
/// `x, x + 16`.
#[cube]
fn multiply_chunk(
    left: &SharedMemory<f32>,
    right: &SharedMemory<f32>,
    sums: &mut Array<f32>,
    #[comptime] rows_per_thread: usize,
) {
    let x = UNIT_POS as usize % SIDE;
    let y = UNIT_POS as usize / SIDE;
    for k in 0..CHUNK {
        let b0 = right[x * PITCH + k];
        let b1 = right[(x + SIDE) * PITCH + k];
        #[unroll]
        for i in 0..rows_per_thread {
            let a = left[(y + i * SIDE) * PITCH + k];
            sums[i * 2] += a * b0;
            sums[i * 2 + 1] += a * b1;
        }
    }
}

/// Computes `sums += weights tile` for one chunk of features: a thread holds rows `y, y + 16, ..` and features
/// `x, x + 16, ..`.
#[cube]
fn accumulate_chunk(
    weights: &SharedMemory<f32>,
    tile: &SharedMemory<f32>,
    sums: &mut Array<f32>,
    #[comptime] chunk: usize,
    #[comptime] plan: Plan,
) {
    let x = UNIT_POS as usize % SIDE;
    let y = UNIT_POS as usize / SIDE;
    let row_features = comptime!(plan.features_per_row());
    for k in 0..TILE_COLUMNS {
        let b0 = tile[k * PITCH + x];
        let b1 = tile[k * PITCH + x + SIDE];
        #[unroll]
        for i in 0..plan.rows_per_thread {
            let a = weights[(y + i * SIDE) * WEIGHT_PITCH + k];
            sums[i * row_features + chunk * 2] += a * b0;
            sums[i * row_features + chunk * 2 + 1] += a * b1;
        }
    }
}

/// Creates a thread's `count` accumulators, set to zero.
#[cube]
pub(super) fn zero_sums(#[comptime] count: usize) -> Array<f32> {
    let mut sums = Array::<f32>::new(count);
    set_to_zero(&mut sums, count);
    sums
}

/// Sets a thread's accumulators to zero.
#[cube]
pub(super) fn set_to_zero(sums: &mut Array<f32>, #[comptime] count: usize) {
    #[unroll]
    for i in 0..count {
        sums[i] = 0.0f32;
    }
}

/// Writes a thread's features of a tile to the folded rows: the inverse of `load_rows`.
#[cube]
pub(super) fn store_rows<F: Float, I: Int>(
    sums: &Array<f32>,
    target: &mut Tensor<F>,
    queries: &Tensor<I>,
    rows: RowSlice,
    #[comptime] plan: Plan,
    #[comptime] gather: bool,
) {
    let x = UNIT_POS as usize % SIDE;
    let y = UNIT_POS as usize / SIDE;
    let row_features = comptime!(plan.features_per_row());
    #[unroll]
    for i in 0..plan.rows_per_thread {
        let folded = rows.first + y + i * SIDE;
        if folded < rows.row_count {
            let mut token = folded / plan.group;
            if comptime!(gather) {
                token = usize::cast_from(queries[token]);
            }
            let start =
                token * target.stride(0) + rows.column + folded % plan.group * plan.head_dim;
            #[unroll]
            for j in 0..row_features {
                let feature = x + j * SIDE;
                if feature < plan.head_dim {
                    target[start + feature] = F::cast_from(sums[i * row_features + j]);
                }
            }
        }
    }
}

/// Writes a thread's features of a tile to the keys: the inverse of `load_keys`.
#[cube]
pub(super) fn store_keys<F: Float>(
    sums: &Array<f32>,
    target: &mut Tensor<F>,
    keys: KeySlice,
    #[comptime] plan: Plan,
) {
    let x = UNIT_POS as usize % SIDE;
    let y = UNIT_POS as usize / SIDE;
    let row_features = comptime!(plan.features_per_row());
    #[unroll]
    for i in 0..plan.rows_per_thread {
        let key = keys.first + y + i * SIDE;
        if key < target.shape(0) {
            #[unroll]
            for j in 0..row_features {
                let feature = x + j * SIDE;
                if feature < plan.head_dim {
                    let index = key * target.stride(0) + keys.column + feature;
                    target[index] = F::cast_from(sums[i * row_features + j]);
                }
            }
        }
    }
}
