//! The containers: where tensors lie, what metadata says, and every way in which a file can lie about it.

use std::path::Path;

use bessemer_compiler::import::{Checkpoint, ImportError, Metadata, StoredType};
use bessemer_format::PanelLayout;
use bessemer_ir::Stored;
use bessemer_kernels::pack::{pack_panels, unpack_panels};
use bessemer_tests::checkpoints::*;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{folder, open_gguf, open_tiny, refused};

#[test]
fn gguf_tensors_have_row_major_shapes_and_their_own_bytes() {
    for file in [tiny_gguf(), Gguf { version: 2, ..tiny_gguf() }] {
        let mut written = Vec::new();
        file.clone().edit(|tensors| written = tensors.clone());
        let checkpoint = open_gguf(&file.bytes()).unwrap();
        assert_eq!(checkpoint.tensors().len(), written.len());
        for tensor in written {
            let info = checkpoint.tensor(&tensor.name).unwrap();
            let outermost_first: Vec<usize> = tensor.dims.iter().rev().map(|dim| *dim as usize).collect();
            assert_eq!(info.shape, outermost_first, "{}", tensor.name);
            assert_eq!(checkpoint.bytes(&tensor.name).unwrap(), tensor.data, "{}", tensor.name);
        }
        assert_eq!(checkpoint.tensor("blk.0.attn_q.weight").unwrap().stored, StoredType::Known(Stored::Q4_1));
        let Metadata::Gguf(metadata) = checkpoint.config() else { panic!("not GGUF") };
        assert_eq!(metadata.string("general.name"), Some("tiny"));
        refused(checkpoint.bytes("nobody"), &["nobody", "12"]);
    }
}

#[test]
fn gguf_metadata_of_every_type_is_read() {
    use bessemer_compiler::import::gguf::{Array, Value};
    let nested = [
        &9u32.to_le_bytes()[..],
        &1u64.to_le_bytes(),
        &5u32.to_le_bytes(),
        &2u64.to_le_bytes(),
        &(-1i32).to_le_bytes(),
        &7i32.to_le_bytes(),
    ]
    .concat();
    let cases: [(u32, Vec<u8>, Value); 13] = [
        (0, vec![200], Value::Unsigned(200)),
        (1, vec![0xff], Value::Signed(-1)),
        (2, 40000u16.to_le_bytes().into(), Value::Unsigned(40000)),
        (3, (-2i16).to_le_bytes().into(), Value::Signed(-2)),
        (4, u32::MAX.to_le_bytes().into(), Value::Unsigned(u32::MAX.into())),
        (5, i32::MIN.to_le_bytes().into(), Value::Signed(i32::MIN.into())),
        (6, 0.5f32.to_le_bytes().into(), Value::F32(0.5)),
        (7, vec![1], Value::Bool(true)),
        (8, [&2u64.to_le_bytes()[..], "é".as_bytes()].concat(), Value::String("é".into())),
        (9, nested, Value::Array(Array::Array(vec![Array::I32(vec![-1, 7])]))),
        (10, u64::MAX.to_le_bytes().into(), Value::Unsigned(u64::MAX)),
        (11, i64::MIN.to_le_bytes().into(), Value::Signed(i64::MIN)),
        (12, 0.1f64.to_le_bytes().into(), Value::F64(0.1)),
    ];
    for (kind, bytes, expected) in cases {
        let checkpoint = open_gguf(&tiny_gguf().raw("general.x", kind, &bytes).bytes()).unwrap();
        let Metadata::Gguf(metadata) = checkpoint.config() else { panic!("not GGUF") };
        assert_eq!(metadata.get("general.x"), Some(&expected));
    }
}

#[test]
fn gguf_alignment_follows_the_file() {
    let file = tiny_gguf().u32("general.alignment", 256);
    let checkpoint = open_gguf(&file.aligned(256)).unwrap();
    assert!(checkpoint.tensors().values().all(|info| info.offset.is_multiple_of(256)));
    for wrong in [0, 3, 1 << 31] {
        refused(
            open_gguf(&tiny_gguf().u32("general.alignment", wrong).bytes()),
            &["general.alignment", "power of two"],
        );
    }
}

