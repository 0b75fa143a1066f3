//! What the integer sums of a tile start at.

use bessemer_format::act::Int8Layout;

/// Groups whose products are computed at a time: whole vectors instead of a multiplication a group and row.
const WINDOW: usize = 16;

/// For group after group of a tile's activation rows, `-constant * sums[g]`: the share of a constant offset of the weight
/// codes in an integer sum of products.
pub(super) struct OffsetProducts<'a, const ROWS: usize> {
    /// From the sums of the first row on.
    sums: &'a [u8],
    row_bytes: usize,
    groups: usize,
    minus_constant: i32,
    /// The next group.
    group: usize,
    window: [[i32; WINDOW]; ROWS],
}

impl<'a, const ROWS: usize> OffsetProducts<'a, ROWS> {
    /// For the first `ROWS` rows of `x`.
    #[inline(always)]
    pub(super) fn new(act: &Int8Layout, x: &'a [u8], constant: i32) -> Self {
        Self {
            sums: &x[act.sums_at()..],
            row_bytes: act.row_bytes(),
            groups: act.groups(),
            minus_constant: -constant,
            group: 0,
            window: [[0; WINDOW]; ROWS],
        }
    }

    /// The products of the next group.
    #[inline(always)]
    pub(super) fn next(&mut self) -> [i32; ROWS] {
        let at = self.group % WINDOW;
        if at == 0 {
            let count = WINDOW.min(self.groups - self.group);
            for (row, window) in self.window.iter_mut().enumerate() {
                let sums = &self.sums[row * self.row_bytes + 4 * self.group..][..4 * count];
                for (product, sum) in window.iter_mut().zip(sums.as_chunks().0) {
                    *product = i32::from_le_bytes(*sum).wrapping_mul(self.minus_constant);
                }
            }
        }
        self.group += 1;
        std::array::from_fn(|row| self.window[row][at])
    }
}
