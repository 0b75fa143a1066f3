//! Which loops can work on sixteen iterations at a time.

use bessemer_format::manifest::KvElem;
use bessemer_format::nest::{Base, Index, Nest, Op, Stmt, ViewElem};

/// The stride of `index` along `axis`, in elements; `None` where elements are not evenly spaced.
pub(super) fn stride(index: &Index, axis: u8) -> Option<i64> {
    index
        .terms
        .iter()
        .filter(|t| t.base == Base::Axis(axis))
        .try_fold(0i64, |sum, t| (t.div == 1 && t.rem == 0).then(|| sum + t.coef))
}

/// How elements of a view are stored once the cache's type is known.
pub(super) fn resolve(elem: ViewElem, kv: KvElem) -> ViewElem {
    match (elem, kv) {
        (ViewElem::Kv, KvElem::F32) => ViewElem::F32,
        (ViewElem::Kv, KvElem::Bf16) => ViewElem::Bf16,
        (other, _) => other,
    }
}

/// Whether a vector loop's body can work on vectors: contiguous or constant loads, contiguous f32 stores, no sines.
pub(super) fn vectorises(nest: &Nest, body: &[Stmt], axis: u8, kv: KvElem) -> bool {
    body.iter().all(|stmt| match stmt {
        Stmt::Let { op, .. } => !matches!(op, Op::Sin(_) | Op::Cos(_)),
        Stmt::Load { index, .. } => matches!(stride(index, axis), Some(0 | 1)),
        Stmt::Store { view, index, .. } => {
            let elem = nest.views.get(usize::from(view.0)).map(|v| resolve(v.elem, kv));
            stride(index, axis) == Some(1) && elem == Some(ViewElem::F32)
        }
        _ => false,
    })
}