#[test]
fn damaged_gguf_files_are_refused_by_name() {
    let array = |kind: u32, count: u64| [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat();
    let deep = [&array(9, 1)[..], &array(9, 1), &array(9, 1), &array(9, 1), &array(9, 0)].concat();
    let edit = |change: fn(&mut GgufTensor)| tiny_gguf().edit(|tensors| change(&mut tensors[2]));
    let cases: Vec<(Gguf, &[&str])> = vec![
        (Gguf { version: 1, ..tiny_gguf() }, &["version 1", "version 2 or 3"]),
        (Gguf { version: 4, ..tiny_gguf() }, &["version 4"]),
        (Gguf { version: 3u32.swap_bytes(), ..tiny_gguf() }, &["big-endian"]),
        (
            Gguf { tensor_count: Some(u64::MAX), ..tiny_gguf() },
            &["number of tensors", "18446744073709551615"],
        ),
        (
            Gguf { entry_count: Some(1 << 60), ..tiny_gguf() },
            &["number of metadata entries", "1152921504606846976"],
        ),
        (tiny_gguf().repeat("general.name", 7, &[1]), &["general.name", "two"]),
        (tiny_gguf().raw("general.x", 13, &[0]), &["general.x", "0 to 12", "13"]),
        (tiny_gguf().raw("general.x", 7, &[2]), &["general.x", "0 or 1"]),
        (tiny_gguf().raw("general.x", 8, &[2, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]), &["general.x", "UTF-8"]),
        (tiny_gguf().raw("general.x", 9, &array(0, 1 << 62)), &["general.x", "4611686018427387904"]),
        (tiny_gguf().raw("general.x", 9, &array(12, u64::MAX)), &["general.x", "18446744073709551615"]),
        (tiny_gguf().raw("general.x", 9, &deep), &["general.x", "levels"]),
        (tiny_gguf().raw("split.count", 2, &[3, 0]), &["split.count", "3 parts", "--merge"]),
        (edit(|tensor| tensor.dims = vec![1; 5]), &["blk.0.attn_q.weight", "4 dimensions", "5"]),
        (edit(|tensor| tensor.dims = vec![1 << 40, 1 << 40]), &["blk.0.attn_q.weight", "64 bits"]),
        (edit(|tensor| tensor.dims = vec![33, 32]), &["blk.0.attn_q.weight", "multiple of 32", "33"]),
        (edit(|tensor| tensor.dims = vec![32, 1 << 40]), &["blk.0.attn_q.weight", "bytes of data"]),
        (edit(|tensor| tensor.ty = 4), &["blk.0.attn_q.weight", "ggml tensor type", "4"]),
        (edit(|tensor| tensor.ty = 77), &["blk.0.attn_q.weight", "ggml tensor type", "77"]),
        (edit(|tensor| tensor.offset = Some(33)), &["blk.0.attn_q.weight", "multiple of 32", "33"]),
        (edit(|tensor| tensor.offset = Some(0)), &["offset", "behind the tensor before it"]),
        (edit(|tensor| tensor.offset = Some(u64::MAX - 31)), &["blk.0.attn_q.weight", "bytes of data"]),
        (edit(|tensor| tensor.name = "output.weight".into()), &["output.weight", "two"]),
    ];
    for (file, parts) in cases {
        let error = refused(open_gguf(&file.bytes()), parts);
        assert!(
            matches!(error, ImportError::Damaged { .. } | ImportError::UnsupportedFile { .. }),
            "{error:?} is of another kind"
        );
    }
}

#[test]
fn a_gguf_file_cut_anywhere_is_refused() {
    let bytes = tiny_gguf().bytes();
    // Behind the last tensor only padding follows, and its absence harms nobody.
    let mut end = 0;
    let checkpoint = open_gguf(&bytes).unwrap();
    for info in checkpoint.tensors().values() {
        end = end.max(info.offset + info.len);
    }
    for len in (0..end).step_by(17).chain([end - 1]) {
        let error = refused(open_gguf(&bytes[..len]), &[]);
        assert!(
            matches!(error, ImportError::Damaged { .. } | ImportError::NotACheckpoint { .. }),
            "{len}: {error}"
        );
    }
    open_gguf(&bytes[..end]).unwrap();
}

#[test]
fn a_known_encoding_that_is_not_read_is_refused_by_name_when_used() {
    // IQ2_S: 256 elements in 82 bytes.
    let checkpoint = open_gguf(&tiny_gguf().tensor("extra", &[256], 22, &[0; 82]).bytes()).unwrap();
    assert_eq!(checkpoint.tensor("extra").unwrap().stored, StoredType::Unsupported("IQ2_S"));
    let error = refused(checkpoint.bytes("extra"), &["extra", "IQ2_S", "Q4_1"]);
    assert!(matches!(error, ImportError::UnsupportedEncoding { .. }));

    let header = r#"{"t": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}"#;
    let checkpoint = open_tiny(&tiny_config(), &safetensors_with(header, &[0; 2])).unwrap();
    refused(checkpoint.bytes("t"), &["`t`", "F8_E4M3", "BF16"]);
}

#[test]
fn safetensors_tensors_have_their_own_bytes() {
    let weights = safetensors(&tiny_tensors());
    let checkpoint = open_tiny(&tiny_config(), &weights).unwrap();
    let mut next = 0f32;
    for (name, shape) in tiny_tensors() {
        let info = checkpoint.tensor(&name).unwrap();
        assert_eq!((&info.shape, info.stored), (&shape, StoredType::Known(Stored::F32)));
        let (elements, rest) = checkpoint.bytes(&name).unwrap().as_chunks();
        assert!(rest.is_empty());
        for element in elements {
            assert_eq!(f32::from_le_bytes(*element), next);
            next += 1.0;
        }
    }
}

#[test]
fn damaged_safetensors_files_are_refused_by_name() {
    let tensor = |name: &str, dtype: &str, shape: &str, from: u64, to: u64| {
        format!(r#""{name}": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": [{from}, {to}]}}"#)
    };
    let file = |tensors: &[String], len: usize| {
        safetensors_with(&format!("{{{}}}", tensors.join(",")), &vec![0; len])
    };
    let max = u64::MAX;
    let cases: Vec<(Vec<u8>, &[&str])> = vec![
        (vec![], &["header length", "8 bytes"]),
        (vec![1, 2, 3], &["header length", "a file of 3"]),
        ([&[0xff; 8][..], b"{}"].concat(), &["header length", "at most 2", "18446744073709551615"]),
        ([&3u64.to_le_bytes()[..], b"{}"].concat(), &["header length", "at most 2", "found 3"]),
        (safetensors_with("{", &[]), &["header", "JSON"]),
        (safetensors_with("[]", &[]), &["header", "an object of tensors"]),
        (safetensors_with(&"[".repeat(100_000), &[]), &["header"]),
        (safetensors_with("\u{0}", &[]), &["header"]),
        (file(&[tensor("a", "Q9", "[1]", 0, 4)], 4), &["Q9"]),
        (file(&[tensor("a", "F32", "[-1]", 0, 4)], 4), &["header"]),
        (file(&[tensor("a", "F32", "[2]", 0, 4)], 4), &["side by side"]),
        (file(&[tensor("a", "F32", "[1]", 4, 8)], 8), &["side by side", "a"]),
        (file(&[tensor("a", "F32", "[1]", 8, 4)], 8), &["side by side"]),
        (
            file(&[tensor("a", "F32", "[2]", 0, 8), tensor("b", "F32", "[2]", 4, 12)], 12),
            &["side by side", "`b`"],
        ),
        (
            file(&[tensor("a", "F32", "[1]", 0, 4), tensor("a", "F32", "[1]", 4, 8)], 8),
            &["two tensors named `a`"],
        ),
        (file(&[tensor("a", "F32", "[1]", 0, 4)], 8), &["4 bytes", "8 bytes"]),
        (file(&[tensor("a", "F32", "[1]", 0, 4)], 3), &["4 bytes", "3 bytes"]),
        (file(&[tensor("a", "U8", &format!("[{max}]"), 0, max)], 0), &["a"]),
        (file(&[tensor("a", "F32", &format!("[{max},{max}]"), 0, 4)], 4), &["side by side"]),
    ];
    for (bytes, parts) in cases {
        let error = refused(open_tiny(&tiny_config(), &bytes), parts);
        assert!(matches!(error, ImportError::Damaged { .. }), "{error:?} is of another kind");
    }
}

/// A directory with two shards and this weight map.
fn sharded(weight_map: Value) -> TempDir {
    let folder = folder();
    let (first, second) = (tiny_tensors(), tiny_tensors().split_off(5));
    std::fs::write(folder.path().join("config.json"), tiny_config().to_string()).unwrap();
    std::fs::write(folder.path().join("a.safetensors"), safetensors(&first[..5])).unwrap();
    std::fs::write(folder.path().join("b.safetensors"), safetensors(&second)).unwrap();
    let index = json!({ "metadata": { "total_size": 0 }, "weight_map": weight_map });
    std::fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    folder
}

fn weight_map() -> Value {
    let home = |i: usize| if i < 5 { "a.safetensors" } else { "b.safetensors" };
    tiny_tensors().into_iter().enumerate().map(|(i, (name, _))| (name, Value::from(home(i)))).collect()
}

#[test]
fn shards_are_held_against_their_index() {
    let folder = sharded(weight_map());
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    crate::llama(&checkpoint).unwrap();
    let second = checkpoint.bytes("lm_head.weight").unwrap();
    assert_eq!(second.len(), 8 * 32 * 4);

    let open = |change: &dyn Fn(&mut Value)| {
        let mut map = weight_map();
        change(&mut map);
        Checkpoint::open(sharded(map).path())
    };
    let absent = open(&|map| {
        map["model.norm.weight"] = json!("z.safetensors");
        map["lm_head.weight"] = json!("y.safetensors");
    });
    let ImportError::MissingShards { files, .. } = refused(absent, &["y.safetensors", "2 missing"]) else {
        panic!("another error")
    };
    assert_eq!(files, ["y.safetensors", "z.safetensors"]);
    for path in [
        "../a.safetensors",
        "/etc/passwd",
        "x/../a.safetensors",
        "..",
        ".",
        "",
        "..\\a.safetensors",
        "a.safetensors/",
    ] {
        refused(open(&|map| map["lm_head.weight"] = json!(path)), &["a file name without a folder"]);
    }
    refused(open(&|map| map["lm_head.weight"] = json!("a.safetensors")), &["lm_head.weight"]);
    refused(open(&|map| map["ghost"] = json!("a.safetensors")), &["`ghost`", "no such tensor"]);
    refused(
        open(&|map| drop(map.as_object_mut().unwrap().remove("lm_head.weight"))),
        &["lm_head.weight", "index"],
    );
    refused(open(&|map| map["lm_head.weight"] = json!(3)), &["weight_map"]);
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let folder = sharded(weight_map());
    std::fs::write(folder.path().join("b.safetensors"), safetensors(&tiny_tensors())).unwrap();
    refused(Checkpoint::open(folder.path()), &["only in `a.safetensors`", "also in `b.safetensors`"]);
}

#[test]
fn what_is_no_checkpoint_is_told_what_it_is() {
    let folder = folder();
    refused(Checkpoint::open(folder.path()), &["config.json", "without it"]);
    std::fs::write(folder.path().join("config.json"), tiny_config().to_string()).unwrap();
    refused(Checkpoint::open(folder.path()), &["model.safetensors", "without weights"]);
    std::fs::write(folder.path().join("pytorch_model.bin"), "").unwrap();
    refused(Checkpoint::open(folder.path()), &["pytorch_model.bin", "safe_serialization"]);
    refused(Checkpoint::open(folder.path().join("absent")), &["absent"]);
    refused(
        Checkpoint::open(folder.path().join("config.json")),
        &["a Hugging Face directory or a GGUF file"],
    );
    std::fs::write(folder.path().join("config.json"), "[1]").unwrap();
    refused(Checkpoint::open(folder.path()), &["config.json", "JSON object"]);
    #[cfg(unix)]
    refused(Checkpoint::open("/dev/zero"), &["not a regular file"]);
}

#[test]
fn the_content_hash_depends_on_content_alone() {
    let hash = |path: &Path| Checkpoint::open(path).unwrap().content_hash(|_, _| {});
    let (one, two) = (folder(), folder());
    let (first, second) = (one.path().join("x.gguf"), two.path().join("another.name"));
    let mut bytes = tiny_gguf().bytes();
    std::fs::write(&first, &bytes).unwrap();
    std::fs::write(&second, &bytes).unwrap();
    assert_eq!(hash(&first), hash(&second));
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&second, &bytes).unwrap();
    assert_ne!(hash(&first), hash(&second));

    let (one, two) = (folder(), folder());
    for folder in [&one, &two] {
        write_directory(folder.path(), &tiny_config(), &safetensors(&tiny_tensors())).unwrap();
    }
    assert_eq!(hash(one.path()), hash(two.path()));
    std::fs::write(two.path().join("README.md"), "not read").unwrap();
    assert_eq!(hash(one.path()), hash(two.path()));
    std::fs::write(two.path().join("tokenizer.json"), "{}").unwrap();
    assert_ne!(hash(one.path()), hash(two.path()));

    std::fs::write(two.path().join("chat_template.jinja"), "{{ x }}").unwrap();
    // The definition, written down once more: files by name, each part behind its length.
    let mut hasher = blake3::Hasher::new();
    for name in ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"] {
        let content = std::fs::read(two.path().join(name)).unwrap();
        for part in [name.as_bytes(), &content] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
    }
    assert_eq!(hash(two.path()), hasher.finalize());

    let mut steps = Vec::new();
    Checkpoint::open(one.path()).unwrap().content_hash(|done, total| steps.push((done, total)));
    assert!(
        steps.is_sorted() && steps.last().is_some_and(|(done, total)| done == total && *total > 0),
        "{steps:?}"
    );
}

