//! The command line from outside: exit codes, what goes to which stream, stable JSON keys.

mod common;

use bessemer_tests::models::cached_model;
use common::{User, fixture, model, stderr, text};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

#[test]
fn compile_writes_one_file_and_says_what_it_is() {
    let user = User::new();
    let out = text(&user.path("a.engine"));
    let output = user.run(&["compile", &model(), "-o", &out]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(output.stdout.is_empty());
    let said = stderr(&output);
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines.len() == 3 && lines[0].contains("bits a weight"), "{said}");
    assert!(lines[1].starts_with("quality: ") && lines[2].starts_with("hint: "), "{said}");

    let json =
        user.json(&["compile", &model(), "-o", &text(&user.path("b.engine")), "--threads", "1", "--json"]);
    assert_eq!(json["bytes"], fs::metadata(&out).unwrap().len());
    assert_eq!(json["bits_per_weight"], 32.0);
    assert_eq!(fs::read(&out).unwrap(), fs::read(user.path("b.engine")).unwrap(), "same bytes");

    let sha = json["sha256"].as_str().unwrap();
    user.ok(&["compile", &model(), "-o", &out, "--expect-sha256", sha]);
    let other = text(&user.path("c.engine"));
    user.fails(
        &["compile", &model(), "-o", &other, "--expect-sha256", &sha.replace(&sha[..8], "00000000")],
        5,
        &[sha],
    );
    assert!(!Path::new(&other).exists(), "an engine that was not expected is not left behind");
    let leftovers: Vec<_> = fs::read_dir(user.home.path()).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert!(leftovers.iter().all(|f| !f.to_string_lossy().contains("partial")), "{leftovers:?}");
}

#[test]
fn compile_prints_what_it_would_do() {
    let user = User::new();
    let ir = user.ok(&["compile", &model(), "--stop-after", "canonical", "--emit", "ir"]);
    assert!(ir.contains("canonical"), "{}", &ir[..200]);
    assert!(user.ok(&["compile", &model(), "--emit", "dot"]).starts_with("digraph"));
    assert!(user.ok(&["compile", &model(), "--emit", "plan"]).contains("vocab 288"));
    assert!(user.ok(&["compile", &model(), "--emit", "cuda"]).contains("__shfl_xor_sync"));
    assert!(user.ok(&["compile", &model(), "--emit", "metal"]).contains("[[buffer(0)]]"));
    assert!(user.ok(&["compile", &model(), "--emit", "asm", "--target", "cpu:x86-64-v3"]).contains("vmulps"));
    let key = user.ok(&["compile", &model(), "--key"]);
    assert_eq!(key.trim().len(), 64);
    assert_ne!(key, user.ok(&["compile", &model(), "--key", "--precision", "int8"]));
    assert_eq!(
        key,
        user.ok(&["compile", &model(), "--key", "--threads", "1"]),
        "threads do not change the bytes"
    );
}

#[test]
fn wrong_usage_is_told_apart_from_wrong_files() {
    let user = User::new();
    let out = text(&user.path("x.engine"));
    user.fails(&["compile"], 2, &["Usage"]);
    user.fails(&["compile", &model()], 2, &["--out"]);
    user.fails(&["compile", &model(), "-o", &out, "--precision", "int9"], 2, &["int3", "int4"]);
    user.fails(&["compile", &model(), "-o", &out, "--group", "64"], 2, &["--group", "source"]);
    user.fails(&["compile", &model(), "-o", &out, "--target", "abacus"], 2, &["abacus", "cpu"]);
    user.fails(&["compile", &model(), "-o", &out, "--disable", "magic"], 2, &["magic"]);
    user.fails(&["compile", &model(), "-o", &out, "--disable", "pack"], 2, &["`pack`", "--stop-after"]);
    user.fails(&["compile", &text(user.home.path()), "-o", &out], 3, &["config.json"]);
    user.fails(&["compile", "/nonexistent.gguf", "-o", &out], 3, &["/nonexistent.gguf"]);
    user.fails(&["compile", &model(), "-o", "/nonexistent/x.engine"], 1, &["/nonexistent"]);
    assert!(!Path::new(&out).exists());

    let engine = user.engine();
    user.fails(&["run", &engine], 2, &["no prompt"]);
    user.fails(&["run", &engine, "-p", "x", "--temperature=-1"], 2, &["temperature"]);
    user.fails(&["run", &engine, "-p", "x", "--ctx", "100000"], 2, &["100000", "256"]);
    user.fails(&["run", &engine, "-p", "x", "--precision", "int8"], 2, &["--precision"]);
    user.fails(&["run", &engine, "-p", "x", "--max-memory", "1k"], 5, &["1024"]);
    user.fails(&["run", &engine, "--raw", "-p", &"word ".repeat(300)], 2, &["context is 256"]);
    user.fails(&["bench", &engine, "-p", "1000"], 2, &["256"]);
    user.fails(&["inspect", &engine, "--why", "no such node"], 2, &["no such node"]);
}

