//! Where the bytes of converted activations lie: the scratch that a linear with [`Compute::Int8`] or [`Compute::Bf16`] reads.
//!
//! Signed bytes ([`Int8Layout`]):
//!
//! ```text
//! row = codes[padded_k] (i8, zero beyond k) | scales[groups] (f32) | sums[groups] (i32) | products[groups] (f32) | padding to 64 bytes
//! ```
//!
//! `sums` are the sums of a group's codes: what an integer offset of the weight codes is multiplied with; `products` are
//! `scale * sum`: what a floating-point offset is multiplied with.
//!
//! bfloat16 ([`Bf16Layout`]), in one of two forms. Which one is the host's choice: a CPU that multiplies bfloat16 reads half of the bytes,
//! and any other would widen every number again for each panel of the weights.
//!
//! ```text
//! row = values[padded_k] (f32 that bf16 holds, zero beyond k)
//! row = values[padded_k] (bf16, zero beyond k) | padding to 64 bytes
//! ```
//!
//! [`Compute::Bf16`]: crate::scheme::Compute::Bf16
//! [`Compute::Int8`]: crate::scheme::Compute::Int8

use crate::panel::{K_STEP, LINE, PanelLayout};

/// Layout of a row of signed-byte activations for weights of one [`PanelLayout`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Int8Layout {
    /// Real elements of a row.
    pub k: usize,
    /// Elements with padding: [`PanelLayout::padded_k`].
    pub padded_k: usize,
    /// Elements that share a scale.
    pub group: usize,
}

impl Int8Layout {
    /// The layout for weights packed as `weight`, or why `group` does not fit them: a weight group must hold a whole
    /// number of activation groups.
    pub fn new(weight: &PanelLayout, group: usize) -> Result<Self, String> {
        if group == 0 || !group.is_multiple_of(16) || group > 1 << 16 {
            return Err(format!("activation group {group} is no multiple of 16 up to 65536"));
        }
        if weight.runs() > 1 && !weight.run().is_multiple_of(group) {
            return Err(format!(
                "activation group {group} does not divide the weight group {}",
                weight.run()
            ));
        }
        Ok(Self { k: weight.k(), padded_k: weight.padded_k(), group })
    }

    /// The group that suits weights with scale groups of `run` elements: 32 where it divides them, else 16.
    pub const fn natural_group(run: usize, runs: usize) -> usize {
        if runs == 1 || run.is_multiple_of(32) { 32 } else { 16 }
    }

    /// Groups of a row.
    pub const fn groups(&self) -> usize {
        self.k.div_ceil(self.group)
    }

    /// Offset of the scales in a row.
    pub const fn scales_at(&self) -> usize {
        self.padded_k.next_multiple_of(4)
    }

    /// Offset of the sums in a row.
    pub const fn sums_at(&self) -> usize {
        self.scales_at() + 4 * self.groups()
    }

    /// Offset of the products in a row.
    pub const fn products_at(&self) -> usize {
        self.sums_at() + 4 * self.groups()
    }

    /// Bytes from one row to the next.
    pub const fn row_bytes(&self) -> usize {
        (self.products_at() + 4 * self.groups()).next_multiple_of(LINE)
    }
}

/// Layouts of a row of bfloat16 activations. They depend on k alone, since scale groups are whole steps of [`K_STEP`] elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bf16Layout {
    /// Real elements of a row.
    pub k: usize,
}

impl Bf16Layout {
    /// Elements with padding: [`PanelLayout::padded_k`].
    pub const fn padded_k(&self) -> usize {
        self.k.next_multiple_of(K_STEP)
    }

    /// Bytes of a row in the plan: those of the longer form.
    pub const fn row_bytes(&self) -> usize {
        self.widened_row_bytes()
    }

    /// Bytes from one row of f32 to the next.
    pub const fn widened_row_bytes(&self) -> usize {
        4 * self.padded_k()
    }

    /// Bytes from one row of bf16 to the next.
    pub const fn native_row_bytes(&self) -> usize {
        (2 * self.padded_k()).next_multiple_of(LINE)
    }
}