/// Random blocks of every type decode to what the `gguf` package decodes, and survive packing, bit for bit.
#[test]
fn blocks_of_every_type_decode_to_the_bits_of_the_gguf_package() {
    let path = bessemer_tests::models::root().join("fixtures/goldens/gguf_blocks.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for stored in Stored::ALL.iter().filter(|s| **s != Stored::F32) {
        let raw = file.tensor(&format!("{}.raw", stored.name())).unwrap();
        let golden = file.tensor(&format!("{}.f32", stored.name())).unwrap();
        let (want, []) = golden.data().as_chunks::<4>() else { panic!("whole floats") };
        let k = golden.shape()[1];
        let rows = stored.rows(raw.data(), k).unwrap();
        assert_eq!(rows.rows, golden.shape()[0]);
        let layout = PanelLayout::new(&rows.scheme, rows.rows, k).unwrap();
        let mut panels = vec![0; layout.total_bytes()];
        pack_panels(&layout, &rows, &mut panels).unwrap();
        assert_eq!(unpack_panels(&layout, rows.rows, &panels).unwrap(), rows, "{}", stored.name());
        for (i, (value, want)) in rows.values().iter().zip(want).enumerate() {
            let want = f32::from_le_bytes(*want);
            assert_eq!(value.to_bits(), want.to_bits(), "{} at {i}: {value} or {want}", stored.name());
            let packed = layout.value(&panels, i / k, i % k).unwrap();
            assert_eq!(packed.to_bits(), want.to_bits(), "{} packed, at {i}", stored.name());
        }
    }
}
