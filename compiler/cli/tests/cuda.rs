//! The command line on a machine with NVIDIA's GPUs, and on machines that lack something. No GPU is used: the driver is the shim's.
#![cfg(all(unix, feature = "compile", feature = "cuda"))]

use bessemer_compiler::options::CompileOptions;
use bessemer_passes::PrecisionPolicy;
use bessemer_runtime::KvElem;
use bessemer_tests::gpu::FakeCuda;
use bessemer_tests::models::{fixture, relative_error, root};
use std::path::PathBuf;
use std::process::{Command, Output};
use tempfile::TempDir;

/// A machine, and an engine for CPU and CUDA.
struct Machine {
    folder: TempDir,
    fake: FakeCuda,
    engine: PathBuf,
}

/// Whether programs find the driver.
#[derive(Clone, Copy, PartialEq)]
enum Driver {
    Fake,
    None,
}

impl Machine {
    fn new() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let fake = FakeCuda::build(folder.path())?;
        let options = CompileOptions { precision: PrecisionPolicy::Bf16, ..CompileOptions::default() };
        let engine = fake.engine(&fixture("bf16"), &options, KvElem::Bf16, &["sm_80"]);
        // Where `toolchain install cuda` would have put the compiler.
        let toolchains = folder.path().join("home/cache/bessemer/toolchain");
        std::fs::create_dir_all(&toolchains).unwrap();
        let (package, version) = bessemer_targets::cuda::NVRTC_PACKAGE;
        std::os::unix::fs::symlink(fake.toolchain(), toolchains.join(format!("{package}-{version}")))
            .unwrap();
        Some(Self { folder, fake, engine })
    }

    fn command(&self, program: &str, driver: Driver) -> Command {
        let mut command = Command::new(program);
        // Lists of trust and caches of whoever runs the tests stay out of it.
        let home = self.folder.path().join("home");
        command
            .env("HOME", &home)
            .env("XDG_DATA_HOME", home.join("data"))
            .env("XDG_CACHE_HOME", home.join("cache"));
        match driver {
            Driver::Fake => command.env("LD_LIBRARY_PATH", self.fake.driver()),
            Driver::None => command.env_remove("LD_LIBRARY_PATH"),
        };
        command
    }

    /// Generates eight tokens.
    fn run(&self, driver: Driver, machine: &[(&str, &str)], args: &[&str]) -> Output {
        let mut command = self.command(env!("CARGO_BIN_EXE_bessemer"), driver);
        command.arg("run").arg(&self.engine).args(["--raw", "-p", "Once upon a time", "-n", "8"]);
        command.args(args).envs(machine.iter().copied()).output().unwrap()
    }
}

fn texts(out: &Output) -> (String, String) {
    (String::from_utf8_lossy(&out.stdout).into(), String::from_utf8_lossy(&out.stderr).into())
}

#[test]
fn run_takes_the_device_that_is_asked_for() {
    let Some(machine) = Machine::new() else { return };
    let log = machine.folder.path().join("log");
    let counting = [("FAKE_CUDA_LOG", log.to_str().unwrap())];
    let on_gpu = machine.run(Driver::Fake, &counting, &["--trust", "--device", "cuda:0"]);
    let (gpu, said) = texts(&on_gpu);
    assert!(
        on_gpu.status.success() && said.contains("device: cuda:0 (fibers on a CPU) with kernels for sm_80"),
        "{said}"
    );
    // Eight tokens are seven passes of one row: one graph, and one more for the prompt if it is short.
    let counts = std::fs::read_to_string(&log).unwrap();
    let count = |what: &str| -> u64 {
        let found = counts.lines().find_map(|l| l.strip_prefix(what)?.strip_prefix(' '));
        found.unwrap_or_else(|| panic!("no {what} in\n{counts}")).parse().unwrap()
    };
    assert!(count("graphs") <= 2 && count("graphs_launched") >= 7, "{counts}");
    assert_eq!(count("bytes_left"), 0, "{counts}");
    // The CPU computes in f32 here, too, so it finds the same words.
    let (cpu, said) = texts(&machine.run(Driver::Fake, &[], &["--trust", "--device", "cpu"]));
    assert!(said.contains("device: cpu (") && cpu == gpu && !gpu.is_empty(), "{said}: {cpu:?} and {gpu:?}");
    // Left to choose, it takes the GPU, unless nobody trusts the kernels or there is no driver.
    let (_, said) = texts(&machine.run(Driver::Fake, &[], &["--trust"]));
    assert!(said.contains("device: cuda:0 ("), "{said}");
    let (_, said) = texts(&machine.run(Driver::Fake, &[], &[]));
    assert!(said.contains("device: cpu (") && said.contains("--trust"), "{said}");
    let (_, said) = texts(&machine.run(Driver::None, &[], &["--trust"]));
    assert!(said.contains("device: cpu (") && said.contains("no NVIDIA driver"), "{said}");
}

