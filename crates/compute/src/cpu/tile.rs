//! A mutable rectangle of a matrix that can be split, so that threads write disjoint parts of one output.

#![allow(unsafe_code)]

use std::marker::PhantomData;

/// Rows and columns `[rows, columns]` within a matrix whose rows are `stride` floats apart.
#[derive(Debug)]
pub(crate) struct TileMut<'a> {
    first: *mut f32,
    rows: usize,
    columns: usize,
    stride: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: a tile is a mutable borrow of its floats alone, like `&mut [f32]`, which may move to another thread.
unsafe impl Send for TileMut<'_> {}

impl<'a> TileMut<'a> {
    /// The whole of a row-major matrix; `data` holds `rows * columns` floats.
    pub(crate) fn new(data: &'a mut [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(data.len(), rows * columns);
        Self { first: data.as_mut_ptr(), rows, columns, stride: columns, borrow: PhantomData }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// Row `row` of the tile.
    #[inline(always)]
    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows);
        // SAFETY: the row lies within the matrix that was borrowed for 'a, and tiles that exist together never share a
        // float (`split_rows` and `split_columns` part them, `reborrow` lends a tile that can not be used meanwhile).
        unsafe { std::slice::from_raw_parts_mut(self.first.add(row * self.stride), self.columns) }
    }

    /// The first `at` rows and the others.
    pub(crate) fn split_rows(self, at: usize) -> (Self, Self) {
        assert!(at <= self.rows);
        // An empty tile is never read through; wrapping arithmetic keeps its pointer harmless past the end.
        let first = self.first.wrapping_add(at * self.stride);
        (Self { rows: at, ..self }, Self { first, rows: self.rows - at, ..self })
    }

    /// The first `at` columns and the others.
    pub(crate) fn split_columns(self, at: usize) -> (Self, Self) {
        assert!(at <= self.columns);
        let first = self.first.wrapping_add(at);
        (Self { columns: at, ..self }, Self { first, columns: self.columns - at, ..self })
    }

    /// This tile for a shorter time.
    pub(crate) fn reborrow(&mut self) -> TileMut<'_> {
        TileMut { borrow: PhantomData, ..*self }
    }

    /// The whole tile, leaving none of its rows here.
    pub(crate) fn take(&mut self) -> Self {
        let whole = Self { borrow: PhantomData, ..*self };
        self.rows = 0;
        whole
    }

    /// Columns `range` for a shorter time.
    pub(crate) fn columns_mut(&mut self, range: std::ops::Range<usize>) -> TileMut<'_> {
        self.reborrow().split_columns(range.end).0.split_columns(range.start).1
    }

    /// Parts it into tiles of at most `rows` by `columns`, down each column of tiles before the next.
    pub(crate) fn into_tiles(self, rows: usize, columns: usize) -> Tiles<'a> {
        let (column, right) = self.split_columns(0);
        Tiles { column, right, rows, columns }
    }
}

/// The tiles of a larger one; see [`TileMut::into_tiles`].
#[derive(Debug)]
pub(crate) struct Tiles<'a> {
    /// What is left of the column of tiles that is being parted.
    column: TileMut<'a>,
    right: TileMut<'a>,
    rows: usize,
    columns: usize,
}

impl<'a> Iterator for Tiles<'a> {
    type Item = TileMut<'a>;

    fn next(&mut self) -> Option<TileMut<'a>> {
        if self.column.rows == 0 || self.column.columns == 0 {
            let columns = self.columns.min(self.right.columns);
            (self.column, self.right) = self.right.take().split_columns(columns);
        }
        if self.column.rows == 0 || self.column.columns == 0 {
            return None;
        }
        let rows = self.rows.min(self.column.rows);
        let (tile, below) = self.column.take().split_rows(rows);
        self.column = below;
        Some(tile)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = if self.column.columns == 0 { 0 } else { self.column.rows.div_ceil(self.rows) };
        let tiles = left + self.right.rows.div_ceil(self.rows) * self.right.columns.div_ceil(self.columns);
        (tiles, Some(tiles))
    }
}

impl ExactSizeIterator for Tiles<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_every_float_once() {
        let mut data = vec![0.0; 7 * 10];
        let tiles = TileMut::new(&mut data, 7, 10).into_tiles(3, 4);
        assert_eq!(tiles.len(), 9);
        for (i, mut tile) in tiles.enumerate() {
            for row in 0..tile.rows() {
                tile.row_mut(row).iter_mut().for_each(|x| *x += 1.0 + i as f32);
            }
        }
        assert_eq!(data[..10], [1.0, 1.0, 1.0, 1.0, 4.0, 4.0, 4.0, 4.0, 7.0, 7.0]);
        assert_eq!(data[60..], [3.0, 3.0, 3.0, 3.0, 6.0, 6.0, 6.0, 6.0, 9.0, 9.0]);
    }

    #[test]
    fn columns_can_be_lent() {
        let mut data = vec![0.0; 2 * 4];
        let mut tile = TileMut::new(&mut data, 2, 4);
        tile.columns_mut(1..3).row_mut(1).fill(5.0);
        tile.columns_mut(3..4).row_mut(0).fill(6.0);
        assert_eq!(data, [0.0, 0.0, 0.0, 6.0, 0.0, 5.0, 5.0, 0.0]);
    }
}
