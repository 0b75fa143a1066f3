//! Opening engines, and what workers may ask for.

mod common;

use bessemer_format::manifest::{CodeEntry, CodeIsa};
use bessemer_runtime::{
    Batch, Engine, EngineError, KvElem, NestPath, Nests, RunError, Want, Worker, WorkerOptions,
};
use common::{Model, Shape};

#[test]
fn an_engine_opens_from_path_file_and_bytes() {
    let bytes = Model::random(Shape::default(), 20).engine_bytes();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.engine");
    std::fs::write(&path, &bytes).unwrap();
    let by_path = Engine::open(&path).unwrap();
    let by_file = Engine::from_file(&std::fs::File::open(&path).unwrap()).unwrap();
    let by_bytes = Engine::from_bytes(&bytes).unwrap();
    assert_eq!(by_path.hash(), by_bytes.hash());
    assert_eq!(by_path.hash(), by_file.hash());
    assert_eq!(by_path.nest_path(), NestPath::Interpreted);
    assert_eq!(by_path.plan().model.vocab, 53);
    assert!(cfg!(not(target_os = "linux")) || by_path.prefetch());
    by_path.verify().unwrap();

    let error = Engine::open(dir.path().join("none.engine")).unwrap_err();
    assert!(matches!(error, EngineError::Format(_)) && error.to_string().contains("none.engine"), "{error}");
    assert!(Engine::open(dir.path()).is_err());
}

#[test]
fn a_flipped_weight_opens_and_fails_to_verify() {
    let model = Model::random(Shape::default(), 21);
    let mut bytes = model.engine_bytes();
    let weights = model.file().frame().entry(bessemer_format::header::SectionKind::Weights).unwrap().offset;
    bytes[weights as usize + 8] ^= 0x10;
    let engine = Engine::from_bytes(&bytes).unwrap();
    let error = engine.verify().unwrap_err();
    assert!(error.to_string().contains("weight 0"), "{error}");
}

#[test]
fn memory_is_known_before_it_is_taken() {
    let model = Model::random(Shape::default(), 22);
    let engine = model.engine();
    let memory = engine.memory(100, KvElem::Bf16, 5);
    // Four blocks of 32 tokens, each with keys and values of two layers.
    assert_eq!(memory.cache, 4 * 32 * 2 * 2 * 2 * model.shape.kv_width() as u64);
    assert_eq!(engine.memory(100, KvElem::F32, 5).cache, 2 * memory.cache);
    assert_eq!(memory.logits, 4 * 53);
    assert!(memory.arena > engine.memory(100, KvElem::Bf16, 1).arena);
    assert_eq!(memory.total(), memory.cache + memory.arena + memory.logits);

    let limited = |bytes| Worker::new(&engine, WorkerOptions::default().max_tokens(100).max_memory(bytes));
    let all = engine.memory(100, KvElem::Bf16, common::CHUNK_ROWS).total();
    assert!(limited(all).is_ok());
    assert!(matches!(limited(all - 1), Err(EngineError::MemoryLimit { tokens: 100, .. })));
}

#[test]
fn impossible_options_are_refused() {
    let engine = Model::random(Shape::default(), 23).engine();
    let worker = |options| Worker::new(&engine, options);
    let rows = worker(WorkerOptions::default().max_rows(common::CHUNK_ROWS + 1));
    assert!(matches!(rows, Err(EngineError::Option { what: "max_rows", .. })));
    let tokens = worker(WorkerOptions::default().max_tokens(1 << 31));
    assert!(matches!(tokens, Err(EngineError::Option { what: "max_tokens", .. })));
    assert_eq!(worker(WorkerOptions::default().max_rows(3)).unwrap().max_rows(), 3);
}

#[test]
fn an_engine_is_shared_between_threads() {
    fn shared<T: Send + Sync + Clone>() {}
    fn sent<T: Send>() {}
    shared::<Engine>();
    sent::<Worker>();
    sent::<bessemer_runtime::Sequence>();
}

/// Code that reports its first integer to be out of bounds, so that one sees when it runs.
#[test]
fn code_of_the_file_runs_only_with_trust() {
    let model = Model::random(Shape::default(), 24);
    let mov_eax_1_ret = [0xb8, 1, 0, 0, 0, 0xc3];
    let wanted = model.shape.layers as u32;
    let entry = CodeEntry { isa: CodeIsa::X86_64V3, nest: wanted, kv: None, offset: 0, len: 6 };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.engine");
    std::fs::write(&path, model.engine_with_code(&mov_eax_1_ret, vec![entry])).unwrap();
    let run = |engine: &Engine, nests| {
        let mut worker = Worker::new(engine, WorkerOptions::default().nests(nests)).unwrap();
        let mut sequence = worker.sequence();
        let mut batch = Batch::new();
        batch.push(&mut sequence, &[1, 2], Want::Last);
        worker.forward(&mut batch).map(|_| ())
    };
    let plain = Engine::open(&path).unwrap();
    assert_eq!(plain.nest_path(), NestPath::Interpreted);
    run(&plain, Nests::Auto).unwrap();

    // SAFETY: the code is the two instructions above.
    let trusted = unsafe { Engine::open_trusted(&path) }.unwrap();
    run(&trusted, Nests::Interpreted).unwrap();
    if trusted.nest_path() == NestPath::Interpreted {
        bessemer_skip::skip(bessemer_skip::HOST, "it does not run code for x86-64-v3");
        return;
    }
    let error = run(&trusted, Nests::Auto).unwrap_err();
    assert!(matches!(&error, RunError::Index { step, .. } if step == "wanted"), "{error}");
}
