//! Engines against the logits that transformers computed in f32 for the tiny fixture models.

use bessemer_compiler::options::CompileOptions;
use bessemer_passes::PrecisionPolicy;
use bessemer_runtime::{Batch, Engine, KvElem, NestPath, Want, Worker, WorkerOptions};
use bessemer_tests::models::{
    FAMILIES, Golden, compile, engine, fixture, forward, golden, logits, relative_error, trusted_engine,
};

/// Fixture and its golden.
const MODELS: &[(&str, &str)] = &[
    ("gqa_tied", "gqa_tied"),
    ("gqa_untied", "gqa_untied"),
    ("mha_untied", "mha_untied"),
    ("gqa_9_3", "gqa_9_3"),
    ("rope_linear", "rope_linear"),
    ("rope_llama3", "rope_llama3"),
    ("biases", "biases"),
    ("head_dim", "head_dim"),
    ("bf16", "bf16"),
    ("f16_sharded", "f16_sharded"),
    ("gqa_tied.f32.gguf", "gqa_tied"),
    ("gqa_tied.mixed.gguf", "gqa_tied.mixed.gguf"),
    ("f16_sharded.f16.gguf", "f16_sharded"),
    ("rope_llama3.f32.gguf", "rope_llama3"),
    ("blocks.gguf", "blocks.gguf"),
];

fn f32_worker() -> WorkerOptions {
    WorkerOptions::default().threads(2).kv(KvElem::F32)
}

fn options(precision: PrecisionPolicy) -> CompileOptions {
    CompileOptions { precision, ..CompileOptions::default() }
}

/// The golden's tokens as it was made: a prefill of 33 tokens, then single steps.
fn prefill_then_steps(worker: &mut Worker, g: &Golden) -> Vec<Vec<f32>> {
    let mut sequence = worker.sequence();
    let mut out = forward(worker, &mut sequence, &g.tokens[..33]);
    for token in &g.tokens[33..] {
        out.extend(forward(worker, &mut sequence, &[*token]));
    }
    out
}

fn holds(options: &CompileOptions, kv: KvElem, bound: f64) {
    let precision = options.precision;
    let mut wrong = Vec::new();
    for (model, name) in MODELS.iter().chain(FAMILIES) {
        let g = golden(name, "");
        let engine = engine(model, options);
        let mut worker = Worker::new(&engine, f32_worker().kv(kv)).unwrap();
        let error = relative_error(&prefill_then_steps(&mut worker, &g), &g.logits);
        let at_once = logits(&engine, f32_worker().kv(kv), &g.tokens);
        let at_once = relative_error(&at_once, &g.logits);
        println!("{model} {precision} kv {kv:?}: {error:.2e}, in one prefill {at_once:.2e}");
        if error.max(at_once) >= bound {
            wrong.push(format!("{model} {precision} kv {kv:?}: {error:.2e}, in one prefill {at_once:.2e}"));
        }
    }
    assert!(wrong.is_empty(), "above {bound:.0e}: {wrong:#?}");
}

#[test]
fn f32_engines() {
    holds(&options(PrecisionPolicy::F32), KvElem::F32, 1e-4);
}

#[test]
fn bf16_engines() {
    for f32_activations in [false, true] {
        let options = CompileOptions { f32_activations, ..options(PrecisionPolicy::Bf16) };
        for kv in [KvElem::F32, KvElem::Bf16] {
            holds(&options, kv, 2e-2);
        }
    }
}

