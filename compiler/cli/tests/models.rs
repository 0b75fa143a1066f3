//! Models of every kind at the command line: where they come from, and what they make of texts.
#![cfg(feature = "compile")]

mod common;

use bessemer_tests::hub::{COMMIT, Server, files};
use bessemer_tests::models::{ENCODERS, FAMILIES, root};
use common::{User, fixture, model, stderr, text};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Output;

#[test]
fn a_model_of_the_hub_is_found_in_its_cache() {
    let user = User::new();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let repository = user.path("hf/hub/models--org--tiny");
    let snapshot = repository.join("snapshots").join(commit);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::write(repository.join("refs/main"), commit).unwrap();
    for file in fs::read_dir(model()).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), snapshot.join(file.file_name())).unwrap();
    }
    let hub = |args: &[&str]| user.command(args).env("HF_HOME", user.path("hf")).output().unwrap();
    let found = hub(&["compile", "hf:org/tiny", "--offline", "--key"]);
    assert!(stderr(&found).contains(&format!("source: hf:org/tiny@{commit}")), "{}", stderr(&found));
    assert_eq!(String::from_utf8(found.stdout).unwrap(), user.ok(&["compile", &model(), "--key"]));
    for (name, words) in [("hf:org/other", "run once without --offline"), ("hf:tiny", "hf:ORG/MODEL")] {
        let missing = hub(&["compile", name, "--offline", "--key"]);
        assert_eq!(missing.status.code(), Some(2));
        assert!(stderr(&missing).contains(words), "{}", stderr(&missing));
    }
}

/// A user whose Hub is `server`.
fn hub(user: &User, server: &Server, more: &[(&str, &str)], args: &[&str]) -> Output {
    let mut command = user.command(args);
    command.env("HF_ENDPOINT", &server.endpoint).env("HF_HOME", user.path("hf"));
    command.env_remove("HF_TOKEN").env_remove("HF_HUB_OFFLINE").envs(more.iter().copied());
    command.output().unwrap()
}

#[test]
fn a_model_of_the_hub_is_fetched_as_the_environment_says() {
    let server = Server::start("org/tiny", files(Path::new(&model())));
    let tokens = || -> Vec<String> { server.asked().into_iter().map(|(_, _, token)| token).collect() };
    let (user, of_token) = (User::new(), [("HF_TOKEN", "hf_secret")]);
    let engine = text(&user.path("hub.engine"));
    let args = ["compile", "hf:org/tiny@main", "-o", &engine, "--json"];
    let compiled = hub(&user, &server, &of_token, &args);
    let commit = format!("hf:org/tiny@{COMMIT}");
    assert!(stderr(&compiled).contains(&format!("source: {commit}")), "{}", stderr(&compiled));
    let json: Value = serde_json::from_slice(&compiled.stdout).unwrap();
    assert_eq!(json["source"], commit);
    assert_eq!(fs::read(&engine).unwrap(), fs::read(user.engine()).unwrap(), "the bytes of a local copy");
    let asked = tokens();
    assert!(asked.len() > 2 && asked.iter().all(|token| token == "Bearer hf_secret"), "{asked:?}");
    // Recorded where every client of the Hub looks it up.
    let recorded = user.path("hf/hub/models--org--tiny/refs/main");
    assert_eq!(fs::read_to_string(recorded).unwrap(), COMMIT);

    // Offline, by the option or by the environment: nobody is asked, and the recorded commit is what `main` is.
    for (option, env) in [(&["--offline"][..], &[][..]), (&[], &[("HF_HUB_OFFLINE", "1")])] {
        let args = [&["compile", "hf:org/tiny", "--key"], option].concat();
        let output = hub(&user, &server, env, &args);
        assert!(output.status.success() && stderr(&output).contains(&commit), "{}", stderr(&output));
    }
    assert!(tokens().is_empty());

    // Without HF_TOKEN the token that `hf auth login` left in HF_HOME; without both none.
    let key = ["compile", "hf:org/tiny", "--key"];
    fs::write(user.path("hf/token"), "hf_login\n").unwrap();
    assert!(hub(&user, &server, &[], &key).status.success());
    assert_eq!(tokens(), ["Bearer hf_login"]);
    let other = User::new();
    assert!(hub(&other, &server, &[], &key).status.success());
    assert!(tokens().iter().all(String::is_empty));
    // Without HF_HOME the folder that the Python library uses.
    let mut command = other.command(&key);
    command.env("HF_ENDPOINT", &server.endpoint).env_remove("HF_HOME").env_remove("HF_TOKEN");
    assert!(command.output().unwrap().status.success());
    assert!(other.path(".cache/huggingface/hub/models--org--tiny/refs/main").exists());
}

