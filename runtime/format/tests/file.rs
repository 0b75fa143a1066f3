//! Frame and codec: damaged files are refused, and the format does not change unseen.

mod common;

use bessemer_format::act::{Bf16Layout, Int8Layout};
use bessemer_format::codec;
use bessemer_format::header::{HEADER_BYTES, SectionKind};
use bessemer_format::manifest::{Hash, Report};
use bessemer_format::nest::{Base, Index, Term};
use bessemer_format::plan::{ModelFacts, Output, Regime};
use bessemer_format::variant::{DeviceKind, VariantPlan};
use bessemer_format::{FormatError, PanelLayout, QuantScheme};
use common::*;

#[test]
fn the_small_engine_opens() {
    let bytes = engine();
    let file = open(&bytes).unwrap();
    let found: Vec<_> =
        file.variants().map(|v| VariantPlan { plan: v.plan.clone(), gpu: v.gpu.cloned() }).collect();
    assert_eq!(found, plans());
    let metal = file.variant(DeviceKind::Metal).unwrap();
    assert_eq!(file.device_code(metal.device.code()[0]), b"kernel void");
    file.verify_weights().unwrap();
    assert_eq!(file.report().unwrap(), Some(Report::default()));
}

#[test]
fn codec_bytes_are_golden() {
    let model = ModelFacts {
        vocab: 300,
        context: 64,
        hidden: 70000,
        layers: 1,
        output: Output::Logits,
        whole: false,
    };
    assert_eq!(codec::encode(&model).unwrap(), [0xfb, 0x2c, 1, 64, 0xfc, 0x70, 0x11, 1, 0, 1, 0, 0]);
    assert_eq!(codec::encode(&Regime { min_rows: 1, max_rows: 250 }).unwrap(), [1, 250]);
    // Enum variants are numbers, signed integers are zigzag, options have a tag.
    assert_eq!(codec::encode(&QuantScheme::Q4_0).unwrap(), [3, 4, 1, 1, 32, 1, 0, 1, 16]);
    let index = Index { terms: vec![Term { base: Base::Axis(2), div: 1, rem: 0, coef: -3 }], constant: 5 };
    assert_eq!(codec::encode(&index).unwrap(), [1, 0, 2, 1, 0, 5, 10]);
    assert_eq!(codec::encode(&1.5f32).unwrap(), [0, 0, 0xc0, 0x3f]);
    assert_eq!(codec::encode(&String::from("ab")).unwrap(), [2, b'a', b'b']);
}

#[test]
fn frame_bytes_are_golden() {
    let bytes = engine();
    assert_eq!(&bytes[..16], b"BESSEMER\0\0\x03\0\x08\0\0\0");
    assert_eq!(&bytes[16..24], (bytes.len() as u64).to_le_bytes());
    assert_eq!(&bytes[24..32], [0; 8]);
    let kinds: Vec<u8> = (1..=8).map(|i| bytes[HEADER_BYTES * i]).collect();
    assert_eq!(kinds, [1, 2, 3, 4, 5, 6, 7, 8]);
}

/// One hash over every byte of the small engine: any change of the format, of a type of the contract or of a layout shows here.
/// Whoever changes it on purpose raises the version in `header.rs`.
#[test]
fn the_whole_small_engine_is_golden() {
    assert_eq!(Hash::of(&engine()).to_string(), GOLDEN);
}

/// Scratch memory is not in the file, but its size is in every plan: a change of it is a change of the format, too.
#[test]
fn converted_activations_lie_where_they_did() {
    let weight = PanelLayout::new(&QuantScheme::Q4_0, 16, 576).unwrap();
    let row = Int8Layout::new(&weight, 32).unwrap();
    assert_eq!([row.scales_at(), row.sums_at(), row.products_at(), row.row_bytes()], [576, 648, 720, 832]);
    let row = Bf16Layout { k: 90 };
    assert_eq!([row.row_bytes(), row.widened_row_bytes(), row.native_row_bytes()], [384, 384, 192]);
}

const GOLDEN: &str = "43edca7cc7664153ce924415622b92790d168432e3eaaeb441a5c9a17ecdfbfc";

#[test]
fn every_bit_outside_weights_is_guarded() {
    let bytes = engine();
    let weights = section(&bytes, SectionKind::Weights);
    for at in (0..bytes.len()).filter(|at| !weights.contains(at)) {
        // All bits of what matters most, one bit of the rest.
        let bits = if at < HEADER_BYTES * 9 { 0..8 } else { at % 8..at % 8 + 1 };
        for bit in bits {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            assert!(open(&damaged).is_err(), "byte {at}, bit {bit}");
        }
    }
}

#[test]
fn flips_in_weights_open_and_are_named() {
    let bytes = engine();
    let start = section(&bytes, SectionKind::Weights).start;
    for (id, slice) in plan().weights.iter().enumerate() {
        let mut damaged = bytes.clone();
        damaged[start + (slice.offset + slice.len / 2) as usize] ^= 1;
        let error = open(&damaged).unwrap().verify_weights().unwrap_err().to_string();
        assert!(error.contains(&format!("tensor.{id}")), "{error}");
    }
}

