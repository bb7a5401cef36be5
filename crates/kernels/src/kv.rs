//! One layer's keys and values, in blocks.

use half::{bf16, f16};

use crate::buffer::Buffer;
use crate::element::{Element, ElementType};

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
    pub fn bytes_per_block(&self, element: ElementType) -> usize {
        2 * self.block_tokens * self.row_len() * element.size()
    }

    /// Where the head of a row starts. A head's rows of one block lie one after the other.
    pub(crate) fn offset(&self, block: usize, head: usize, row: usize) -> usize {
        ((block * self.kv_heads + head) * self.block_tokens + row) * self.head_dim
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
    F32(KeysValues<f32>),
    Bf16(KeysValues<bf16>),
    F16(KeysValues<f16>),
}

#[derive(Debug)]
pub(crate) struct KeysValues<E> {
    pub(crate) k: Buffer<E>,
    pub(crate) v: Buffer<E>,
}

/// Evaluates `$body` with `$pair` bound to the keys and values, whatever their type.
macro_rules! each {
    ($store:expr, $pair:ident => $body:expr) => {
        match $store {
            Store::F32($pair) => $body,
            Store::Bf16($pair) => $body,
            Store::F16($pair) => $body,
        }
    };
}
pub(crate) use each;

impl KvCache {
    /// A cache of zeros. Memory is taken from the system as blocks are first written.
    ///
    /// # Panics
    /// If a dimension is zero.
    pub fn new(shape: KvShape, element: ElementType) -> Self {
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
        let len = n_blocks * block_tokens * shape.row_len();
        let store = match element {
            ElementType::F32 => Store::F32(KeysValues::zeroed(len)),
            ElementType::Bf16 => Store::Bf16(KeysValues::zeroed(len)),
            ElementType::F16 => Store::F16(KeysValues::zeroed(len)),
        };
        Self { shape, store }
    }

    /// The dimensions.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// The type that keys and values are rounded to.
    pub fn element(&self) -> ElementType {
        match self.store {
            Store::F32(_) => ElementType::F32,
            Store::Bf16(_) => ElementType::Bf16,
            Store::F16(_) => ElementType::F16,
        }
    }

    /// Memory of all blocks, in bytes.
    pub fn bytes(&self) -> usize {
        self.shape.n_blocks * self.shape.bytes_per_block(self.element())
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
            for head in 0..shape.kv_heads {
                let from = head * shape.head_dim..(head + 1) * shape.head_dim;
                let to = shape.offset(block, head, row);
                round_into(&k[from.clone()], &mut pair.k[to..][..shape.head_dim]);
                round_into(&v[from], &mut pair.v[to..][..shape.head_dim]);
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
        let heads = (0..shape.kv_heads).map(|head| shape.offset(block, head, row));
        each!(&self.store, pair => {
            (heads.clone().flat_map(|start| widened(&pair.k[start..][..shape.head_dim])).collect(),
             heads.flat_map(|start| widened(&pair.v[start..][..shape.head_dim])).collect())
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
            pair.k[range.clone()].fill(Element::NAN);
            pair.v[range].fill(Element::NAN);
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

    fn block_range(&self, block: u32) -> std::ops::Range<usize> {
        let block = self.checked(block);
        self.shape.offset(block, 0, 0)..self.shape.offset(block + 1, 0, 0)
    }
}

impl<E: Element> KeysValues<E> {
    fn zeroed(len: usize) -> Self {
        Self {
            k: Buffer::zeroed_in_large_pages(len),
            v: Buffer::zeroed_in_large_pages(len),
        }
    }
}

/// Rounds `from` to the storage type.
pub(crate) fn round_into<E: Element>(from: &[f32], to: &mut [E]) {
    to.iter_mut()
        .zip(from)
        .for_each(|(to, from)| *to = E::from_f32(*from));
}

fn widened<E: Element>(values: &[E]) -> impl Iterator<Item = f32> + '_ {
    values.iter().map(|x| x.to_f32())
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

    fn row(first: f32) -> Vec<f32> {
        (0..16).map(|i| first + i as f32).collect()
    }

    #[test]
    fn rows_are_read_as_written_and_blocks_copied_whole() {
        for element in [ElementType::F32, ElementType::Bf16, ElementType::F16] {
            let mut cache = KvCache::new(SHAPE, element);
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
        for element in [ElementType::F32, ElementType::Bf16, ElementType::F16] {
            let mut cache = KvCache::new(SHAPE, element);
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
    }

    #[test]
    #[should_panic(expected = "block 3 of 3")]
    fn a_block_beyond_the_last_is_refused() {
        KvCache::new(SHAPE, ElementType::F32).scrub_block(3);
    }
}
