//! A segmented linear as a nest: one dot product a result, weights decoded element by element.

use super::{Lowered, NestArg, activation, builder::NestBuilder, element, vector_elem};
use bessemer_format::nest::{Extent, Index, ReduceKind, ViewElem, ViewId};
use bessemer_ir::attr::{Epilogue, Segment};
use bessemer_ir::{Layout, TensorType};

/// A weight's view, and whether it is packed.
type Weight = (ViewId, bool);

/// A linear that computes in f32.
pub fn linear(segments: &[Segment], epilogue: Epilogue, operands: &[TensorType]) -> Result<Lowered, String> {
    let (rows, k) = activation(&operands[0])?;
    let mut b = NestBuilder::new("linear");
    let x = b.input("x", ViewElem::F32);
    let mut views: Vec<(Weight, Option<ViewId>)> = Vec::new();
    let mut next = 1;
    for s in segments {
        let ty = &operands[next];
        let packed = ty.encoding.layout == Layout::Panel;
        let weight = b.input("w", if packed { ViewElem::Panel } else { vector_elem(ty)? });
        next += 1;
        let bias = match s.bias {
            true => {
                next += 1;
                Some(b.input("bias", vector_elem(&operands[next - 1])?))
            }
            false => None,
        };
        views.push(((weight, packed), bias));
    }
    let residual = match epilogue {
        Epilogue::Residual => {
            next += 1;
            Some(b.input("residual", ViewElem::F32))
        }
        _ => None,
    };
    let out = b.output("out", ViewElem::F32);
    let width = match epilogue {
        Epilogue::Gated(_) => segments[0].width as i64,
        _ => segments.iter().map(|s| s.width as i64).sum(),
    };
    let dot = |b: &mut NestBuilder, (weight, packed): Weight, bias: Option<ViewId>, n: u8| {
        let sum = b.reduce(ReduceKind::Sum, Extent::constant(k), |b, j| {
            let a = b.load(x, element(b.row(), k, j));
            let w = match packed {
                true => b.load_weight(weight, Index::axis(n), Index::axis(j)),
                false => b.load(weight, element(Index::axis(n), k, j)),
            };
            b.mul(a, w)
        });
        match bias {
            Some(bias) => {
                let bias = b.load(bias, Index::axis(n));
                b.add(sum, bias)
            }
            None => sum,
        }
    };
    if let Epilogue::Gated(function) = epilogue {
        let [(gate, gate_bias), (up, up_bias)] = views[..] else {
            return Err("a gated epilogue takes two segments".into());
        };
        b.for_each(Extent::constant(width), |b, n| {
            let gate = dot(b, gate, gate_bias, n);
            let up = dot(b, up, up_bias, n);
            let gate = super::pointwise::scalar(b, function.into(), gate);
            let value = b.mul(gate, up);
            b.store(out, element(b.row(), width, n), value);
        });
    } else {
        let mut column = 0;
        for (s, (weight, bias)) in segments.iter().zip(views) {
            b.for_each(Extent::constant(s.width as i64), |b, n| {
                let mut value = dot(b, weight, bias, n);
                let at = element(b.row(), width, n).plus(column);
                if let Some(residual) = residual {
                    let r = b.load(residual, at.clone());
                    value = b.add(r, value);
                }
                b.store(out, at, value);
            });
            column += s.width as i64;
        }
    }
    let args = (0..next).map(NestArg::Operand).chain([NestArg::Result(0)]).collect();
    Ok(Lowered { nest: b.finish(), rows, args })
}
