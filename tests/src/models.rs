//! Fixture models: their golden outputs, and engines compiled from them.

use bessemer_compiler::options::{CompileOptions, RunOptions};
use bessemer_compiler::{CompileError, Compiled, Silent};
use bessemer_format::file::{Bytes, EngineFile};
use bessemer_format::header::SectionKind;
use bessemer_format::manifest::Manifest;
use bessemer_format::variant::VariantPlan;
use bessemer_format::write::{Sections, write_engine};
use bessemer_runtime::{Batch, EmbedInput, Engine, Sequence, StepResult, Want, Worker, WorkerOptions};
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// Fixtures of the families beside Llama, and their goldens.
pub const FAMILIES: &[(&str, &str)] = &[
    ("gpt2", "gpt2"),
    ("gpt2.f32.gguf", "gpt2"),
    ("gpt_neox", "gpt_neox"),
    ("gpt_neox.f32.gguf", "gpt_neox"),
    ("cohere", "cohere"),
    ("cohere.f32.gguf", "cohere"),
    ("cohere_qk_norm", "cohere_qk_norm"),
    ("cohere_qk_norm.f32.gguf", "cohere_qk_norm"),
    ("cohere2", "cohere2"),
    ("cohere2.f32.gguf", "cohere2"),
    ("lfm2", "lfm2"),
    ("lfm2.f32.gguf", "lfm2"),
    ("starcoder2", "starcoder2"),
    ("starcoder2.f32.gguf", "starcoder2"),
    ("qwen3", "qwen3"),
    ("qwen3_yarn", "qwen3_yarn"),
    ("qwen2", "qwen2"),
    ("qwen2_tied", "qwen2_tied"),
    ("mistral", "mistral"),
    ("mistral_nemo", "mistral_nemo"),
    ("mistral_nemo.f32.gguf", "mistral_nemo"),
    ("gemma2", "gemma2"),
    ("gemma2_gguf", "gemma2_gguf"),
    ("gemma3", "gemma3"),
    ("gemma3_six", "gemma3_six"),
    ("phi3", "phi3"),
    ("phi3_short", "phi3_short"),
    ("smollm3", "smollm3"),
    ("granite", "granite"),
    ("olmo2", "olmo2"),
    ("olmo3", "olmo3"),
    ("olmo3.f32.gguf", "olmo3"),
    ("glm4", "glm4"),
    ("exaone4", "exaone4"),
    ("exaone4.f32.gguf", "exaone4"),
    ("rope_dynamic", "rope_dynamic"),
    ("mixtral", "mixtral"),
    ("qwen3_moe", "qwen3_moe"),
    ("olmoe", "olmoe"),
    ("deepseek_v2", "deepseek_v2"),
    ("deepseek_v2.bf16.gguf", "deepseek_v2"),
    ("deepseek_v2.joint.gguf", "deepseek_v2"),
    ("deepseek_v3", "deepseek_v3"),
    ("deepseek_v3.bf16.gguf", "deepseek_v3"),
    ("deepseek_v3.joint.gguf", "deepseek_v3"),
    ("gpt_oss", "gpt_oss"),
    ("gpt_oss_mxfp4", "gpt_oss_mxfp4"),
    ("gpt_oss_mxfp4.mxfp4.gguf", "gpt_oss_mxfp4"),
    ("mixtral.bf16.gguf", "mixtral"),
    ("qwen3_moe.bf16.gguf", "qwen3_moe"),
    ("olmoe.bf16.gguf", "olmoe"),
    ("qwen3.f32.gguf", "qwen3"),
    ("qwen3_yarn.f32.gguf", "qwen3_yarn"),
    ("qwen2_tied.f32.gguf", "qwen2_tied"),
    ("gemma2_gguf.f32.gguf", "gemma2_gguf"),
    ("gemma3_six.f32.gguf", "gemma3_six"),
    ("phi3.f32.gguf", "phi3"),
    ("smollm3.f32.gguf", "smollm3"),
    ("granite.f32.gguf", "granite"),
    ("olmo2.f32.gguf", "olmo2"),
    ("glm4.f32.gguf", "glm4"),
];

