//! Each pass against the oracle, at the effect that it declares.

mod soup;

use bessemer_format::manifest::KvElem;
use bessemer_format::{Compute, QuantScheme};
use bessemer_ir::attr::{Computes, RopeStyle};
use bessemer_ir::recipe::{NoSource, uniform};
use bessemer_ir::testing::{TinyConfig, tiny_llama};
use bessemer_ir::{Graph, Layout, Op};
use bessemer_oracle::{Oracle, Reading, SequenceRows, Wanted};
use bessemer_passes::pipeline::{Context, EQUALISE, Effect, Options, PASSES, Refine, apply, find, run};
use bessemer_passes::testing::TestTarget;
use bessemer_passes::{PrecisionPolicy, Scale, pairs};

const TARGET: TestTarget = TestTarget { integers: true, layout: Layout::Panel, tiles: true };
const DECLARED: Reading = Reading::Declared { kv: KvElem::F32 };

fn context(precision: PrecisionPolicy) -> Context<'static> {
    Context {
        target: &TARGET,
        precision,
        f32_activations: false,
        row_activations: false,
        refine: Refine::NONE,
    }
}

/// Logits of a prefill, of a batch of a continuation and a new sequence, and of a single token.
fn logits(graph: &Graph, reading: Reading) -> Vec<f32> {
    let mut oracle = Oracle::new(graph, &NoSource, reading).unwrap();
    let part = |sequence, tokens, logits| SequenceRows { sequence, tokens, types: &[], logits };
    let batches = [
        vec![part(0, &[3, 1, 4, 1, 5][..], Wanted::All)],
        vec![part(1, &[9, 2, 6], Wanted::Last), part(0, &[5, 3], Wanted::All)],
        vec![part(1, &[5], Wanted::Last)],
    ];
    let all: Vec<f32> = batches.iter().flat_map(|b| oracle.forward(b).unwrap().values).collect();
    assert!(all.iter().all(|v| v.is_finite()));
    all
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|v| v.to_bits()).collect()
}

