//! Code is generated for every nest that lowering makes. That it computes the interpreter's bits is tested where both can run: in the
//! tests crate.

use super::*;
use bessemer_format::nest::{Extent, Index, Op, ReduceKind, Reg, Stmt, View, ViewElem, ViewId};

fn softmax_like() -> Nest {
    let at = Index::axis(0) * 40 + Index::axis(1);
    Nest {
        name: "softmax".into(),
        views: vec![
            View { name: "x".into(), elem: ViewElem::F16, store: false },
            View { name: "out".into(), elem: ViewElem::F32, store: true },
        ],
        body: vec![
            Stmt::Reduce { dst: Reg(1), kind: ReduceKind::Max, value: Reg(0), extent: Extent::constant(40) },
            Stmt::Load { dst: Reg(0), view: ViewId(0), index: at.clone() },
            Stmt::End,
            Stmt::For { extent: Extent::constant(40) },
            Stmt::Load { dst: Reg(2), view: ViewId(0), index: at.clone() },
            Stmt::Let { dst: Reg(3), op: Op::Sub(Reg(2), Reg(1)) },
            Stmt::Let { dst: Reg(4), op: Op::Exp(Reg(3)) },
            Stmt::Store { view: ViewId(1), index: at, src: Reg(4) },
            Stmt::End,
        ],
    }
}

#[test]
fn both_instruction_sets_compile_to_bytes_without_relocations() {
    for isa in [CodeIsa::X86_64V3, CodeIsa::Aarch64] {
        let code = Generator::new(isa).unwrap().compile(&softmax_like(), KvElem::Bf16).unwrap();
        assert!(code.bytes.len() > 100 && !code.assembly.is_empty(), "{isa:?}");
    }
}

#[test]
fn the_same_nest_gives_the_same_bytes() {
    let make = || section(&[softmax_like(), softmax_like()], &[CodeIsa::X86_64V3, CodeIsa::Aarch64]).unwrap();
    let (bytes, entries) = make();
    assert_eq!((bytes, entries.clone()), make());
    assert_eq!(entries.len(), 4);
    assert_eq!(entries[0].offset, entries[1].offset, "equal functions stand once");
}

/// Places of sixteen iterations are what the index says, wherever the sixteen begin; where they are not the same from one sixteen to
/// the next, there are none.
#[test]
fn lanes_lie_where_the_index_says() {
    use super::memory::{contiguous, lanes};
    use bessemer_format::nest::{Base, LANES, Term};
    let term = |div, rem, coef| Term { base: Base::Axis(1), div, rem, coef };
    let at = |terms: &[Term], i: i64| -> i64 {
        let value = |t: &Term| {
            let quotient = i / i64::from(t.div);
            t.coef * if t.rem == 0 { quotient } else { quotient % i64::from(t.rem) }
        };
        terms.iter().map(value).sum()
    };
    for (terms, known) in [
        (vec![], true),
        (vec![term(1, 0, 1)], true),
        (vec![term(1, 0, 2)], true),
        (vec![term(2, 0, 32), term(1, 2, 1)], true),
        (vec![term(4, 2, 7), term(8, 0, -3)], true),
        (vec![term(16, 0, 5)], true),
        (vec![term(3, 0, 1)], false),
        (vec![term(1, 3, 1)], false),
        (vec![term(32, 0, 1)], false),
        (vec![term(1, 32, 1)], false),
    ] {
        let index = Index { terms: terms.clone(), constant: 9 };
        let found = lanes(&index, 1);
        assert_eq!(found.is_some(), known, "{terms:?}");
        let Some(found) = found else { continue };
        for first in [0, 16, 48] {
            for (lane, offset) in found.iter().enumerate() {
                let want = at(&terms, first + lane as i64) - at(&terms, first);
                assert_eq!(*offset, want, "{terms:?} lane {lane} from {first}");
            }
        }
        assert_eq!(contiguous(&found), terms == [term(1, 0, 1)]);
        assert_eq!(lanes(&index, 2), Some([0; LANES]), "another axis does not move it");
    }
}
