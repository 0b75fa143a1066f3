//! Segments, one after the other, compute what the whole graph does, bit for bit.

use bessemer_eager::{Eager, EagerOptions, Logits, Observer, SequenceRows, Streamed, Wanted};
use bessemer_ir::recipe::NoSource;
use bessemer_ir::testing::{TinyConfig, tiny_llama};
use bessemer_ir::{NodeId, Op};
use bessemer_oracle::{Oracle, Reading};
use std::collections::BTreeMap;

#[derive(Default)]
struct Record {
    logits: Vec<(usize, Logits)>,
    inputs: BTreeMap<NodeId, usize>,
    segments: usize,
    wants: bool,
}

impl Observer for Record {
    fn linear(&mut self, linear: NodeId, x: &[f32], width: usize) {
        assert_eq!(x.len() % width, 0);
        *self.inputs.entry(linear).or_default() += x.len() / width;
    }
    fn segment(&mut self, _: usize, of: usize) -> Result<(), String> {
        self.segments = of;
        Ok(())
    }
    fn wants_logits(&self) -> bool {
        self.wants
    }
    fn logits(&mut self, window: usize, logits: Logits) {
        self.logits.push((window, logits));
    }
}

#[test]
fn segments_compute_what_the_whole_does_at_any_thread_count() {
    let windows = vec![vec![3, 1, 4, 1, 5, 9], vec![2, 6, 5]];
    let base = TinyConfig::default;
    for config in [base(), TinyConfig { tied: true, bias: true, kv_heads: 1, ..base() }] {
        let graph = tiny_llama(&config).unwrap();
        let mut record = Record { wants: true, ..Record::default() };
        Streamed::new(&graph, &NoSource, 3).unwrap().run(&windows, &mut record).unwrap();
        assert_eq!(record.segments, 6, "attention and MLP of two layers, the head, the output");
        let options = EagerOptions { threads: 1, defined: true, ..EagerOptions::default() };
        for (window, logits) in &record.logits {
            let part =
                SequenceRows { sequence: 0, tokens: &windows[*window], types: &[], logits: Wanted::All };
            let whole = Eager::new(&graph, &NoSource, options).unwrap().forward(&[part]).unwrap();
            let bits = |l: &Logits| l.values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(logits), bits(&whole));
            let exact = Oracle::new(&graph, &NoSource, Reading::Exact).unwrap().forward(&[part]).unwrap();
            for (found, expected) in whole.values.iter().zip(&exact.values) {
                assert!((found - expected).abs() <= 1e-4 * expected.abs().max(1.0), "{found} {expected}");
            }
        }
        assert_eq!(record.logits.len(), 2);
        // Without logits every linear is seen all the same.
        let mut silent = Record::default();
        Streamed::new(&graph, &NoSource, 1).unwrap().run(&windows, &mut silent).unwrap();
        let linears = graph.all().into_iter().filter(|n| matches!(graph.op(*n), Op::Linear { .. }));
        assert_eq!(silent.inputs, linears.map(|n| (n, 9)).collect());
        assert_eq!(silent.inputs, record.inputs);
        assert!(silent.logits.is_empty());
    }
}

#[test]
fn windows_that_go_together_compute_what_each_does_alone() {
    let graph = tiny_llama(&TinyConfig::default()).unwrap();
    // More rows than go together.
    let windows: Vec<Vec<u32>> =
        [100, 120, 90, 300, 7].map(|len| (0..len).map(|i| (i * i + len) % 96).collect()).into();
    let mut record = Record { wants: true, ..Record::default() };
    Streamed::new(&graph, &NoSource, 2).unwrap().run(&windows, &mut record).unwrap();
    let seen: Vec<usize> = record.logits.iter().map(|(window, _)| *window).collect();
    assert_eq!(seen, [0, 1, 2, 3, 4]);
    for (window, logits) in &record.logits {
        let mut alone = Record { wants: true, ..Record::default() };
        let only = std::slice::from_ref(&windows[*window]);
        Streamed::new(&graph, &NoSource, 1).unwrap().run(only, &mut alone).unwrap();
        assert!(*logits == alone.logits[0].1, "window {window}");
        assert_eq!(logits.rows().len(), windows[*window].len());
    }
}
