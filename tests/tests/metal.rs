//! The text of kernels for Metal, as far as it can be judged without Apple's compiler: clang knows the address spaces. No GPU is used.

use bessemer_passes::PrecisionPolicy;
use bessemer_runtime::KvElem;
use bessemer_targets::clike::Dialect;
use bessemer_tests::gpu::{Case, Clang, emit, families, schemes};

/// The text for all of `cases`.
fn text(cases: &[Case], kv: KvElem) -> String {
    let built: Vec<_> = cases.iter().map(Case::build).collect();
    emit(Dialect::Metal, kv, &built).text
}

#[test]
fn every_text_holds_to_address_spaces() {
    let Some(clang) = Clang::find() else { return };
    for (kv, cases) in [(KvElem::F32, families()), (KvElem::Bf16, schemes()), (KvElem::F32, schemes())] {
        let text = text(&cases, kv);
        clang.check(&text).unwrap_or_else(|why| panic!("{why}"));
        println!("{} lines", text.lines().count());
    }
}

/// What is planted is found, so that a text which passes says something.
#[test]
fn planted_mistakes_are_caught() {
    let Some(clang) = Clang::find() else { return };
    let text = text(&[Case::new("qwen3_moe", "qwen3_moe", PrecisionPolicy::F32)], KvElem::F32);
    for (what, old, new) in [
        (
            "workgroup memory as memory of the device",
            "int tid, SHARED float* parts",
            "int tid, GLOBAL float* parts",
        ),
        (
            "memory of the device as workgroup memory",
            "const GLOBAL float* x, idx stride",
            "const SHARED float* x, idx stride",
        ),
        (
            "a pointer without an address space",
            "const GLOBAL uchar* panel, const",
            "const uchar* panel, const",
        ),
        (
            "a pointer that might lead anywhere",
            "void load16(const GLOBAL uchar* at",
            "void load16(const uchar* at",
        ),
        ("a thread's array as workgroup memory", "LOCAL float (&w)[16][4]) {", "SHARED float (&w)[16][4]) {"),
        ("a cast from one space into another", "(const GLOBAL float*)at", "(const SHARED float*)at"),
        ("a table in no space", "TABLE float iq4_numbers", "static const float iq4_numbers"),
        ("a store through a pointer to constants", "    GLOBAL float* out", "    const GLOBAL float* out"),
        ("a kernel's pointer into no space", "    GLOBAL float* out", "    float* out"),
        (
            "workgroup memory in a function",
            "FN float product(const SHARED float* parts, int i) {",
            "FN float product(const SHARED float* parts, int i) {\n    SHARED_ARRAY(float, own, 4);",
        ),
        ("f64", "FN float silu(float x) {", "FN float silu(float x) {\n    double y = x;"),
        (
            "a name that is not there",
            "FN float silu(float x) { return x",
            "FN float silu(float x) { return z",
        ),
    ] {
        assert!(text.contains(old), "the text has no `{old}`");
        let found = clang.check(&text.replacen(old, new, 1)).err();
        let found = found.unwrap_or_else(|| panic!("{what}: nothing was reported"));
        println!("{what}: {}", found.lines().next().unwrap_or_default());
    }
}
