#!/usr/bin/env python3
"""Writes a GGUF with random bf16 weights: the shape of a model without the model.

    python random_gguf.py '{"architecture": "llama", ...}' tokenizer.gguf out.gguf

Speed does not depend on what the weights say, but on how they are spread: scales, activations and logits must stay in
the range that real ones have. So matrices are Gaussian with a deviation of 0.02 and norms lie around 1. The vocabulary
is that of another GGUF, filled up with plain words to the size of the shape.

Needs `gguf` and `numpy`; checkpoints.py runs it in a virtual environment that has them. The same versions give the
same bytes.
"""

import json
import sys
import zlib
from pathlib import Path

import gguf
import numpy

BF16 = gguf.GGMLQuantizationType.BF16
F32 = gguf.GGMLQuantizationType.F32
DEVIATION = 0.02
# Elements drawn at once: bounds the memory.
CHUNK = 1 << 24


def tensors(shape: dict) -> dict:
    """Rows and columns of every matrix, and the length of every norm, in the order of the file."""
    hidden, inner, head = shape["hidden"], shape["intermediate"], shape["head_dim"]
    query, key = shape["heads"] * head, shape["kv_heads"] * head
    found = {"token_embd.weight": (shape["vocab"], hidden)}
    for layer in range(shape["layers"]):
        block = {
            "attn_norm": (hidden,),
            "attn_q": (query, hidden),
            "attn_k": (key, hidden),
            "attn_v": (key, hidden),
            "attn_output": (hidden, query),
            "ffn_norm": (hidden,),
            "ffn_gate": (inner, hidden),
            "ffn_up": (inner, hidden),
            "ffn_down": (hidden, inner),
        }
        if shape["qk_norm"]:
            block |= {"attn_q_norm": (head,), "attn_k_norm": (head,)}
        found |= {f"blk.{layer}.{name}.weight": size for name, size in block.items()}
    found["output_norm.weight"] = (hidden,)
    if not shape["tied"]:
        found["output.weight"] = (shape["vocab"], hidden)
    return found


def metadata(writer: gguf.GGUFWriter, shape: dict) -> None:
    writer.add_name("random weights")
    writer.add_block_count(shape["layers"])
    writer.add_context_length(shape["context"])
    writer.add_embedding_length(shape["hidden"])
    writer.add_feed_forward_length(shape["intermediate"])
    writer.add_head_count(shape["heads"])
    writer.add_head_count_kv(shape["kv_heads"])
    writer.add_key_length(shape["head_dim"])
    writer.add_value_length(shape["head_dim"])
    writer.add_rope_dimension_count(shape["head_dim"])
    writer.add_rope_freq_base(shape["rope_theta"])
    writer.add_layer_norm_rms_eps(shape["norm_eps"])
    writer.add_vocab_size(shape["vocab"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)


def vocabulary(writer: gguf.GGUFWriter, source: gguf.GGUFReader, size: int) -> None:
    """The tokenizer of `source`, with words added until it has `size` tokens."""
    for name, field in source.fields.items():
        if not name.startswith("tokenizer."):
            continue
        value = field.contents()
        if name == "tokenizer.ggml.tokens":
            # Ġ is the space of a byte-level vocabulary: a model that picks such a token prints a word.
            value += [f"Ġword{number}" for number in range(len(value), size)]
        elif name == "tokenizer.ggml.token_type":
            value += [int(gguf.TokenType.NORMAL)] * (size - len(value))
        kind = field.types[0]
        writer.add_key_value(name, value, kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)


def bf16(values: numpy.ndarray) -> numpy.ndarray:
    """Rounded to the nearest, ties to even; the values are finite."""
    bits = values.view(numpy.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(numpy.uint16)


def weights(name: str, size: tuple):
    """The content of a tensor in pieces; every tensor has a stream of its own."""
    random = numpy.random.Generator(numpy.random.PCG64(zlib.crc32(name.encode())))
    if len(size) == 1:
        yield 1 + numpy.float32(DEVIATION) * random.standard_normal(size, dtype=numpy.float32)
        return
    left = size[0] * size[1]
    while left:
        count = min(CHUNK, left)
        yield bf16(numpy.float32(DEVIATION) * random.standard_normal(count, dtype=numpy.float32))
        left -= count


def write(shape: dict, tokenizer: Path, out: Path) -> None:
    writer = gguf.GGUFWriter(out, shape["architecture"])
    metadata(writer, shape)
    vocabulary(writer, gguf.GGUFReader(tokenizer), shape["vocab"])
    plan = tensors(shape)
    for name, size in plan.items():
        kind, width = (F32, 4) if len(size) == 1 else (BF16, 2)
        elements = size[0] * (size[1] if len(size) == 2 else 1)
        writer.add_tensor_info(name, size, numpy.dtype(numpy.float32), elements * width, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    (file,) = writer.fout
    for name, size in plan.items():
        writer.write_padding(file, file.tell())
        for piece in weights(name, size):
            piece.tofile(file)
    writer.write_padding(file, file.tell())
    writer.close()


if __name__ == "__main__":
    write(json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
