//! Arithmetic on one number or on four: the same instructions serve both.

use bessemer_format::nest::ReduceKind;
use bessemer_kernels::{math, trig};
use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::{Endianness, InstBuilder, MemFlagsData, Type, Value, types};
use cranelift_frontend::FunctionBuilder;

/// Shorthand over a function under construction.
pub(super) struct Arith<'b, 'f> {
    pub(super) b: &'b mut FunctionBuilder<'f>,
}

/// The integer type as wide as `ty`.
fn int_of(ty: Type) -> Type {
    match ty {
        types::F32 => types::I32,
        types::F32X4 => types::I32X4,
        other => other,
    }
}

impl Arith<'_, '_> {
    fn ty(&self, v: Value) -> Type {
        self.b.func.dfg.value_type(v)
    }

    /// The constant `c` in type `ty`.
    pub(super) fn float(&mut self, ty: Type, c: f32) -> Value {
        let value = self.b.ins().f32const(c);
        if ty == types::F32 { value } else { self.b.ins().splat(ty, value) }
    }

    /// The integer constant `c` in type `ty` (of 32-bit lanes).
    pub(super) fn int(&mut self, ty: Type, c: u32) -> Value {
        let value = self.b.ins().iconst(types::I32, i64::from(c));
        if ty == types::I32 { value } else { self.b.ins().splat(ty, value) }
    }

    /// The same bits as another type.
    pub(super) fn cast(&mut self, ty: Type, v: Value) -> Value {
        self.b.ins().bitcast(ty, MemFlagsData::new().with_endianness(Endianness::Little), v)
    }

    /// `if a CC b { yes } else { no }` for floats.
    pub(super) fn select(&mut self, cc: FloatCC, a: Value, b: Value, yes: Value, no: Value) -> Value {
        let condition = self.b.ins().fcmp(cc, a, b);
        self.choose(condition, yes, no)
    }

    /// `if condition { yes } else { no }`, lane by lane.
    pub(super) fn choose(&mut self, condition: Value, yes: Value, no: Value) -> Value {
        let ty = self.ty(yes);
        if ty.is_vector() {
            let mask = self.cast(ty, condition);
            self.b.ins().bitselect(mask, yes, no)
        } else {
            self.b.ins().select(condition, yes, no)
        }
    }

    /// `if b > a { b } else { a }`
    pub(super) fn max(&mut self, a: Value, b: Value) -> Value {
        self.select(FloatCC::GreaterThan, b, a, b, a)
    }

    /// `if b < a { b } else { a }`
    pub(super) fn min(&mut self, a: Value, b: Value) -> Value {
        self.select(FloatCC::LessThan, b, a, b, a)
    }

    /// What a reduction does with two numbers.
    pub(super) fn combine(&mut self, kind: ReduceKind, a: Value, b: Value) -> Value {
        match kind {
            ReduceKind::Sum => self.b.ins().fadd(a, b),
            ReduceKind::Max => self.max(a, b),
        }
    }

    /// `bessemer_kernels::math::exp`, operation by operation.
    pub(super) fn exp(&mut self, x: Value) -> Value {
        let ty = self.ty(x);
        let ity = int_of(ty);
        let [log2e, round, hi, lo] =
            [math::LOG2_E, math::ROUND, math::LN2_HI, math::LN2_LO].map(|c| self.float(ty, c));
        let t = self.b.ins().fmul(x, log2e);
        let t = self.b.ins().fadd(t, round);
        let n = self.b.ins().fsub(t, round);
        let nh = self.b.ins().fmul(n, hi);
        let r = self.b.ins().fsub(x, nh);
        let nl = self.b.ins().fmul(n, lo);
        let r = self.b.ins().fsub(r, nl);
        let mut p = self.float(ty, math::POLY[0]);
        for c in &math::POLY[1..] {
            let c = self.float(ty, *c);
            p = self.b.ins().fmul(p, r);
            p = self.b.ins().fadd(p, c);
        }
        let rr = self.b.ins().fmul(r, r);
        let y = self.b.ins().fmul(p, rr);
        let y = self.b.ins().fadd(y, r);
        let one = self.float(ty, 1.0);
        let y = self.b.ins().fadd(y, one);
        let bits = self.cast(ity, t);
        let bias = self.int(ity, math::ROUND.to_bits());
        let i = self.b.ins().isub(bits, bias);
        let shift = self.b.ins().iconst(types::I32, 1);
        let h = self.b.ins().sshr(i, shift);
        let rest = self.b.ins().isub(i, h);
        let first = self.power(ty, h);
        let second = self.power(ty, rest);
        let y = self.b.ins().fmul(y, first);
        let y = self.b.ins().fmul(y, second);
        let (zero, least) = (self.float(ty, 0.0), self.float(ty, math::EXP_MIN));
        let y = self.select(FloatCC::LessThan, x, least, zero, y);
        let (infinity, most) = (self.float(ty, f32::INFINITY), self.float(ty, math::EXP_MAX));
        self.select(FloatCC::GreaterThan, x, most, infinity, y)
    }

