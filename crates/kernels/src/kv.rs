//! One layer's keys and values, in blocks.

mod rows;

use half::{bf16, f16};

use crate::element::ElementType;

pub(crate) use self::rows::{Coded, HeadRows, Plain, RowWriter};

/// What keys and values are kept as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvFormat {
    /// Numbers of a type.
    Plain(ElementType),
    /// Whole numbers from -127 to 127, those of a token's head sharing a step: its largest magnitude by 127, in bf16.
    Int8,
}

impl KvFormat {
    /// Bytes of one head's keys, or values, of one token.
    pub fn row_bytes(self, head_dim: usize) -> usize {
        match self {
            KvFormat::Plain(element) => head_dim * element.size(),
            KvFormat::Int8 => Coded::width(head_dim) + size_of::<bf16>(),
        }
    }
}

impl From<ElementType> for KvFormat {
    fn from(element: ElementType) -> Self {
        Self::Plain(element)
    }
}

/// The dimensions of a [`KvCache`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvShape {
    /// Number of blocks.
    pub n_blocks: usize,
    /// Rows of a block, one row a token.
    pub block_tokens: usize,
    /// Key/value heads of a row.
    pub kv_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
}

impl KvShape {
    /// Values of a row of keys, and of a row of values.
    pub fn row_len(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Bytes of one block's keys and values.
    pub fn bytes_per_block(&self, format: KvFormat) -> usize {
        2 * self.block_tokens * self.kv_heads * format.row_bytes(self.head_dim)
    }

    /// Which of all heads' rows a token's is. A head's rows of one block follow each other.
    pub(crate) fn head_row(&self, block: usize, head: usize, row: usize) -> usize {
        (block * self.kv_heads + head) * self.block_tokens + row
    }
}

/// The keys and values of one layer: `n_blocks × block_tokens` rows, each of `kv_heads × head_dim` keys and as many
/// values. Which sequence a block belongs to is the caller's to know; [`attend`](crate::attend) reads and writes
/// through block tables.
#[derive(Debug)]
pub struct KvCache {
    pub(crate) shape: KvShape,
    pub(crate) store: Store,
}

#[derive(Debug)]
pub(crate) enum Store {
    F32(KeysValues<Plain<f32>>),
    Bf16(KeysValues<Plain<bf16>>),
    F16(KeysValues<Plain<f16>>),
    Int8(KeysValues<Coded>),
}

/// Keys and values, as many rows of each.
#[derive(Debug)]
pub(crate) struct KeysValues<R> {
    pub(crate) k: R,
    pub(crate) v: R,
}

/// Evaluates `$body` with `$pair` bound to the keys and values, whatever their type.
macro_rules! each {
    ($store:expr, $pair:ident => $body:expr) => {
        match $store {
            Store::F32($pair) => $body,
            Store::Bf16($pair) => $body,
            Store::F16($pair) => $body,
            Store::Int8($pair) => $body,
        }
    };
}
pub(crate) use each;

impl KvCache {
    /// A cache of zeros. Memory is taken from the system as blocks are first written.
    ///
    /// # Panics
    /// If a dimension is zero.
    pub fn new(shape: KvShape, format: impl Into<KvFormat>) -> Self {
        let KvShape {
            n_blocks,
            block_tokens,
            kv_heads,
            head_dim,
        } = shape;
        assert!(
            n_blocks > 0 && block_tokens > 0 && kv_heads > 0 && head_dim > 0,
            "{shape:?} holds nothing"
        );
        let n_rows = n_blocks * block_tokens * kv_heads;
        let store = match format.into() {
            KvFormat::Plain(ElementType::F32) => Store::F32(KeysValues::zeroed(n_rows, head_dim)),
            KvFormat::Plain(ElementType::Bf16) => Store::Bf16(KeysValues::zeroed(n_rows, head_dim)),
            KvFormat::Plain(ElementType::F16) => Store::F16(KeysValues::zeroed(n_rows, head_dim)),
            KvFormat::Int8 => Store::Int8(KeysValues::zeroed(n_rows, head_dim)),
        };
        Self { shape, store }
    }

    /// The dimensions.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// What keys and values are rounded to.
    pub fn format(&self) -> KvFormat {
        match self.store {
            Store::F32(_) => KvFormat::Plain(ElementType::F32),
            Store::Bf16(_) => KvFormat::Plain(ElementType::Bf16),
            Store::F16(_) => KvFormat::Plain(ElementType::F16),
            Store::Int8(_) => KvFormat::Int8,
        }
    }

    /// Memory of all blocks, in bytes.
    pub fn bytes(&self) -> usize {
        self.shape.n_blocks * self.shape.bytes_per_block(self.format())
    }

