//! Whole graphs: batches, state, and the two readings.

use bessemer_format::manifest::KvElem;
use bessemer_format::{Compute, QuantScheme};
use bessemer_ir::recipe::NoSource;
use bessemer_ir::testing::{TinyConfig, tiny_llama};
use bessemer_oracle::{Oracle, OracleError, Reading, SequenceRows, Wanted};

fn oracle(config: &TinyConfig, reading: Reading) -> Oracle {
    Oracle::new(&tiny_llama(config).unwrap(), &NoSource, reading).unwrap()
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

#[test]
fn a_mixed_batch_gives_what_each_sequence_gives_alone() {
    let (a, b, c) = ([1, 2, 3, 4, 5], [9, 8, 7], [50, 60, 70, 80]);
    let config = TinyConfig { bias: true, ..TinyConfig::default() };
    let mut mixed = oracle(&config, Reading::Exact);
    mixed.forward(&[rows(1, &b[..2], Wanted::None), rows(2, &c[..1], Wanted::None)]).unwrap();
    let found = mixed
        .forward(&[rows(0, &a, Wanted::All), rows(1, &b[2..], Wanted::Last), rows(2, &c[1..], Wanted::Last)])
        .unwrap();
    let mut expected = Vec::new();
    for (tokens, wanted) in [(&a[..], Wanted::All), (&b, Wanted::Last), (&c, Wanted::Last)] {
        let alone = oracle(&config, Reading::Exact).forward(&[rows(0, tokens, wanted)]).unwrap();
        expected.extend(alone.values);
    }
    assert_eq!(found.rows().len(), 7);
    assert_eq!(found.values, expected);
}

#[test]
fn truncating_and_replaying_gives_the_same_bits() {
    let mut oracle = oracle(&TinyConfig::default(), Reading::Declared { kv: KvElem::Bf16 });
    let first = oracle.forward(&[rows(3, &[5, 6, 7, 8], Wanted::All)]).unwrap();
    oracle.truncate(3, 2);
    assert_eq!(oracle.len(3), 2);
    let again = oracle.forward(&[rows(3, &[7, 8], Wanted::All)]).unwrap();
    assert_eq!(again.values, first.values[2 * first.vocab..]);
    oracle.reset();
    assert_eq!(oracle.forward(&[rows(3, &[5, 6, 7, 8], Wanted::All)]).unwrap(), first);
}

#[test]
fn a_pass_that_fails_leaves_the_sequences_as_they_were() {
    let mut oracle = oracle(&TinyConfig::default(), Reading::Exact);
    oracle.forward(&[rows(0, &[1, 2], Wanted::None)]).unwrap();
    let error = oracle.forward(&[rows(0, &[3, 96], Wanted::Last)]).unwrap_err();
    assert!(matches!(&error, OracleError::Node { op: "embed", .. }), "{error}");
    let twice = oracle.forward(&[rows(1, &[3], Wanted::Last), rows(1, &[4], Wanted::Last)]);
    assert!(matches!(twice, Err(OracleError::Batch(_))));
    assert_eq!((oracle.len(0), oracle.len(1)), (2, 0));
    let after = oracle.forward(&[rows(0, &[3], Wanted::Last)]).unwrap();
    oracle.reset();
    assert_eq!(oracle.forward(&[rows(0, &[1, 2, 3], Wanted::Last)]).unwrap(), after);
}

/// Each declared rounding is there and of the size that its definition implies.
#[test]
fn declared_roundings_have_their_sizes() {
    let tokens = [3, 1, 4, 1, 5, 9, 2, 6];
    let config = TinyConfig { scheme: QuantScheme::Q8_0, ..TinyConfig::default() };
    let int8 = TinyConfig { compute: Compute::Int8 { group: 32 }, ..config.clone() };
    let logits = |config: &TinyConfig, reading| {
        oracle(config, reading).forward(&[rows(0, &tokens, Wanted::All)]).unwrap().values
    };
    let exact = logits(&config, Reading::Exact);
    assert_eq!(logits(&int8, Reading::Exact), exact, "compute is no matter of the exact reading");
    let f32 = distance(&logits(&config, Reading::Declared { kv: KvElem::F32 }), &exact);
    let bf16 = distance(&logits(&config, Reading::Declared { kv: KvElem::Bf16 }), &exact);
    let int8 = distance(&logits(&int8, Reading::Declared { kv: KvElem::F32 }), &exact);
    assert!(f32 < 1e-6, "{f32}");
    assert!(1e-4 < bf16 && bf16 < 1e-2, "{bf16}");
    assert!(1e-3 < int8 && int8 < 5e-2, "{int8}");
}
