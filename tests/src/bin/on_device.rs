//! Runs an engine on a device and holds it to a golden, in a process of its own: tests choose the driver that it finds.
//!
//! `on_device ENGINE DEVICE KV GOLDEN BOUND [GPU_LAYERS]`. The golden `cpu` is what the CPU computes for nine tokens.

use bessemer_runtime::{Batch, Engine, KvElem, Sequence, Want, Worker, WorkerOptions};
use bessemer_tests::models::{Golden, forward, golden, logits, open_trusted, relative_error};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let ([engine, device, kv, name, bound], layers) = (match args.as_slice() {
        [five @ .., layers] if five.len() == 5 => (five, Some(layers.parse().unwrap())),
        five => (five, None),
    }) else {
        panic!("usage: on_device ENGINE DEVICE KV GOLDEN BOUND [GPU_LAYERS]");
    };
    let engine: Engine = open_trusted(engine.as_ref());
    let kv = KvElem::ALL.into_iter().find(|elem| elem.name() == kv).unwrap();
    let bound: f64 = bound.parse().unwrap();
    let mut options = WorkerOptions::default().kv(kv).device(device.parse().unwrap()).max_tokens(512);
    options.gpu_layers = layers;
    let start = || Worker::new(&engine, options.clone()).unwrap_or_else(|e| panic!("{e}"));
    let mut worker = start();
    println!("device: {}", worker.device());
    let on_cpu = || WorkerOptions::default().kv(kv).device("cpu".parse().unwrap());
    let g = match name.as_str() {
        "cpu" => {
            let tokens: Vec<u32> = (0..9).map(|i| i * 37 % engine.plan().model.vocab).collect();
            Golden { logits: logits(&engine, on_cpu(), &tokens), tokens }
        }
        name => golden(name, ""),
    };
    let lengths = [g.tokens.len() / 2, g.tokens.len() - 3];
    let hold = |what: &str, found: &[Vec<f32>], expected: &[Vec<f32>]| {
        let error = relative_error(found, expected);
        println!("{what}: {error:.2e}");
        assert!(error < bound, "{what}: {error:.2e} is above {bound:.0e}");
    };

    let mut all = worker.sequence();
    let (first, rest) = g.tokens.split_at(g.tokens.len() / 2);
    let mut found = forward(&mut worker, &mut all, first);
    for token in rest {
        found.extend(forward(&mut worker, &mut all, &[*token]));
    }
    hold("one sequence", &found, &g.logits);

    // A batch of two lengths, then one token for each.
    let mut pair = [worker.sequence(), worker.sequence()];
    let found = both(&mut worker, &mut pair, lengths.map(|len| &g.tokens[..len]));
    for ((what, found), len) in ["the shorter", "the longer"].into_iter().zip(&found).zip(lengths) {
        hold(what, found, &g.logits[..len]);
    }
    let next = lengths.map(|len| &g.tokens[len..len + 1]);
    for (found, len) in both(&mut worker, &mut pair, next).iter().zip(lengths) {
        hold("its next token", found, &g.logits[len..len + 1]);
    }

    // A fork writes to blocks of its own, and what is forgotten is computed again.
    let mut fork = pair[1].fork();
    fork.truncate(lengths[1] - 1);
    // Of models that carry recurrent state more is forgotten: up to the end of a block.
    let from = fork.len();
    hold("a fork", &forward(&mut worker, &mut fork, &g.tokens[from..]), &g.logits[from..]);
    let end = &g.tokens[lengths[1] + 1..];
    hold("what it came from", &forward(&mut worker, &mut pair[1], end), &g.logits[lengths[1] + 1..]);

    // A saved sequence is loaded here and on the CPU.
    let saved = pair[0].save().unwrap();
    let (len, token) = (pair[0].len(), &g.tokens[pair[0].len()..pair[0].len() + 1]);
    let mut cpu = Worker::new(&engine, on_cpu()).unwrap();
    for (what, worker) in [("a saved sequence", &mut worker), ("the same on the CPU", &mut cpu)] {
        let mut loaded = worker.load(&saved).unwrap();
        assert!(loaded.save().unwrap() == saved, "{what}: other bytes");
        hold(what, &forward(worker, &mut loaded, token), &g.logits[len..len + 1]);
    }

    // What the CPU saved goes on there, and a worker leaves its memory to the next one.
    let mut sequence = cpu.sequence();
    forward(&mut cpu, &mut sequence, &g.tokens[..len]);
    let mut loaded = worker.load(&sequence.save().unwrap()).unwrap();
    hold("a sequence of the CPU", &forward(&mut worker, &mut loaded, token), &g.logits[len..len + 1]);
    drop((all, pair, fork, loaded, worker));
    let mut again = start();
    let mut sequence = again.sequence();
    hold("another worker", &forward(&mut again, &mut sequence, &g.tokens[..len]), &g.logits[..len]);
}

/// A batch of two sequences, all rows wanted.
fn both(worker: &mut Worker, pair: &mut [Sequence; 2], tokens: [&[u32]; 2]) -> Vec<Vec<Vec<f32>>> {
    let mut batch = Batch::new();
    for (sequence, tokens) in pair.iter_mut().zip(tokens) {
        batch.push(sequence, tokens, Want::All);
    }
    let logits = worker.forward(&mut batch).unwrap_or_else(|e| panic!("{e}"));
    (0..2).map(|entry| logits.of(entry).iter().map(<[f32]>::to_vec).collect()).collect()
}
