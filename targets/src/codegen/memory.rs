//! Which loops can work on sixteen iterations at a time, and where their elements lie.

use bessemer_format::manifest::KvElem;
use bessemer_format::nest::{Base, Index, LANES, Nest, Op, Stmt, ViewElem, ViewId};

/// The stride of `index` along `axis`, in elements; `None` where elements are not evenly spaced.
pub(super) fn stride(index: &Index, axis: u8) -> Option<i64> {
    index
        .terms
        .iter()
        .filter(|t| t.base == Base::Axis(axis))
        .try_fold(0i64, |sum, t| (t.div == 1 && t.rem == 0).then(|| sum + t.coef))
}

/// How far the elements of [`LANES`] iterations lie from that of the first, for a first one that is a multiple of [`LANES`];
/// `None` where that depends on the iteration.
pub(super) fn lanes(index: &Index, axis: u8) -> Option<[i64; LANES]> {
    let mut out = [0i64; LANES];
    for term in index.terms.iter().filter(|term| term.base == Base::Axis(axis)) {
        let (div, rem) = (term.div as usize, term.rem as usize);
        // Then the quotient grows by a constant from one sixteen to the next, and its remainder starts anew with each.
        if div == 0 || !LANES.is_multiple_of(div) || (rem != 0 && !(LANES / div).is_multiple_of(rem)) {
            return None;
        }
        for (lane, out) in out.iter_mut().enumerate() {
            let value = if rem == 0 { lane / div } else { lane / div % rem };
            *out += term.coef * value as i64;
        }
    }
    Some(out)
}

/// Whether the elements of [`LANES`] iterations are neighbours.
pub(super) fn contiguous(lanes: &[i64; LANES]) -> bool {
    lanes.iter().enumerate().all(|(lane, at)| *at == lane as i64)
}

/// Whether each even iteration and the next one have neighbours: two halves that one store writes.
pub(super) fn in_pairs(lanes: &[i64; LANES]) -> bool {
    lanes.as_chunks::<2>().0.iter().all(|[even, odd]| *odd == even + 1)
}

/// How elements of a view are stored once the cache's type is known.
pub(super) fn resolve(elem: ViewElem, kv: KvElem) -> ViewElem {
    match (elem, kv) {
        (ViewElem::Kv, KvElem::F32) => ViewElem::F32,
        (ViewElem::Kv, KvElem::Bf16) => ViewElem::Bf16,
        (ViewElem::Kv, KvElem::F16) => ViewElem::F16,
        (other, _) => other,
    }
}

/// Whether a vector loop's body can work on vectors: loads of neighbours, of every other float or of one for all, stores at places
/// that are known from the first, no sines.
pub(super) fn vectorises(nest: &Nest, body: &[Stmt], axis: u8, kv: KvElem) -> bool {
    let elem = |view: &ViewId| nest.views.get(usize::from(view.0)).map(|v| resolve(v.elem, kv));
    body.iter().all(|stmt| match stmt {
        Stmt::Let { op, .. } => !matches!(op, Op::Sin(_) | Op::Cos(_)),
        Stmt::Load { view, index, .. } => match stride(index, axis) {
            Some(0 | 1) => true,
            Some(2) => elem(view) == Some(ViewElem::F32),
            _ => false,
        },
        Stmt::Store { view, index, .. } => {
            lanes(index, axis).is_some()
                && matches!(elem(view), Some(ViewElem::F32 | ViewElem::F16 | ViewElem::Bf16))
        }
        _ => false,
    })
}
