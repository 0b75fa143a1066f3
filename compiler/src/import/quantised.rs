//! Checkpoints that were quantised before: what `quantization_config` says, and which tensors make a matrix.
//!
//! The tensors of a packed matrix are taken out of the list of tensors, and one in their place stands under the name that the matrix would
//! have otherwise. So an architecture asks for a weight by its name and need not know how it is stored.

use std::collections::BTreeMap;
use std::path::Path;

use bessemer_format::ScaleType;
use bessemer_ir::stored::{Packed, PackedFormat};
use serde_json::{Map, Value};

use super::config::{Fields, Harmless};
use super::error::{ImportError, excerpt};
use super::source::{StoredType, TensorInfo};
use bessemer_ir::Stored;

/// The key of `config.json`.
pub(super) const KEY: &str = "quantization_config";

const METHODS: &str = "awq, gptq, compressed-tensors, fp8 or mxfp4";
const OTHER_LAYOUT: &str = "this layout is not read; use the original weights, or another conversion of them";

const HARMLESS: &[Harmless] = &[
    Harmless {
        reason: "which modules are quantised is read from the tensors",
        keys: &[
            "modules_to_not_convert",
            "ignore",
            "lm_head",
            "block_name_to_quantize",
            "modules_in_block_to_quantize",
            "module_name_preceding_first_block",
        ],
    },
    Harmless {
        reason: "says how or by what the weights were quantised",
        keys: &[
            "damp_percent",
            "damp_auto_increment",
            "static_groups",
            "true_sequential",
            "mse",
            "model_name_or_path",
            "model_file_base_name",
            "quantizer",
            "meta",
            "dataset",
            "tokenizer",
            "batch_size",
            "pad_token_id",
            "cache_block_outputs",
            "quantization_status",
            "global_compression_ratio",
            "version",
        ],
    },
    Harmless {
        reason: "chooses a kernel of somebody else",
        keys: &[
            "backend",
            "use_exllama",
            "disable_exllama",
            "exllama_config",
            "use_cuda_fp16",
            "max_input_length",
            "do_fuse",
            "fuse_max_seq_len",
            "modules_to_fuse",
        ],
    },
];

/// What a configuration says of its packed matrices, before their tensors are looked at.
#[derive(Clone, Copy)]
struct Layout {
    format: PackedFormat,
    bits: u8,
    group: u32,
    rows: u32,
    zeros: bool,
}

/// The tensors of a checkpoint as an architecture sees them, and those that packed matrices are made of.
pub(super) struct Assembled {
    pub(super) tensors: BTreeMap<String, TensorInfo>,
    pub(super) parts: BTreeMap<String, TensorInfo>,
}

