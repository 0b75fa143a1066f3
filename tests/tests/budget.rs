//! Budgets in place of precisions: they hold on held-out text, in fewer bits than any uniform scheme needs, or are refused with what can be
//! reached.

use bessemer_compiler::calibrate::{Budget, Corpus, Text};
use bessemer_compiler::compile::prepare;
use bessemer_compiler::import::Checkpoint;
use bessemer_compiler::options::{CompileOptions, RunOptions};
use bessemer_compiler::tuning::{Event, ReadKey, TuneOptions, Tuning, TuningCache, reads, tune};
use bessemer_compiler::{CompileError, Compiled, Method, Silent};
use bessemer_ir::Phase;
use bessemer_passes::PrecisionPolicy;
use bessemer_runtime::Engine;
use bessemer_tests::models::{cached_model, fixture};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The fixture has no tokenizer: made-up tokens, others to judge by.
fn options(method: Method, budget: Option<Budget>, precision: &str) -> CompileOptions {
    let tokens = |seed: u32, n: u32| (0..n).map(|i| (i * i * 7 + i * seed) % 96).collect();
    let corpus = |seed, windows| Corpus { text: Text::Tokens(tokens(seed, 256)), windows, window: 32 };
    CompileOptions {
        precision: precision.parse().unwrap(),
        budget,
        method,
        calibration: corpus(3, 8),
        measure: Some(corpus(5, 4)),
        ..CompileOptions::default()
    }
}

fn compile(source: &Path, options: &CompileOptions, threads: usize) -> Result<Compiled, CompileError> {
    let folder = tempfile::tempdir().unwrap();
    let run = RunOptions { threads, ..RunOptions::default() };
    bessemer_compiler::compile(source, &folder.path().join("m.engine"), options, &run, None, &Silent)
}

/// Divergence and bits of what a budget or a precision makes of the fixture.
fn made(method: Method, budget: Option<Budget>, precision: &str) -> (f64, f64, Compiled) {
    let made = compile(&fixture("gqa_untied"), &options(method, budget, precision), 2).unwrap();
    let quality = made.quality.clone().unwrap();
    (quality.mean_kl, quality.bits_per_weight, made)
}

const UNIFORM: [&str; 6] = ["int8", "int6", "int5", "int4", "int3", "u4:f16x32-8"];

#[test]
fn a_divergence_holds_in_fewer_bits_than_any_uniform_scheme_takes() {
    let uniform = UNIFORM.map(|p| made(Method::Rtn, None, p));
    // Between what five bits and four bits lose, so that something is to be gained.
    let limit = 0.5 * (uniform[2].0 + uniform[3].0);
    let (kl, bits, one) = made(Method::Rtn, Some(Budget::Kl(limit)), "source");
    assert!(kl <= limit, "{kl} exceeds {limit}");
    for (uniform_kl, uniform_bits, _) in uniform.iter().filter(|(kl, ..)| *kl <= limit) {
        assert!(bits < *uniform_bits, "{bits} bits; {uniform_bits} bits lose {uniform_kl}");
    }
    let again = options(Method::Rtn, Some(Budget::Kl(limit)), "source");
    let again = compile(&fixture("gqa_untied"), &again, 1).unwrap();
    assert_eq!(one.sha256, again.sha256, "one thread chooses otherwise than two");
}

#[test]
fn a_number_of_bits_is_used_up_and_well_used() {
    let (uniform_kl, uniform_bits, _) = made(Method::AwqGptq, None, "u4:f16x32-8");
    let (kl, bits, _) = made(Method::AwqGptq, Some(Budget::Bits(uniform_bits)), "source");
    assert!(bits <= uniform_bits && bits > 0.99 * uniform_bits, "{bits} of {uniform_bits}");
    assert!(kl < uniform_kl, "{kl} against {uniform_kl}");
}

#[test]
fn an_engine_keeps_within_its_size_and_perplexity_within_its_bound() {
    let (_, _, small) = made(Method::Rtn, None, "int3");
    let bytes = small.bytes + small.bytes / 5;
    let (_, bits, made_within) = made(Method::Rtn, Some(Budget::Size(bytes)), "source");
    assert!(made_within.bytes <= bytes && bits > 3.0, "{} of {bytes}", made_within.bytes);
    let (_, _, bound) = made(Method::Rtn, Some(Budget::Perplexity(2.0)), "source");
    let quality = bound.quality.unwrap();
    assert!(quality.perplexity <= 1.02 * quality.source_perplexity, "{quality:?}");
}

