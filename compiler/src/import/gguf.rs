//! The GGUF container, versions 2 and 3, little endian.
//!
//! ```text
//! "GGUF" | version u32 | tensors u64 | metadata entries u64
//! entry:  key string | type u32 | value
//! tensor: name string | rank u32 | dims u64 * rank, innermost first | type u32 | offset u64
//! padding to `general.alignment` | tensor data
//! ```
//!
//! A string is its length (u64) and UTF-8 bytes; an array is its element type (u32), its length (u64) and its
//! elements. The layout is that of `docs/gguf.md` in the ggml repository. Every count and length is compared with
//! the bytes that are left before anything is allocated.

use std::collections::BTreeMap;
use std::path::Path;

use super::error::{ImportError, excerpt};
use super::source::{StoredType, TensorInfo};
use bessemer_ir::Stored;

/// The first four bytes of every GGUF file.
pub(super) const MAGIC: [u8; 4] = *b"GGUF";

/// Rank of the largest tensor that ggml can describe.
const MAX_RANK: u32 = 4;
/// Arrays of arrays: nobody writes deeper ones, and recursion must end.
const MAX_ARRAY_DEPTH: u32 = 4;
/// A vocabulary of a million long tokens stays below this; more is a damaged count.
const MAX_ARRAY_BYTES: u64 = 256 << 20;
/// Tensors start at multiples of this unless `general.alignment` says otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any unsigned integer type.
    Unsigned(u64),
    /// Any signed integer type.
    Signed(i64),
    /// A 32-bit float.
    F32(f32),
    /// A 64-bit float.
    F64(f64),
    /// A truth value.
    Bool(bool),
    /// Text.
    String(String),
    /// A homogeneous array.
    Array(Array),
}

/// A homogeneous array, kept at the width of its elements: vocabularies are long.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    /// 8-bit unsigned integers.
    U8(Vec<u8>),
    /// 8-bit signed integers.
    I8(Vec<i8>),
    /// 16-bit unsigned integers.
    U16(Vec<u16>),
    /// 16-bit signed integers.
    I16(Vec<i16>),
    /// 32-bit unsigned integers.
    U32(Vec<u32>),
    /// 32-bit signed integers.
    I32(Vec<i32>),
    /// 64-bit unsigned integers.
    U64(Vec<u64>),
    /// 64-bit signed integers.
    I64(Vec<i64>),
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 64-bit floats.
    F64(Vec<f64>),
    /// Truth values.
    Bool(Vec<bool>),
    /// Texts.
    String(Vec<String>),
    /// Arrays.
    Array(Vec<Array>),
}

impl Array {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Array::U8(v) => v.len(),
            Array::I8(v) => v.len(),
            Array::U16(v) => v.len(),
            Array::I16(v) => v.len(),
            Array::U32(v) => v.len(),
            Array::I32(v) => v.len(),
            Array::U64(v) => v.len(),
            Array::I64(v) => v.len(),
            Array::F32(v) => v.len(),
            Array::F64(v) => v.len(),
            Array::Bool(v) => v.len(),
            Array::String(v) => v.len(),
            Array::Array(v) => v.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The metadata of a GGUF file, by key.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufMetadata {
    /// Version of the container.
    pub version: u32,
    /// All entries.
    pub entries: BTreeMap<String, Value>,
}

impl GgufMetadata {
    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.get(key)
    }