#[test]
fn a_mixed_batch_gives_what_its_sequences_give_alone_and_again_after_truncation() {
    let families = FAMILIES.iter().filter(|(model, _)| !model.ends_with(".gguf")).map(|(model, _)| *model);
    for name in ["gqa_tied", "rope_llama3"].into_iter().chain(families) {
        let engine = engine(name, &options(PrecisionPolicy::F32));
        let goldens: Vec<Golden> = (0..3).map(|i| golden(name, &format!("batch.{i}."))).collect();
        let mut worker = Worker::new(&engine, f32_worker().max_tokens(256)).unwrap();
        let [mut a, mut b, mut c] = [worker.sequence(), worker.sequence(), worker.sequence()];
        // Before the mixed pass: a is empty, b has all but one token, c all but four.
        let (tb, tc) = (&goldens[1].tokens, &goldens[2].tokens);
        let (b_head, c_head) = (tb.len() - 1, tc.len() - 4);
        let mut found_b = forward(&mut worker, &mut b, &tb[..b_head]);
        let mut found_c = forward(&mut worker, &mut c, &tc[..c_head]);
        let mixed = |worker: &mut Worker, a: &mut _, b: &mut _, c: &mut _| -> Vec<Vec<Vec<f32>>> {
            let mut batch = Batch::new();
            batch.push(a, &goldens[0].tokens, Want::All);
            batch.push(b, &tb[b_head..], Want::All);
            batch.push(c, &tc[c_head..], Want::All);
            let logits = worker.forward(&mut batch).unwrap();
            (0..3).map(|i| logits.of(i).iter().map(<[f32]>::to_vec).collect()).collect()
        };
        let first = mixed(&mut worker, &mut a, &mut b, &mut c);
        a.truncate(0);
        for (sequence, tokens, head) in [(&mut b, tb, b_head), (&mut c, tc, c_head)] {
            sequence.truncate(head);
            // Recurrent state is known at the end of blocks only.
            if sequence.len() < head {
                let held = sequence.len();
                forward(&mut worker, sequence, &tokens[held..head]);
            }
        }
        let again = mixed(&mut worker, &mut a, &mut b, &mut c);
        assert_eq!(first, again, "{name}: truncate and replay");
        found_b.extend(first[1].clone());
        found_c.extend(first[2].clone());
        for (i, found) in [first[0].clone(), found_b, found_c].iter().enumerate() {
            let error = relative_error(found, &goldens[i].logits);
            assert!(error < 1e-4, "{name} sequence {i}: {error:.2e}");
        }
    }
}

#[test]
fn ropes_that_scale_by_the_context_turn_by_that_of_the_engine() {
    let of = |context| CompileOptions { context: Some(context), ..options(PrecisionPolicy::F32) };
    // LongRoPE has an edge at 6 tokens, which all other tests are beyond.
    let short = golden("phi3", "context.");
    for model in ["phi3", "phi3.f32.gguf"] {
        let engine = engine(model, &of(6));
        assert_eq!(engine.plan().model.context, 6);
        let error = relative_error(&logits(&engine, f32_worker(), &short.tokens), &short.logits);
        assert!(error < 1e-4, "{model} up to its original context: {error:.2e}");
    }
    let beyond = logits(&engine("phi3", &of(7)), f32_worker(), &short.tokens);
    let error = relative_error(&beyond, &short.logits);
    assert!(error > 1e-2, "an engine for longer sequences has the long factors from the start: {error:.2e}");

    // Dynamic NTK grows with the context of a model that was trained for 32 tokens, up to twice that.
    let folder = tempfile::tempdir().unwrap();
    let source = fixture("rope_dynamic");
    let config = std::fs::read_to_string(source.join("config.json")).unwrap();
    let trained = "\"max_position_embeddings\": 256";
    assert!(config.contains(trained));
    let model = folder.path().join("trained_for_32");
    std::fs::create_dir(&model).unwrap();
    std::fs::write(model.join("config.json"), config.replace(trained, "\"max_position_embeddings\": 32"))
        .unwrap();
    std::fs::copy(source.join("model.safetensors"), model.join("model.safetensors")).unwrap();
    let g = golden("rope_dynamic", "context.");
    assert_eq!(g.tokens.len(), 49);
    let (path, _) = compile(&model, folder.path(), &of(49)).unwrap();
    let mut worker = Worker::new(&Engine::open(&path).unwrap(), f32_worker()).unwrap();
    let error = relative_error(&prefill_then_steps(&mut worker, &g), &g.logits);
    assert!(error < 1e-4, "dynamic NTK beyond the trained context: {error:.2e}");
    let refused = compile(&model, folder.path(), &of(65)).unwrap_err().to_string();
    assert!(refused.contains("65") && refused.contains("64"), "{refused}");
    // Other ropes end where the training did.
    let refused = compile(&fixture("qwen3"), folder.path(), &of(257)).unwrap_err().to_string();
    assert!(refused.contains("257") && refused.contains("256"), "{refused}");
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for (model, name) in MODELS.iter().chain(FAMILIES) {
        for precision in [PrecisionPolicy::Source, PrecisionPolicy::F32] {
            let g = golden(name, "");
            let engine = engine(model, &options(precision));
            let run = |threads| {
                let mut worker = Worker::new(&engine, f32_worker().threads(threads)).unwrap();
                prefill_then_steps(&mut worker, &g)
            };
            let one = run(1);
            for threads in [2, 3, 5] {
                assert!(
                    one == run(threads),
                    "{model} {precision}: {threads} threads give other bits than one"
                );
            }
        }
    }
}

