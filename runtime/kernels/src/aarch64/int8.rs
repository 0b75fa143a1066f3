//! The body of integer linears, whatever instruction multiplies the bytes.

/// Defines `linear_int8` (a [`crate::linear::LinearInt8Fn`] for every scheme of integer codes) and `tile` in a module
/// of its own instruction set, around two functions of that module:
///
/// - `add_step::<BITS, ROWS>(codes, step, x, row_bytes, &mut isum)` adds 16 elements along k, in any arrangement of its
///   liking, and
/// - `by_rows::<ROWS>(&mut isum)` puts the sums into place: one row an array, four columns a vector.
///
/// A macro, because a function with fewer target features could not inline the two. `$single` is the module whose
/// `tile` takes a row that is alone.
macro_rules! int8_kernel {
    ($features:literal, $single:path) => {
        use $single as single;

        /// [`crate::linear::LinearInt8Fn`] for every scheme of integer codes.
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn linear_int8(
            layout: &PanelLayout,
            act: &Int8Layout,
            panel: &[u8],
            x: &[u8],
            out: &mut [Lane],
        ) {
            if layout.scheme().elem.integers().is_some() {
                return $crate::linear::portable::linear_int8(layout, act, panel, x, out);
            }
            // SAFETY: the caller's promises are those of `linear`.
            unsafe { $crate::aarch64::for_bits!(layout.scheme().elem, linear(layout, act, panel, x, out)) }
        }

        /// # Safety
        /// As [`crate::linear::LinearInt8Fn`], for codes of `BITS` bits.
        #[target_feature(enable = $features)]
        unsafe fn linear<const BITS: u32>(
            layout: &PanelLayout,
            act: &Int8Layout,
            panel: &[u8],
            mut x: &[u8],
            mut out: &mut [Lane],
        ) {
            while !out.is_empty() {
                // Rows that share unpacked weights: the sums of four and a vector of codes each fill the registers.
                let rows = [1, 2, 2, 4][out.len().min(4) - 1];
                let (some, rest) = out.split_at_mut(rows);
                let (codes, next) = x.split_at(rows * act.row_bytes());
                // SAFETY: `some` and `codes` are of as many rows as the const parameter says; the rest is the caller's
                // promise.
                unsafe {
                    match rows {
                        4 => tile::<BITS, 4>(layout, act, panel, codes, some),
                        2 => tile::<BITS, 2>(layout, act, panel, codes, some),
                        _ => single::<BITS, 1>(layout, act, panel, codes, some),
                    }
                }
                (out, x) = (rest, next);
            }
        }

        /// # Safety
        /// As [`linear`], with `ROWS` rows in `x` and `out`.
        #[target_feature(enable = $features)]
        pub(in crate::aarch64) unsafe fn tile<const BITS: u32, const ROWS: usize>(
            layout: &PanelLayout,
            act: &Int8Layout,
            panel: &[u8],
            x: &[u8],
            out: &mut [Lane],
        ) {
            let Some(levels) = layout.scheme().scale else { return };
            let (constant, float) = (layout.scheme().constant(), layout.scheme().offset_type());
            let constant = constant + SignedBytes::of(layout.scheme().elem).bias;
            let row_bytes = act.row_bytes();
            let mut acc = [[vdupq_n_f32(0.0); QUARTERS]; ROWS];
            let mut g = 0;
            for r in 0..layout.runs() {
                // SAFETY: every run, with its codes, scales and offsets, lies inside the panel. A group lies inside a
                // row of `x`, and so do its scale, sum and product; `ROWS` rows are there.
                unsafe {
                    let codes = RunBytes::<BITS>::new(layout, panel, r);
                    let side = panel.as_ptr().add(layout.run_offset(r) + layout.run_code_bytes(r));
                    let scale = load16(levels.inner.ty, side);
                    let offset = match float {
                        Some(ty) => load16(ty, side.add(layout.scale_bytes())),
                        None => [vdupq_n_f32(0.0); QUARTERS],
                    };
                    let (scale, offset) = if layout.scheme().combines() {
                        combine(layout, panel.as_ptr(), r, scale, offset)
                    } else {
                        (scale, offset)
                    };
                    let mut k = r * layout.run();
                    let mut step = 0;
                    let end = k + layout.run_len(r).next_multiple_of(K_STEP);
                    while k < end {
                        let mut isum = [[vdupq_n_s32(0); QUARTERS]; ROWS];
                        let group_end = end.min(k + act.group);
                        while k < group_end {
                            add_step::<BITS, ROWS>(&codes, step, x.as_ptr().add(k), row_bytes, &mut isum);
                            step += 1;
                            k += K_STEP;
                        }
                        by_rows::<ROWS>(&mut isum);
                        for row in 0..ROWS {
                            let side = x.as_ptr().add(row * row_bytes + 4 * g);
                            let scale_x = side.add(act.scales_at()).cast::<f32>().read_unaligned();
                            let sum_x = side.add(act.sums_at()).cast::<i32>().read_unaligned();
                            let shift = vdupq_n_s32(constant.wrapping_mul(sum_x));
                            for q in 0..QUARTERS {
                                let isum = vcvtq_f32_s32(vsubq_s32(isum[row][q], shift));
                                acc[row][q] = vfmaq_n_f32(acc[row][q], vmulq_f32(isum, scale[q]), scale_x);
                            }
                            if float.is_some() {
                                let product = side.add(act.products_at()).cast::<f32>().read_unaligned();
                                for q in 0..QUARTERS {
                                    acc[row][q] = vfmaq_n_f32(acc[row][q], offset[q], product);
                                }
                            }
                        }
                        g += 1;
                    }
                }
            }
            for (out, acc) in out.iter_mut().zip(acc) {
                store16(out, acc);
            }
        }
    };
}
pub(super) use int8_kernel;