#[test]
fn damaged_engines_are_refused() {
    let user = User::new();
    let engine = user.engine();
    let bytes = fs::read(&engine).unwrap();
    let damage = |name: &str, bytes: &[u8]| {
        let path = user.path(name);
        fs::write(&path, bytes).unwrap();
        text(&path)
    };
    let cut = damage("cut.engine", &bytes[..bytes.len() / 2]);
    let mut newer = bytes.clone();
    newer[8] = 0xff;
    let newer = damage("newer.engine", &newer);
    let mut flipped = bytes.clone();
    flipped[100] ^= 1;
    let flipped = damage("flipped.engine", &flipped);
    for path in [&cut, &newer, &flipped, &damage("empty.engine", b""), "/nonexistent.engine"] {
        for command in ["run", "inspect", "verify", "trust"] {
            let prompt: &[&str] = if command == "run" { &["-p", "x"] } else { &[] };
            user.fails(&[&[command, path], prompt].concat(), 4, &[]);
        }
    }
    let none = damage("text.txt", b"this is no model");
    user.fails(&["run", &none, "-p", "x"], 3, &["GGUF"]);

    // A flipped bit among the weights passes `open`, by design; `verify` names the tensor.
    let mut found = false;
    for at in (0..bytes.len()).step_by(bytes.len() / 40) {
        let mut copy = bytes.clone();
        copy[at] ^= 0x10;
        let path = damage("weights.engine", &copy);
        let output = user.run(&["verify", &path]);
        assert!(matches!(output.status.code(), Some(0 | 4)), "byte {at}: {}", stderr(&output));
        found |= stderr(&output).contains("tensor model.");
    }
    assert!(found, "no flip named a tensor");
}

#[test]
fn run_keeps_stdout_for_text() {
    let user = User::new();
    let engine = user.engine();
    let args = ["run", &engine, "--raw", "-p", "the ", "-n", "12"];
    let output = user.run(&args);
    assert!(output.status.success());
    assert!(stderr(&output).contains("KV: at most"), "{}", stderr(&output));

    let json = user.json(&[&args[..], &["--json"]].concat());
    assert_eq!(json["text"].as_str().unwrap(), String::from_utf8_lossy(&output.stdout));
    assert_eq!(json["tokens"].as_array().unwrap().len(), 12);
    assert_eq!(json["finish"], "length");
    for key in ["open_ms", "prefill_ms", "first_token_ms", "decode_tok_s"] {
        assert!(json["timings"][key].is_f64(), "{key}");
    }
    // Threads and the way nests run change no bit of a greedy choice; a seed repeats a sampled one.
    assert_eq!(user.json(&[&args[..], &["--json", "--threads", "3"]].concat())["tokens"], json["tokens"]);
    let sampled = [&args[..], &["--json", "--temperature", "1.5", "--top-p", "0.95", "--seed", "7"]].concat();
    let tokens = user.json(&sampled)["tokens"].clone();
    assert_eq!(user.json(&sampled)["tokens"], tokens);
    assert_ne!(tokens, json["tokens"]);
}

#[test]
fn a_full_context_is_a_typed_end() {
    let user = User::new();
    let engine = user.engine();
    let json = user.json(&["run", &engine, "--raw", "-p", "the ", "--ctx", "16", "--json"]);
    let prompt = json["timings"]["prompt_tokens"].as_u64().unwrap() as usize;
    assert_eq!(json["finish"], "context");
    assert_eq!(
        prompt + json["tokens"].as_array().unwrap().len(),
        17,
        "the last token is chosen, not processed"
    );
}

#[test]
fn a_prompt_comes_from_stdin() {
    use std::io::Write;
    let user = User::new();
    let engine = user.engine();
    let args = ["run", &engine, "--raw", "-n", "6", "-p"];
    let given = user.ok(&[&args[..], &["some words"]].concat());
    let mut child = user.command(&[&args[..], &["-"]].concat());
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"some words").unwrap();
    assert_eq!(String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap(), given);
}

#[test]
fn stop_strings_end_the_text() {
    let user = User::new();
    let engine = user.engine();
    let args = ["run", &engine, "--raw", "-p", "hello", "-n", "8", "--json"];
    let whole = user.json(&args)["text"].as_str().unwrap().to_owned();
    let stop: String = whole.chars().skip(1).take(1).collect();
    let json = user.json(&[&args[..], &["--stop", &stop]].concat());
    assert_eq!(json["finish"], "stop");
    assert_eq!(json["text"].as_str().unwrap(), whole.split(&stop).next().unwrap());
}

