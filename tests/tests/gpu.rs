//! Kernels for GPUs, on the shim: results against what transformers computed in f32, with threads in both orders. No GPU is used.

use bessemer_compiler::options::CompileOptions;
use bessemer_format::QuantScheme;
use bessemer_format::nest::{Extent, Index, Op as NestOp, Reg, ViewElem};
use bessemer_format::plan::{
    Arg, Buffer, BufferElem, Home, ModelFacts, Output, Plan, Program, Regime, RowCount, Step, StepKind,
    WeightLayout, WeightSlice,
};
use bessemer_ir::Op;
use bessemer_kernels::{math, trig};
use bessemer_passes::PrecisionPolicy;
use bessemer_passes::pipeline::PASSES;
use bessemer_runtime::KvElem;
use bessemer_targets::clike::{Dialect, Emitter};
use bessemer_targets::lower::builder::NestBuilder;
use bessemer_tests::gpu::{self, Case, GpuModel, Shim, Weights, agree, check, families, schemes};
use bessemer_tests::skip;
use std::collections::BTreeSet;

/// What fusion and hand-written steps hide: ops as they were imported, and every step a nest.
fn plain() -> Vec<Case> {
    let unfused = |model| {
        let mut case = Case::new(model, model, PrecisionPolicy::F32);
        case.options.disable = PASSES
            .iter()
            .filter(|p| p.phase == bessemer_ir::Phase::Fused)
            .map(|p| p.name.to_string())
            .collect();
        case
    };
    let nests = |model, precision| Case { kernels: false, ..Case::new(model, model, precision) };
    vec![
        unfused("gqa_tied"),
        unfused("gemma2"),
        nests("gemma2", PrecisionPolicy::F32),
        nests("gqa_tied.mixed.gguf", PrecisionPolicy::Source),
        nests("qwen3_moe", PrecisionPolicy::F32),
        nests("modernbert", PrecisionPolicy::F32),
        nests("mpnet", PrecisionPolicy::F32),
        nests("cohere_qk_norm", PrecisionPolicy::F32),
        nests("lfm2", PrecisionPolicy::F32),
    ]
}

#[test]
fn every_family_on_cuda() {
    agree(Dialect::Cuda, KvElem::F32, &families(), 1e-4);
}

#[test]
fn every_family_on_metal() {
    agree(Dialect::Metal, KvElem::F32, &families(), 1e-4);
}

#[test]
fn every_scheme_on_cuda() {
    agree(Dialect::Cuda, KvElem::F32, &schemes(), 1e-4);
}

#[test]
fn every_scheme_on_metal() {
    agree(Dialect::Metal, KvElem::F32, &schemes(), 1e-4);
}

#[test]
fn nests_alone_on_both() {
    for dialect in [Dialect::Cuda, Dialect::Metal] {
        agree(dialect, KvElem::F32, &plain(), 1e-4);
    }
}

/// The bound of bf16: weights, keys and values are off by up to 2⁻⁹ each from those of the golden, and layers add up.
#[test]
fn a_cache_of_bf16_on_both() {
    for dialect in [Dialect::Cuda, Dialect::Metal] {
        let cases = [
            Case::new("gqa_9_3", "gqa_9_3", PrecisionPolicy::Bf16),
            Case::new("gemma3", "gemma3", PrecisionPolicy::Bf16),
        ];
        agree(dialect, KvElem::Bf16, &cases, 2e-2);
    }
}

#[test]
fn the_cases_hold_every_op() {
    let found: BTreeSet<&str> = families().iter().chain(&plain()).flat_map(|case| case.build().ops).collect();
    let missing: Vec<_> = Op::NAMES.iter().filter(|name| !found.contains(*name)).collect();
    assert!(missing.is_empty(), "no case has {missing:?}");
}

