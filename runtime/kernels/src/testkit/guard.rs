//! Buffers between inaccessible pages, so that an access outside of them ends the test process.

#[cfg(unix)]
pub(crate) use unix::Guarded;

#[cfg(unix)]
mod unix {
    use std::ops::{Deref, DerefMut};

    /// Elements that end at an inaccessible page ([`Guarded::at_end`]) or begin after one ([`Guarded::at_start`]).
    pub(crate) struct Guarded<T: Copy> {
        map: *mut u8,
        map_len: usize,
        data: *mut T,
        len: usize,
    }

    impl<T: Copy> Guarded<T> {
        /// A copy of `data` whose last byte is followed by an inaccessible page.
        pub(crate) fn at_end(data: &[T]) -> Self {
            Self::new(data, true)
        }

        /// A copy of `data` whose first byte is preceded by an inaccessible page.
        pub(crate) fn at_start(data: &[T]) -> Self {
            Self::new(data, false)
        }

        fn new(source: &[T], end: bool) -> Self {
            // SAFETY: sysconf has no preconditions.
            let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
            let bytes = size_of_val(source);
            let inner = bytes.next_multiple_of(page).max(page);
            let map_len = inner + 2 * page;
            // SAFETY: an anonymous private mapping at an address of the kernel's choice touches no other memory.
            let map = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    map_len,
                    libc::PROT_NONE,
                    libc::MAP_PRIVATE | libc::MAP_ANON,
                    -1,
                    0,
                )
            };
            assert_ne!(map, libc::MAP_FAILED, "mmap failed");
            let map = map.cast::<u8>();
            // SAFETY: the range lies inside the mapping made above and starts at a page.
            let rc =
                unsafe { libc::mprotect(map.add(page).cast(), inner, libc::PROT_READ | libc::PROT_WRITE) };
            assert_eq!(rc, 0, "mprotect failed");
            // SAFETY: both offsets lie within the mapping. `inner` and the page are multiples of the alignment of T,
            // and so is the size of a slice.
            let data = unsafe { map.add(page + if end { inner - bytes } else { 0 }) }.cast::<T>();
            // SAFETY: `data` is aligned, writable for `bytes` and overlaps nothing; T is Copy.
            unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), data, source.len()) };
            Self { map, map_len, data, len: source.len() }
        }
    }

    impl<T: Copy> Deref for Guarded<T> {
        type Target = [T];
        fn deref(&self) -> &[T] {
            // SAFETY: `new` initialised `len` elements at `data`, which live as long as `self`.
            unsafe { std::slice::from_raw_parts(self.data, self.len) }
        }
    }

    impl<T: Copy> DerefMut for Guarded<T> {
        fn deref_mut(&mut self) -> &mut [T] {
            // SAFETY: as in `deref`, and `self` is borrowed mutably.
            unsafe { std::slice::from_raw_parts_mut(self.data, self.len) }
        }
    }

    impl<T: Copy> Drop for Guarded<T> {
        fn drop(&mut self) {
            // SAFETY: the mapping was made by `new` and is unmapped once.
            unsafe { libc::munmap(self.map.cast(), self.map_len) };
        }
    }
}

/// Without page protection at hand the test still runs, on plain copies.
#[cfg(not(unix))]
pub(crate) struct Guarded<T>(Vec<T>);

#[cfg(not(unix))]
impl<T: Copy> Guarded<T> {
    pub(crate) fn at_end(data: &[T]) -> Self {
        Self(data.to_vec())
    }
    pub(crate) fn at_start(data: &[T]) -> Self {
        Self(data.to_vec())
    }
}

#[cfg(not(unix))]
impl<T> std::ops::Deref for Guarded<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.0
    }
}

#[cfg(not(unix))]
impl<T> std::ops::DerefMut for Guarded<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}