#[test]
fn generated_code_gives_the_bits_of_the_nests() {
    for (model, name) in MODELS.iter().chain(FAMILIES) {
        for kv in [KvElem::F32, KvElem::F16, KvElem::Bf16, KvElem::Int8] {
            let g = golden(name, "");
            let options = options(PrecisionPolicy::Source);
            let mut interpreted = Worker::new(&engine(model, &options), f32_worker().kv(kv)).unwrap();
            let trusted = trusted_engine(model, &options);
            assert_eq!(trusted.nest_path(), NestPath::Generated, "{model}: this host has no generated code");
            let mut generated = Worker::new(&trusted, f32_worker().kv(kv)).unwrap();
            let found = prefill_then_steps(&mut generated, &g);
            assert!(found == prefill_then_steps(&mut interpreted, &g), "{model} kv {kv:?}");
        }
    }
}

#[test]
fn passes_that_are_switched_off_change_little() {
    // Fusion is exact up to the order of operations inside one op, so engines agree far better than with the golden.
    let passes = ["qkv", "gate-up", "residual", "add-rms-norm", "pointwise"];
    for (model, name) in [("gqa_tied", "gqa_tied"), ("biases", "biases"), ("gqa_9_3", "gqa_9_3")] {
        let g = golden(name, "");
        let run = |disable: Vec<String>| {
            let options = CompileOptions { disable, ..options(PrecisionPolicy::F32) };
            logits(&trusted_engine(model, &options), f32_worker(), &g.tokens)
        };
        let all = run(Vec::new());
        for off in passes.iter().map(|p| vec![p.to_string()]).chain([passes.map(String::from).to_vec()]) {
            let error = relative_error(&run(off.clone()), &all);
            assert!(error < 1e-5, "{model} without {off:?}: {error:.2e}");
        }
    }
}

#[test]
fn barriers_that_are_left_out_change_no_bit() {
    let barriers = |engine: &Engine| -> Vec<(usize, usize)> {
        let programs = engine.plan().programs.iter();
        programs.map(|p| (p.steps.len(), p.steps.iter().filter(|step| step.barrier).count())).collect()
    };
    // One with experts, whose linears round rows of their own.
    for (model, name) in [("gqa_9_3", "gqa_9_3"), ("mixtral", "mixtral")] {
        let g = golden(name, "");
        for precision in [PrecisionPolicy::Int8 { group: 32 }, PrecisionPolicy::Bf16] {
            let run = |disable: Vec<String>, threads: usize| {
                let engine = trusted_engine(model, &CompileOptions { disable, ..options(precision) });
                let mut worker = Worker::new(&engine, f32_worker().threads(threads)).unwrap();
                (prefill_then_steps(&mut worker, &g), barriers(&engine))
            };
            let (all, every) = run(vec!["barriers".into()], 1);
            assert!(every.iter().all(|(steps, barriers)| steps == barriers), "{model}: {every:?}");
            for threads in 1..=3 {
                let (found, some) = run(Vec::new(), threads);
                assert!(found == all, "{model} {precision}, {threads} threads");
                // Behind the embedding, and behind each of the norms.
                let joined = some.iter().all(|(steps, barriers)| barriers + 3 <= *steps);
                assert!(joined, "{model} {precision}: {some:?}");
            }
        }
    }
}
