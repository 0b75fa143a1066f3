use super::*;
use crate::pool::SharedBytes;
use bessemer_format::nest::{Extent, Index, Int, Op, ReduceKind, Reg, Stmt, View, ViewElem, ViewId};
use bessemer_format::scheme::round_f16;

fn view(name: &str, elem: ViewElem, store: bool) -> View {
    View { name: name.into(), elem, store }
}

fn run(nest: &Nest, rows: usize, views: &[ViewBinding<'_>]) -> Result<(), String> {
    Interpreter::new(nest, KvElem::Bf16)?.run(0..rows, views, &[rows as i64, 0, 0, 0])
}

fn bind(bytes: SharedBytes<'_>) -> ViewBinding<'_> {
    ViewBinding { bytes, panel: None }
}

/// `out[r] = Σ_j x[r][j]²`, then `scaled[r][j] = x[r][j] * out[r]`.
fn squares(n: i64) -> Nest {
    let at = |j: u8| Index::axis(0) * n + Index::axis(j);
    Nest {
        name: "squares".into(),
        views: vec![view("x", ViewElem::F32, false), view("scaled", ViewElem::F32, true)],
        body: vec![
            Stmt::Reduce { dst: Reg(2), kind: ReduceKind::Sum, value: Reg(1), extent: Extent::constant(n) },
            Stmt::Load { dst: Reg(0), view: ViewId(0), index: at(1) },
            Stmt::Let { dst: Reg(1), op: Op::Mul(Reg(0), Reg(0)) },
            Stmt::End,
            Stmt::For { extent: Extent::constant(n) },
            Stmt::Load { dst: Reg(3), view: ViewId(0), index: at(1) },
            Stmt::Let { dst: Reg(4), op: Op::Mul(Reg(3), Reg(2)) },
            Stmt::Store { view: ViewId(1), index: at(1), src: Reg(4) },
            Stmt::End,
        ],
    }
}

#[test]
fn a_sum_keeps_sixteen_partial_results() {
    for n in [0usize, 1, 3, 16, 17, 63, 64, 65, 576] {
        let x: Vec<f32> = (0..2 * n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
        let mut out = vec![0.0f32; 2 * n];
        let views = [bind(SharedBytes::read_only(&x)), bind(SharedBytes::read_write(&mut out))];
        run(&squares(n as i64), 2, &views).unwrap();
        for r in 0..2 {
            let row = &x[r * n..][..n];
            let mut p = [0.0f32; 16];
            for (i, v) in row.iter().enumerate() {
                p[i % 16] += v * v;
            }
            for s in [8, 4, 2, 1] {
                for l in 0..s {
                    p[l] += p[l + s];
                }
            }
            for (j, v) in row.iter().enumerate() {
                assert_eq!(out[r * n + j].to_bits(), (v * p[0]).to_bits(), "n {n} row {r} element {j}");
            }
        }
    }
}

#[test]
fn numbers_known_only_at_run_time_are_checked() {
    let gather = |limit: i64| Nest {
        name: "gather".into(),
        views: vec![
            view("ids", ViewElem::I32, false),
            view("table", ViewElem::F32, false),
            view("out", ViewElem::F32, true),
        ],
        body: vec![
            Stmt::LoadInt {
                dst: Int(0),
                view: ViewId(0),
                index: Index::axis(0),
                limit: Index::constant(limit),
            },
            Stmt::Load { dst: Reg(0), view: ViewId(1), index: Index::int(Int(0)) },
            Stmt::Store { view: ViewId(2), index: Index::axis(0), src: Reg(0) },
        ],
    };
    let table = [1.0f32, 2.0, 3.0];
    let mut out = [0.0f32; 2];
    let mut go = |ids: [i32; 2], limit| {
        let views = [
            bind(SharedBytes::read_only(&ids)),
            bind(SharedBytes::read_only(&table)),
            bind(SharedBytes::read_write(&mut out)),
        ];
        run(&gather(limit), 2, &views).map(|()| out)
    };
    assert_eq!(go([2, 0], 3), Ok([3.0, 1.0]));
    assert_eq!(go([2, 3], 3).unwrap_err(), "ids[1] is 3, which is not in 0..3");
    assert_eq!(go([2, -1], 3).unwrap_err(), "ids[1] is -1, which is not in 0..3");
    assert_eq!(go([2, 7], 9).unwrap_err(), "table has 3 elements, index 7 is outside");
}

#[test]
fn halves_round_to_nearest_even() {
    let x = [1.0f32, 1.003_906_2, 1.001_953_1, f32::NAN, 1e30, -0.0];
    let mut bits = [0u16; 6];
    let copy = |from: ViewElem, to: ViewElem| Nest {
        name: "copy".into(),
        views: vec![view("x", from, false), view("out", to, true)],
        body: vec![
            Stmt::For { extent: Extent::constant(6) },
            Stmt::Load { dst: Reg(0), view: ViewId(0), index: Index::axis(1) },
            Stmt::Store { view: ViewId(1), index: Index::axis(1), src: Reg(0) },
            Stmt::End,
        ],
    };
    for (elem, round) in [
        (ViewElem::Kv, (|v: f32| half::bf16::from_f32(v).to_bits()) as fn(f32) -> u16),
        (ViewElem::F16, round_f16),
    ] {
        let views = [bind(SharedBytes::read_only(&x)), bind(SharedBytes::read_write(&mut bits))];
        run(&copy(ViewElem::F32, elem), 1, &views).unwrap();
        assert_eq!(bits, x.map(round));
    }
}