#[test]
fn a_chat_takes_another_template_and_tools() {
    let user = User::new();
    let engine = user.engine();
    let file = |name: &str, content: &str| {
        fs::write(user.path(name), content).unwrap();
        text(&user.path(name))
    };
    let template =
        file("t.jinja", "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}assistant:");
    let chat = ["--system", "Be kind.", "--chat-template", &template, "-p", "hello"];
    let of_chat = user.json(&[&["run", &engine, "-n", "6", "--json"][..], &chat].concat());
    let prompt = "system: Be kind. user: hello assistant:";
    let of_text = user.json(&["run", &engine, "-n", "6", "--json", "--raw", "-p", prompt]);
    assert_eq!(of_chat["tokens"], of_text["tokens"]);
    assert_eq!(of_chat["timings"]["prompt_tokens"], of_text["timings"]["prompt_tokens"]);

    let tools = file("tools.json", r#"[{"name": "melt"}]"#);
    let with_tools =
        file("tools.jinja", "{% for t in tools %}{{ t.name }} {% endfor %}{{ messages[0].content }}:");
    let chat = ["--chat-template", &with_tools, "--tools", &tools, "-p", "hello"];
    let of_chat = user.json(&[&["run", &engine, "-n", "6", "--json"][..], &chat].concat());
    let of_text = user.json(&["run", &engine, "-n", "6", "--json", "--raw", "-p", "melt hello:"]);
    assert_eq!(of_chat["tokens"], of_text["tokens"]);
    let chat = ["--chat-template", &template, "--tools", &tools, "-p", "hello"];
    user.fails(&[&["run", &engine][..], &chat].concat(), 2, &["no place for tools"]);
    let chat = ["--chat-template", &with_tools, "--tools", &template, "-p", "hello"];
    user.fails(&[&["run", &engine][..], &chat].concat(), 2, &["t.jinja", "JSON list"]);

    let refusing = file("no.jinja", "{{ raise_exception('roles must alternate') }}");
    user.fails(&["run", &engine, "--chat-template", &refusing, "-p", "x"], 4, &["roles must alternate"]);
    user.fails(&["run", &engine, "--chat-template", "none.jinja", "-p", "x"], 2, &["none.jinja"]);
}

#[test]
fn a_model_without_a_tokeniser_gives_no_text() {
    let user = User::new();
    user.fails(&["run", &fixture("gqa_untied"), "-p", "x"], 2, &["tokeniser"]);
}

#[test]
fn an_encoder_gives_vectors_and_no_text() {
    let user = User::new();
    let engine = user.path("bert.engine").to_str().unwrap().to_owned();
    user.ok(&["compile", &fixture("bert"), "-o", &engine]);
    user.fails(&["embed", &engine, "--text", "x"], 2, &["no tokeniser"]);
    user.fails(&["embed", &engine], 2, &["FILE"]);
    user.fails(&["embed", &user.engine(), "--text", "x"], 2, &["logits", "generate text"]);
    let json = user.json(&["verify", &engine, "--numerics", "--json", "--source", &fixture("bert")]);
    let steps = json["numerics"]["steps"].as_array().unwrap();
    assert!(steps.iter().any(|s| s["op"] == "full_attention"), "{json}");
    assert!(steps.iter().all(|s| s["error"].as_f64().unwrap() < 1e-5), "{json}");
}

#[test]
fn a_source_is_compiled_once() {
    let user = User::new();
    // A copy, so that its files' times can be set: what changed a moment ago is not noted.
    let copy = user.path("model");
    fs::create_dir(&copy).unwrap();
    for file in fs::read_dir(model()).unwrap() {
        let file = file.unwrap();
        let to = copy.join(file.file_name());
        fs::copy(file.path(), &to).unwrap();
        let an_hour_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
        fs::File::options().write(true).open(&to).unwrap().set_modified(an_hour_ago).unwrap();
    }
    let copy = text(&copy);
    let args = ["run", &copy, "--raw", "-p", "the ", "-n", "4"];
    let first = user.run(&args);
    assert!(first.status.success(), "{}", stderr(&first));
    assert!(stderr(&first).contains("compiled: "), "{}", stderr(&first));
    let second = user.run(&args);
    assert!(
        stderr(&second).contains("cached: ") && !stderr(&second).contains("compiled"),
        "{}",
        stderr(&second)
    );
    assert_eq!(first.stdout, second.stdout);

    // The cache knows content, not paths: another copy is a hit, too.
    assert!(stderr(&user.run(&["run", &model(), "--raw", "-p", "a", "-n", "1"])).contains("cached: "));
    // An unchanged source is recognised without reading it: nobody notices that other weights lie under the same stamp.
    let weights = Path::new(&copy).join("model.safetensors");
    let time = fs::metadata(&weights).unwrap().modified().unwrap();
    let file = fs::File::options().write(true).open(&weights).unwrap();
    std::io::Write::write_all(&mut &file, &vec![0; fs::metadata(&weights).unwrap().len() as usize]).unwrap();
    file.set_modified(time).unwrap();
    let third = user.run(&args);
    assert!(third.status.success() && stderr(&third).contains("cached: "), "{}", stderr(&third));
    fs::copy(Path::new(&model()).join("model.safetensors"), &weights).unwrap();

    let list = user.json(&["cache", "list", "--json"]);
    assert_eq!(list["engines"].as_array().unwrap().len(), 1);
    user.ok(&["cache", "limit", "1k"]);
    assert_eq!(user.json(&["cache", "list", "--json"])["bytes"], 0);
    assert!(stderr(&user.run(&args)).contains("compiled: "));
    user.ok(&["cache", "clear"]);
    assert_eq!(user.json(&["cache", "list", "--json"])["bytes"], 0);
}

#[test]
fn machine_code_runs_for_trusted_engines_only() {
    let (user, other) = (User::new(), User::new());
    let engine = user.engine();
    let has_code = user.json(&["inspect", &engine, "--json"])["sections"]["CODE"].as_u64().unwrap() > 0;
    assert!(has_code);
    let args = ["run", &engine, "--raw", "-p", "the ", "-n", "2"];
    assert!(!stderr(&user.run(&args)).contains("not trusted"), "who compiled it trusts it");
    assert!(stderr(&other.run(&args)).contains("not trusted"));
    assert!(!stderr(&other.run(&[&args[..], &["--trust"]].concat())).contains("not trusted"));
    assert!(stderr(&other.run(&args)).contains("not trusted"), "--trust is for once");
    other.ok(&["trust", &engine]);
    assert!(!stderr(&other.run(&args)).contains("not trusted"));
}

#[test]
fn bench_has_stable_keys() {
    let user = User::new();
    let engine = user.engine();
    let args = ["bench", &engine, "-p", "16", "-n", "8", "-r", "2", "-b", "2", "-d", "32"];
    let json = user.json(&[&args[..], &["-o", "json"]].concat());
    let mut paths = vec!["/prefill/tok_s", "/decode/tok_s", "/open_ms", "/first_token_ms"];
    paths.extend(["/ceilings/read_bytes_s", "/ceilings/tile_multiply_adds_s", "/prefill/share_of_tile"]);
    for path in paths {
        assert!(json.pointer(path).and_then(Value::as_f64).is_some_and(|v| v > 0.0), "{path}: {json}");
    }
    assert_eq!(json["file_bytes"], fs::metadata(&engine).unwrap().len());
    assert!(json["first_token_cold_ms"].is_f64() || json["first_token_cold_absent"].is_string());
    if cfg!(target_os = "linux") {
        assert!(json["peak_anon_bytes"].as_u64().unwrap() > 0);
    }
    let table = user.ok(&args);
    assert!(table.contains("| prefill 16 |") && table.contains("the tile loop of prompts"), "{table}");
    let csv = user.ok(&[&args[..], &["-o", "csv"]].concat());
    assert_eq!(csv.lines().count(), 2);
    let older = user.json(&[&args[..], &["-o", "json", "--kernels", "portable"]].concat());
    assert_eq!(older["kernels"], "portable");
    assert_ne!(json["kernels"], "portable", "every CPU that tests run on has more");
    let unknown = user.run(&[&args[..], &["--kernels", "mmx"]].concat());
    assert_eq!(unknown.status.code(), Some(2));
    assert!(stderr(&unknown).contains("this CPU runs portable, "), "{}", stderr(&unknown));
}

#[test]
fn bench_compares_with_the_interpreted_graph() {
    let user = User::new();
    let engine = user.engine();
    let args =
        ["bench", &engine, "-p", "16", "-n", "8", "-r", "2", "-b", "2", "-d", "32", "--vs", "interpreted"];
    user.fails(&args, 2, &["--source"]);
    user.fails(&[&args[..], &["--source", &fixture("bf16")]].concat(), 2, &["compiled from"]);
    let json = user.json(&[&args[..], &["--source", &model(), "-o", "json"]].concat());
    for path in ["/interpreted/prefill/tok_s", "/interpreted/decode/tok_s", "/interpreted/ratio/decode"] {
        assert!(json.pointer(path).and_then(Value::as_f64).is_some_and(|v| v > 0.0), "{path}: {json}");
    }
    // A source is its own base.
    assert!(
        user.ok(&["bench", &model(), "-p", "8", "-n", "4", "-r", "1", "--vs", "interpreted"])
            .contains("interpreted tok/s")
    );
}

#[test]
fn eval_measures_quality() {
    let user = User::new();
    let corpus = text(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/text/corpus.txt"));
    let args = ["eval", &model(), "--text", &corpus, "--max-tokens", "400", "--ctx", "64", "--json"];
    let exact = user.json(&[&args[..], &["--base", &model(), "--kv", "f32"]].concat());
    let close = |a: &Value, b: &Value| (a.as_f64().unwrap() / b.as_f64().unwrap() - 1.0).abs();
    assert!(exact["tokens"].as_u64().unwrap() >= 390, "{exact}");
    assert!(close(&exact["ppl"], &exact["base_ppl"]) < 1e-4, "{exact}");
    assert!(exact["mean_kl"].as_f64().unwrap() < 1e-8 && exact["top1"] == 1.0, "{exact}");

    let rounded = user.json(&[&args[..], &["--base", &model(), "--precision", "int4"]].concat());
    assert!(rounded["mean_kl"].as_f64().unwrap() > 1e-5, "four bits leave a trace: {rounded}");
    assert!(rounded["p99_kl"].as_f64() > rounded["mean_kl"].as_f64());
    let logits = user.path("logits.f32");
    let alone = user.json(&[&args[..], &["--logits", &text(&logits)]].concat());
    // 288 logits for each token that is predicted.
    assert_eq!(fs::metadata(&logits).unwrap().len(), alone["tokens"].as_u64().unwrap() * 288 * 4);
    user.fails(
        &[&args[..], &["--logits", &text(&user.path("no/such/folder"))]].concat(),
        1,
        &["cannot write"],
    );
    assert!(alone["ppl"].is_f64() && alone.get("mean_kl").is_none());
    user.fails(&["eval", &model(), "--text", "/nonexistent"], 2, &["/nonexistent"]);
    user.fails(&[&args[..], &["--base", &fixture("bf16")]].concat(), 2, &["vocabulary"]);
}

#[test]
fn eval_draws_size_against_quality() {
    let user = User::new();
    let corpus = text(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/text/corpus.txt"));
    let (picture, peers) = (user.path("sizes.svg"), text(&user.path("peers.csv")));
    fs::write(&peers, "series,name,bits_per_weight,mean_kl\nother,Q4_X,4.5,0.25\n").unwrap();
    let precisions = "int8,u4:s8x32*f16x0-8,int2";
    let args =
        ["eval", &model(), "--text", &corpus, "--ctx", "64", "--precisions", precisions, "--peers", &peers];
    let found = user.json(&[&args[..], &["--pareto", &text(&picture), "--json"]].concat());
    let points = found.as_array().unwrap();
    assert_eq!(points.len(), 4);
    let kl = |i: usize| points[i]["mean_kl"].as_f64().unwrap();
    assert!(0.0 < kl(0) && kl(0) < kl(1) && kl(1) < kl(2), "{found}");
    assert_eq!((&points[3]["series"], &points[3]["name"]), (&"other".into(), &"Q4_X".into()));
    let drawn = fs::read_to_string(&picture).unwrap();
    for words in ["<svg", "bits a weight", "u4:s8x32*f16x0-8", "Q4_X", "bessemer rtn"] {
        assert!(drawn.contains(words), "no `{words}` in the picture");
    }
    let table = fs::read_to_string(picture.with_extension("csv")).unwrap();
    assert_eq!(table.lines().count(), 5, "{table}");
    user.fails(&[&args[..], &["--pareto", "sizes.png"]].concat(), 2, &["SVG"]);
    fs::write(&peers, "name\n").unwrap();
    user.fails(&[&args[..], &["--pareto", &text(&picture)]].concat(), 2, &["the first line must be"]);
}

#[test]
fn verify_holds_an_engine_to_its_source() {
    let user = User::new();
    for precision in ["source", "int8", "int4:16"] {
        let engine = text(&user.path("model.engine"));
        user.ok(&["compile", &model(), "-o", &engine, "--precision", precision]);
        let args = ["verify", &engine, "--numerics", "--json", "--source"];
        let json = user.json(&[&args[..], &[&model()]].concat());
        let rows = json["numerics"]["positions"].as_array().unwrap();
        assert_eq!(rows.len(), 40);
        assert!(rows.iter().all(|r| r["declared"].as_f64().unwrap() < 1e-3), "{precision}: {json}");
        let steps = json["numerics"]["steps"].as_array().unwrap();
        let ops: BTreeSet<_> = steps.iter().map(|s| s["op"].as_str().unwrap()).collect();
        for op in ["embed", "rms_norm", "linear", "rope_append", "attention"] {
            assert!(ops.contains(op), "{op}: {ops:?}");
        }
        assert!(steps.iter().all(|s| s["error"].as_f64().unwrap() < 1e-5), "{precision}: {json}");
        user.fails(&[&args[..], &[&fixture("bf16")]].concat(), 2, &["compiled from"]);
    }
}

#[test]
fn inspect_verify_doctor_and_completions_answer() {
    let user = User::new();
    let engine = user.engine();
    let lines = user.ok(&["inspect", &engine, "--quality"]);
    assert!(!lines.contains("cache "), "nothing was rounded, so nothing was measured: {lines}");
    let rounded = text(&user.path("int8.engine"));
    user.ok(&["compile", &model(), "-o", &rounded, "--precision", "int8"]);
    let lines = user.ok(&["inspect", &rounded, "--quality"]);
    for words in
        ["cache   bf16 unless", "cache   int8 costs a KL", "cache   int4 costs a KL", "bits a weight"]
    {
        assert!(lines.contains(words), "no `{words}` in\n{lines}");
    }
    let json = user.json(&["inspect", &engine, "--json"]);
    assert_eq!(json["model"]["vocab"], 288);
    assert_eq!(json["manifest"]["source"]["format"], "safetensors");
    assert!(user.ok(&["inspect", &engine, "--kernels"]).contains("linear"));
    assert!(user.ok(&["inspect", &engine, "--memory"]).contains("arena"));
    assert!(user.ok(&["verify", &engine]).contains("sound"));
    assert!(user.json(&["doctor", "--json"])["cores"].as_u64().unwrap() > 0);
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(user.ok(&["completions", shell]).contains("bessemer"), "{shell}");
    }
    assert!(user.ok(&["--help"]).contains("Exit codes"));
}

#[test]
fn one_engine_serves_several_devices() {
    let user = User::new();
    let out = text(&user.path("fat.engine"));
    user.ok(&["compile", &model(), "-o", &out, "--target", "metal", "--target", "cpu"]);
    let lines = user.ok(&["inspect", &out]);
    for words in ["target     cpu: any CPU", "target     metal:apple7: Apple 7 or later", "bf16 KV", "DEVICE"]
    {
        assert!(lines.contains(words), "no `{words}` in\n{lines}");
    }
    let json = user.json(&["inspect", &out, "--json"]);
    let (cpu, metal) = (&json["variants"][0], &json["variants"][1]);
    assert_eq!((cpu["kernels"].as_u64(), cpu["code"].as_array().unwrap().len()), (Some(0), 0));
    assert!(metal["launches"].as_u64() > Some(3) && metal["kernels"].as_u64() > Some(3), "{metal}");
    assert!(metal["code"][0]["bytes"].as_u64() > Some(10_000), "{metal}");
    assert!(user.ok(&["verify", &out]).contains("sound"));
    user.ok(&["run", &out, "--raw", "-p", "the", "-n", "2"]);

    user.ok(&["compile", &model(), "-o", &out, "--target", "metal:apple9"]);
    assert!(user.ok(&["inspect", &out]).contains("metal:apple9"));
    user.fails(&["run", &out, "--raw", "-p", "the"], 6, &["metal:apple9", "--target cpu"]);
    let cuda = ["compile", &model(), "-o", &out, "--target", "cuda"];
    user.fails(&cuda, 6, &["bessemer toolchain install cuda"]);
    let old = ["compile", &model(), "-o", &out, "--target", "cuda:sm_50"];
    user.fails(&old, 2, &["`cuda:sm_50`", "cuda:sm_80"]);
}

/// Ctrl-C while an answer comes: what is there stays, and the exit code says what happened.
#[cfg(target_os = "linux")]
#[test]
fn archs_lists_families() {
    let user = User::new();
    let listed = user.ok(&["archs"]);
    let families = user.json(&["archs", "--json"])["families"].as_array().unwrap().clone();
    assert!(families.len() >= 11 && listed.lines().count() == families.len(), "{listed}");
    for family in families {
        for key in ["name", "models", "files", "hugging_face", "gguf", "features"] {
            assert!(family.get(key).is_some(), "{family}");
        }
    }
}

#[test]
fn an_interrupt_ends_an_answer_cleanly() {
    use std::io::Read;
    let Some(stories) = cached_model("stories15M") else { return };
    let user = User::new();
    let mut child = user.command(&["run", &text(&stories), "--raw", "-p", "Once", "--temperature", "2"]);
    let mut child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 1];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let output = child.wait_with_output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(130), "{text}");
    assert!(text.contains("end: interrupted"), "{text}");
}