/// Fixtures of encoders, and their goldens: vectors or scores of texts.
pub const ENCODERS: &[(&str, &str)] = &[
    ("bert", "bert"),
    ("bert.f32.gguf", "bert"),
    ("bert_scores", "bert_scores"),
    ("modernbert", "modernbert"),
    ("modernbert.f32.gguf", "modernbert"),
    ("mpnet", "mpnet"),
];

/// A fixture model: a directory or a `.gguf` file.
pub fn fixture(name: &str) -> PathBuf {
    root().join("fixtures/models").join(name)
}

/// A real model in the ignored cache, or `None` after saying how to get it.
pub fn cached_model(name: &str) -> Option<PathBuf> {
    let cache = root().join(".cache");
    Some(cache.join("models").join(name)).filter(|path| bessemer_skip::cached(&cache, path))
}

/// A golden: token ids and the logits of every row.
pub struct Golden {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// `[tokens][vocab]`.
    pub logits: Vec<Vec<f32>>,
}

/// The golden under `prefix` (empty, or `batch.0.`) of `fixtures/goldens/NAME.safetensors`.
pub fn golden(name: &str, prefix: &str) -> Golden {
    let path = root().join(format!("fixtures/goldens/{name}.safetensors"));
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str| -> Vec<[u8; 4]> {
        let data = file.tensor(&format!("{prefix}{name}")).unwrap().data().to_vec();
        data.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]).collect()
    };
    let tokens: Vec<u32> = words("tokens").into_iter().map(u32::from_le_bytes).collect();
    let logits: Vec<f32> = words("logits").into_iter().map(f32::from_le_bytes).collect();
    let vocab = logits.len() / tokens.len();
    Golden { tokens, logits: logits.chunks_exact(vocab).map(<[f32]>::to_vec).collect() }
}

/// Compiles a source into `folder/NAME.engine`.
pub fn compile(
    source: &Path,
    folder: &Path,
    options: &CompileOptions,
) -> Result<(PathBuf, Compiled), CompileError> {
    let name = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let out = folder.join(format!("{name}.engine"));
    let run = RunOptions::default();
    let compiled = bessemer_compiler::compile(source, &out, options, &run, None, &Silent)?;
    Ok((out, compiled))
}

/// Compiles a fixture and opens the engine.
pub fn engine(name: &str, options: &CompileOptions) -> Engine {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = compile(&fixture(name), folder.path(), options).unwrap_or_else(|e| panic!("{name}: {e}"));
    Engine::open(&path).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The bytes of an engine with another manifest.
pub fn with_manifest(engine: &Path, change: impl FnOnce(&mut Manifest)) -> Vec<u8> {
    let file = EngineFile::from_bytes(Bytes::copy_of(&std::fs::read(engine).unwrap())).unwrap();
    let mut manifest = (*file.manifest).clone();
    change(&mut manifest);
    let report = file.report().unwrap().unwrap();
    let mut out = std::io::Cursor::new(Vec::new());
    let plans: Vec<VariantPlan> =
        file.variants().map(|v| VariantPlan { plan: v.plan.clone(), gpu: v.gpu.cloned() }).collect();
    let sections = Sections {
        manifest,
        plans: &plans,
        tokenizer: file.section(SectionKind::Tokenizer),
        code: file.section(SectionKind::Code),
        device: file.section(SectionKind::Device),
        report: &report,
        debug: "",
    };
    write_engine(&mut out, Path::new("memory"), sections, &mut |id, sink| sink.write_all(file.weight(id)))
        .unwrap();
    out.into_inner()
}

/// As [`engine`], with the machine code that the compiler generated for its nests.
pub fn trusted_engine(name: &str, options: &CompileOptions) -> Engine {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = compile(&fixture(name), folder.path(), options).unwrap_or_else(|e| panic!("{name}: {e}"));
    open_trusted(&path)
}

/// Opens an engine that this process has just written.
pub fn open_trusted(path: &Path) -> Engine {
    // SAFETY: the file was written by this process a moment ago.
    unsafe { Engine::open_trusted(path) }.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Appends `tokens` to `sequence`; the logits of every row.
pub fn forward(worker: &mut Worker, sequence: &mut Sequence, tokens: &[u32]) -> Vec<Vec<f32>> {
    let mut batch = Batch::new();
    batch.push(sequence, tokens, Want::All);
    let logits = worker.forward(&mut batch).unwrap_or_else(|e| panic!("{e}"));
    logits.of(0).iter().map(<[f32]>::to_vec).collect()
}

/// Logits of all rows of one sequence from the start.
pub fn logits(engine: &Engine, options: WorkerOptions, tokens: &[u32]) -> Vec<Vec<f32>> {
    let mut worker = Worker::new(engine, options).unwrap();
    let mut sequence = worker.sequence();
    forward(&mut worker, &mut sequence, tokens)
}

/// What every step made: its node's name and its results.
pub type Trace = Vec<(String, Vec<Vec<f32>>)>;

/// As [`logits`], with what every step made: its node's name and its results.
pub fn traced(engine: &Engine, options: WorkerOptions, tokens: &[u32]) -> (Vec<Vec<f32>>, Trace) {
    let mut worker = Worker::new(engine, options).unwrap();
    let mut sequence = worker.sequence();
    let mut batch = Batch::new();
    batch.push(&mut sequence, tokens, Want::All);
    let mut trace = Vec::new();
    let mut see = |step: &StepResult<'_>| {
        trace.push((step.source.to_string(), step.outputs.iter().map(|o| o.to_vec()).collect()));
    };
    let logits = worker.forward_traced(&mut batch, &mut see).unwrap_or_else(|e| panic!("{e}"));
    let logits = logits.of(0).iter().map(<[f32]>::to_vec).collect();
    (logits, trace)
}

/// Greedy continuation: `count` tokens after `prompt`.
pub fn greedy(engine: &Engine, options: WorkerOptions, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut worker = Worker::new(engine, options).unwrap();
    let mut sequence = worker.sequence();
    let mut next = argmax(forward(&mut worker, &mut sequence, prompt).last().unwrap());
    let mut out = vec![next];
    while out.len() < count {
        next = argmax(&forward(&mut worker, &mut sequence, &[next])[0]);
        out.push(next);
    }
    out
}

/// The first index of the largest number.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, v) in logits.iter().enumerate() {
        if *v > logits[best] {
            best = i;
        }
    }
    best as u32
}

