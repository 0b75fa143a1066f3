//! What calibration sees: the inputs of stacks of experts too, so that their codes make up for each other.

use bessemer_compiler::calibrate::{Corpus, Text};
use bessemer_compiler::options::{CompileOptions, RunOptions};
use bessemer_compiler::{Method, Silent};
use bessemer_format::manifest::Quality;
use bessemer_tests::models::fixture;

/// What the experts of a mixture lose, everything else as it is.
fn lost(model: &str, method: Method) -> Quality {
    // Of few words: what experts see lies in few directions, as it does in trained models.
    let tokens = |seed: u32, n: u32| (0..n).map(|i| (i * i * 7 + i * seed) % 97 % 6 * 16).collect();
    let corpus = |seed, windows| Corpus { text: Text::Tokens(tokens(seed, 256)), windows, window: 32 };
    let options = CompileOptions {
        overrides: vec!["exp=int3:16".parse().unwrap()],
        method,
        calibration: corpus(3, 8),
        measure: Some(corpus(5, 4)),
        ..CompileOptions::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("m.engine");
    let run = RunOptions::default();
    let made = bessemer_compiler::compile(&fixture(model), &out, &options, &run, None, &Silent).unwrap();
    made.quality.unwrap()
}

#[test]
fn codes_of_experts_make_up_for_each_other() {
    for model in ["mixtral.bf16.gguf", "qwen3_moe.bf16.gguf"] {
        let (nearest, compensated) = (lost(model, Method::Rtn), lost(model, Method::Gptq));
        let stacks = compensated.weights.iter().filter(|(name, _)| name.contains("exp")).count();
        assert!(stacks > 0 && stacks.is_multiple_of(3), "{model}: {:?}", compensated.weights);
        println!("{model}: {} beside {}", compensated.mean_kl, nearest.mean_kl);
        assert!(
            compensated.mean_kl < 0.9 * nearest.mean_kl,
            "{model}: {} beside {}",
            compensated.mean_kl,
            nearest.mean_kl
        );
    }
}