/// Puts packed matrices in the place of their tensors. `bytes` gives the bytes of a tensor.
pub(super) fn assemble<'a>(
    path: &Path,
    config_path: &Path,
    config: &Map<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
    bytes: impl Fn(&TensorInfo) -> &'a [u8],
) -> Result<Assembled, ImportError> {
    let mut out = Assembled { tensors, parts: BTreeMap::new() };
    let outer = Fields::new(config_path, "", config);
    let Some(fields) = outer.object(KEY)? else { return Ok(out) };
    let layout = read(fields)?;
    let marker = match layout.format {
        PackedFormat::Awq | PackedFormat::Gptq | PackedFormat::GptqV2 => ".qweight",
        PackedFormat::PackQuantized | PackedFormat::Nvfp4 => ".weight_packed",
        PackedFormat::IntQuantized | PackedFormat::FloatQuantized | PackedFormat::Fp8 => ".weight",
        PackedFormat::Mxfp4 => "_blocks",
    };
    let is_code = |info: &TensorInfo| !matches!(info.stored, StoredType::Known(_));
    let found = out.tensors.iter().filter(|(name, info)| name.ends_with(marker) && is_code(info));
    let found: Vec<String> = found.map(|(name, _)| name[..name.len() - marker.len()].to_owned()).collect();
    for base in found {
        let wrong = |tensor: &str, expected: String, found: String| {
            ImportError::damaged(path, format!("tensor `{}`", excerpt(tensor)), expected, found)
        };
        let codes = &out.tensors[&format!("{base}{marker}")];
        let (n, k) = layout.extents(codes).ok_or_else(|| {
            let expected = format!("codes of {} bits as {} packs them", layout.bits, layout.format.name());
            wrong(&format!("{base}{marker}"), expected, format!("{} {:?}", codes.stored.name(), codes.shape))
        })?;
        let weight =
            if layout.format == PackedFormat::Mxfp4 { base.clone() } else { format!("{base}.weight") };
        // Matrices that lie behind each other in one tensor, as those of experts do, keep their own extents.
        let stack = if codes.shape.len() == 4 { codes.shape[..2].to_vec() } else { vec![n] };
        let place = TensorInfo { shape: [&stack[..], &[k]].concat(), ..codes.clone() };
        let sibling = |part: &str| format!("{base}.{part}");
        let g_idx =
            ["g_idx", "weight_g_idx"].into_iter().find(|part| out.tensors.contains_key(&sibling(part)));
        let mut reordered = false;
        if let Some(part) = g_idx {
            let info = &out.tensors[&sibling(part)];
            let groups = bytes(info).as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b));
            reordered =
                groups.enumerate().any(|(i, g)| g != (i as u32).checked_div(layout.group).unwrap_or(0));
            if !reordered {
                out.tensors.remove(&sibling(part));
            }
        }
        // The shape is that of the codes; scales of activations have no place in a weight.
        for part in ["weight_shape", "input_scale", "input_global_scale", "input_zero_point"] {
            out.tensors.remove(&sibling(part));
        }
        let mut packed = Packed {
            format: layout.format,
            bits: layout.bits,
            group: layout.group,
            rows: layout.rows,
            zeros: layout.zeros,
            scale: ScaleType::F32,
            reordered,
        };
        for (i, part) in packed.parts(&weight, n, k).into_iter().enumerate() {
            let Some(info) = out.tensors.remove(&part.name) else {
                return Err(wrong(&part.name, format!("a part of `{weight}`"), "no such tensor".into()));
            };
            if i == 1 {
                packed.scale = scale_type(&info).ok_or_else(|| {
                    wrong(
                        &part.name,
                        "scales in F32, F16, BF16, F8_E4M3 or U8".into(),
                        info.stored.name().into(),
                    )
                })?;
            }
            let many = |shape: &[usize]| shape.iter().copied().filter(|d| *d != 1).collect::<Vec<_>>();
            let shape = match stack.len() {
                1 => part.shape,
                _ => [&stack[..], &part.shape[1..]].concat(),
            };
            if many(&info.shape) != many(&shape) {
                return Err(wrong(&part.name, format!("shape {shape:?}"), format!("{:?}", info.shape)));
            }
            let elem_bytes = info.len / info.shape.iter().product::<usize>().max(1);
            let expected = if i == 1 { packed.scale.bytes() } else { part.elem_bytes };
            if elem_bytes != expected {
                let found = format!("{} ({elem_bytes})", info.stored.name());
                return Err(wrong(&part.name, format!("elements of {expected} bytes"), found));
            }
            out.parts.insert(part.name, info);
        }
        packed.scheme().check().map_err(|why| wrong(&weight, "a scheme that can be packed".into(), why))?;
        let info = TensorInfo { stored: StoredType::Packed(packed), ..place };
        if out.tensors.insert(weight.clone(), info).is_some() {
            return Err(wrong(&weight, "one matrix of that name".into(), "two".into()));
        }
    }
    Ok(out)
}

impl Layout {
    /// Rows and elements of a row of the matrix whose codes are in this tensor.
    fn extents(&self, codes: &TensorInfo) -> Option<(usize, usize)> {
        let dtype = codes.stored.name();
        if let (PackedFormat::Mxfp4, "U8", &[count, n, groups, 16]) = (self.format, dtype, &codes.shape[..]) {
            return Some((count.checked_mul(n)?, groups.checked_mul(32)?));
        }
        let [a, b] = *codes.shape.first_chunk::<2>()?;
        let flat = codes.shape.len() == 2;
        match self.format {
            PackedFormat::Awq if dtype == "I32" && flat => Some((b.checked_mul(8)?, a)),
            PackedFormat::Gptq | PackedFormat::GptqV2 if dtype == "I32" && flat => {
                Some((b, a.checked_mul(32)? / usize::from(self.bits)))
            }
            PackedFormat::PackQuantized if dtype == "I32" && flat => {
                Some((a, b.checked_mul(32)? / usize::from(self.bits)))
            }
            PackedFormat::IntQuantized if dtype == "I8" && flat => Some((a, b)),
            PackedFormat::FloatQuantized | PackedFormat::Fp8 if dtype == "F8_E4M3" && flat => Some((a, b)),
            PackedFormat::Nvfp4 if dtype == "U8" && flat => Some((a, b.checked_mul(2)?)),
            PackedFormat::Mxfp4 if dtype == "U8" && codes.shape.len() == 3 && codes.shape[2] == 16 => {
                Some((a, b.checked_mul(32)?))
            }
            _ => None,
        }
    }
}