#[test]
fn a_table_that_is_the_head_too_is_rounded_for_what_its_products_see() {
    // A text of few words: what the products see lies in few directions, and away from them an error of the table costs nothing. On a
    // text of all words this model, whose weights are random, sees every direction alike, and there is nothing to gain.
    let tokens = |seed: u32, n: u32| (0..n).map(|i| (i * i * 7 + i * seed) % 97 % 4 * 16).collect();
    let corpus = |seed, windows| Corpus { text: Text::Tokens(tokens(seed, 256)), windows, window: 32 };
    let lost = |method, scheme: &str| {
        let mut options = options(method, None, "source");
        (options.calibration, options.measure) = (corpus(3, 8), Some(corpus(5, 4)));
        options.overrides = vec![format!("embed={scheme}").parse().unwrap()];
        compile(&fixture("gqa_tied"), &options, 2).unwrap().quality.unwrap()
    };
    for scheme in ["u4:f16x32+f16", "u3:s8x32*f16x0-4", "u3:f16x32+f16", "u3:f16x32-4"] {
        let (n, c) = (lost(Method::Rtn, scheme), lost(Method::Gptq, scheme));
        assert_eq!((n.weights.len(), c.weights.len()), (0, 1), "{scheme}: {:?}", c.weights);
        println!("{scheme}: {} beside {}", c.mean_kl, n.mean_kl);
        assert!(c.mean_kl < 0.85 * n.mean_kl, "{scheme}: {} beside {}", c.mean_kl, n.mean_kl);
    }
}

#[test]
fn what_a_machine_reads_slowly_is_chosen_less() {
    let checkpoint = Checkpoint::open(fixture("gqa_untied")).unwrap();
    let only = RunOptions { stop_after: Some(Phase::Canonical), ..RunOptions::default() };
    let (weights, _) =
        reads::weights(&prepare(&checkpoint, &CompileOptions::default(), &only).unwrap().graph);
    let bytes = "s8:u8x32*f16x0";
    let plain = options(Method::Rtn, Some(Budget::Kl(0.01)), "source");
    // A machine on which everything but whole bytes takes a thousand times as long.
    let mut cache = TuningCache::default();
    for scheme in [bytes, "f32", "bf16"].iter().chain(&CHOSEN_FROM) {
        let (machine, target) = ("slow".into(), "cpu".into());
        let scheme_of = scheme.parse().unwrap();
        let key = ReadKey {
            machine,
            producer: bessemer_format::PRODUCER.into(),
            target,
            weights,
            scheme: scheme_of,
        };
        cache.insert_read(key, if CHOSEN_FROM.contains(scheme) { 1_000_000 } else { 1000 });
    }
    let tuned = |machine: &str| {
        let tuning = Some(Tuning { cache: Arc::new(cache.clone()), machine: machine.into() });
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("m.engine");
        let options = CompileOptions { tuning, ..plain.clone() };
        let made = bessemer_compiler::compile(
            &fixture("gqa_untied"),
            &out,
            &options,
            &RunOptions::default(),
            None,
            &Silent,
        );
        let quality = made.unwrap().quality.unwrap();
        assert!(quality.mean_kl <= 0.01, "{}", quality.mean_kl);
        let engine = Engine::open(&out).unwrap();
        let schemes: BTreeSet<String> = engine.plan().weights.iter().map(|w| w.scheme.to_string()).collect();
        (quality.bits_per_weight, schemes)
    };
    let ((slow_bits, slow), (bits, elsewhere)) = (tuned("slow"), tuned("another"));
    let narrow = |schemes: &BTreeSet<String>| CHOSEN_FROM.iter().any(|s| schemes.contains(*s));
    assert!(!narrow(&slow) && narrow(&elsewhere), "{slow:?} beside {elsewhere:?}");
    assert!(slow_bits > bits, "{slow_bits} beside {bits}");
}

#[test]
fn tuning_for_a_budget_times_what_it_chooses_from() {
    let folder = tempfile::tempdir().unwrap();
    let source = fixture("gqa_untied");
    let checkpoint = Checkpoint::open(&source).unwrap();
    let events = Mutex::new(Vec::new());
    let measure = |known: TuningCache| {
        let tuning = Tuning { cache: Arc::new(known), machine: "here".into() };
        let how = TuneOptions {
            threads: 2,
            limit: Duration::from_secs(3600),
            folder: folder.path(),
            open: &|path| Engine::open(path),
            tell: &|event| events.lock().unwrap().push(event.clone()),
        };
        let options = options(Method::Rtn, Some(Budget::Kl(0.01)), "source");
        let found = tune(&checkpoint, &options, &tuning, &RunOptions::default(), &how, &Silent).unwrap();
        (found, std::mem::take(&mut *events.lock().unwrap()))
    };
    let (found, told) = measure(TuningCache::default());
    let timed: BTreeSet<String> = found.read_times().map(|(key, _)| key.scheme.to_string()).collect();
    assert!(CHOSEN_FROM.iter().all(|scheme| timed.contains(*scheme)), "{timed:?}");
    let count = |told: &[Event]| told.iter().filter(|e| matches!(e, Event::Read { .. })).count();
    assert_eq!(count(&told), timed.len());
    let (again, told) = measure(found.clone());
    assert_eq!((again, count(&told)), (found, 0));
}

