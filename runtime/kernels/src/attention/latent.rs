//! Caches that hold one vector of a token: its key, of which the value is a part.
//!
//! The kernels read values in another order than keys ([`bessemer_format::kv`]). The keys of a block are turned into that order once
//! and then serve as the values of all query heads, which are many where keys are compressed.

use super::KvElem;
use bessemer_format::kv;

/// Writes the keys of a block in the order of values, and their scales behind them.
///
/// # Panics
/// If `keys` and `values` are not those of a head of `head_dim` elements, which is even.
pub fn keys_as_values(elem: KvElem, head_dim: usize, keys: &[u8], values: &mut [u8]) {
    let scales = kv::scales_at(elem, head_dim);
    let ((keys, key_scales), (values, value_scales)) = (keys.split_at(scales), values.split_at_mut(scales));
    value_scales.copy_from_slice(key_scales);
    match elem {
        KvElem::F16 | KvElem::Bf16 => turn::<2>(head_dim, keys, values),
        KvElem::F32 => turn::<4>(head_dim, keys, values),
        KvElem::Int8 | KvElem::Fp8 => turn::<1>(head_dim, keys, values),
        KvElem::Int4 => turn_halves(head_dim, keys, values),
    }
}

/// [`turn`] of elements that are halves of a byte.
fn turn_halves(head_dim: usize, keys: &[u8], values: &mut [u8]) {
    assert!(head_dim.is_multiple_of(2) && keys.len() == kv::head_elems(head_dim) / 2);
    for (pair, values) in values.chunks_exact_mut(head_dim).enumerate() {
        let first = kv::key(head_dim, 2 * pair, 0) / 2;
        let keys = keys[first..].as_chunks::<2>().0.iter().step_by(kv::COLUMNS / 2);
        for (value, [one, other]) in values.as_chunks_mut::<2>().0.iter_mut().zip(keys) {
            *value = [one & 15 | other << 4, one >> 4 | other & 0xf0];
        }
    }
}

/// Both orders have two tokens and two elements in four neighbours; the other one of the two comes first.
fn turn<const BYTES: usize>(head_dim: usize, keys: &[u8], values: &mut [u8]) {
    let (keys, values) = (keys.as_chunks::<BYTES>().0, values.as_chunks_mut::<BYTES>().0);
    assert!(head_dim.is_multiple_of(2) && keys.len() == kv::head_elems(head_dim));
    assert_eq!(keys.len(), values.len());
    let pairs = values.chunks_exact_mut(2 * head_dim);
    for (pair, values) in pairs.enumerate() {
        let (values, _) = values.as_chunks_mut::<4>();
        let first = kv::key(head_dim, 2 * pair, 0);
        let (keys, _) = keys[first..].as_chunks::<4>();
        for (value, key) in values.iter_mut().zip(keys.iter().step_by(kv::COLUMNS / 2)) {
            *value = [key[0], key[2], key[1], key[3]];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_finds_its_place() {
        for elem in KvElem::ALL {
            let element = |bytes: &[u8], at: usize| match elem.bits() / 8 {
                0 => vec![bytes[at / 2] >> (at % 2 * 4) & 15],
                width => bytes[at * width..][..width].to_vec(),
            };
            for head_dim in [2, 6, 40] {
                let keys: Vec<u8> =
                    (0..kv::head_bytes(elem, head_dim)).map(|i| (i * 7 % 251) as u8).collect();
                let mut values = vec![0; keys.len()];
                keys_as_values(elem, head_dim, &keys, &mut values);
                for token in 0..kv::TOKENS {
                    for d in 0..head_dim {
                        let (k, v) = (kv::key(head_dim, token, d), kv::value(head_dim, token, d));
                        assert_eq!(element(&values, v), element(&keys, k), "{elem:?} {token} {d}");
                    }
                }
                let scales = kv::scales_at(elem, head_dim);
                assert_eq!(values[scales..], keys[scales..]);
            }
        }
    }
}
