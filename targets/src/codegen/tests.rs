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