/// An interrupted compilation leaves no file, neither whole nor in part.
#[cfg(target_os = "linux")]
#[test]
fn an_interrupted_compilation_leaves_nothing() {
    let Some(stories) = cached_model("stories15M") else { return };
    let user = User::new();
    let folder = user.path("out");
    fs::create_dir(&folder).unwrap();
    let files = || fs::read_dir(&folder).unwrap().map(|f| f.unwrap().file_name()).collect::<Vec<_>>();
    let mut child = user.command(&["compile", &text(&stories), "-o", &text(&folder.join("model.engine"))]);
    let mut child = child.stderr(Stdio::piped()).spawn().unwrap();
    while files().is_empty() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert_eq!(files(), Vec::<std::ffi::OsString>::new());
}

#[test]
fn bench_profiles_steps_and_holds_a_run_to_a_baseline() {
    let user = User::new();
    let engine = user.engine();
    let quick = ["bench", &engine, "-p", "8", "-n", "4", "-r", "2", "-o", "json"];
    let json = user.json(&[&quick[..], &["--profile"]].concat());
    for (phase, rows) in [("prefill", 8), ("decode", 1)] {
        let phase = &json["profile"][phase];
        assert_eq!(phase["rows"], rows);
        let steps = phase["steps"].as_array().unwrap();
        assert!(steps.iter().any(|s| s["kind"] == "attention" && s["bytes"].as_u64() > Some(0)), "{phase}");
        assert!(steps.iter().all(|s| s["us"].as_f64().unwrap() > 0.0), "{phase}");
        let linears = steps.iter().filter(|s| s["kind"] == "linear");
        assert!(
            linears.clone().count() > 4 && linears.clone().all(|s| s["multiply_adds"].as_u64() > Some(0))
        );
    }
    assert!(user.ok(&[&quick[..8], &["--profile"]].concat()).contains("| layer.*.attention | attention |"));

    let baseline = user.path("base.json");
    let mut impossible = json.clone();
    impossible["decode"]["tok_s"] = 1e12.into();
    fs::write(&baseline, impossible.to_string()).unwrap();
    let held = ["--baseline", &text(&baseline)];
    let now = user.json(&[&quick[..], &held].concat());
    assert!(now["baseline"]["decode"].as_f64().unwrap() < 1e-3 && now["baseline"]["prefill"].is_f64());
    let failing = [&quick[..], &held, &["--fail-on", "slower>50%"]].concat();
    // The result is printed all the same: who missed the baseline wants to see by what.
    let output = user.run(&failing);
    assert_eq!(output.status.code(), Some(5), "{}", stderr(&output));
    assert!(stderr(&output).contains("decode at 0.00x"), "{}", stderr(&output));
    user.fails(&[&quick[..], &held, &["-t", "1"]].concat(), 2, &["another `threads`"]);
}