fn scale_type(info: &TensorInfo) -> Option<ScaleType> {
    match info.stored {
        StoredType::Known(Stored::F32) => Some(ScaleType::F32),
        StoredType::Known(Stored::F16) => Some(ScaleType::F16),
        StoredType::Known(Stored::Bf16) => Some(ScaleType::Bf16),
        StoredType::Unsupported("F8_E4M3") => Some(ScaleType::E4M3),
        StoredType::Unsupported("U8" | "F8_E8M0") => Some(ScaleType::E8M0),
        _ => None,
    }
}

fn read(fields: Fields<'_>) -> Result<Layout, ImportError> {
    let layout = match fields.text("quant_method")? {
        Some("awq") => awq(&fields)?,
        Some("gptq") => gptq(&fields)?,
        Some("compressed-tensors") => compressed_tensors(&fields)?,
        Some("fp8") => fp8(&fields)?,
        Some("mxfp4") => Layout { format: PackedFormat::Mxfp4, bits: 4, group: 32, rows: 1, zeros: false },
        _ => return Err(fields.error("quant_method", METHODS, OTHER_LAYOUT)),
    };
    fields.skip(HARMLESS);
    fields.finish()?;
    Ok(layout)
}

/// Bits of a code and elements of a group.
fn bits_and_group(fields: &Fields<'_>, allowed: &[u64], bits: &str) -> Result<(u8, u32), ImportError> {
    let found = fields.value(bits).and_then(Value::as_u64).filter(|found| allowed.contains(found));
    let width = found.ok_or_else(|| fields.error(bits, format!("one of {allowed:?}"), OTHER_LAYOUT))?;
    let group = match fields.value("group_size").and_then(Value::as_i64) {
        None if fields.value("group_size").is_none() => Some(0),
        Some(-1) => Some(0),
        Some(group) if group > 0 && group % 16 == 0 => u32::try_from(group).ok(),
        _ => None,
    };
    let group = group.ok_or_else(|| fields.error("group_size", "-1 or a multiple of 16", OTHER_LAYOUT))?;
    Ok((width as u8, group))
}

fn awq(fields: &Fields<'_>) -> Result<Layout, ImportError> {
    let (bits, group) = bits_and_group(fields, &[4], "bits")?;
    for key in ["version", "format"] {
        let gemm = |value: &Value| value.as_str().is_some_and(|v| v.eq_ignore_ascii_case("gemm"));
        if fields.value(key).is_some_and(|value| !gemm(value)) {
            return Err(fields.error(key, "`gemm`", OTHER_LAYOUT));
        }
    }
    fields.neutral("desc_act", "false", |value| value == false)?;
    fields.neutral("zero_point", "true", |value| value == true)?;
    fields.flag("sym")?;
    Ok(Layout { format: PackedFormat::Awq, bits, group, rows: 1, zeros: true })
}

fn gptq(fields: &Fields<'_>) -> Result<Layout, ImportError> {
    let (bits, group) = bits_and_group(fields, &[2, 3, 4, 8], "bits")?;
    let mut format = PackedFormat::Gptq;
    for key in ["checkpoint_format", "format"] {
        match fields.text(key)? {
            None | Some("gptq") => {}
            Some("gptq_v2") => format = PackedFormat::GptqV2,
            Some(_) => return Err(fields.error(key, "`gptq` or `gptq_v2`", OTHER_LAYOUT)),
        }
    }
    for key in ["method", "quant_method"] {
        fields.neutral(key, "`gptq`", |value| value == "gptq")?;
    }
    fields.neutral("is_marlin_format", "false", |value| value == false)?;
    fields.neutral("pack_dtype", "`int32`", |value| value == "int32")?;
    fields.neutral("dynamic", "none", |value| value.as_object().is_some_and(Map::is_empty))?;
    // The order of elements is read from the tensors.
    for key in ["desc_act", "act_group_aware"] {
        fields.flag(key)?;
    }
    let zeros = !fields.flag("sym")?.unwrap_or(true);
    Ok(Layout { format, bits, group, rows: 1, zeros })
}

