//! The table of families in the README is the one that the compiler has.

use bessemer_compiler::import::arch::{ARCHITECTURES, table};
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
    let types: BTreeSet<String> = FAMILIES
        .iter()
        .chain(ENCODERS)
        .filter_map(|(model, _)| std::fs::read(fixture(model).join("config.json")).ok())
        .map(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).unwrap())
        .map(|config| config["model_type"].as_str().unwrap().to_owned())
        .collect();
    for family in ARCHITECTURES.iter().filter(|family| !family.hf.is_empty()) {
        let has = family.hf.iter().any(|(model_type, _)| types.contains(*model_type));
        assert!(has, "{} has no fixture whose results a golden holds", family.name);
    }
}