#[test]
fn what_is_missing_is_said_in_one_sentence() {
    let Some(machine) = Machine::new() else { return };
    let cuda = ["--trust", "--device", "cuda:0"];
    for (driver, variables, args, code, words) in [
        (Driver::None, &[][..], &cuda[..], 6, "no NVIDIA driver"),
        (Driver::Fake, &[("FAKE_CUDA_DEVICES", "0")], &cuda, 6, "finds no GPU"),
        (
            Driver::Fake,
            &[("FAKE_CUDA_VERSION", "12040")],
            &cuda,
            6,
            "up to 12.4, and the engine's kernels need 13.0",
        ),
        (Driver::Fake, &[("FAKE_CUDA_MEMORY", "100000")], &cuda, 5, "bytes are needed"),
        (Driver::Fake, &[("FAKE_CUDA_CAPABILITY", "75")], &cuda, 6, "--target cuda:sm_75"),
        (Driver::Fake, &[], &["--trust", "--device", "cuda:3"], 6, "no GPU 3"),
        (Driver::Fake, &[], &["--trust", "--device", "cuda:0", "--kv", "f32"], 2, "bf16 cache"),
        (Driver::Fake, &[], &["--device", "cuda:0"], 2, "--trust"),
        (Driver::Fake, &[], &["--trust", "--device", "gpu"], 2, "cuda:N"),
    ] {
        let out = machine.run(driver, variables, args);
        let (text, said) = texts(&out);
        assert_eq!(out.status.code(), Some(code), "{said}");
        assert!(said.contains(words) && text.is_empty(), "{words}: {said}");
        let sentence = said.lines().find(|l| l.contains(words)).unwrap();
        println!("exit code {code}: {sentence}");
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[test]
fn verify_and_bench_on_a_device() {
    let Some(machine) = Machine::new() else { return };
    let bessemer = |args: &[&str]| {
        let mut command = machine.command(env!("CARGO_BIN_EXE_bessemer"), Driver::Fake);
        let out = command.args(args).output().unwrap();
        let (text, said) = texts(&out);
        assert!(out.status.success(), "{said}");
        text
    };
    let engine = machine.engine.to_str().unwrap();
    let json: serde_json::Value =
        serde_json::from_str(&bessemer(&["verify", engine, "--trust", "--device", "cuda:0", "--json"]))
            .unwrap();
    let devices = &json["devices"];
    assert!(devices["steps"].as_array().unwrap().len() > 10, "{devices}");
    assert_eq!((&devices["exact"], &devices["replay_is_exact"]), (&true.into(), &true.into()));
    let load = ["-p", "8", "-n", "4", "-r", "1"];
    let args =
        [&["bench", engine, "--trust", "--device", "cuda", "--profile", "-o", "json"][..], &load].concat();
    let json: serde_json::Value = serde_json::from_str(&bessemer(&args)).unwrap();
    assert!(json["device"].as_str().unwrap().starts_with("cuda:0"), "{json}");
    assert!(json["decode"]["tok_s"].as_f64().unwrap() > 0.0, "{json}");
    // Nothing is held to what the CPU could do, and nobody waits for that to be measured.
    assert!(json["ceilings"].is_null() && json["decode"]["share_of_ceiling"].is_null(), "{json}");
    assert!(json["profile"]["decode"]["steps"][0]["share_of_ceiling"].is_null(), "{json}");
}

/// A model that is larger than the GPU: the error says how many layers fit, and these run there.
#[test]
fn a_model_that_is_too_large_is_divided() {
    let Some(machine) = Machine::new() else { return };
    let run = |memory: u64, more: &[&str]| {
        let args = [&["--trust", "--device", "cuda:0"][..], more].concat();
        let out = machine.run(Driver::Fake, &[("FAKE_CUDA_MEMORY", &memory.to_string())], &args);
        let (text, said) = texts(&out);
        (out.status.code(), text, said)
    };
    let number = |said: &str, before: &str, behind: &str| -> Option<u64> {
        let (head, tail) = said.split_once(if before.is_empty() { behind } else { before })?;
        let word =
            if before.is_empty() { head.rsplit(' ').next()? } else { tail.split(['`', ' ']).next()? };
        word.parse().ok()
    };
    let needed = |said: &str| number(said, "", " bytes are needed").unwrap_or_else(|| panic!("{said}"));
    let (code, _, said) = run(1000, &[]);
    assert!(code == Some(5) && !said.contains("--gpu-layers"), "nothing fits: {said}");
    let (all, cpu) =
        (needed(&said), texts(&machine.run(Driver::None, &[], &["--device", "cpu", "--trust"])).0);
    let (mut memory, mut layers) = (all, 3);
    while layers > 1 {
        // One byte too few for them.
        memory -= 1;
        let asked = layers.to_string();
        let (code, _, said) = run(memory, &["--gpu-layers", &asked]);
        let fits = number(&said, "--gpu-layers ", "").unwrap_or_else(|| panic!("{said}"));
        assert!(code == Some(5) && fits == layers - 1, "{said}");
        layers = fits;
        let (code, text, said) = run(memory, &["--gpu-layers", &layers.to_string()]);
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains(&format!("{layers} of 3 layers; the first {} on cpu", 3 - layers)), "{said}");
        assert_eq!(text, cpu, "{layers} layers on the GPU");
        memory = needed(&run(1000, &["--gpu-layers", &layers.to_string()]).2);
    }
    // As many as there are, or more, are all; none needs no driver.
    for layers in ["3", "99"] {
        let (code, text, said) = run(all, &["--n-gpu-layers", layers]);
        assert!(code == Some(0) && text == cpu && !said.contains("of 3 layers"), "{said}");
    }
    let none = machine.run(Driver::None, &[], &["--trust", "--device", "cuda:0", "--gpu-layers", "0"]);
    let (text, said) = texts(&none);
    assert!(text == cpu && said.contains("device: cpu ("), "{said}");

    let refused = |engine: &std::path::Path, args: &[&str], code, words: &str| {
        let mut command = machine.command(env!("CARGO_BIN_EXE_bessemer"), Driver::Fake);
        let out =
            command.arg("run").arg(engine).args(["--raw", "-p", "x", "--trust"]).args(args).output().unwrap();
        let said = texts(&out).1;
        assert!(out.status.code() == Some(code) && said.contains(words), "{args:?}: {said}");
    };
    refused(&machine.engine, &["--device", "cpu", "--gpu-layers", "1"], 2, "name one with `--device`");
    let only = machine.folder.path().join("only.engine");
    let mut compile = machine.command(env!("CARGO_BIN_EXE_bessemer"), Driver::None);
    compile.arg("compile").arg(fixture("bf16")).arg("-o").arg(&only).args(["--target", "cuda:sm_80"]);
    let out = compile.output().unwrap();
    assert!(out.status.success(), "{}", texts(&out).1);
    refused(
        &only,
        &["--device", "cuda:0", "--gpu-layers", "2"],
        2,
        "compile the model with `--target cpu` too",
    );
    refused(
        &only,
        &["--device", "cuda:0", "--gpu-layers", "0"],
        6,
        "compile the model again with `--target cpu`",
    );

    // Compiled kernels are kept beside the engines, and leave with them.
    let cache = |action: &str| {
        let mut command = machine.command(env!("CARGO_BIN_EXE_bessemer"), Driver::None);
        let out = command.args(["cache", action]).output().unwrap();
        assert!(out.status.success(), "{}", texts(&out).1);
        texts(&out).0
    };
    let kernels = machine.folder.path().join("home/cache/bessemer/kernels");
    assert!(kernels.is_dir() && cache("list").contains("of compiled kernels"), "{}", cache("list"));
    cache("clear");
    assert!(!kernels.exists() && machine.fake.toolchain().is_dir() && !cache("list").contains("kernels"));
}

/// An encoder's checkpoint with a tokeniser.
fn encoder(model: &str, folder: &std::path::Path) -> PathBuf {
    let to = folder.join(model);
    std::fs::create_dir_all(&to).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture(model).join(file), to.join(file)).unwrap();
    }
    let words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "of", "pig", "iron", "blow", "##s", "steel", "."];
    let vocab: serde_json::Map<_, _> =
        words.iter().enumerate().map(|(id, word)| (word.to_string(), id.into())).collect();
    let special = |id: usize| serde_json::json!({"id": id, "special": true, "content": words[id], "single_word": false, "lstrip": false, "rstrip": false, "normalized": false});
    let token = |name: &str, part: u32| serde_json::json!({"SpecialToken": {"id": name, "type_id": part}});
    let text = |name: &str, part: u32| serde_json::json!({"Sequence": {"id": name, "type_id": part}});
    let single = [token("[CLS]", 0), text("A", 0), token("[SEP]", 0)];
    let pair = [&single[..], &[text("B", 1), token("[SEP]", 1)]].concat();
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0), special(1), special(2), special(3)],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {
            "[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
            "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]},
        }},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocab},
    });
    std::fs::write(to.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    to
}

