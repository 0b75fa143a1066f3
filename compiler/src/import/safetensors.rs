//! The safetensors container: one file, or shards under an index.
//!
//! The rules for offsets (no overlap, no hole, size = shape x dtype) are those of the `safetensors` crate, applied
//! by it. The header is taken apart here, because the crate keeps the last of two tensors with one name and adds
//! up lengths without a check.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Component, Path};

use safetensors::Dtype;
use safetensors::tensor::{Metadata as Layout, TensorInfo as Entry};
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::error::{ImportError, excerpt};
use super::source::{StoredType, TensorInfo};
use bessemer_ir::Stored;

/// Length of the length of the header.
const PREFIX: usize = 8;
/// The limit that the format sets.
const MAX_HEADER: u64 = 100_000_000;

/// Reads the header of one file; `file` is its number in the checkpoint.
pub(super) fn read(
    path: &Path,
    bytes: &[u8],
    file: usize,
) -> Result<BTreeMap<String, TensorInfo>, ImportError> {
    let damaged =
        |what: &str, expected: String, found: String| ImportError::damaged(path, what, expected, found);
    let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX>() else {
        return Err(damaged(
            "the header length",
            format!("{PREFIX} bytes"),
            format!("a file of {}", bytes.len()),
        ));
    };
    let len = u64::from_le_bytes(*prefix);
    if len > MAX_HEADER || len > rest.len() as u64 {
        let most = MAX_HEADER.min(rest.len() as u64);
        return Err(damaged("the header length", format!("at most {most}"), len.to_string()));
    }
    let (header, data) = rest.split_at(len as usize);
    let start = PREFIX + header.len();

    let Header(entries) = serde_json::from_slice(header)
        .map_err(|error| damaged("the header", "a JSON object of tensors".into(), error.to_string()))?;
    let mut in_order: Vec<_> = entries.iter().map(|(name, entry)| (name.clone(), entry.clone())).collect();
    in_order.sort_by_key(|(_, entry)| entry.data_offsets);
    let end = in_order.last().map_or(0, |(_, entry)| entry.data_offsets.1);
    Layout::new(None, in_order).map_err(|error| {
        damaged("the header", "tensors side by side, each as long as its shape".into(), error.to_string())
    })?;
    if end != data.len() {
        return Err(damaged("the tensor data", format!("{end} bytes"), format!("{} bytes", data.len())));
    }

    let place = |entry: Entry| {
        let (from, to) = entry.data_offsets;
        let stored = stored_type(entry.dtype);
        TensorInfo { shape: entry.shape, stored, file, offset: start + from, len: to - from }
    };
    Ok(entries.into_iter().map(|(name, entry)| (name, place(entry))).collect())
}

fn stored_type(dtype: Dtype) -> StoredType {
    match dtype {
        Dtype::F32 => StoredType::Known(Stored::F32),
        Dtype::F16 => StoredType::Known(Stored::F16),
        Dtype::BF16 => StoredType::Known(Stored::Bf16),
        Dtype::BOOL => StoredType::Unsupported("BOOL"),
        Dtype::F4 => StoredType::Unsupported("F4"),
        Dtype::F6_E2M3 => StoredType::Unsupported("F6_E2M3"),
        Dtype::F6_E3M2 => StoredType::Unsupported("F6_E3M2"),
        Dtype::U8 => StoredType::Unsupported("U8"),
        Dtype::I8 => StoredType::Unsupported("I8"),
        Dtype::F8_E5M2 => StoredType::Unsupported("F8_E5M2"),
        Dtype::F8_E4M3 => StoredType::Unsupported("F8_E4M3"),
        Dtype::F8_E8M0 => StoredType::Unsupported("F8_E8M0"),
        Dtype::F8_E4M3FNUZ => StoredType::Unsupported("F8_E4M3FNUZ"),
        Dtype::F8_E5M2FNUZ => StoredType::Unsupported("F8_E5M2FNUZ"),
        Dtype::I16 => StoredType::Unsupported("I16"),
        Dtype::U16 => StoredType::Unsupported("U16"),
        Dtype::I32 => StoredType::Unsupported("I32"),
        Dtype::U32 => StoredType::Unsupported("U32"),
        Dtype::C64 => StoredType::Unsupported("C64"),
        Dtype::F64 => StoredType::Unsupported("F64"),
        Dtype::I64 => StoredType::Unsupported("I64"),
        Dtype::U64 => StoredType::Unsupported("U64"),
        _ => StoredType::Unsupported("a newer dtype"),
    }
}

/// The entries of a header, each name once.
struct Header(BTreeMap<String, Entry>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let entry = map.next_value::<Entry>()?;
                    if entries.contains_key(&name) {
                        return Err(A::Error::custom(format_args!("two tensors named `{}`", excerpt(&name))));
                    }
                    entries.insert(name, entry);
                }
                Ok(Header(entries))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

/// `model.safetensors.index.json`: which shard holds which tensor.
pub(super) struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Index {
    /// Parses an index and checks that every shard is a plain file name beside it that exists.
    pub(super) fn read(path: &Path, bytes: &[u8]) -> Result<Index, ImportError> {
        #[derive(serde::Deserialize)]
        struct Json {
            weight_map: BTreeMap<String, String>,
        }
        let Json { weight_map } = serde_json::from_slice(bytes).map_err(|error| {
            ImportError::damaged(path, "the index", "JSON with a `weight_map` of names", error.to_string())
        })?;
        let index = Index { weight_map };
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut missing = Vec::new();
        for shard in index.shards() {
            let mut parts = Path::new(shard).components();
            let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
            // A backslash separates folders on Windows only; refuse it everywhere, so that the answer is the same.
            if !plain || shard.contains(['/', '\\', '\0']) {
                let expected = "a file name without a folder";
                return Err(ImportError::damaged(path, "a shard in the index", expected, excerpt(shard)));
            }
            if !folder.join(shard).exists() {
                missing.push(shard.to_owned());
            }
        }
        match missing.is_empty() {
            true => Ok(index),
            false => Err(ImportError::MissingShards { path: path.to_owned(), files: missing }),
        }
    }

    /// The names of the shards, sorted.
    pub(super) fn shards(&self) -> BTreeSet<&str> {
        self.weight_map.values().map(String::as_str).collect()
    }

    /// Holds what a shard contains against what the index says about it.
    pub(super) fn check(
        &self,
        path: &Path,
        shard: &str,
        tensors: &BTreeMap<String, TensorInfo>,
    ) -> Result<(), ImportError> {
        let wrong = |name: &str, expected: String, found: String| {
            ImportError::damaged(path, format!("tensor `{}`", excerpt(name)), expected, found)
        };
        for name in tensors.keys() {
            match self.weight_map.get(name) {
                Some(home) if home == shard => {}
                Some(home) => {
                    return Err(wrong(name, format!("only in `{home}`"), format!("also in `{shard}`")));
                }
                None => {
                    return Err(wrong(name, "an entry in the index".into(), format!("it only in `{shard}`")));
                }
            }
        }
        let absent =
            self.weight_map.iter().find(|(name, home)| *home == shard && !tensors.contains_key(*name));
        match absent {
            Some((name, _)) => Err(wrong(name, format!("it in `{shard}`"), "no such tensor there".into())),
            None => Ok(()),
        }
    }
}
