//! Forward passes of a hand-built model against its meaning in f64, and against themselves: neither the number of
//! threads nor the way in which tokens are cut into batches changes a bit.

mod common;

use bessemer_format::{Compute, QuantScheme};
use bessemer_runtime::{
    Batch, Engine, Isa, KernelSet, KvElem, Profile, StepResult, Want, Worker, WorkerOptions,
};
use common::{Model, Random, Reference, Shape, forward, relative_error, worker};

fn check_against_reference(shape: Shape, kv: KvElem, tolerance: f64) {
    let model = Model::random(shape, 1);
    check_engine(&model, &model.engine(), kv, tolerance);
}

fn check_engine(model: &Model, engine: &Engine, kv: KvElem, tolerance: f64) {
    // Several attention chunks and several passes of the largest program.
    let tokens = Random(2).tokens(150, model.shape.vocab);
    let mut worker = worker(engine, 2, kv);
    let mut sequence = worker.sequence();
    let mut got = forward(&mut worker, &mut sequence, &tokens[..147]);
    for token in &tokens[147..] {
        got.extend(forward(&mut worker, &mut sequence, &[*token]));
    }
    let want = Reference::new(model, kv).logits(&tokens);
    let error = relative_error(&got, &want);
    println!("relative error {error:e}");
    assert!(error < tolerance, "{error:e}");
}

#[test]
fn f32_weights_and_cache_meet_the_reference() {
    check_against_reference(Shape::default(), KvElem::F32, 2e-6);
}

#[test]
fn a_bf16_cache_meets_the_reference_that_rounds_too() {
    // A value next to a rounding boundary may fall on the other side: one part in 256 of a few elements.
    check_against_reference(Shape::default(), KvElem::Bf16, 1e-4);
}

#[test]
fn an_f16_cache_meets_the_reference_that_rounds_too() {
    // As above, one part in 2048.
    check_against_reference(Shape::default(), KvElem::F16, 2e-5);
}

#[test]
fn a_cache_of_codes_meets_the_reference_that_rounds_too() {
    // As above; a step of a code is one part in 127, 16 or 8 of its largest neighbour.
    for (kv, tolerance) in [(KvElem::Int8, 1e-3), (KvElem::Fp8, 4e-3), (KvElem::Int4, 1e-2)] {
        check_against_reference(Shape::default(), kv, tolerance);
    }
    // Keys and values of layers and heads of other shapes.
    for (heads, kv_heads, head_dim) in [(3, 3, 16), (5, 1, 8)] {
        let shape = Shape { heads, kv_heads, head_dim, ..Shape::default() };
        check_against_reference(shape, KvElem::Int4, 1e-2);
    }
}

#[test]
fn quantised_weights_in_f32_meet_the_reference() {
    for scheme in [QuantScheme::Q8_0, QuantScheme::Q4_0, QuantScheme::Q4_1, QuantScheme::BF16] {
        check_against_reference(Shape { scheme, ..Shape::default() }, KvElem::F32, 2e-6);
    }
}

#[test]
fn eight_bit_activations_meet_the_reference_that_rounds_too() {
    check_against_reference(Shape::int8(), KvElem::F32, 1e-3);
}

/// Whatever form of the rounded activations an instruction set reads.
#[test]
fn bf16_activations_match_the_reference_on_every_instruction_set() {
    let model = Model::random(Shape::bf16(), 1);
    for isa in Isa::ALL {
        let Some(kernels) = KernelSet::for_isa(*isa) else { continue };
        let engine = Engine::from_bytes_with(&model.engine_bytes(), kernels).expect("the engine opens");
        assert_eq!(engine.isa(), *isa);
        check_engine(&model, &engine, KvElem::F32, 1e-3);
    }
}

/// A weight next to a rounding border may fall on the other side, as few do: the rest of an error of 2^-9 is the reference's, too.
#[test]
fn attention_in_bf16_meets_the_reference_that_rounds_too() {
    let shape = Shape { attention: Compute::Bf16, ..Shape::default() };
    let windowed = Shape { attention: Compute::Bf16, ..Shape::windowed() };
    for shape in [shape, windowed] {
        for kv in [KvElem::F32, KvElem::F16, KvElem::Bf16] {
            check_against_reference(shape.clone(), kv, 2f64.powi(-12));
        }
    }
}