#[test]
fn vectors_and_scores_on_a_device() {
    let folder = tempfile::tempdir().unwrap();
    let Some(fake) = FakeCuda::build(folder.path()) else { return };
    let models = ["bert", "bert_scores"].map(|model| encoder(model, folder.path()));
    let options = CompileOptions { precision: PrecisionPolicy::F32, ..CompileOptions::default() };
    let engines = fake.engines(&models.map(|model| (model, options.clone())), KvElem::Bf16, &["sm_80"]);
    for (engine, more) in engines.iter().zip([&[][..], &["--query", "the pig"]]) {
        let rows = |device: &str, code: i32| -> (Vec<Vec<f32>>, String) {
            let mut command = Command::new(env!("CARGO_BIN_EXE_bessemer"));
            command.arg("embed").arg(engine).args(["--text", "the blows of steel.", "--text", "iron"]);
            command.args(["--trust", "--device", device]).args(more).env("HOME", folder.path());
            command.env("XDG_DATA_HOME", folder.path()).env("LD_LIBRARY_PATH", fake.driver());
            let out = command.output().unwrap();
            let (text, said) = texts(&out);
            assert_eq!(out.status.code(), Some(code), "{said}");
            (text.lines().map(|l| l.split(' ').map(|x| x.parse().unwrap()).collect()).collect(), said)
        };
        let ((found, said), (expected, _)) = (rows("cuda:0", 0), rows("cpu", 0));
        assert!(said.contains("device: cuda:0 (") && found.len() == 2, "{said}");
        // Both keep keys and values in bf16, each from sums in an order of its own.
        let error = relative_error(&found, &expected);
        assert!(error < 2e-2, "{error:.2e}: {found:?} and {expected:?}");
        assert!(rows("cuda:7", 6).1.contains("no GPU 7"));
    }
}

