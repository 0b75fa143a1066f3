//! The table of families in the README is the one that the compiler has.

use bessemer_compiler::import::Checkpoint;
use bessemer_compiler::import::arch::{ARCHITECTURES, detect, table};
use bessemer_tests::models::{ENCODERS, FAMILIES, fixture, root};
use std::collections::BTreeSet;

#[test]
fn the_readme_lists_the_families_of_the_compiler() {
    let path = root().join("README.md");
    let readme = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = readme.split_once("<!-- archs -->\n").expect("a mark where the table begins");
    let (found, after) = rest.split_once("<!-- /archs -->").expect("a mark where the table ends");
    if std::env::var_os("BLESS").is_some() {
        let text = format!("{before}<!-- archs -->\n{}<!-- /archs -->{after}", table());
        std::fs::write(&path, text).unwrap();
        return;
    }
    assert_eq!(found, table(), "bless if this is meant");
}

#[test]
fn every_family_has_a_fixture_and_names_of_its_own() {
    let mut names = BTreeSet::new();
    for family in ARCHITECTURES {
        assert!(names.insert(family.name), "{} stands twice", family.name);
        assert!(!family.features.is_empty() && !family.models.is_empty() && !family.files().is_empty());
    }
    // The families of the fixtures, in each container.
    let (mut folders, mut ggufs) = (BTreeSet::new(), BTreeSet::new());
    let llama = [("gqa_tied", "gqa_tied"), ("gqa_tied.f32.gguf", "gqa_tied")];
    for (model, golden) in llama.iter().chain(FAMILIES).chain(ENCODERS) {
        let family = |model| detect(&Checkpoint::open(fixture(model)).unwrap()).unwrap();
        if !model.ends_with(".gguf") {
            folders.insert(family(model).name);
            continue;
        }
        // A copy of a checkpoint belongs to the family of that, also where it goes by the name of another that reads both.
        let family_of_source = family(golden);
        assert!(
            family_of_source.gguf.iter().any(|name| family(model).gguf.contains(name)),
            "{model}: the family {} does not say that its files are called so",
            family_of_source.name
        );
        ggufs.insert(family_of_source.name);
    }
    for family in ARCHITECTURES {
        let name = family.name;
        assert!(family.hf.is_empty() || folders.contains(name), "{name} has no fixture");
        assert!(family.gguf.is_empty() || ggufs.contains(name), "{name} has no fixture as GGUF");
    }
}