#[test]
fn every_truncation_is_refused() {
    let bytes = engine();
    for len in (0..bytes.len()).filter(|len| len % 64 < 2 || *len < 1024) {
        assert!(open(&bytes[..len]).is_err(), "{len}");
    }
    let mut longer = bytes;
    longer.push(0);
    assert!(matches!(open(&longer), Err(FormatError::Length { .. })));
}

/// Fields of header and table, changed and sealed again: (offset, width).
#[test]
fn every_sealed_field_is_checked() {
    let bytes = engine();
    let mut fields = vec![(0, 8), (8, 2), (10, 2), (12, 4), (16, 8), (24, 8)];
    for entry in 1..=8 {
        let at = HEADER_BYTES * entry;
        fields.extend([(at, 4), (at + 4, 4), (at + 8, 8), (at + 16, 8), (at + 24, 8), (at + 32, 32)]);
    }
    for (at, width) in fields {
        for flip in [1u8, 0x80] {
            // What is still an engine: an unknown optional section in the place of DEBUG.
            if at == HEADER_BYTES * 8 {
                continue;
            }
            let mut damaged = bytes.clone();
            damaged[at + if flip == 1 { 0 } else { width - 1 }] ^= flip;
            let count = u32::from_le_bytes(damaged[12..16].try_into().unwrap()) as usize;
            if HEADER_BYTES * (count.saturating_add(1)) <= damaged.len() {
                reseal_header(&mut damaged);
            }
            assert!(open(&damaged).is_err(), "field at {at}, flip {flip:#x}");
        }
    }
}

#[test]
fn other_versions_name_both_sides() {
    for (at, change, found) in [(8, 1, "1.3"), (10, 1, "0.4"), (10, -1, "0.2")] {
        let mut newer = engine();
        newer[at] = newer[at].wrapping_add_signed(change);
        reseal_header(&mut newer);
        let error = open(&newer).map(drop).unwrap_err();
        assert!(matches!(error, FormatError::Version { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(found) && text.contains("0.3 to 0.3") && text.contains("compile"), "{text}");
    }
}

#[test]
fn unknown_sections_are_skipped_where_optional() {
    for (flags, opens) in [(1u8, true), (0, false)] {
        let mut bytes = engine();
        let debug = HEADER_BYTES * 8;
        bytes[debug] = 99;
        bytes[debug + 4] = flags;
        reseal_header(&mut bytes);
        match open(&bytes) {
            Ok(_) => assert!(opens),
            Err(error) => assert!(!opens && error.to_string().contains("99"), "{error}"),
        }
    }
}

#[test]
fn claimed_lengths_do_not_ask_for_memory() {
    // A string, a list of numbers and a list of lists that claim 2^40 elements in a few bytes.
    let claim = [0xfd, 0, 0, 0, 0, 0, 1, 0, 0];
    assert!(codec::decode::<String>("TEST", &claim).is_err());
    assert!(codec::decode::<Vec<u64>>("TEST", &claim).is_err());
    assert!(codec::decode::<Vec<Vec<String>>>("TEST", &claim).is_err());
    // 32 MiB in a string of 5 bytes: above what an input so small may claim.
    let error = codec::decode::<String>("TEST", &[0xfc, 0, 0, 0, 2]).unwrap_err().to_string();
    assert!(error.contains("LimitExceeded"), "{error}");
    // Large numbers take up to their full width of the limit without being refused.
    let many = vec![1u64; 100_000];
    assert_eq!(codec::decode::<Vec<u64>>("TEST", &codec::encode(&many).unwrap()).unwrap(), many);
    assert!(codec::decode::<u8>("TEST", &[1, 2]).is_err());
}

#[test]
fn sealed_mutations_never_panic() {
    let bytes = engine();
    let mut random = Random(1);
    let (mut opened, mut invalid) = (0, 0);
    for round in 0..12_000 {
        let mut damaged = bytes.clone();
        let kind = if round % 3 == 0 { SectionKind::Manifest } else { SectionKind::Plan };
        let range = section(&bytes, kind);
        for _ in 0..=random.below(3) {
            let at = range.start + random.below(range.len());
            damaged[at] = match random.below(4) {
                0 => damaged[at] ^ (1 << random.below(8)),
                1 => damaged[at].wrapping_add(1),
                2 => damaged[at].wrapping_sub(1),
                _ => random.below(256) as u8,
            };
        }
        reseal(&mut damaged);
        match open(&damaged) {
            // Names, for example, may be anything. What opens must hold what validation promises.
            Ok(file) => {
                opened += 1;
                (0..file.weights().len()).for_each(|id| assert!(!file.weight(id as u32).is_empty()));
            }
            Err(FormatError::Invalid { .. }) => invalid += 1,
            Err(_) => {}
        }
    }
    assert!(opened > 100 && invalid > 1000, "{opened} opened, {invalid} invalid: the mutations test nothing");
}
