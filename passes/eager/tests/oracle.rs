//! The executor against the oracle's exact reading.

use bessemer_eager::{Eager, EagerError, EagerOptions, SequenceRows, Wanted, WeightFormat};
use bessemer_ir::Graph;
use bessemer_ir::attr::RopeStyle;
use bessemer_ir::recipe::NoSource;
use bessemer_ir::testing::{TinyConfig, tiny_llama};
use bessemer_oracle::{Oracle, Reading};

fn eager(graph: &Graph, weights: WeightFormat, threads: usize) -> Eager {
    Eager::new(graph, &NoSource, EagerOptions { weights, threads, ..EagerOptions::default() }).unwrap()
}

fn rows(sequence: usize, tokens: &[u32], logits: Wanted) -> SequenceRows<'_> {
    SequenceRows { sequence, tokens, types: &[], logits }
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |v: f32| f64::from(v).powi(2);
    let norm = b.iter().map(|v| square(*v)).sum::<f64>();
    (a.iter().zip(b).map(|(a, b)| square(a - b)).sum::<f64>() / norm).sqrt()
}

fn variants() -> Vec<TinyConfig> {
    let base = TinyConfig::default();
    vec![
        TinyConfig { bias: true, tied: true, ..base.clone() },
        TinyConfig { kv_heads: 4, style: RopeStyle::Interleaved, seed: 2, ..base.clone() },
        // Extents that fill no vector, and enough of them that threads share the work.
        TinyConfig { vocab: 999, hidden: 88, head_dim: 22, ffn: 300, kv_heads: 1, seed: 3, ..base },
    ]
}

/// A long chunk, then a batch of a chunk, a decode row and a continuation, then a truncation and its replay.
#[test]
fn mixed_batches_agree_with_the_oracle_on_any_number_of_threads() {
    let long: Vec<u32> = (0..70).map(|i| i * 7 % 96).collect();
    for config in variants() {
        let graph = tiny_llama(&config).unwrap();
        let mut oracle = Oracle::new(&graph, &NoSource, Reading::Exact).unwrap();
        let prompts = [rows(1, &long, Wanted::All), rows(2, &[4, 5], Wanted::None)];
        let mixed = [
            rows(0, &[1, 2, 3, 4, 5], Wanted::All),
            rows(1, &[6], Wanted::Last),
            rows(2, &[1, 2, 3, 4], Wanted::Last),
        ];
        let first = oracle.forward(&prompts).unwrap();
        let second = oracle.forward(&mixed).unwrap();
        for threads in [1, 2, 3, 5] {
            let mut eager = eager(&graph, WeightFormat::F32, threads);
            assert_eq!(eager.threads(), threads);
            let found = eager.forward(&prompts).unwrap();
            assert!(distance(&found.values, &first.values) < 1e-5, "{config:?}");
            let found = eager.forward(&mixed).unwrap();
            assert_eq!(found.rows().len(), 7);
            assert!(distance(&found.values, &second.values) < 1e-5, "{config:?}");
            eager.truncate(1, 60);
            let replay = eager.forward(&[rows(1, &long[60..], Wanted::All)]).unwrap();
            assert!(distance(&replay.values, &first.values[60 * first.vocab..]) < 1e-5);
        }
    }
}

#[test]
fn one_row_after_the_other_agrees_with_the_oracle() {
    let graph = tiny_llama(&TinyConfig::default()).unwrap();
    let (mut eager, tokens) = (eager(&graph, WeightFormat::F32, 2), [9, 8, 7, 6, 5, 4]);
    let mut oracle = Oracle::new(&graph, &NoSource, Reading::Exact).unwrap();
    let expected = oracle.forward(&[rows(0, &tokens, Wanted::All)]).unwrap();
    for (token, expected) in tokens.iter().zip(expected.rows()) {
        let found = eager.forward(&[rows(0, &[*token], Wanted::Last)]).unwrap();
        assert!(distance(&found.values, expected) < 1e-5);
    }
    assert_eq!(eager.len(0), 6);
    eager.reset();
    assert!(eager.is_empty());
}

/// Rounding to bf16 moves weights by up to 2^-9: seen, but small.
#[test]
fn bf16_weights_are_near() {
    for config in variants() {
        let graph = tiny_llama(&config).unwrap();
        let tokens: Vec<u32> = (0..20).collect();
        let mut oracle = Oracle::new(&graph, &NoSource, Reading::Exact).unwrap();
        let expected = oracle.forward(&[rows(0, &tokens, Wanted::All)]).unwrap();
        let mut eager = eager(&graph, WeightFormat::Bf16, 2);
        let found = eager.forward(&[rows(0, &tokens, Wanted::All)]).unwrap();
        let far = distance(&found.values, &expected.values);
        assert!(1e-4 < far && far < 2e-2, "{far}");
        eager.truncate(0, 19);
        let last = eager.forward(&[rows(0, &tokens[19..], Wanted::Last)]).unwrap();
        assert!(distance(&last.values, &found.values[19 * found.vocab..]) < 1e-5, "few rows as many rows");
    }
}

#[test]
fn errors_leave_the_state_and_name_the_cause() {
    let graph = tiny_llama(&TinyConfig::default()).unwrap();
    let mut eager = eager(&graph, WeightFormat::F32, 1);
    eager.forward(&[rows(0, &[1, 2], Wanted::None)]).unwrap();
    let error = eager.forward(&[rows(0, &[3, 96], Wanted::Last)]).unwrap_err();
    assert_eq!(error, EagerError::Token { token: 96, vocab: 96 });
    assert_eq!(eager.len(0), 2);
    assert!(matches!(
        eager.forward(&[rows(1, &[1], Wanted::Last), rows(1, &[2], Wanted::Last)]),
        Err(EagerError::Batch(_))
    ));
}

#[test]
fn fused_graphs_are_refused_by_name() {
    let text = r#"graph fused
%0 "tokens" = input {input=tokens}
%1 "table" = const {recipe=random 1 0.5 [8, 4]}
%2 "x" = embed %0, %1
%3 "square" = pointwise %2 {body=[mul(0, 0)]}
%4 "out" = output %3
"#;
    let graph = bessemer_ir::text::parse(text).unwrap();
    let error = Eager::new(&graph, &NoSource, EagerOptions::default()).err().unwrap();
    assert_eq!(error, EagerError::Fused { node: "square".into(), op: "pointwise" });
}