/// `‖found - expected‖ / ‖expected‖` over all rows.
pub fn relative_error(found: &[Vec<f32>], expected: &[Vec<f32>]) -> f64 {
    assert_eq!(found.len(), expected.len(), "rows");
    let (mut error, mut norm) = (0.0f64, 0.0f64);
    for (a, b) in found.iter().zip(expected) {
        assert_eq!(a.len(), b.len(), "logits of a row");
        for (a, b) in a.iter().zip(b) {
            error += (f64::from(*a) - f64::from(*b)).powi(2);
            norm += f64::from(*b).powi(2);
        }
    }
    (error / norm).sqrt()
}

/// Tokens of the first book by name, from its middle, where no licence text stands. `None` without the books.
pub fn book(engine: &Engine, tokens: usize) -> Option<Vec<u32>> {
    let folder = cached_model("gutenberg")?;
    let mut books: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    books.retain(|p| p.extension().is_some_and(|e| e == "txt"));
    books.sort();
    let book = books.iter().map(|p| std::fs::read_to_string(p).unwrap()).find(|b| b.len() > 400_000).unwrap();
    let middle = (book.len() / 3..).find(|i| book.is_char_boundary(*i)).unwrap();
    let ids =
        engine.tokenizer().unwrap().encode(&book[middle..], bessemer_runtime::text::Special::AsText).unwrap();
    Some(ids[..tokens].to_vec())
}

/// The texts of an encoder's golden and what becomes of them.
pub fn encoder_golden(name: &str) -> (Vec<EmbedInput>, Vec<Vec<f32>>) {
    let bytes = std::fs::read(root().join(format!("fixtures/goldens/{name}.safetensors"))).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str| -> Option<Vec<[u8; 4]>> {
        let data = file.tensor(name).ok()?.data().to_vec();
        Some(data.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]).collect())
    };
    let ints = |name: &str| words(name).map(|w| w.into_iter().map(u32::from_le_bytes).collect::<Vec<u32>>());
    (0..)
        .map_while(|i| {
            let tokens = ints(&format!("text.{i}.tokens"))?;
            let types = ints(&format!("text.{i}.types")).unwrap_or_default();
            let vector = words(&format!("text.{i}.vector"))?.into_iter().map(f32::from_le_bytes).collect();
            Some((EmbedInput { tokens, types }, vector))
        })
        .unzip()
}