#[test]
fn a_damaged_engine_in_the_cache_is_compiled_again() {
    let user = User::new();
    let run = ["run", &model(), "--raw", "-p", "a", "-n", "4", "--temperature", "0"];
    let answer = user.ok(&run);
    let engine = fs::read_dir(user.path("cache")).unwrap().find_map(|folder| {
        let files = fs::read_dir(folder.unwrap().path()).ok()?;
        files.map(|f| f.unwrap().path()).find(|p| p.extension().is_some_and(|e| e == "engine"))
    });
    let engine = engine.unwrap();
    let whole = fs::read(&engine).unwrap();
    for damaged in [&whole[..whole.len() / 2], b"BESSEMER"] {
        fs::remove_file(&engine).unwrap();
        fs::write(&engine, damaged).unwrap();
        let output = user.run(&run);
        assert!(stderr(&output).contains("compiling it again"), "{}", stderr(&output));
        assert_eq!(String::from_utf8(output.stdout).unwrap(), answer);
        assert_eq!(fs::read(&engine).unwrap(), whole);
    }
    // An engine that was named is nobody's to replace.
    fs::write(user.path("mine.engine"), &whole[..100]).unwrap();
    user.fails(&["run", &text(&user.path("mine.engine")), "-p", "a"], 4, &[]);
}