/// A plan with one step: a nest that reads a weight of `width` elements a row and writes as many results.
fn function(elem: ViewElem, width: u32, rows: u32, body: impl FnOnce(&mut NestBuilder, Reg) -> Reg) -> Plan {
    let mut b = NestBuilder::new("function");
    let (x, out) = (b.input("x", elem), b.output("out", ViewElem::F32));
    b.for_each(Extent::constant(width.into()), |b, j| {
        let at = b.row() * i64::from(width) + Index::axis(j);
        let value = b.load(x, at.clone());
        let value = body(b, value);
        b.store(out, at, value);
    });
    let scheme = match elem {
        ViewElem::F16 => QuantScheme::F16,
        ViewElem::Bf16 => QuantScheme::BF16,
        _ => QuantScheme::F32,
    };
    let len = u64::from(rows) * u64::from(width) * u64::from(scheme.elem.bits() / 8);
    let out = Buffer {
        name: "out".into(),
        elem: BufferElem::F32,
        rows: RowCount::Logits,
        row_elems: width.into(),
        home: Home::Logits,
    };
    let args = vec![Arg::Weight(0), Arg::Buffer(0)];
    let kind = StepKind::Nest { nest: 0, rows: RowCount::Logits, args };
    let step = Step { kind, place: 0, barrier: true, source: "function".into() };
    Plan {
        model: ModelFacts {
            vocab: 1,
            context: rows,
            hidden: width,
            layers: 1,
            output: Output::Embedding { width },
            whole: true,
        },
        weights: vec![WeightSlice { offset: 0, len, n: rows, k: width, scheme, layout: WeightLayout::Dense }],
        states: vec![],
        nests: vec![b.finish()],
        programs: vec![Program {
            regime: Regime { min_rows: 1, max_rows: rows },
            arena_bytes: 0,
            buffers: vec![out],
            steps: vec![step],
            cuts: vec![],
        }],
    }
}

/// What a nest of one function computes with a number.
type Body = Box<dyn FnOnce(&mut NestBuilder, Reg) -> Reg>;

/// Functions that are written out operation by operation have the bits of the CPU's; Metal, which has no f64, computes sines in its own way.
#[test]
fn functions_have_the_bits_of_the_cpu() {
    const WIDTH: u32 = 256;
    const ROWS: u32 = 256;
    // Every 65537th float, so that all exponents and both signs are met; all halves.
    let floats: Vec<f32> = (0..WIDTH * ROWS).map(|i| f32::from_bits(i.wrapping_mul(65537))).collect();
    let angles: Vec<f32> =
        (0..WIDTH * ROWS).map(|i| i as f32 * if i % 2 == 0 { 1.37 } else { 1e-4 }).collect();
    let bytes = |of: &[f32]| of.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let halves: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let wide = |to_f32: fn(u16) -> f32| (0..=u16::MAX).map(to_f32).collect::<Vec<f32>>();
    let unary = |op: fn(Reg) -> NestOp| move |b: &mut NestBuilder, x: Reg| b.op(op(x));
    let of = |values: &[f32], f: fn(f32) -> f32| values.iter().map(|v| f(*v)).collect::<Vec<f32>>();
    let f32s = |body: Body| function(ViewElem::F32, WIDTH, ROWS, body);
    let cases = [
        ("exp", f32s(Box::new(unary(NestOp::Exp))), bytes(&floats), of(&floats, math::exp), 0.0),
        ("sqrt", f32s(Box::new(unary(NestOp::Sqrt))), bytes(&floats), of(&floats, f32::sqrt), 0.0),
        ("sin", f32s(Box::new(unary(NestOp::Sin))), bytes(&angles), of(&angles, trig::sin), 3e-7),
        ("cos", f32s(Box::new(unary(NestOp::Cos))), bytes(&angles), of(&angles, trig::cos), 3e-7),
        ("silu", f32s(Box::new(NestBuilder::silu)), bytes(&floats), of(&floats, math::silu), 0.0),
        ("tanh", f32s(Box::new(NestBuilder::tanh)), bytes(&floats), of(&floats, math::tanh), 0.0),
        (
            "f16",
            function(ViewElem::F16, WIDTH, ROWS, |_, x| x),
            halves.clone(),
            wide(|bits| half::f16::from_bits(bits).to_f32()),
            0.0,
        ),
        (
            "bf16",
            function(ViewElem::Bf16, WIDTH, ROWS, |_, x| x),
            halves,
            wide(|bits| half::bf16::from_bits(bits).to_f32()),
            0.0,
        ),
    ];
    for dialect in [Dialect::Cuda, Dialect::Metal] {
        let folder = tempfile::tempdir().unwrap();
        let mut emitter = Emitter::new(dialect, KvElem::F32);
        let programs: Vec<_> = cases.iter().map(|(_, plan, ..)| emitter.plan(plan).unwrap()).collect();
        let (text, kernels) = emitter.finish();
        let Some(device) = gpu::compile(&text, &kernels, dialect, folder.path()) else { return };
        for ((name, plan, weight, expected, metal), programs) in cases.iter().zip(&programs) {
            let shim = Shim::start(&device);
            let weights = [weight.clone()];
            let weights = Weights::Apart(&weights);
            let mut model =
                GpuModel::new(plan, weights, (&kernels, programs), KvElem::F32, ROWS as usize, shim).unwrap();
            let rows: Vec<usize> = (0..ROWS as usize).collect();
            let found = model.forward(&vec![0; ROWS as usize], &[], &rows).unwrap().concat();
            let allowed = if dialect == Dialect::Metal { *metal } else { 0.0 };
            for (i, (a, b)) in found.iter().zip(expected).enumerate() {
                let same =
                    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()) || (a - b).abs() <= allowed;
                assert!(same, "{name} {dialect:?}, element {i}: {a:e} and not {b:e}");
            }
        }
    }
}

