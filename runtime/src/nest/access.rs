//! Loads and stores: an index that moves by a constant stride along the vector axis is told from one that does not.

use super::{NestError, WIDTH};
use crate::exec::ViewBinding;
use bessemer_format::nest::{Base, Index};
use bessemer_format::scheme::round_f16;
use half::{bf16, f16};

/// How elements are stored, with the cache's type resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Elem {
    F32,
    F16,
    Bf16,
}

/// A place in a view as a function of the loop positions.
#[derive(Clone, Debug)]
pub(super) struct Access {
    pub(super) view: usize,
    pub(super) name: String,
    pub(super) elem: Elem,
    pub(super) index: Index,
    /// Elements from one iteration of the vector loop to the next; `None` where they are not evenly spaced.
    pub(super) stride: Option<i64>,
}

/// Positions on the axes, loaded integers and symbols.
pub(super) struct Positions<'a> {
    pub(super) axes: [i64; bessemer_format::nest::MAX_AXES],
    pub(super) ints: &'a mut [i64],
    pub(super) syms: &'a [i64; 4],
}

impl Positions<'_> {
    /// Evaluates an index.
    pub(super) fn eval(&self, index: &Index) -> i64 {
        index.eval(|base| match base {
            Base::Axis(a) => self.axes[usize::from(a)],
            Base::Int(i) => self.ints[usize::from(i.0)],
            Base::Sym(s) => self.syms[s as usize],
        })
    }
}

/// The stride of `index` along `axis`.
pub(super) fn stride(index: &Index, axis: u8) -> Option<i64> {
    index
        .terms
        .iter()
        .filter(|t| t.base == Base::Axis(axis))
        .try_fold(0i64, |sum, t| (t.div == 1 && t.rem == 0).then(|| sum + t.coef))
}

impl Access {
    fn len(&self, view: &ViewBinding<'_>) -> usize {
        view.bytes.len() / if self.elem == Elem::F32 { 4 } else { 2 }
    }

    fn check(&self, len: usize, index: i64) -> Result<usize, NestError> {
        match usize::try_from(index) {
            Ok(at) if at < len => Ok(at),
            _ => Err(NestError::Bounds { view: self.name.clone(), len, index }),
        }
    }

    /// The element of each of `n` iterations from the current position on `axis`.
    fn places(
        &self,
        positions: &mut Positions<'_>,
        axis: usize,
        n: usize,
        len: usize,
        mut each: impl FnMut(usize, usize),
    ) -> Result<(), NestError> {
        match self.stride {
            Some(stride) => {
                let first = positions.eval(&self.index);
                for i in 0..n {
                    each(i, self.check(len, first + stride * i as i64)?);
                }
            }
            None => {
                let start = positions.axes[axis];
                for i in 0..n {
                    positions.axes[axis] = start + i as i64;
                    each(i, self.check(len, positions.eval(&self.index))?);
                }
                positions.axes[axis] = start;
            }
        }
        Ok(())
    }

    /// The first of `n` consecutive elements, if they are that.
    fn run(&self, positions: &Positions<'_>, n: usize, len: usize) -> Option<Result<usize, NestError>> {
        (self.stride == Some(1)).then(|| {
            let first = positions.eval(&self.index);
            let at = self.check(len, first)?;
            self.check(len, first + n as i64 - 1)?;
            Ok(at)
        })
    }

    /// Loads `n` elements.
    pub(super) fn load(
        &self,
        views: &[ViewBinding<'_>],
        positions: &mut Positions<'_>,
        axis: usize,
        n: usize,
        out: &mut [f32; WIDTH],
    ) -> Result<(), NestError> {
        let view = &views[self.view];
        let len = self.len(view);
        let out = &mut out[..n];
        if self.stride == Some(0) {
            let at = self.check(len, positions.eval(&self.index))?;
            let value = match self.elem {
                Elem::F32 => view.bytes.get::<f32>(at..at + 1)[0],
                Elem::F16 => f16::from_bits(view.bytes.get::<u16>(at..at + 1)[0]).to_f32(),
                Elem::Bf16 => bf16::from_bits(view.bytes.get::<u16>(at..at + 1)[0]).to_f32(),
            };
            out.fill(value);
            return Ok(());
        }
        if let Some(at) = self.run(positions, n, len) {
            let at = at?;
            match self.elem {
                Elem::F32 => out.copy_from_slice(view.bytes.get(at..at + n)),
                Elem::F16 => {
                    let bits = view.bytes.get::<u16>(at..at + n);
                    out.iter_mut().zip(bits).for_each(|(o, b)| *o = f16::from_bits(*b).to_f32());
                }
                Elem::Bf16 => {
                    let bits = view.bytes.get::<u16>(at..at + n);
                    out.iter_mut().zip(bits).for_each(|(o, b)| *o = bf16::from_bits(*b).to_f32());
                }
            }
            return Ok(());
        }
        self.places(positions, axis, n, len, |i, at| {
            out[i] = match self.elem {
                Elem::F32 => view.bytes.get::<f32>(at..at + 1)[0],
                Elem::F16 => f16::from_bits(view.bytes.get::<u16>(at..at + 1)[0]).to_f32(),
                Elem::Bf16 => bf16::from_bits(view.bytes.get::<u16>(at..at + 1)[0]).to_f32(),
            };
        })
    }

    /// Stores `n` elements. Elements that are not consecutive are written one by one: what lies between may be another thread's.
    pub(super) fn store(
        &self,
        views: &[ViewBinding<'_>],
        positions: &mut Positions<'_>,
        axis: usize,
        values: &[f32],
    ) -> Result<(), NestError> {
        let view = &views[self.view];
        let len = self.len(view);
        let n = values.len();
        if let Some(at) = self.run(positions, n, len) {
            let at = at?;
            match self.elem {
                Elem::F32 => view.bytes.get_mut(at..at + n).copy_from_slice(values),
                Elem::F16 => {
                    let bits = view.bytes.get_mut::<u16>(at..at + n);
                    bits.iter_mut().zip(values).for_each(|(b, v)| *b = round_f16(*v));
                }
                Elem::Bf16 => {
                    let bits = view.bytes.get_mut::<u16>(at..at + n);
                    bits.iter_mut().zip(values).for_each(|(b, v)| *b = bf16::from_f32(*v).to_bits());
                }
            }
            return Ok(());
        }
        self.places(positions, axis, n, len, |i, at| match self.elem {
            Elem::F32 => view.bytes.get_mut::<f32>(at..at + 1)[0] = values[i],
            Elem::F16 => view.bytes.get_mut::<u16>(at..at + 1)[0] = round_f16(values[i]),
            Elem::Bf16 => view.bytes.get_mut::<u16>(at..at + 1)[0] = bf16::from_f32(values[i]).to_bits(),
        })
    }
}