    /// The text under `key`, if it is there and a text.
    pub fn string(&self, key: &str) -> Option<&str> {
        match self.get(key) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    /// The integer under `key`, if it is there and not negative.
    pub fn unsigned(&self, key: &str) -> Option<u64> {
        match self.get(key) {
            Some(Value::Unsigned(n)) => Some(*n),
            Some(Value::Signed(n)) => u64::try_from(*n).ok(),
            _ => None,
        }
    }
}

/// One ggml tensor type: a block of `block` elements takes `bytes` bytes.
struct GgmlType {
    id: u32,
    stored: StoredType,
    block: u64,
    bytes: u64,
}

const fn ggml(id: u32, name: &'static str, block: u64, bytes: u64) -> GgmlType {
    GgmlType { id, stored: StoredType::Unsupported(name), block, bytes }
}

const fn readable(id: u32, stored: Stored) -> GgmlType {
    let (block, bytes) = stored.block();
    GgmlType { id, stored: StoredType::Known(stored), block: block as u64, bytes: bytes as u64 }
}

/// All tensor types that ggml has given a number (`enum ggml_type`, sizes of `ggml-common.h`), so that an
/// error can name them. 4 and 5 (Q4_2, Q4_3) were removed before GGUF existed.
#[rustfmt::skip]
const GGML_TYPES: [GgmlType; 40] = [
    readable(0, Stored::F32),
    readable(1, Stored::F16),
    readable(2, Stored::Q4_0),
    readable(3, Stored::Q4_1),
    readable(6, Stored::Q5_0),
    readable(7, Stored::Q5_1),
    readable(8, Stored::Q8_0),
    ggml(9, "Q8_1", 32, 36),
    readable(10, Stored::Q2K),
    readable(11, Stored::Q3K),
    readable(12, Stored::Q4K),
    readable(13, Stored::Q5K),
    readable(14, Stored::Q6K),
    ggml(15, "Q8_K", 256, 292),
    ggml(16, "IQ2_XXS", 256, 66),
    ggml(17, "IQ2_XS", 256, 74),
    ggml(18, "IQ3_XXS", 256, 98),
    ggml(19, "IQ1_S", 256, 50),
    readable(20, Stored::Iq4Nl),
    ggml(21, "IQ3_S", 256, 110),
    ggml(22, "IQ2_S", 256, 82),
    readable(23, Stored::Iq4Xs),
    ggml(24, "I8", 1, 1),
    ggml(25, "I16", 1, 2),
    ggml(26, "I32", 1, 4),
    ggml(27, "I64", 1, 8),
    ggml(28, "F64", 1, 8),
    ggml(29, "IQ1_M", 256, 56),
    readable(30, Stored::Bf16),
    ggml(31, "Q4_0_4_4", 32, 18),
    ggml(32, "Q4_0_4_8", 32, 18),
    ggml(33, "Q4_0_8_8", 32, 18),
    ggml(34, "TQ1_0", 256, 54),
    ggml(35, "TQ2_0", 256, 66),
    ggml(36, "IQ4_NL_4_4", 32, 18),
    ggml(37, "IQ4_NL_4_8", 32, 18),
    ggml(38, "IQ4_NL_8_8", 32, 18),
    readable(39, Stored::Mxfp4),
    ggml(40, "NVFP4", 64, 36),
    ggml(41, "Q1_0", 128, 18),
];

/// Reads and checks everything but the tensor data. Tensors get file index 0.
pub(super) fn read(
    path: &Path,
    bytes: &[u8],
) -> Result<(GgufMetadata, BTreeMap<String, TensorInfo>), ImportError> {
    let mut cursor = Cursor { path, bytes, at: 0 };
    let version = cursor.header()?;
    let tensor_count = cursor.u64("the number of tensors")?;
    let entry_count = cursor.u64("the number of metadata entries")?;
    // Shortest tensor: empty name, rank 0. Shortest entry: empty key, one byte.
    cursor.fits("the number of tensors", tensor_count, 8 + 4 + 4 + 8)?;
    cursor.fits("the number of metadata entries", entry_count, 8 + 4 + 1)?;

    let mut entries = BTreeMap::new();
    for _ in 0..entry_count {
        let key = cursor.string("a metadata key")?;
        let value = cursor.value(&key)?;
        if entries.contains_key(&key) {
            return Err(ImportError::damaged(
                path,
                format!("metadata key `{}`", excerpt(&key)),
                "one entry",
                "two",
            ));
        }
        entries.insert(key, value);
    }
    let metadata = GgufMetadata { version, entries };
    refuse_split(path, &metadata)?;

    let mut headers = Vec::new();
    for _ in 0..tensor_count {
        headers.push(cursor.tensor_header()?);
    }
    let tensors = place(path, bytes.len() as u64, cursor.at as u64, alignment(path, &metadata)?, headers)?;
    Ok((metadata, tensors))
}

/// The parts of a split file lack tensors; llama.cpp's `gguf-split --merge` joins them.
fn refuse_split(path: &Path, metadata: &GgufMetadata) -> Result<(), ImportError> {
    match metadata.unsigned("split.count") {
        None | Some(0 | 1) => Ok(()),
        Some(parts) => Err(ImportError::UnsupportedFile {
            path: path.to_owned(),
            what: "`split.count`".into(),
            found: format!("{parts} parts"),
            supported: "a single file",
            remedy: "join the parts with `llama-gguf-split --merge`",
        }),
    }
}

fn alignment(path: &Path, metadata: &GgufMetadata) -> Result<u64, ImportError> {
    const KEY: &str = "general.alignment";
    if metadata.get(KEY).is_none() {
        return Ok(DEFAULT_ALIGNMENT);
    }
    match metadata.unsigned(KEY) {
        Some(n) if n.is_power_of_two() && n <= 1 << 20 => Ok(n),
        _ => Err(ImportError::damaged(
            path,
            format!("`{KEY}`"),
            "a power of two up to 1048576",
            format!("{:?}", metadata.get(KEY)),
        )),
    }
}

/// A tensor as its header states it; `offset` counts from the start of the data.
struct TensorHeader {
    name: String,
    shape: Vec<usize>,
    stored: StoredType,
    offset: u64,
    len: u64,
}

/// Turns header offsets into checked places in the file.
fn place(
    path: &Path,
    file_len: u64,
    header_end: u64,
    alignment: u64,
    mut headers: Vec<TensorHeader>,
) -> Result<BTreeMap<String, TensorInfo>, ImportError> {
    let data = header_end.next_multiple_of(alignment);
    headers.sort_by_key(|header| (header.offset, header.len));
    let mut tensors = BTreeMap::new();
    let mut free = 0;
    for TensorHeader { name, shape, stored, offset, len } in headers {
        let wrong = |expected: String, found: String| {
            ImportError::damaged(path, format!("tensor `{}`", excerpt(&name)), expected, found)
        };
        if !offset.is_multiple_of(alignment) {
            return Err(wrong(format!("an offset that is a multiple of {alignment}"), format!("{offset}")));
        }
        if offset < free {
            return Err(wrong(
                format!("data from offset {free} on, behind the tensor before it"),
                format!("{offset}"),
            ));
        }
        let end = offset.checked_add(len).and_then(|end| Some((end, data.checked_add(end)?)));
        let Some((end, _)) = end.filter(|&(_, file_end)| file_end <= file_len) else {
            return Err(wrong(
                format!("{len} bytes of data at offset {offset}"),
                format!("{} bytes of data in all", file_len.saturating_sub(data)),
            ));
        };
        free = end;
        if tensors.contains_key(&name) {
            return Err(wrong("one tensor of that name".into(), "two".into()));
        }
        // The sum and the length are at most the file's length, which is the length of a slice.
        let info = TensorInfo { shape, stored, file: 0, offset: (data + offset) as usize, len: len as usize };
        tensors.insert(name, info);
    }
    Ok(tensors)
}

/// A reader that never steps over the end.
struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn rest(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    fn take(&mut self, len: u64, what: &str) -> Result<&'a [u8], ImportError> {
        let taken = usize::try_from(len)
            .ok()
            .and_then(|len| self.at.checked_add(len))
            .and_then(|end| self.bytes.get(self.at..end));
        let Some(taken) = taken else {
            return Err(ImportError::damaged(
                self.path,
                format!("{what} at byte {}", self.at),
                format!("{len} bytes"),
                format!("{} bytes to the end of the file", self.rest()),
            ));
        };
        self.at += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], ImportError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    fn u32(&mut self, what: &str) -> Result<u32, ImportError> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, ImportError> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn string(&mut self, what: &str) -> Result<String, ImportError> {
        let len = self.u64(what)?;
        let at = self.at;
        let bytes = self.take(len, what)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => Err(ImportError::damaged(
                self.path,
                format!("{what} at byte {at}"),
                "UTF-8",
                error.to_string(),
            )),
        }
    }

    /// Refuses a count that the rest of the file cannot hold, before anybody allocates for it.
    fn fits(&self, what: &str, count: u64, smallest: u64) -> Result<(), ImportError> {
        match count.checked_mul(smallest) {
            Some(bytes) if bytes <= self.rest() => Ok(()),
            _ => Err(ImportError::damaged(
                self.path,
                what,
                format!("at most {}", self.rest() / smallest),
                format!("{count}"),
            )),
        }
    }

    /// Magic and version. The version also tells the byte order: no version has its low bytes zero.
    fn header(&mut self) -> Result<u32, ImportError> {
        let magic: [u8; 4] = self.array("the magic")?;
        if magic != MAGIC {
            return Err(ImportError::damaged(self.path, "the magic", "\"GGUF\"", format!("{magic:02x?}")));
        }
        let version = self.u32("the version")?;
        let found = match version {
            2 | 3 => return Ok(version),
            _ if matches!(version.swap_bytes(), 1..=3) => "a big-endian file".into(),
            _ => format!("version {version}"),
        };
        Err(ImportError::UnsupportedFile {
            path: self.path.to_owned(),
            what: "GGUF version".into(),
            found,
            supported: "little-endian GGUF of version 2 or 3",
            remedy: "convert the model again with llama.cpp's `convert_hf_to_gguf.py`",
        })
    }

    fn value(&mut self, key: &str) -> Result<Value, ImportError> {
        let kind = self.u32(key)?;
        Ok(match kind {
            0 => Value::Unsigned(u8::from_le_bytes(self.array(key)?).into()),
            1 => Value::Signed(i8::from_le_bytes(self.array(key)?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array(key)?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array(key)?).into()),
            4 => Value::Unsigned(self.u32(key)?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array(key)?).into()),
            6 => Value::F32(f32::from_le_bytes(self.array(key)?)),
            7 => {
                let [byte] = self.array(key)?;
                Value::Bool(self.truth(key, byte)?)
            }
            8 => Value::String(self.string(key)?),
            9 => Value::Array(self.values(key, MAX_ARRAY_DEPTH)?),
            10 => Value::Unsigned(self.u64(key)?),
            11 => Value::Signed(i64::from_le_bytes(self.array(key)?)),
            12 => Value::F64(f64::from_le_bytes(self.array(key)?)),
            _ => return Err(self.unknown_kind(key, kind)),
        })
    }

    fn values(&mut self, key: &str, depth: u32) -> Result<Array, ImportError> {
        if depth == 0 {
            let expected = format!("at most {MAX_ARRAY_DEPTH} levels of arrays");
            return Err(ImportError::damaged(
                self.path,
                format!("metadata `{}`", excerpt(key)),
                expected,
                "more",
            ));
        }
        let kind = self.u32(key)?;
        let count = self.u64(key)?;
        Ok(match kind {
            0 => Array::U8(self.numbers(key, count, u8::from_le_bytes)?),
            1 => Array::I8(self.numbers(key, count, i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(key, count, u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(key, count, i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(key, count, u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(key, count, i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(key, count, f32::from_le_bytes)?),
            7 => {
                let bytes = self.numbers(key, count, |[byte]: [u8; 1]| byte)?;
                Array::Bool(bytes.into_iter().map(|byte| self.truth(key, byte)).collect::<Result<_, _>>()?)
            }
            8 => {
                self.array_fits(key, count, 8)?;
                Array::String((0..count).map(|_| self.string(key)).collect::<Result<_, _>>()?)
            }
            9 => {
                self.array_fits(key, count, 4 + 8)?;
                Array::Array((0..count).map(|_| self.values(key, depth - 1)).collect::<Result<_, _>>()?)
            }
            10 => Array::U64(self.numbers(key, count, u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(key, count, i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(key, count, f64::from_le_bytes)?),
            _ => return Err(self.unknown_kind(key, kind)),
        })
    }

    fn numbers<T, const N: usize>(
        &mut self,
        key: &str,
        count: u64,
        decode: fn([u8; N]) -> T,
    ) -> Result<Vec<T>, ImportError> {
        self.array_fits(key, count, N as u64)?;
        let bytes = self.take(count * N as u64, key)?;
        let (elements, _) = bytes.as_chunks::<N>();
        Ok(elements.iter().map(|element| decode(*element)).collect())
    }

    fn array_fits(&self, key: &str, count: u64, smallest: u64) -> Result<(), ImportError> {
        let what = || format!("length of the array `{}`", excerpt(key));
        self.fits(&what(), count, smallest)?;
        if count.saturating_mul(smallest) > MAX_ARRAY_BYTES {
            let most = format!("at most {MAX_ARRAY_BYTES} bytes");
            return Err(ImportError::damaged(self.path, what(), most, format!("{count} elements")));
        }
        Ok(())
    }

    fn truth(&self, key: &str, byte: u8) -> Result<bool, ImportError> {
        match byte {
            0 | 1 => Ok(byte == 1),
            _ => Err(ImportError::damaged(
                self.path,
                format!("boolean `{}`", excerpt(key)),
                "0 or 1",
                byte.to_string(),
            )),
        }
    }

    fn unknown_kind(&self, key: &str, kind: u32) -> ImportError {
        let what = format!("value type of `{}`", excerpt(key));
        ImportError::damaged(self.path, what, "a number from 0 to 12", kind.to_string())
    }

    fn tensor_header(&mut self) -> Result<TensorHeader, ImportError> {
        let path = self.path;
        let name = self.string("a tensor name")?;
        let what = format!("tensor `{}`", excerpt(&name));
        let damaged = |expected: String, found: String| ImportError::damaged(path, &what, expected, found);

        let rank = self.u32(&what)?;
        if rank > MAX_RANK {
            return Err(damaged(format!("at most {MAX_RANK} dimensions"), rank.to_string()));
        }
        let dims = (0..rank).map(|_| self.u64(&what)).collect::<Result<Vec<_>, _>>()?;
        let id = self.u32(&what)?;
        let offset = self.u64(&what)?;

        let Some(ty) = GGML_TYPES.iter().find(|ty| ty.id == id) else {
            return Err(damaged("the number of a ggml tensor type".into(), id.to_string()));
        };
        let inner = dims.first().copied().unwrap_or(1);
        if !inner.is_multiple_of(ty.block) {
            let expected = format!("rows of a multiple of {} elements ({})", ty.block, ty.stored.name());
            return Err(damaged(expected, inner.to_string()));
        }
        // The number of elements must fit too: others multiply the shape without asking again.
        let elements = dims.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim));
        let len = elements.and_then(|n| (n / ty.block).checked_mul(ty.bytes));
        let shape = dims.iter().rev().map(|&dim| usize::try_from(dim).ok()).collect::<Option<Vec<_>>>();
        let (Some(len), Some(shape)) = (len, shape) else {
            return Err(damaged("a size that fits into 64 bits".into(), format!("dimensions {dims:?}")));
        };
        Ok(TensorHeader { name, shape, stored: ty.stored, offset, len })
    }
}
