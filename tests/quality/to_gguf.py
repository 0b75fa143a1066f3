#!/usr/bin/env python3
"""Writes a Hugging Face directory of the Llama architecture, f32, as a GGUF that llama.cpp's tools take.

    python to_gguf.py stories15M/ out.gguf

The vocabulary is one of byte-pair encoding with bytes to fall back on (`tokenizer.json`): SentencePiece's score of a token is the
negative place of the first merge that makes it. Needs `gguf` and `numpy`.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy

# Tokens that are no merges: <unk>, <s>, </s> and the 256 bytes.
SPECIAL, BYTES = 3, 256
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def tensors(path: Path) -> dict:
    """Of a safetensors file in f32."""
    data = numpy.fromfile(path, dtype=numpy.uint8)
    length = int(data[:8].view(numpy.uint64)[0])
    header, body = json.loads(data[8 : 8 + length].tobytes()), data[8 + length :]
    header.pop("__metadata__", None)
    found = {}
    for name, info in header.items():
        if info["dtype"] != "F32":
            sys.exit(f"{path}: {name} is {info['dtype']}, expected F32")
        start, end = info["data_offsets"]
        found[name] = body[start:end].view(numpy.float32).reshape(info["shape"])
    return found


def name_of(name: str) -> str:
    if name.startswith("model.layers."):
        _, _, layer, *part, kind = name.split(".")
        return f"blk.{layer}.{NAMES['.'.join(part)]}.{kind}"
    return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]


def turned(weight: numpy.ndarray, heads: int) -> numpy.ndarray:
    """Rows of each head from halves to pairs: how GGUF's llama rotates."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def vocabulary(writer: gguf.GGUFWriter, tokenizer: dict) -> None:
    tokens = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    first, merges = SPECIAL + BYTES, tokenizer["model"]["merges"]
    places = {}
    for place, merge in enumerate(merges):
        places.setdefault(merge.replace(" ", ""), place)
    kind = gguf.TokenType
    kinds = [kind.UNKNOWN, kind.CONTROL, kind.CONTROL] + [kind.BYTE] * BYTES + [kind.NORMAL] * (len(tokens) - first)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token.encode() for token, _ in tokens])
    writer.add_token_scores([-float(places.get(token, len(merges))) for token, _ in tokens])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)


def write(source: Path, out: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_name(source.name)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    vocabulary(writer, json.loads((source / "tokenizer.json").read_text()))
    for name, weight in tensors(source / "model.safetensors").items():
        if "q_proj" in name or "k_proj" in name:
            weight = turned(weight, heads if "q_proj" in name else kv_heads)
        writer.add_tensor(name_of(name), numpy.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
