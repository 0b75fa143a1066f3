"""What is measured: how many tokens, after how many, for how many sequences, and the prompt of whole processes."""

from dataclasses import dataclass

PROMPT = "The capital of France is"
# The same in the vocabulary of SmolLM2, which the random models share; once more with a space before it, it is as long.
PROMPT_IDS = (504, 3575, 282, 4649, 314)


@dataclass(frozen=True)
class Load:
    """One thing to measure."""

    name: str
    # `prefill` and `decode` are tokens a second; `first_token` is milliseconds of a process, `peak_anon` its megabytes.
    part: str
    prompt: int = 0
    generate: int = 0
    depth: int = 0
    sequences: int = 1

    @property
    def unit(self) -> str:
        return {"first_token": "ms", "peak_anon": "MB"}.get(self.part, "tok/s")

    @property
    def less_is_better(self) -> bool:
        return self.unit != "tok/s"


FIRST_TOKEN = Load("first_token", "first_token", prompt=1, generate=1)
# Repeats of the prompt: about 512 tokens.
PEAK_ANON = Load("peak_anon", "peak_anon", prompt=102, generate=32)


def loads(prompt: int, generate: int, depths: tuple, sequences: int) -> list:
    """Everything that is measured of a workload."""
    decode = f"decode_{generate}"
    return [
        Load(f"prefill_{prompt}", "prefill", prompt=prompt),
        Load(decode, "decode", generate=generate),
        *(Load(f"{decode}_at_{depth}", "decode", generate=generate, depth=depth) for depth in depths),
        Load(f"{decode}_x{sequences}", "decode", generate=generate, sequences=sequences),
        FIRST_TOKEN,
        PEAK_ANON,
    ]
