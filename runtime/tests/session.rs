//! Sessions and generation.

mod common;

use bessemer_runtime::{
    CancelHandle, Finish, Generate, GenerateError, KvElem, RunError, Session, Worker, sample::SamplerConfig,
};
use common::{Model, Random, Shape, forward, worker};
use std::sync::{Arc, Mutex};

fn shared_worker(seed: u64) -> (Model, Arc<Mutex<Worker>>) {
    let model = Model::random(Shape::default(), seed);
    let worker = worker(&model.engine(), 2, KvElem::Bf16);
    (model, Arc::new(Mutex::new(worker)))
}

fn best(logits: &[f32]) -> u32 {
    let all = logits.iter().enumerate();
    all.max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0))).unwrap().0 as u32
}

/// Greedy tokens by forward passes alone.
fn by_hand(worker: &Arc<Mutex<Worker>>, vocab: usize, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut worker = worker.lock().unwrap();
    let mut sequence = worker.sequence();
    let mut logits = forward(&mut worker, &mut sequence, prompt);
    let mut out = Vec::new();
    for _ in 0..count {
        let token = best(&logits[logits.len() - vocab..]);
        out.push(token);
        logits = forward(&mut worker, &mut sequence, &[token]);
    }
    out
}

fn tokens(session: &mut Session, options: Generate) -> (Vec<u32>, Option<Finish>) {
    let mut generation = session.generate(options).unwrap();
    let tokens = (&mut generation).map(|t| t.unwrap()).collect();
    (tokens, generation.finish())
}

#[test]
fn generation_is_the_loop_that_one_would_write() {
    let (model, worker) = shared_worker(30);
    let prompt = Random(31).tokens(40, model.shape.vocab);
    let want = by_hand(&worker, model.shape.vocab, &prompt, 20);
    let mut session = Session::new(&worker).unwrap();
    session.feed(&prompt).unwrap();
    assert_eq!(tokens(&mut session, Generate::greedy(12)), (want[..12].to_vec(), Some(Finish::Length)));
    // It goes on where it stopped, the last token included.
    assert_eq!(tokens(&mut session, Generate::greedy(8)), (want[12..].to_vec(), Some(Finish::Length)));
    assert_eq!(session.tokens(), [&prompt[..], &want].concat());

    // Back to an earlier text: only what differs is processed again.
    let text = [&prompt[..], &want[..5]].concat();
    assert_eq!(session.replace(&text).unwrap(), 45);
    let mut generation = session.generate(Generate::greedy(15)).unwrap();
    let again: Vec<_> = (&mut generation).map(|t| t.unwrap()).collect();
    let timings = generation.timings();
    assert_eq!((again, timings.prefill_tokens, timings.decode_tokens), (want[5..].to_vec(), 1, 14));

    let mut fork = session.fork();
    session.truncate(40);
    assert_eq!(tokens(&mut session, Generate::greedy(3)).0, want[..3]);
    assert_eq!(fork.tokens().len(), 60);
    fork.logits().unwrap();
}

#[test]
fn every_end_has_its_reason() {
    let (model, worker) = shared_worker(32);
    let prompt = Random(33).tokens(200, model.shape.vocab);
    let want = by_hand(&worker, model.shape.vocab, &prompt[..30], 30);
    let mut session = Session::new(&worker).unwrap();

    let none = session.generate(Generate::greedy(4)).unwrap().next().unwrap();
    assert!(matches!(none, Err(GenerateError::Run(RunError::NoTokens))));

    session.feed(&prompt[..30]).unwrap();
    let stop = want[want.len() - 1];
    let first = want.iter().position(|t| *t == stop).unwrap();
    let stopped = tokens(&mut session, Generate::greedy(30).stop_tokens([stop]));
    assert_eq!(stopped, (want[..first].to_vec(), Some(Finish::Stop)));

    session.replace(&prompt).unwrap();
    let (full, finish) = tokens(&mut session, Generate::greedy(100));
    // The last token of the context still has a successor, which no longer fits into it.
    assert_eq!((full.len(), finish), (11, Some(Finish::Context)));
    let error = session.feed(&[1]).unwrap_err();
    assert!(matches!(error, RunError::Context { context: 210, .. }), "{error}");

    let handle = CancelHandle::new();
    session.truncate(10);
    let mut generation = session.generate(Generate::greedy(100).cancel(&handle)).unwrap();
    assert!(generation.next().unwrap().is_ok());
    handle.cancel();
    assert!(generation.next().is_none());
    assert_eq!((generation.finish(), generation.generated()), (Some(Finish::Cancelled), 1));
    assert!(generation.next().is_none());
}