#[test]
fn multi_head_and_single_kv_head_meet_the_reference() {
    for (heads, kv_heads, head_dim) in [(3, 3, 16), (5, 1, 8)] {
        let shape = Shape { heads, kv_heads, head_dim, ..Shape::default() };
        check_against_reference(shape, KvElem::F32, 2e-6);
    }
}

#[test]
fn windows_caps_and_sinks_meet_the_reference() {
    check_against_reference(Shape::windowed(), KvElem::F32, 4e-6);
    // Windows that end with a block, that hold one position, and that are longer than a chunk.
    for window in [1, 32, 64, 100] {
        let shape = Shape { window: Some(window), layers: 3, ..Shape::default() };
        check_against_reference(shape, KvElem::F32, 4e-6);
    }
}

/// A run that takes every path: prefill in several passes, a mixed batch of three sequences, single steps.
fn long_run(engine: &Engine, threads: usize, kv: KvElem) -> Vec<u32> {
    let mut worker = worker(engine, threads, kv);
    assert_eq!(worker.threads(), threads);
    let vocab = engine.plan().model.vocab as usize;
    let tokens = Random(3).tokens(200, vocab);
    let [mut a, mut b, mut c] = [(); 3].map(|()| worker.sequence());
    let mut out = forward(&mut worker, &mut a, &tokens[..140]);
    out.extend(forward(&mut worker, &mut b, &tokens[50..80]));
    let mask: Vec<bool> = (0..17).map(|i| i % 2 == 0).collect();
    let mut batch = Batch::new();
    batch.push(&mut a, &tokens[140..141], Want::Last);
    batch.push(&mut b, &tokens[80..84], Want::All);
    batch.push(&mut c, &tokens[100..117], Want::Mask(&mask));
    out.extend(worker.forward(&mut batch).unwrap().all().as_slice());
    for token in &tokens[150..160] {
        out.extend(forward(&mut worker, &mut a, &[*token]));
    }
    out.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for shape in [Shape::default(), Shape::int8(), Shape::bf16(), Shape::windowed()] {
        for kv in KvElem::ALL {
            let engine = Model::random(shape.clone(), 4).engine();
            let one = long_run(&engine, 1, kv);
            assert!(one.iter().any(|bits| *bits != 0));
            for threads in [2, 3, 5] {
                assert!(long_run(&engine, threads, kv) == one, "{threads} threads differ from one");
            }
        }
    }
}

#[test]
fn a_prompt_gives_the_same_bits_however_it_is_cut() {
    for shape in [Shape::default(), Shape::int8(), Shape::bf16(), Shape::windowed()] {
        let model = Model::random(shape, 5);
        let tokens = Random(6).tokens(170, model.shape.vocab);
        let engine = model.engine();
        let mut worker = worker(&engine, 2, KvElem::Bf16);
        let mut sequence = worker.sequence();
        let whole = forward(&mut worker, &mut sequence, &tokens);
        // 1: decode, with chunks dealt to threads; 3: the same for a few rows; 7 and 24: blocks of rows.
        for step in [1, 3, 7, 24] {
            let mut sequence = worker.sequence();
            let cut: Vec<f32> =
                tokens.chunks(step).flat_map(|t| forward(&mut worker, &mut sequence, t)).collect();
            assert!(cut == whole, "steps of {step} rows differ");
        }
        // A worker that takes fewer rows at a time cuts by itself.
        for max_rows in [1, 4, 10] {
            let options = WorkerOptions::default().threads(2).max_rows(max_rows);
            let mut narrow = Worker::new(&engine, options).unwrap();
            let mut sequence = narrow.sequence();
            assert!(forward(&mut narrow, &mut sequence, &tokens) == whole, "{max_rows} rows a pass differ");
        }
    }
}

#[test]
fn a_mixed_batch_gives_each_sequence_what_it_gets_alone() {
    let model = Model::random(Shape::int8(), 7);
    let engine = model.engine();
    let tokens = Random(8).tokens(300, model.shape.vocab);
    let mut worker = worker(&engine, 2, KvElem::Bf16);
    let prompts = [&tokens[..0], &tokens[10..100], &tokens[200..233]];
    // A prefill, a single decode row, and four rows that go on.
    let next = [&tokens[150..190], &tokens[5..6], &tokens[40..44]];

    let mut alone = Vec::new();
    for (prompt, next) in prompts.iter().zip(next) {
        let mut sequence = worker.sequence();
        forward(&mut worker, &mut sequence, prompt);
        alone.push(forward(&mut worker, &mut sequence, next));
    }

    let mut sequences = [(); 3].map(|()| worker.sequence());
    for (sequence, prompt) in sequences.iter_mut().zip(prompts) {
        forward(&mut worker, sequence, prompt);
    }
    let mut batch = Batch::new();
    for (sequence, next) in sequences.iter_mut().zip(next) {
        batch.push(sequence, next, Want::All);
    }
    assert_eq!(batch.rows(), 45);
    let logits = worker.forward(&mut batch).unwrap();
    for (entry, alone) in alone.iter().enumerate() {
        assert!(logits.of(entry).as_slice() == &alone[..], "entry {entry} differs");
    }
    assert_eq!(sequences.map(|s| s.len()), [40, 91, 37]);
}