#[test]
fn the_text_is_a_function_of_the_plan() {
    let built = Case::new("qwen3_moe", "qwen3_moe", PrecisionPolicy::F32).build();
    let emit = |dialect| bessemer_targets::clike::emit(&built.plan, KvElem::Bf16, dialect).unwrap();
    for dialect in [Dialect::Cuda, Dialect::Metal] {
        let emitted = emit(dialect);
        assert_eq!(emitted, emit(dialect));
        let kernels = &emitted.code.kernels;
        assert!(
            kernels.iter().all(|k| emitted.text.contains(&format!("KERNEL({}) {}(\n", k.threads, k.name)))
        );
        // A kernel names the step that it was made for, and layers share kernels.
        assert!(
            emitted.text.contains("\n// model.layers.0."),
            "{}",
            &emitted.text[emitted.text.len() - 2000..]
        );
        let launches: usize = emitted.code.programs.iter().map(Vec::len).sum();
        assert!(kernels.len() < launches, "{} kernels for {launches} launches", kernels.len());
    }
    // Linears that round their activations have no kernel, which is said.
    let mut int8 = Case::new("biases", "biases", PrecisionPolicy::Int8 { group: 32 });
    int8.options.targets = CompileOptions::default().targets;
    let refused = bessemer_targets::clike::emit(&int8.build().plan, KvElem::Bf16, Dialect::Cuda).unwrap_err();
    assert!(refused.to_string().contains("Int8"), "{refused}");
}

/// What is planted is found, so that a test which passes says something.
#[test]
fn planted_bugs_are_caught() {
    let found = |old: &str, new: &str| {
        let change = |text: String| {
            assert!(text.contains(old), "the text has no `{old}`");
            text.replacen(old, new, 1)
        };
        let cases = [Case::new("gqa_9_3", "gqa_9_3", PrecisionPolicy::F32)];
        check(Dialect::Cuda, KvElem::F32, &cases, 1e-4, change).err()
    };
    if !gpu::has_compiler() {
        skip("g++", "it compiles kernels for the shim");
        return;
    }
    for (what, old, new, report) in [
        ("a barrier", "        barrier();\n        for (int k = 0", "        for (int k = 0", ""),
        ("a mask", " && token <= see.last", "", "above"),
        ("a mask's edge", "token <= see.last", "token < see.last", "above"),
        (
            "an index",
            "out[(idx)gx * W0::K + k] =",
            "out[(idx)gx * W0::K + k + 1] =",
            "outside of every buffer",
        ),
        (
            "an array's index",
            "SHARED_ARRAY(float, inputs, TILE_K",
            "SHARED_ARRAY(float, inputs, 31",
            "outside of every buffer",
        ),
        (
            "a lane that leaves",
            "if (t + 1 < begin || t > end) continue;\n",
            "if (lane == 3) break;\n",
            "deadlock",
        ),
        (
            "a collective that some lanes miss",
            "const float first = lane_at(weight, t),",
            "const float first = lane == 3 ? lane_xor(weight, 1) : lane_at(weight, t),",
            "diverges",
        ),
        (
            "a thread that leaves",
            "    SHARED_ARRAY(float, states",
            "    if (tid == 5) return;\n    SHARED_ARRAY(float, states",
            "",
        ),
    ] {
        let found = found(old, new).unwrap_or_else(|| panic!("{what}: nothing was reported"));
        println!("{what}: {found}");
        assert!(found.contains(report), "{what}: {found}");
    }
}
