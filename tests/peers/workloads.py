"""The workloads: which shapes are compared, and at which lengths."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """The hyperparameters of a decoder in the manner of Llama."""

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    rope_theta: float
    norm_eps: float
    context: int
    qk_norm: bool = False


PEERS = ("llama.cpp", "openvino", "torch")
# What Bessemer may run, and the settings of peers of the same width. `source` is the file as it is published.
FORMATS = ("q4_0", "q4_0-mixed", "source", "q8_0", "bf16")
SAME_WIDTH = {
    "q8_0": {"llama.cpp": ("q8_0",), "openvino": ("int8",), "torch": ()},
    "bf16": {"llama.cpp": ("bf16",), "openvino": ("fp16",), "torch": ("bf16", "bf16:eager")},
}


@dataclass(frozen=True)
class Workload:
    """A model that everyone runs, and how hard."""

    name: str
    title: str
    # Without a shape it is the real model that fixtures/fetch.py makes; with one, its weights are drawn at random.
    shape: Shape | None
    # Tokens held before a decode is measured, beside the empty context.
    depths: tuple
    # Tokens to decode: fewer where a token takes long.
    generate: int
    # The settings of every peer that may be its best at some figure, whatever their width.
    settings: dict

    def peers(self, name: str) -> dict:
        """The settings of each peer to compare with when Bessemer runs this format.

        Four bits have to be faster than anything that a peer can do; wider ones, than peers of the same width.
        """
        return SAME_WIDTH.get(name, self.settings)


W2_SHAPE = Shape("llama", 16, 2048, 32, 8, 64, 8192, 128256, True, 500000.0, 1e-5, 8192)
W3_SHAPE = Shape("qwen3", 28, 1024, 16, 8, 128, 3072, 151936, True, 1000000.0, 1e-6, 8192, qk_norm=True)
# Embedding and head stay whole: both are read less often than 8 of 32 layers would suggest, so that this is harder on
# the head than the full model.
W4_SHAPE = Shape("llama", 8, 4096, 32, 8, 128, 14336, 128256, False, 500000.0, 1e-5, 8192)

W1_SETTINGS = {
    "llama.cpp": ("q4_0", "q4_0-mixed", "source", "q8_0"),
    "openvino": ("source", "int4:32", "int4:64:all", "int8", "fp16"),
    # Quickly shown to be the best nowhere, and slow to measure where a model is larger.
    "torch": ("bf16",),
}
W2_SETTINGS = {
    "llama.cpp": ("q4_0", "q4_0-mixed", "q8_0"),
    "openvino": ("q4_0", "int4:128", "int4:128:all", "int8", "fp16"),
    "torch": (),
}
W4_SETTINGS = {
    "llama.cpp": ("q4_0", "q4_0-mixed"),
    "openvino": ("q4_0", "int4:128", "int4:128:all"),
    "torch": (),
}

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("w1", "SmolLM2-135M-Instruct", None, (512, 4096), 128, W1_SETTINGS),
        Workload("w2", "the shape of Llama-3.2-1B, random weights", W2_SHAPE, (512, 4096), 64, W2_SETTINGS),
        Workload("w3", "the shape of Qwen3-0.6B, random weights", W3_SHAPE, (512,), 64, W2_SETTINGS),
        Workload("w4", "8 of the 32 layers of the shape of Llama-3-8B, random weights", W4_SHAPE, (512,), 32, W4_SETTINGS),
    )
}
