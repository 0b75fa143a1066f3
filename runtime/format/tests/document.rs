//! FORMAT.md states the numbers that the code has.

use bessemer_format::{codec, header, kv, panel};

#[test]
fn numbers_in_the_document_are_those_of_the_code() {
    let text = include_str!("../../../FORMAT.md");
    let mut facts = vec![
        format!("format version {}.{}", header::MAJOR, header::MINOR),
        format!("| 0 | 8 | magic `{}` |", String::from_utf8_lossy(&header::MAGIC)),
        format!("| 8 | 2 | major version, {} |", header::MAJOR),
        format!("| 10 | 2 | minor version, {} |", header::MINOR),
        format!("header ({0}) | table of contents ({0} a section)", header::HEADER_BYTES),
        format!("more than {} bytes is not decoded", codec::SIZE_LIMIT),
        format!("ceil(n / {}) panels, each padded to {}", panel::COLUMNS, panel::LINE),
        format!("padded to a multiple of {}", panel::K_STEP),
        format!("A block holds {} tokens", kv::TOKENS),
        format!("(token / {0}) * {0} * head_dim", kv::COLUMNS),
    ];
    for kind in header::SectionKind::ALL {
        facts.push(format!("| {} | {} | {} | {} |", kind as u32, kind.name(), kind.align(), kind.flags()));
    }
    for fact in facts {
        assert!(text.contains(&fact), "FORMAT.md does not say `{fact}`");
    }
}

#[test]
fn formulas_in_the_document_are_those_of_the_code() {
    for (d, token, dim) in [(64, 5, 3), (80, 31, 79), (16, 17, 8)] {
        let key = (token / 16) * 16 * d + (dim / 2) * 32 + (token % 16) * 2 + dim % 2;
        let value = (token / 2) * d * 2 + dim * 2 + token % 2;
        assert_eq!((kv::key(d, token, dim), kv::value(d, token, dim)), (key, value));
    }
}
