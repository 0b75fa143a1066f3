//! The one place that turns contract types into bytes and back.
//!
//! bincode's standard configuration (little endian, variable-length integers). bincode is finished and no longer maintained,
//! which suits a frozen format; golden-bytes tests pin its output, and a later switch stays inside this file.

use crate::error::FormatError;
use serde::{Deserialize, Serialize};

/// Largest section that is decoded: far above any real plan, far below what could exhaust memory.
pub const SIZE_LIMIT: usize = 64 << 20;

/// Sections below this size are decoded with a limit that suits them.
const SMALL: usize = 64 << 10;
/// As [`SMALL`], for what is larger.
const MEDIUM: usize = 2 << 20;

/// Encodes a contract value.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, FormatError> {
    bincode::serde::encode_to_vec(value, bincode::config::standard())
        .map_err(|e| FormatError::Codec { section: "encode", why: e.to_string() })
}

/// Decodes a contract value, which may borrow from `bytes`. All bytes must be consumed. `section` names it in the error.
pub fn decode<'a, T: Deserialize<'a>>(section: &'static str, bytes: &'a [u8]) -> Result<T, FormatError> {
    let error = |why: String| FormatError::Codec { section, why };
    if bytes.len() > SIZE_LIMIT {
        return Err(error(format!("{} bytes are above the limit of {SIZE_LIMIT}", bytes.len())));
    }
    // bincode allocates a string before it reads it, so the limit follows the input: a claimed length cannot ask for more memory
    // than a small multiple of the bytes that are there. (A number counts with its full width, up to 8 times its bytes.)
    let (value, used) = match bytes.len() {
        0..SMALL => decode_limited::<T, { 8 * SMALL }>(bytes),
        SMALL..MEDIUM => decode_limited::<T, { 8 * MEDIUM }>(bytes),
        _ => decode_limited::<T, { 8 * SIZE_LIMIT }>(bytes),
    }
    .map_err(|e| error(e.to_string()))?;
    if used != bytes.len() {
        return Err(error(format!("{} bytes follow the value", bytes.len() - used)));
    }
    Ok(value)
}

fn decode_limited<'a, T: Deserialize<'a>, const LIMIT: usize>(
    bytes: &'a [u8],
) -> Result<(T, usize), bincode::error::DecodeError> {
    bincode::serde::borrow_decode_from_slice(bytes, bincode::config::standard().with_limit::<LIMIT>())
}