#[test]
fn what_cannot_be_reached_is_refused_with_what_can() {
    let refused = |options: CompileOptions, words: &str| match compile(&fixture("gqa_untied"), &options, 2) {
        Err(e @ CompileError::Budget { .. }) => {
            assert!(e.to_string().contains("best reachable") && e.to_string().contains(words), "{e}");
        }
        other => panic!("{other:?}"),
    };
    refused(options(Method::Rtn, Some(Budget::Bits(1.5)), "source"), "bits a weight");
    refused(options(Method::Rtn, Some(Budget::Size(1000)), "source"), "bytes");
    // Weights that are overridden keep what they were given, so their loss cannot be made good.
    let mut coarse = options(Method::Rtn, Some(Budget::Kl(1e-4)), "source");
    coarse.overrides = vec!["down=int2".parse().unwrap()];
    refused(coarse, "KL divergence of 0.0001");
}

/// What a budget chooses from beside whole bytes.
const CHOSEN_FROM: [&str; 10] = [
    "u4:s8x32*f16x0-8",
    "iq4:s8x32*f16x0",
    "u4:u8x32*f16x0+u8*f16",
    "u2:u8x32*f16x0+u8*f16",
    "u3:s8x32*f16x0-4",
    "u3:u8x32*f16x0+u8*f16",
    "u5:s8x32*f16x0-16",
    "u5:u8x32*f16x0+u8*f16",
    "u6:s8x32*f16x0-32",
    "u6:u8x32*f16x0+u8*f16",
];

/// Schemes that a user could name for all weights: those that a budget chooses from, and the plain ones.
const ALL_UNIFORM: [&str; 12] = [
    "s8:u8x32*f16x0",
    "u6:u8x32*f16x0+u8*f16",
    "u6:s8x32*f16x0-32",
    "u6:f16x32-32",
    "u5:u8x32*f16x0+u8*f16",
    "u5:s8x32*f16x0-16",
    "u5:f16x32-16",
    "int5:32",
    "u4:u8x32*f16x0+u8*f16",
    "u4:f16x32-8",
    "u4:s8x32*f16x0-8",
    "iq4:s8x32*f16x0",
];

/// The real thing, minutes long: `cargo test -p bessemer-tests --test budget -- --ignored`.
#[test]
#[ignore = "minutes long, and needs a fetched model"]
fn budgets_hold_on_a_real_model() {
    let Some(source) = cached_model("stories15M") else { return };
    let folder = tempfile::tempdir().unwrap();
    let compile = |options: &CompileOptions| {
        // What one run found out about the model serves the others.
        let run = RunOptions { scratch: Some(folder.path().join("scratch")), ..RunOptions::default() };
        let out = folder.path().join("m.engine");
        bessemer_compiler::compile(&source, &out, options, &run, None, &Silent)
    };
    let run = |budget: Option<Budget>, precision: &str| {
        let options = CompileOptions {
            precision: precision.parse().unwrap(),
            budget,
            method: Method::AwqGptq,
            measure: Some(Corpus::held_out()),
            ..CompileOptions::default()
        };
        let started = std::time::Instant::now();
        let made = compile(&options).unwrap();
        let quality = made.quality.unwrap();
        let (kl, bits, seconds) = (quality.mean_kl, quality.bits_per_weight, started.elapsed().as_secs());
        println!("{budget:?} {precision}: KL {kl:.5}, {bits:.3} bits, {} bytes; {seconds} s", made.bytes);
        (kl, bits)
    };
    // How many bits a scheme takes shows without calibration. What it loses is measured where that decides something: a scheme that takes
    // no fewer bits than the budget did is no smaller, whatever it loses.
    let uniform = ALL_UNIFORM.map(|scheme| {
        let precision = scheme.parse().unwrap();
        (scheme, compile(&CompileOptions { precision, ..CompileOptions::default() }).unwrap().bits_per_weight)
    });
    let mut measured = BTreeMap::new();
    let mut loses = |scheme: &'static str| *measured.entry(scheme).or_insert_with(|| run(None, scheme).0);
    for limit in [0.01, 0.03] {
        let (kl, bits) = run(Some(Budget::Kl(limit)), "source");
        assert!(kl <= limit, "{kl} exceeds {limit}");
        for (scheme, uniform) in uniform.iter().filter(|(_, uniform)| *uniform <= bits) {
            let kl = loses(scheme);
            assert!(
                kl > limit,
                "{scheme} holds {limit} with {kl} in {uniform} bits, and the budget took {bits}"
            );
        }
    }
    let (kl, bits) = run(Some(Budget::Bits(4.5)), "source");
    assert!((4.455..=4.5).contains(&bits), "{bits}");
    let alike: Vec<_> = uniform.iter().filter(|(_, uniform)| (4.455..4.545).contains(uniform)).collect();
    assert!(!alike.is_empty());
    for (scheme, _) in alike {
        let uniform = loses(scheme);
        assert!(kl < uniform, "{kl} against {uniform} of {scheme}");
    }
    let unreachable = CompileOptions {
        budget: Some(Budget::Kl(1e-3)),
        overrides: vec!["down=int2".parse().unwrap()],
        precision: PrecisionPolicy::Source,
        measure: Some(Corpus::held_out()),
        ..CompileOptions::default()
    };
    let refused = compile(&unreachable).unwrap_err();
    println!("{refused}");
    assert!(matches!(refused, CompileError::Budget { .. }) && refused.to_string().contains("best reachable"));
}