fn fp8(fields: &Fields<'_>) -> Result<Layout, ImportError> {
    fields.neutral("fmt", "`e4m3`", |value| value == "e4m3")?;
    fields.neutral("activation_scheme", "`dynamic`", |value| value == "dynamic")?;
    fields.neutral("scale_fmt", "`ue8m0` or none", |value| value == "ue8m0")?;
    let block = fields.value("weight_block_size");
    let (rows, group) = block_of(block).ok_or_else(|| {
        fields.error("weight_block_size", "two extents, the second a multiple of 16", OTHER_LAYOUT)
    })?;
    Ok(Layout { format: PackedFormat::Fp8, bits: 8, group, rows, zeros: false })
}

/// `[rows, elements]` of the blocks that share a scale.
fn block_of(value: Option<&Value>) -> Option<(u32, u32)> {
    let extent = |i: usize| u32::try_from(value?.get(i)?.as_u64()?).ok().filter(|n| *n > 0);
    let (rows, group) = (extent(0)?, extent(1)?);
    group.is_multiple_of(16).then_some((rows, group))
}

fn compressed_tensors(fields: &Fields<'_>) -> Result<Layout, ImportError> {
    for key in ["kv_cache_scheme", "sparsity_config", "transform_config"] {
        fields.neutral(key, "none", |value| value.as_object().is_some_and(Map::is_empty))?;
    }
    let one = "one group of modules";
    let groups =
        fields.object("config_groups")?.ok_or_else(|| fields.error("config_groups", one, OTHER_LAYOUT))?;
    let names: Vec<&String> =
        fields.value("config_groups").and_then(Value::as_object).into_iter().flat_map(Map::keys).collect();
    let [name] = names[..] else { return Err(fields.error("config_groups", one, OTHER_LAYOUT)) };
    let group = groups.object(name)?.ok_or_else(|| groups.error(name, "an object", OTHER_LAYOUT))?;
    groups.finish()?;
    let format = match group.text("format")? {
        None => fields.text("format")?,
        own => {
            fields.text("format")?;
            own
        }
    };
    let weights =
        group.object("weights")?.ok_or_else(|| group.error("weights", "an object", OTHER_LAYOUT))?;
    // Activations are rounded as the engine declares, not as the conversion foresaw.
    for key in ["targets", "input_activations", "output_activations"] {
        group.value(key);
    }
    group.finish()?;
    let layout = ct_weights(&weights, format, fields)?;
    weights.finish()?;
    Ok(layout)
}

fn ct_weights(
    weights: &Fields<'_>,
    format: Option<&str>,
    fields: &Fields<'_>,
) -> Result<Layout, ImportError> {
    let (bits, mut group) = bits_and_group(weights, &[2, 3, 4, 5, 6, 7, 8], "num_bits")?;
    let (format, ty) = match format {
        Some("pack-quantized") => (PackedFormat::PackQuantized, "int"),
        Some("int-quantized") if bits == 8 => (PackedFormat::IntQuantized, "int"),
        Some("float-quantized") if bits == 8 => (PackedFormat::FloatQuantized, "float"),
        Some("nvfp4-pack-quantized") if bits == 4 => (PackedFormat::Nvfp4, "float"),
        _ => {
            let known = "pack-quantized, int-quantized, float-quantized or nvfp4-pack-quantized with its number of bits";
            return Err(fields.error("format", known, OTHER_LAYOUT));
        }
    };
    weights.neutral("type", &format!("`{ty}`"), |value| value == ty)?;
    weights.neutral("dynamic", "false", |value| value == false)?;
    for key in ["observer", "observer_kwargs", "scale_dtype", "zp_dtype", "actorder"] {
        weights.value(key);
    }
    let symmetric = weights.flag("symmetric")?.unwrap_or(true);
    if !symmetric && format != PackedFormat::PackQuantized {
        return Err(weights.error("symmetric", "true", OTHER_LAYOUT));
    }
    let block = weights.value("block_structure");
    let mut rows = 1;
    match weights.text("strategy")? {
        Some("group" | "tensor_group") if group > 0 => {}
        Some("channel") => group = 0,
        Some("tensor") => (rows, group) = (0, 0),
        Some("block") => {
            (rows, group) = block_of(block).ok_or_else(|| {
                weights.error("block_structure", "two extents, the second a multiple of 16", OTHER_LAYOUT)
            })?;
        }
        _ => return Err(weights.error("strategy", "group, channel, tensor or block", OTHER_LAYOUT)),
    }
    if format == PackedFormat::PackQuantized && rows == 0 {
        return Err(weights.error("strategy", "group or channel", OTHER_LAYOUT));
    }
    Ok(Layout { format, bits, group, rows, zeros: !symmetric })
}