#[test]
fn tuning_is_kept_merged_and_used_again() {
    let user = User::new();
    let (cache, engine) = (text(&user.path("mine.json")), text(&user.path("tuned.engine")));
    let tuned: Value =
        user.json(&["compile", &model(), "-o", &engine, "--tune", "--tuning-cache", &cache, "--json"]);
    // The cache is all that a later compilation needs.
    let again = ["compile", &model(), "-o", &engine, "--tuning-cache", &cache, "--json"];
    assert_eq!(user.json(&again)["sha256"], tuned["sha256"]);
    let shown: Value = serde_json::from_str(&user.ok(&["tuning", "show", &cache, "--json"])).unwrap();
    let entries = shown["entries"].as_array().unwrap();
    assert_eq!(entries.len(), 3, "{shown}");
    assert_eq!(fs::read_to_string(&cache).unwrap(), user.ok(&["tuning", "show", &cache, "--json"]));
    let overview = user.ok(&["inspect", &engine]);
    for entry in entries {
        let (tactic, value) = (entry["tactic"].as_str().unwrap(), &entry["value"]);
        assert!(overview.contains(&format!("{tactic} = {value} (tuned for ")), "{overview}");
        assert!(user.ok(&["tuning", "show", &cache]).contains(&format!("{tactic} = {value}")));
    }
    let merged = text(&user.path("ours.json"));
    user.ok(&["tuning", "merge", &cache, &cache, "-o", &merged]);
    assert_eq!(fs::read(&merged).unwrap(), fs::read(&cache).unwrap());
    // Another machine's measurements can be asked for by name; here there are none, so the rule decides.
    let elsewhere =
        ["compile", &model(), "-o", &engine, "--tuning-cache", &cache, "--tuning-machine", "elsewhere"];
    user.ok(&elsewhere);
    let overview = user.ok(&["inspect", &engine]);
    assert!(
        overview.contains("chunk_rows = 512 (rule: ") && overview.contains("for elsewhere"),
        "{overview}"
    );
    user.ok(&["compile", &model(), "-o", &engine, "--tactic", "chunk_rows=96"]);
    assert!(user.ok(&["inspect", &engine]).contains("chunk_rows = 96 (given by the user)"));
    let why = user.ok(&["inspect", &engine, "--why"]);
    for word in [
        "split_rows = 7: rule",
        "attention kernel, chunks of 128",
        "linear kernel",
        "where trusted",
        "not nest: ",
    ] {
        assert!(why.contains(word), "no `{word}` in\n{why}");
    }

    let source = model();
    let compile = |args: &[&str], words: &[&str]| {
        let all = [&["compile", &source, "-o", &engine], args].concat();
        user.fails(&all, 2, words);
    };
    compile(&["--tactic", "chunk_rows=0"], &["chunk_rows is 0", "1 to 1048576"]);
    compile(&["--tactic", "luck=1"], &["luck", "split_rows"]);
    compile(&["--tuning-cache", &text(&user.path("none.json"))], &["none.json"]);
    compile(&["--tuning-cache", &engine], &["is no tuning cache"]);
    user.fails(&["tuning", "merge", &engine, "-o", &merged], 2, &["is no tuning cache"]);
}

