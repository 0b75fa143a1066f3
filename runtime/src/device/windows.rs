//! A mapped file as buffers of a device that takes whole pages, and no more than so many bytes at once.

use std::ops::Range;

/// Ranges of a mapping from page to page, and where each of its slices lies in them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Windows {
    /// The ranges. Neighbours may share pages.
    pub(super) ranges: Vec<Range<usize>>,
    /// For each slice, the window that holds it whole, and its offset there.
    pub(super) places: Vec<(usize, usize)>,
}

impl Windows {
    /// As few windows of up to `most` bytes as hold `slices`, which lie in ascending order in a mapping that begins at a page. A page's
    /// number of bytes is a power of two. `Err` is a slice that is too large.
    pub(super) fn cut(
        slices: impl IntoIterator<Item = Range<usize>>,
        page: usize,
        most: usize,
    ) -> Result<Self, Range<usize>> {
        let mut windows = Self { ranges: Vec::new(), places: Vec::new() };
        for slice in slices {
            let (start, end) = (slice.start & !(page - 1), slice.end.next_multiple_of(page));
            match windows.ranges.last_mut() {
                Some(last) if last.start <= start && end - last.start <= most => last.end = last.end.max(end),
                _ if end - start > most => return Err(slice),
                _ => windows.ranges.push(start..end),
            }
            let last = windows.ranges.len() - 1;
            windows.places.push((last, slice.start - windows.ranges[last].start));
        }
        Ok(windows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_hold_every_slice_whole() {
        let slices = [100..300, 320..5000, 5056..5056, 9000..16384, 16384..16400];
        let cut = |most| Windows::cut(slices.clone(), 4096, most);
        let Windows { ranges, places } = cut(1 << 20).unwrap();
        assert_eq!((ranges.len(), ranges[0].clone()), (1, 0..20480));
        assert_eq!(places, [(0, 100), (0, 320), (0, 5056), (0, 9000), (0, 16384)]);
        let two = cut(8192).unwrap();
        assert_eq!(two.ranges, [0..8192, 8192..16384, 16384..20480]);
        assert_eq!(two.places, [(0, 100), (0, 320), (0, 5056), (1, 808), (2, 0)]);
        for (slice, (window, at)) in slices.iter().zip(&two.places) {
            let range = &two.ranges[*window];
            assert!(range.start + at == slice.start && slice.end <= range.end, "{slice:?} in {range:?}");
        }
        assert_eq!(cut(4096), Err(320..5000));
        // Two weights of the same bytes, and one that lies before others.
        let again = Windows::cut([5000..6000, 5000..6000, 0..10], 4096, 1 << 20).unwrap();
        assert_eq!(
            (again.ranges, again.places),
            (vec![4096..8192, 0..4096], vec![(0, 904), (0, 904), (1, 0)])
        );
    }
}
