//! What holds for every pass on every graph, without computing anything: results are legal, reproducible, and done after one run.

mod soup;

use bessemer_ir::{Graph, Layout, Op, Phase, text};
use bessemer_passes::pipeline::{
    self, Context, Effect, Options, PASSES, Pass, Refine, apply, find, run, run_observed,
};
use bessemer_passes::testing::TestTarget;
use bessemer_passes::{Cause, PassError, PrecisionPolicy};

const TARGET: TestTarget = TestTarget { integers: true, layout: Layout::Panel, tiles: false };
const CONTEXT: Context<'_> = Context {
    target: &TARGET,
    precision: PrecisionPolicy::Int4 { group: 16 },
    f32_activations: false,
    row_activations: false,
    refine: Refine::NONE,
};

#[test]
fn passes_are_done_after_one_run() {
    let mut fired = vec![0u32; PASSES.len()];
    for seed in 0..200 {
        let mut graph = soup::graph(seed);
        for (pass, fired) in PASSES.iter().zip(&mut fired) {
            *fired += apply(pass, &mut graph, &CONTEXT).unwrap().rewrites;
            let once = text::print(&graph);
            let again = apply(pass, &mut graph, &CONTEXT).unwrap();
            assert_eq!(again.rewrites, 0, "seed {seed}: {} rewrites its own result:\n{once}", pass.name);
            assert_eq!(text::print(&graph), once, "seed {seed}: {}", pass.name);
        }
    }
    for (pass, fired) in PASSES.iter().zip(fired) {
        assert!(fired >= 20, "{} rewrote only {fired} places: these graphs do not test it", pass.name);
    }
}

#[test]
fn results_are_legal_reproducible_and_have_a_text_form() {
    for seed in 0..200 {
        let options = random_options(seed);
        let (mut a, mut b) = (soup::graph(seed), soup::graph(seed));
        let reports = run(&mut a, &CONTEXT, &options).unwrap();
        assert_eq!(reports, run(&mut b, &CONTEXT, &options).unwrap());
        let once = text::print(&a);
        assert_eq!(once, text::print(&b), "seed {seed}");
        assert_eq!(text::print(&text::parse(&once).unwrap()), once, "seed {seed}");
        assert_eq!(a.phase, options.stop_after.unwrap_or(Phase::Packed));
    }
}

fn random_options(seed: u64) -> Options {
    let mut rng = soup::Rng::new(seed + 1000);
    let disable = PASSES.iter().filter(|_| rng.one_in(3)).map(|p| p.name.to_string()).collect();
    let stop_after = Some(rng.pick(&Phase::ALL)).filter(|p| *p > Phase::Imported);
    Options { disable, stop_after }
}

#[test]
fn the_observer_sees_every_pass_that_runs_and_no_other() {
    let options = Options { disable: vec!["qkv".into(), "pack".into()], stop_after: Some(Phase::Quantised) };
    let mut seen = Vec::new();
    let mut graph = soup::graph(1);
    let reports =
        run_observed(&mut graph, &CONTEXT, &options, &mut |pass, graph| seen.push((pass.name, graph.phase)))
            .unwrap();
    let expected: Vec<_> = PASSES
        .iter()
        .filter(|p| p.name != "qkv" && p.phase <= Phase::Quantised)
        .map(|p| (p.name, p.phase))
        .collect();
    assert_eq!(seen, expected);
    assert_eq!(
        reports.iter().map(|r| &r.pass).collect::<Vec<_>>(),
        seen.iter().map(|s| s.0).collect::<Vec<_>>()
    );
    assert_eq!(reports.last().unwrap().nodes as usize, graph.all().len());
}

#[test]
fn names_are_unique_and_phases_ascend() {
    for (a, b) in PASSES.iter().zip(&PASSES[1..]) {
        assert!(a.phase <= b.phase, "{} before {}", a.name, b.name);
    }
    for pass in PASSES {
        assert_eq!(PASSES.iter().filter(|p| p.name == pass.name).count(), 1);
        assert_eq!(find(pass.name).unwrap().name, pass.name);
    }
}

#[test]
fn an_unknown_name_is_refused_before_anything_happens() {
    let mut graph = soup::graph(1);
    let before = text::print(&graph);
    let options = Options { disable: vec!["qvk".into()], stop_after: None };
    match run(&mut graph, &CONTEXT, &options) {
        Err(PassError::Unknown { name, known }) => {
            assert_eq!(name, "qvk");
            assert!(PASSES.iter().all(|p| known.contains(p.name)));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(text::print(&graph), before);
}

#[test]
fn an_invalid_graph_is_refused() {
    let mut graph = soup::graph(1);
    let x = graph.operands(graph.output().unwrap())[0];
    graph.add("second", Op::Output {}, &[x]).unwrap();
    assert!(matches!(run(&mut graph, &CONTEXT, &Options::default()), Err(PassError::Input(_))));
}

/// A pass that leaves an op which the phase does not know is named, with the verifier's reason.
#[test]
fn a_pass_that_leaves_an_invalid_graph_is_named() {
    fn early(graph: &mut Graph, _: &Context<'_>) -> Result<u32, Cause> {
        let output = graph.output().unwrap();
        let logits = graph.operands(output)[0];
        let body = vec![bessemer_ir::attr::Scalar::Unary(bessemer_ir::attr::UnaryKind::Neg, 0)];
        let fused = graph.add("early", Op::Pointwise { body }, &[logits])?;
        graph.replace(logits, fused.into())?;
        Ok(1)
    }
    let pass = Pass { name: "early", phase: Phase::Canonical, effect: Effect::BitExact, run: early };
    match apply(&pass, &mut soup::graph(1), &CONTEXT) {
        Err(PassError::Invalid { pass, error }) => {
            assert_eq!(pass, "early");
            assert!(error.why.contains("not legal in phase canonical"), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_scheme_that_the_target_refuses_is_a_typed_error() {
    let target = TestTarget { integers: false, ..TARGET };
    let context = Context { target: &target, ..CONTEXT };
    match run(&mut soup::graph(1), &context, &Options::default()) {
        Err(PassError::Failed { pass: "quantise", cause: Cause::Scheme { target, scheme, .. } }) => {
            assert_eq!((target.as_str(), *scheme), ("test", bessemer_format::QuantScheme::int4(16)));
        }
        other => panic!("{other:?}"),
    }
    let context = Context { precision: PrecisionPolicy::Bf16, ..context };
    run(&mut soup::graph(1), &context, &Options::default()).unwrap();
}

#[test]
fn a_pass_raises_the_phase_and_never_lowers_it() {
    let mut graph = soup::graph(1);
    run(&mut graph, &CONTEXT, &Options::default()).unwrap();
    pipeline::apply(find("dead-code").unwrap(), &mut graph, &CONTEXT).unwrap();
    assert_eq!(graph.phase, Phase::Packed);
}