#[test]
fn a_seed_gives_the_same_text_again() {
    let (model, worker) = shared_worker(34);
    let prompt = Random(35).tokens(20, model.shape.vocab);
    let run = |seed| {
        let mut session = Session::new(&worker).unwrap();
        session.feed(&prompt).unwrap();
        tokens(&mut session, Generate::new(SamplerConfig::default().temperature(1.5).seed(seed), 40)).0
    };
    let first = run(1);
    assert_eq!(run(1), first);
    assert_ne!(run(2), first);
}

#[test]
fn sessions_of_several_threads_share_a_worker() {
    let (model, worker) = shared_worker(36);
    let vocab = model.shape.vocab;
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let worker = &worker;
            scope.spawn(move || {
                let prompt = Random(seed).tokens(25, vocab);
                let want = by_hand(worker, vocab, &prompt, 10);
                let mut session = Session::new(worker).unwrap();
                session.feed(&prompt).unwrap();
                assert_eq!(tokens(&mut session, Generate::greedy(10)).0, want);
            });
        }
    });
    assert_eq!(worker.lock().unwrap().free_tokens(), 1024);
}

#[cfg(feature = "text")]
#[test]
fn text_comes_in_whole_characters_and_ends_before_a_stop_string() {
    use bessemer_runtime::text::{TextSection, Tokenizer, TokenizerData, Vocab};
    // One token for each byte: a random model writes mostly broken characters.
    let model = Model::random(Shape { vocab: 256, ..Shape::default() }, 37);
    let worker = Arc::new(Mutex::new(worker(&model.engine(), 2, KvElem::Bf16)));
    let data = TokenizerData {
        vocab: Vocab::new((0..=255u8).map(|b| [b])).unwrap(),
        byte_tokens: (0..256).collect(),
        ..Default::default()
    };
    let tokenizer = Tokenizer::new(TextSection { tokenizer: data, ..Default::default() }).unwrap();
    let sampler = SamplerConfig::default().temperature(3.0).seed(5);
    let mut session = Session::new(&worker).unwrap();
    session.feed(&[7]).unwrap();
    let mut run = |options: Generate| {
        session.truncate(1);
        let mut text = session.generate_text(&tokenizer, options).unwrap();
        let pieces: Vec<String> = (&mut text).map(|piece| piece.unwrap()).collect();
        let (finish, generated) = (text.finish(), text.generated());
        assert!(pieces.iter().all(|p| !p.is_empty()));
        (pieces.concat(), finish, generated, session.tokens()[1..].to_vec())
    };
    let (whole, finish, generated, tokens) = run(Generate::new(sampler.clone(), 120));
    assert_eq!((finish, generated, tokens.len()), (Some(Finish::Length), 120, 120));
    let bytes: Vec<u8> = tokens.iter().map(|t| *t as u8).collect();
    assert_eq!(whole, String::from_utf8_lossy(&bytes));

    let stop: String = whole.chars().skip(whole.chars().count() / 2).take(3).collect();
    let (text, finish, generated, _) = run(Generate::new(sampler, 120).stop_strings([stop.clone()]));
    assert_eq!((text.as_str(), finish), (&whole[..whole.find(&stop).unwrap()], Some(Finish::Stop)));
    assert!(generated < 120);
}