    /// `2^e` for an integer exponent.
    fn power(&mut self, ty: Type, e: Value) -> Value {
        let bias = self.int(int_of(ty), 127);
        let e = self.b.ins().iadd(e, bias);
        let shift = self.b.ins().iconst(types::I32, 23);
        let e = self.b.ins().ishl(e, shift);
        self.cast(ty, e)
    }

    /// `bessemer_kernels::trig`, operation by operation, on one number: `sin(x + turns * pi / 2)`.
    pub(super) fn quarter(&mut self, x: Value, turns: i64) -> Value {
        let ins = &mut *self.b;
        let x = ins.ins().fpromote(types::F64, x);
        let constant = |ins: &mut FunctionBuilder<'_>, c: f64| ins.ins().f64const(c);
        let (two_over_pi, round) = (constant(ins, trig::TWO_OVER_PI), constant(ins, trig::ROUND));
        let t = ins.ins().fmul(x, two_over_pi);
        let t = ins.ins().fadd(t, round);
        let n = ins.ins().fsub(t, round);
        let bits = ins.ins().bitcast(types::I64, MemFlagsData::new().with_endianness(Endianness::Little), t);
        let turns = ins.ins().iconst(types::I64, turns);
        let q = ins.ins().iadd(bits, turns);
        let (hi, lo) = (constant(ins, trig::HALF_PI_HI), constant(ins, trig::HALF_PI_LO));
        let nh = ins.ins().fmul(n, hi);
        let r = ins.ins().fsub(x, nh);
        let nl = ins.ins().fmul(n, lo);
        let r = ins.ins().fsub(r, nl);
        let z = ins.ins().fmul(r, r);
        let poly = |ins: &mut FunctionBuilder<'_>, c: [f64; 4]| {
            let mut p = constant(ins, c[3]);
            for c in [c[2], c[1], c[0]] {
                let c = constant(ins, c);
                let zp = ins.ins().fmul(z, p);
                p = ins.ins().fadd(c, zp);
            }
            p
        };
        let zr = ins.ins().fmul(z, r);
        let p = poly(ins, trig::SIN);
        let s = ins.ins().fmul(zr, p);
        let s = ins.ins().fadd(r, s);
        let p = poly(ins, trig::COS);
        let c = ins.ins().fmul(z, p);
        let one = constant(ins, 1.0);
        let c = ins.ins().fadd(one, c);
        let bit = |ins: &mut FunctionBuilder<'_>, mask: i64| {
            let mask = ins.ins().iconst(types::I64, mask);
            ins.ins().band(q, mask)
        };
        let odd = bit(ins, 1);
        let v = ins.ins().select(odd, c, s);
        let lower = bit(ins, 2);
        let negative = ins.ins().fneg(v);
        let v = ins.ins().select(lower, negative, v);
        ins.ins().fdemote(types::F32, v)
    }

    /// f32 from the low 16 bits of each lane of `bits`, which hold a bfloat16.
    pub(super) fn widen_bf16(&mut self, bits: Value) -> Value {
        let shift = self.b.ins().iconst(types::I32, 16);
        let wide = self.b.ins().ishl(bits, shift);
        let ty = if self.ty(bits).is_vector() { types::F32X4 } else { types::F32 };
        self.cast(ty, wide)
    }

    /// f32 from the low 16 bits of each lane of `bits`, which hold a binary16. NaNs come out quiet.
    pub(super) fn widen_f16(&mut self, bits: Value) -> Value {
        let ity = self.ty(bits);
        let ty = if ity.is_vector() { types::F32X4 } else { types::F32 };
        let [magnitude_mask, sign_mask, special] = [0x7fff, 0x8000, 0x7c00].map(|c| self.int(ity, c));
        let magnitude = self.b.ins().band(bits, magnitude_mask);
        let thirteen = self.b.ins().iconst(types::I32, 13);
        let shifted = self.b.ins().ishl(magnitude, thirteen);
        // Read as f32 the exponent is 112 too small; the product mends that, for subnormals too, exactly.
        let small = self.cast(ty, shifted);
        let factor = self.float(ty, f32::from_bits((127 + 112) << 23));
        let finite = self.b.ins().fmul(small, factor);
        let finite = self.cast(ity, finite);
        let all_ones = self.int(ity, 0x7f80_0000);
        let infinite = self.b.ins().bor(shifted, all_ones);
        let quiet = self.int(ity, 0x0040_0000);
        let nan = self.b.ins().bor(infinite, quiet);
        use cranelift_codegen::ir::condcodes::IntCC;
        let is_nan = self.b.ins().icmp(IntCC::SignedGreaterThan, magnitude, special);
        let is_infinite = self.b.ins().icmp(IntCC::Equal, magnitude, special);
        let value = self.choose(is_infinite, infinite, finite);
        let value = self.choose(is_nan, nan, value);
        let sign = self.b.ins().band(bits, sign_mask);
        let sixteen = self.b.ins().iconst(types::I32, 16);
        let sign = self.b.ins().ishl(sign, sixteen);
        let value = self.b.ins().bor(value, sign);
        self.cast(ty, value)
    }

    /// The bfloat16 nearest to each f32 of `x` (ties to even, NaNs quiet), in the low bits of as many i32.
    pub(super) fn narrow_bf16(&mut self, x: Value) -> Value {
        use cranelift_codegen::ir::condcodes::FloatCC;
        let ty = int_of(self.ty(x));
        let bits = self.cast(ty, x);
        // Vectors are shifted by one number.
        let sixteen = self.b.ins().iconst(types::I32, 16);
        let top = self.b.ins().ushr(bits, sixteen);
        let one = self.int(ty, 1);
        let odd = self.b.ins().band(top, one);
        let half = self.int(ty, 0x7fff);
        let bias = self.b.ins().iadd(odd, half);
        let rounded = self.b.ins().iadd(bits, bias);
        let rounded = self.b.ins().ushr(rounded, sixteen);
        let quiet = self.int(ty, 0x40);
        let nan = self.b.ins().bor(top, quiet);
        self.select(FloatCC::Unordered, x, x, nan, rounded)
    }

    /// Of four halves in the low bits of i32s, the first two in the first i32 and the other two in the third.
    pub(super) fn join_halves(&mut self, halves: Value) -> Value {
        let wide = self.cast(types::I64X2, halves);
        let sixteen = self.b.ins().iconst(types::I32, 16);
        let odd = self.b.ins().ushr(wide, sixteen);
        let both = self.b.ins().bor(wide, odd);
        self.cast(types::I32X4, both)
    }

    /// An i32 for each lane: the halves in the low bits of `low` and, above them, those of `high`.
    pub(super) fn pair_halves(&mut self, low: Value, high: Value) -> Value {
        let sixteen = self.b.ins().iconst(types::I32, 16);
        let above = self.b.ins().ishl(high, sixteen);
        self.b.ins().bor(low, above)
    }

    /// Four of the eight numbers of two vectors.
    pub(super) fn pick(&mut self, of: [Value; 2], order: [u8; 4]) -> Value {
        let bytes: Vec<u8> = order.iter().flat_map(|lane| [0, 1, 2, 3].map(|byte| 4 * lane + byte)).collect();
        let order = self.b.func.dfg.immediates.push(bytes.as_slice().into());
        let [a, b] = of.map(|v| self.cast(types::I8X16, v));
        let picked = self.b.ins().shuffle(a, b, order);
        self.cast(types::F32X4, picked)
    }

    /// `bessemer_format::scheme::round_f16` of each f32 of `x`, in the low bits of as many i32.
    pub(super) fn narrow_f16(&mut self, x: Value) -> Value {
        use cranelift_codegen::ir::condcodes::IntCC;
        let (ty, ity) = (self.ty(x), int_of(self.ty(x)));
        let [thirteen, sixteen] = [13, 16].map(|by| self.b.ins().iconst(types::I32, by));
        let bits = self.cast(ity, x);
        let infinity = f32::INFINITY.to_bits();
        let [sizes, largest, infinity] =
            [0x7fff_ffff, 65504.0f32.to_bits(), infinity].map(|c| self.int(ity, c));
        let size = self.b.ins().band(bits, sizes);
        let is_infinite = self.b.ins().icmp(IntCC::Equal, size, infinity);
        let size = self.b.ins().smin(size, largest);
        // Normal numbers: another bias of the exponent, and ten bits of the mantissa.
        let last = self.b.ins().ushr(size, thirteen);
        let one = self.int(ity, 1);
        let odd = self.b.ins().band(last, one);
        let rebias = self.int(ity, (0xfff_u32).wrapping_sub(112 << 23));
        let normal = self.b.ins().iadd(size, rebias);
        let normal = self.b.ins().iadd(normal, odd);
        let normal = self.b.ins().ushr(normal, thirteen);
        // Multiples of 2^-24, which is how far numbers around a half are apart: the sum rounds.
        let half = self.float(ty, 0.5);
        let small = self.cast(ty, size);
        let small = self.b.ins().fadd(small, half);
        let (small, half) = (self.cast(ity, small), self.cast(ity, half));
        let subnormal = self.b.ins().isub(small, half);
        let least = self.int(ity, 0x3880_0000);
        let is_small = self.b.ins().icmp(IntCC::SignedLessThan, size, least);
        let rounded = self.choose(is_small, subnormal, normal);
        let [infinity, nan, signs] = [0x7c00, 0x7e00, 0x8000].map(|c| self.int(ity, c));
        let rounded = self.choose(is_infinite, infinity, rounded);
        let rounded = self.select(FloatCC::Unordered, x, x, nan, rounded);
        let sign = self.b.ins().ushr(bits, sixteen);
        let sign = self.b.ins().band(sign, signs);
        self.b.ins().bor(rounded, sign)
    }
}