#[test]
fn several_gguf_files_are_listed_and_one_is_chosen_by_name() {
    let file = fs::read(fixture("qwen2_tied.f32.gguf")).unwrap();
    let names = ["q4/model.gguf", "model-f32.gguf"];
    let server = Server::start("org/many", BTreeMap::from(names.map(|name| (name.to_owned(), file.clone()))));
    let user = User::new();
    let refused = hub(&user, &server, &[], &["compile", "hf:org/many", "--key"]);
    let said = stderr(&refused);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(names.iter().all(|name| said.contains(&format!("hf:org/many/{name}"))), "{said}");
    let chosen = hub(&user, &server, &[], &["compile", "hf:org/many/q4/model.gguf", "--key"]);
    assert!(chosen.status.success(), "{}", stderr(&chosen));
    let local = user.ok(&["compile", &fixture("qwen2_tied.f32.gguf"), "--key"]);
    assert_eq!(String::from_utf8(chosen.stdout).unwrap(), local);
}

/// `fixtures/goldens/NAME.text.json`: what the tokenizers library and transformers make of texts, or of a query beside them.
#[test]
fn texts_become_the_vectors_and_scores_of_transformers() {
    for (name, width) in [("mpnet", 32), ("bert_scores", 3)] {
        let user = User::new();
        let golden = fs::read(root().join(format!("fixtures/goldens/{name}.text.json"))).unwrap();
        let golden: Value = serde_json::from_slice(&golden).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        let texts: Vec<&str> = cases.iter().map(|case| case["text"].as_str().unwrap()).collect();
        fs::write(user.path("texts.txt"), texts.join("\n")).unwrap();
        let engine = text(&user.path("m.engine"));
        user.ok(&["compile", &fixture(name), "-o", &engine]);
        let file = text(&user.path("texts.txt"));
        let query = golden["query"].as_str().map(|query| ["--query", query]);
        let query = query.as_ref().map_or(&[][..], |query| &query[..]);
        let args = [&["embed", &engine, &file, "--json"], query].concat();
        let json = user.json(&args);
        assert_eq!(json["width"], width);
        let rows = if query.is_empty() { &json["vectors"] } else { &json["scores"] };
        let rows = rows.as_array().unwrap();
        assert_eq!(rows.len(), cases.len(), "{name}");
        for (row, case) in rows.iter().zip(cases) {
            let pairs = row.as_array().unwrap().iter().zip(case["numbers"].as_array().unwrap());
            for (found, expected) in pairs {
                let (found, expected) = (found.as_f64().unwrap(), expected.as_f64().unwrap());
                assert!((found - expected).abs() < 1e-4, "{name} {}: {found}, not {expected}", case["text"]);
            }
        }
        // As text, one at a time, and by --text.
        let one = user.ok(&[&["embed", &engine, "--text", texts[0]], query].concat());
        let numbers: Vec<f64> = one.split_whitespace().map(|number| number.parse().unwrap()).collect();
        let same = |(a, b): (&f64, &Value)| (a - b.as_f64().unwrap()).abs() < 1e-6;
        assert!(numbers.iter().zip(rows[0].as_array().unwrap()).all(same), "{one}");
    }
    let user = User::new();
    let args = ["embed", &fixture("mpnet"), "--text", "x", "--query", "y"];
    user.fails(&args, 2, &["--query", "gives vectors"]);
}

#[test]
fn what_a_user_writes_is_text_unless_asked() {
    let user = User::new();
    let engine = user.engine();
    let tokens = |args: &[&str]| -> u64 {
        let json = user.json(&[&["run", &engine, "-n", "1", "--json"], args].concat());
        json["timings"]["prompt_tokens"].as_u64().unwrap()
    };
    for raw in [&["--raw"][..], &[]] {
        let as_text = tokens(&[raw, &["-p", "a<|im_end|>"]].concat());
        let as_token = tokens(&[raw, &["-p", "a<|im_end|>", "--special"]].concat());
        let without = tokens(&[raw, &["-p", "a"]].concat());
        assert_eq!(as_token, without + 1, "{raw:?}");
        assert!(as_text > as_token, "{raw:?}");
    }
}

#[test]
fn every_fixture_compiles_and_says_what_it_is() {
    let user = User::new();
    let engine = text(&user.path("m.engine"));
    for (name, _) in FAMILIES.iter().chain(ENCODERS) {
        user.ok(&["compile", &fixture(name), "-o", &engine]);
        let inspected = user.ok(&["inspect", &engine]);
        assert!(inspected.contains("source"), "{name}: {inspected}");
    }
}