    /// Stores one row, `k` and `v` of `kv_heads × head_dim` values each, as row `row` of a block.
    ///
    /// # Panics
    /// If there is no such row, or a length differs.
    pub fn write_row(&mut self, block: u32, row: usize, k: &[f32], v: &[f32]) {
        let shape = self.shape;
        let block = self.checked(block);
        assert!(
            row < shape.block_tokens,
            "row {row} of a block of {}",
            shape.block_tokens
        );
        assert!(
            k.len() == shape.row_len() && v.len() == k.len(),
            "a row has {} values",
            shape.row_len()
        );
        each!(&mut self.store, pair => {
            let (keys, values) = (pair.k.writer(), pair.v.writer());
            let heads = k.chunks_exact(shape.head_dim).zip(v.chunks_exact(shape.head_dim));
            for (head, (k, v)) in heads.enumerate() {
                let to = shape.head_row(block, head, row);
                // SAFETY: the block is one of the cache's, the row one of the block's, and the cache is borrowed mutably.
                unsafe {
                    keys.write(to, k);
                    values.write(to, v);
                }
            }
        });
    }

    /// One row as f32, keys and values, each `kv_heads × head_dim`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn read_row(&self, block: u32, row: usize) -> (Vec<f32>, Vec<f32>) {
        let shape = self.shape;
        let block = self.checked(block);
        assert!(
            row < shape.block_tokens,
            "row {row} of a block of {}",
            shape.block_tokens
        );
        let heads = (0..shape.kv_heads).map(|head| shape.head_row(block, head, row));
        each!(&self.store, pair => {
            (heads.clone().flat_map(|row| pair.k.read(row)).collect(),
             heads.flat_map(|row| pair.v.read(row)).collect())
        })
    }

    /// Copies all rows of a block over those of another.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn copy_block(&mut self, from: u32, to: u32) {
        let (from, to) = (self.block_range(from), self.block_range(to));
        each!(&mut self.store, pair => {
            pair.k.copy_within(from.clone(), to.start);
            pair.v.copy_within(from, to.start);
        });
    }

    /// Fills a block with NaN, so that reading what nobody wrote since shows in every number after it.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn scrub_block(&mut self, block: u32) {
        let range = self.block_range(block);
        each!(&mut self.store, pair => {
            pair.k.scrub(range.clone());
            pair.v.scrub(range);
        });
    }

    fn checked(&self, block: u32) -> usize {
        assert!(
            (block as usize) < self.shape.n_blocks,
            "block {block} of {}",
            self.shape.n_blocks
        );
        block as usize
    }

    /// A block's rows, of all heads.
    fn block_range(&self, block: u32) -> std::ops::Range<usize> {
        let block = self.checked(block);
        self.shape.head_row(block, 0, 0)..self.shape.head_row(block + 1, 0, 0)
    }
}

impl<R: HeadRows> KeysValues<R> {
    pub(crate) fn zeroed(n_rows: usize, head_dim: usize) -> Self {
        Self {
            k: R::zeroed(n_rows, head_dim),
            v: R::zeroed(n_rows, head_dim),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: KvShape = KvShape {
        n_blocks: 3,
        block_tokens: 4,
        kv_heads: 2,
        head_dim: 8,
    };

    const FORMATS: [KvFormat; 4] = [
        KvFormat::Plain(ElementType::F32),
        KvFormat::Plain(ElementType::Bf16),
        KvFormat::Plain(ElementType::F16),
        KvFormat::Int8,
    ];

    /// Whole numbers, of which each head has one of magnitude 127: every format has them exactly.
    fn row(first: f32) -> Vec<f32> {
        let of_head = |i: usize| if i % 8 == 3 { -127.0 } else { first + i as f32 };
        (0..16).map(of_head).collect()
    }

    #[test]
    fn rows_are_read_as_written_and_blocks_copied_whole() {
        for format in FORMATS {
            let mut cache = KvCache::new(SHAPE, format);
            for i in 0..4 {
                cache.write_row(1, i, &row(i as f32), &row(-(i as f32)));
            }
            cache.copy_block(1, 2);
            for i in 0..4 {
                let expected = (row(i as f32), row(-(i as f32)));
                assert_eq!(
                    (cache.read_row(1, i), cache.read_row(2, i)),
                    (expected.clone(), expected)
                );
                assert_eq!(cache.read_row(0, i), (vec![0.0; 16], vec![0.0; 16]));
            }
        }
    }

    #[test]
    fn a_scrubbed_block_is_all_nan_and_its_neighbours_are_not() {
        for format in FORMATS {
            let mut cache = KvCache::new(SHAPE, format);
            cache.scrub_block(1);
            for i in 0..4 {
                let (k, v) = cache.read_row(1, i);
                assert!(k.iter().chain(&v).all(|x| x.is_nan()));
                assert_eq!(
                    (cache.read_row(0, i).0, cache.read_row(2, i).1),
                    (vec![0.0; 16], vec![0.0; 16])
                );
            }
        }
    }

    #[test]
    fn bytes_follow_the_storage_type() {
        assert_eq!(KvCache::new(SHAPE, ElementType::F32).bytes(), 3 * 4 * 16 * 2 * 4);
        assert_eq!(KvCache::new(SHAPE, ElementType::Bf16).bytes(), 3 * 4 * 16 * 2 * 2);
        // Two heads of 8 numbers take 32 bytes each, and two for the step.
        assert_eq!(KvCache::new(SHAPE, KvFormat::Int8).bytes(), 3 * 4 * 2 * 34 * 2);
    }

    #[test]
    #[should_panic(expected = "block 3 of 3")]
    fn a_block_beyond_the_last_is_refused() {
        KvCache::new(SHAPE, ElementType::F32).scrub_block(3);
    }
}