#[test]
fn wanted_rows_are_the_ones_that_come() {
    let model = Model::random(Shape::default(), 9);
    let tokens = Random(10).tokens(60, model.shape.vocab);
    let mut worker = worker(&model.engine(), 2, KvElem::F32);
    let mut sequence = worker.sequence();
    let all = forward(&mut worker, &mut sequence, &tokens);
    let row = |i: usize| &all[i * model.shape.vocab..][..model.shape.vocab];
    let mask: Vec<bool> = (0..60).map(|i| i % 13 == 5).collect();
    let [mut a, mut b, mut c] = [(); 3].map(|()| worker.sequence());
    let mut batch = Batch::new();
    batch.push(&mut a, &tokens, Want::None);
    batch.push(&mut b, &tokens, Want::Last);
    batch.push(&mut c, &tokens, Want::Mask(&mask));
    let logits = worker.forward(&mut batch).unwrap();
    assert!(logits.of(0).is_empty());
    assert_eq!((logits.of(1).len(), logits.of(1).last()), (1, Some(row(59))));
    let rows: Vec<_> = logits.of(2).into_iter().collect();
    assert_eq!(rows, [5, 18, 31, 44, 57].map(row));
    assert_eq!(&logits.of(2)[4], row(57));

    let nothing = worker.forward(&mut Batch::new()).unwrap();
    assert!(nothing.all().is_empty());
}

#[test]
fn a_traced_pass_shows_every_step_and_computes_the_same() {
    let model = Model::random(Shape::int8(), 7);
    let tokens = Random(8).tokens(9, model.shape.vocab);
    let want = {
        let mut worker = worker(&model.engine(), 1, KvElem::F32);
        let mut sequence = worker.sequence();
        forward(&mut worker, &mut sequence, &tokens)
    };
    for threads in [1, 3] {
        let mut worker = worker(&model.engine(), threads, KvElem::F32);
        let mut sequence = worker.sequence();
        let mut batch = Batch::new();
        batch.push(&mut sequence, &tokens, Want::All);
        let (mut sources, mut last) = (Vec::new(), Vec::new());
        let mut see = |step: &StepResult<'_>| {
            sources.push(step.source.to_string());
            last = step.outputs.iter().flat_map(|o| o.to_vec()).collect();
        };
        let logits = worker.forward_traced(&mut batch, &mut see).unwrap().all().as_slice().to_vec();
        assert_eq!(logits, want);
        assert_eq!(last, want, "the last step makes the logits");
        let plan = model.engine();
        let programs = &plan.plan().programs;
        let program = programs.iter().find(|p| p.regime.max_rows as usize >= tokens.len()).unwrap();
        let steps: Vec<_> = program.steps.iter().map(|s| s.source.clone()).collect();
        assert_eq!(sources, steps);
    }
}

#[test]
fn a_profile_adds_the_times_of_every_step_and_thread() {
    let model = Model::random(Shape::default(), 7);
    let engine = model.engine();
    let mut worker = worker(&engine, 2, KvElem::F32);
    let mut sequence = worker.sequence();
    let mut profile = Profile::new();
    for token in [1, 2, 3] {
        let mut batch = Batch::new();
        batch.push(&mut sequence, std::slice::from_ref(&token), Want::Last);
        worker.forward_profiled(&mut batch, &mut profile).unwrap();
    }
    assert_eq!((profile.passes(0), profile.passes(1)), (3, 0));
    let steps = profile.steps(0);
    assert_eq!(steps.len(), engine.plan().programs[0].steps.len());
    assert!(steps.iter().all(|threads| threads.len() == 2));
    assert!(steps.iter().flatten().all(|t| !t.busy.is_zero()), "{steps:?}");
    assert!(steps.iter().flatten().any(|t| !t.waiting.is_zero()), "{steps:?}");
    assert!(profile.steps(1).is_empty());
}