/// `|found - expected| / |expected|`
fn error(found: &[f32], expected: &[f32]) -> f64 {
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let distance = norm(&mut found.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    distance / norm(&mut expected.iter().map(|v| f64::from(*v)))
}

/// Grouped, plain and single key heads, heads wider than their share, biases, tied tables, both styles, mixed encodings.
fn models() -> Vec<Graph> {
    let base = TinyConfig::default;
    let configs = [
        base(),
        TinyConfig { bias: true, kv_heads: 4, ..base() },
        TinyConfig { tied: true, kv_heads: 1, head_dim: 24, style: RopeStyle::Interleaved, ..base() },
        TinyConfig { tied: true, bias: true, scheme: QuantScheme::Q4_1, ..base() },
        TinyConfig { scheme: QuantScheme::Q8_0, compute: Compute::Int8 { group: 32 }, ..base() },
        TinyConfig { experts: 4, ..base() },
    ];
    configs.iter().map(|c| tiny_llama(c).unwrap()).chain((0..25).map(soup::graph)).collect()
}

#[test]
fn bit_exact_passes_keep_every_bit_alone_and_together() {
    let context = context(PrecisionPolicy::Source);
    for (i, original) in models().into_iter().enumerate() {
        let expected = bits(&logits(&original, Reading::Exact));
        for pass in PASSES.iter().filter(|p| p.effect == Effect::BitExact) {
            let mut graph = original.clone();
            if apply(pass, &mut graph, &context).unwrap().rewrites > 0 {
                assert!(bits(&logits(&graph, Reading::Exact)) == expected, "model {i}: {}", pass.name);
            }
        }
        let mut rng = soup::Rng::new(i as u64);
        for _ in 0..3 {
            let disable = PASSES.iter().filter(|_| rng.one_in(3)).map(|p| p.name.to_string()).collect();
            let options = Options { disable, stop_after: None };
            let mut graph = original.clone();
            run(&mut graph, &context, &options).unwrap();
            assert!(bits(&logits(&graph, Reading::Exact)) == expected, "model {i}: {options:?}");
        }
    }
}

/// Scales that are powers of two change no bit, so a fold loses nothing but the rounding of its products.
#[test]
fn equalise_is_exact_before_rounding() {
    let mut kinds = [0; 3];
    for (i, original) in models().into_iter().enumerate() {
        let expected = logits(&original, Reading::Exact);
        for pair in pairs(&original) {
            let head = matches!(original.op(pair.input.node), Op::Attention { .. });
            kinds[if head { 2 } else { usize::from(pair.by_rows) }] += 1;
            // Random graphs may multiply a rounding as far as they like; there, powers of two alone.
            for power in [true, false].into_iter().filter(|power| *power || i < 6) {
                let numbers = (0..pair.scales).map(|s| uniform(i as u64, s as u64));
                let by = numbers.map(|u| if power { (3.0 * u).round().exp2() } else { (2.0 * u).exp2() });
                let scales = [Scale { pair: pair.clone(), by: by.collect() }];
                let refine = Refine { scales: &scales, ..Refine::NONE };
                let mut graph = original.clone();
                apply(&EQUALISE, &mut graph, &Context { refine, ..context(PrecisionPolicy::Source) })
                    .unwrap();
                let found = logits(&graph, Reading::Exact);
                if power {
                    assert!(bits(&found) == bits(&expected), "model {i}: {pair:?}");
                } else {
                    assert!(error(&found, &expected) < 1e-6, "model {i}: {:e}", error(&found, &expected));
                }
            }
        }
    }
    assert!(kinds.iter().all(|n| *n >= 4), "norms, products and attention: {kinds:?}");
}

/// What more than one node reads, or what is not linear in its scale, is left alone.
#[test]
fn no_pair_has_a_second_reader_or_a_bias() {
    for original in models() {
        for pair in pairs(&original) {
            for constant in pair.readers.iter().chain([&pair.writer]) {
                assert_eq!(original.uses((*constant).into()).len(), 1);
            }
            if pair.by_rows {
                let (linear, _) = original.uses(pair.writer.into())[0];
                let choice = usize::from(matches!(original.op(linear), Op::GroupedLinear { .. }));
                assert_eq!(original.operands(linear).len(), 2 + choice, "neither bias nor residual");
            }
        }
    }
    // Two norms, attention and the product of gate and up, in each of two layers. A bias takes the values of attention out.
    let count = |config: TinyConfig| pairs(&tiny_llama(&config).unwrap()).len();
    assert_eq!(count(TinyConfig::default()), 8);
    assert_eq!(count(TinyConfig { bias: true, ..TinyConfig::default() }), 6);
    // So it is with experts, whose slots share scales, and a router beside them.
    let experts = tiny_llama(&TinyConfig { experts: 4, ..TinyConfig::default() }).unwrap();
    let pairs = pairs(&experts);
    assert_eq!(pairs.iter().map(|p| p.readers.len()).collect::<Vec<_>>(), [3, 1, 3, 1, 3, 1, 3, 1]);
    assert!(pairs.iter().all(|pair| pair.scales == 64 || pair.scales == 128 || pair.scales == 32));
}

/// Fusion takes away places where results are stored, hence rounded to f32, and adds none.
#[test]
fn fusion_moves_declared_results_by_stored_roundings_alone() {
    for (i, original) in models().into_iter().take(6).enumerate() {
        let mut graph = original.clone();
        run(&mut graph, &context(PrecisionPolicy::Source), &Options::default()).unwrap();
        let context = Context { f32_activations: true, ..context(PrecisionPolicy::Source) };
        apply(find("compute").unwrap(), &mut graph, &context).unwrap();
        let error = error(&logits(&graph, DECLARED), &logits(&original, Reading::Exact));
        assert!(error > 0.0 && error < 1e-6, "model {i}: {error:e}");
    }
}

/// Rounding costs in logits what it costs in weights, times what two layers make of it. The weights are uniform in -a..a, with a root mean
/// square of a / sqrt 3; a step s costs s / sqrt 12. So codes with steps of 2a / n cost 1 / n of a weight, and bf16, with steps of 2^-7 in
/// 1..2, costs 2^-7 / sqrt 28.
#[test]
fn quantise_loses_as_much_as_its_bits_say() {
    let policies = [
        (PrecisionPolicy::Source, 0.0),
        (PrecisionPolicy::F32, 0.0),
        (PrecisionPolicy::Bf16, 0.0078125 / 28f64.sqrt()),
        (PrecisionPolicy::Int8 { group: 32 }, 1.0 / 254.0),
        (PrecisionPolicy::Int8 { group: 0 }, 1.0 / 254.0),
        (PrecisionPolicy::Int4 { group: 16 }, 1.0 / 15.0),
        (PrecisionPolicy::Int4 { group: 32 }, 1.0 / 15.0),
        (PrecisionPolicy::Int4 { group: 0 }, 1.0 / 15.0),
    ];
    for seed in 1..4 {
        let original = tiny_llama(&TinyConfig { seed, ..TinyConfig::default() }).unwrap();
        let expected = logits(&original, Reading::Exact);
        for (precision, weight_error) in policies {
            let mut graph = original.clone();
            apply(find("quantise").unwrap(), &mut graph, &context(precision)).unwrap();
            let error = error(&logits(&graph, Reading::Exact), &expected);
            println!("seed {seed}, {precision}: {error:.1e} of logits, {weight_error:.1e} of weights");
            let bounds = 2.0 * weight_error..=8.0 * weight_error;
            assert!(bounds.contains(&error), "seed {seed}, {precision}: {error:e} is not in {bounds:?}");
        }
    }
}

/// Rounding of activations is declared, so the exact reading does not see it and the declared one does.
#[test]
fn compute_is_seen_by_the_declared_reading_alone() {
    let original = tiny_llama(&TinyConfig { scheme: QuantScheme::Q4_0, ..TinyConfig::default() }).unwrap();
    let expected = logits(&original, Reading::Exact);
    let mut graph = original.clone();
    apply(find("compute").unwrap(), &mut graph, &context(PrecisionPolicy::Source)).unwrap();
    let computes = graph.all().into_iter().filter(|n| {
        matches!(
            graph.op(*n),
            Op::Linear { compute: Computes { few: Compute::Int8 { group: 32 }, many: None }, .. }
        )
    });
    assert_eq!(computes.count(), 15, "seven linears in each of two layers, and the head");
    let attention = graph.all().into_iter().filter(|n| matches!(graph.op(*n), Op::Attention { .. }));
    let many = Computes { few: Compute::F32, many: Some((3, Compute::Bf16)) };
    assert!(attention.into_iter().all(|n| graph.op(n).computes() == Some(many)));
    assert_eq!(bits(&logits(&graph, Reading::Exact)), bits(&expected));
    let declared = error(&logits(&graph, DECLARED), &expected);
    println!("{declared:e}");
    assert!(declared > 1e-4 && declared < 5e-2, "{declared:e}");
}

/// Queries and weights that round to bf16 lose what weights of linears lose ([`quantise_loses_as_much_as_its_bits_say`]), in fewer products.
#[test]
fn attention_in_bf16_is_seen_by_the_declared_reading_alone() {
    let plain = tiny_llama(&TinyConfig::default()).unwrap();
    let attention = Computes { few: Compute::F32, many: Some((3, Compute::Bf16)) };
    let rounded = tiny_llama(&TinyConfig { attention, ..TinyConfig::default() }).unwrap();
    let expected = logits(&plain, Reading::Exact);
    assert_eq!(bits(&logits(&rounded, Reading::Exact)), bits(&expected));
    let declared = error(&logits(&rounded, DECLARED), &expected);
    println!("{declared:e}");
    let rounding = 0.0078125 / 28f64.sqrt();
    assert!((0.5 * rounding..=8.0 * rounding).contains(&declared), "{declared:e}");
}