#[test]
fn a_quality_is_asked_for_in_one_way_and_refused_with_what_can_be_had() {
    let user = User::new();
    let out = text(&user.path("m.engine"));
    let compile = |more: &[&str]| -> Vec<String> {
        [&["compile", &model(), "-o", &out][..], more].concat().into_iter().map(String::from).collect()
    };
    let fails = |more: &[&str], code, words: &[&str]| {
        let args = compile(more);
        user.fails(&args.iter().map(String::as_str).collect::<Vec<_>>(), code, words);
    };
    fails(&["--quality", "high", "--precision", "int8"], 2, &["cannot be used with"]);
    fails(&["--max-kl", "0.1", "--target-bpw", "4"], 2, &["cannot be used with"]);
    fails(&["--max-kl", "0"], 2, &["no number above 0"]);
    fails(&["--quality", "small", "--no-measure"], 2, &["cannot be used with"]);
    fails(&["--target-bpw", "1", "--method", "rtn"], 5, &["1 bits a weight", "best reachable"]);
    assert!(!Path::new(&out).exists());
}

#[test]
fn bench_of_an_encoder_measures_texts_alone() {
    let user = User::new();
    let args = ["bench", &fixture("bert"), "-p", "24", "-r", "2", "-b", "3", "--vs", "interpreted"];
    let json = user.json(&[&args[..], &["-o", "json"]].concat());
    for path in ["/prefill/tok_s", "/interpreted/prefill/tok_s", "/interpreted/ratio/prefill"] {
        assert!(json.pointer(path).and_then(Value::as_f64).is_some_and(|v| v > 0.0), "{path}: {json}");
    }
    assert!(json.get("decode").is_none() && json["interpreted"].get("decode").is_none(), "{json}");
    assert_eq!(json["load"]["generate"], 0);
    let table = user.ok(&args);
    assert!(table.contains("| prefill 24 |") && !table.contains("| decode"), "{table}");
    user.fails(&["bench", &fixture("bert"), "-p", "24", "-d", "8"], 2, &["-d"]);
}