/// The script for machines with a GPU, as far as a machine without one can run it.
#[test]
fn the_script_for_hardware_checks_and_measures() {
    let Some(machine) = Machine::new() else { return };
    let out = machine.folder.path().join("results");
    let script = |driver, bessemer: &str, more: &[&str], environment: &[(&str, &str)]| {
        let mut python = machine.command("python3", driver);
        python.arg(root().join("tests/hardware/cuda/check.py")).args(["--bessemer", bessemer]);
        let done =
            python.arg("--out").arg(&out).args(more).envs(environment.iter().copied()).output().unwrap();
        let (text, said) = texts(&done);
        assert!(!said.contains("Traceback"), "{said}");
        (done.status.code(), text, said)
    };
    let (bessemer, engine) = (env!("CARGO_BIN_EXE_bessemer"), machine.engine.to_str().unwrap());
    let load = ["--shape", "tiny", "-p", "8", "-n", "4", "-r", "1"];
    let (code, text, said) = script(Driver::Fake, bessemer, &[&[engine][..], &load].concat(), &[]);
    assert!(code == Some(0) && text.contains("ALL GREEN"), "{text}{said}");
    let results: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(out.join("results.json")).unwrap()).unwrap();
    assert_eq!(results["machine"]["gpu"], "fibers on a CPU");
    assert!(results["ceilings"]["copy_bytes_s"].as_f64().unwrap() > 0.0);
    let checks = results["checks"].as_object().unwrap();
    assert_eq!((results["speed"].as_array().unwrap().len(), checks.len()), (2, 6));
    assert!(checks.values().all(|check| check["exact"] == true), "{results}");
    let table = std::fs::read_to_string(out.join("table.md")).unwrap();
    assert!(table.contains("steps checked") && table.contains("| tiny int4:64 |"), "{table}");
    // A kernel that computes something else is found.
    let (code, text, said) = script(Driver::Fake, bessemer, &[engine], &[("FAKE_CUDA_BROKEN", "1")]);
    assert!(code == Some(1) && text.contains("1 FAILED"), "{text}{said}");
    // So is an engine that is none, and the others are checked nevertheless.
    let (code, text, said) = script(Driver::Fake, bessemer, &["Cargo.toml", engine], &[]);
    assert!(
        code == Some(1) && text.contains("1 FAILED") && text.contains("Cargo.toml | FAILED"),
        "{text}{said}"
    );
    // What keeps all of it from being done is said in a sentence.
    for (driver, bessemer, more, sentence) in [
        (Driver::None, bessemer, &[engine][..], "no NVIDIA driver"),
        (Driver::Fake, "nowhere/bessemer", &[engine], "does not start"),
        (Driver::Fake, bessemer, &[engine, "--device", "cuda:9"], "fails with status 101"),
        (Driver::Fake, bessemer, &[engine, "--device", "cpu"], "--device"),
        (Driver::Fake, bessemer, &[], "nothing to do"),
    ] {
        let (code, text, said) = script(driver, bessemer, more, &[]);
        assert!(code == Some(2) && said.contains(sentence), "{code:?}: {text}{said}");
    }
}
