#!/usr/bin/env python3
"""Checks Bessemer on a machine with an NVIDIA GPU, then measures it there. See README.md beside this file.

    python3 check.py --bessemer ./bessemer --out results tiny.engine other.engine
    python3 check.py --bessemer ./bessemer --out results --shape 1b --shape 8b --precision bf16 --precision int4:64

Needs Python 3.8 and nothing else. What PyTorch does beside it is measured where PyTorch is installed.
"""
import argparse
import ctypes
import datetime
import json
import os
import pathlib
import platform
import random
import struct
import subprocess
import sys
import tempfile
import time

# Sizes of models as the world knows them; `tiny` is for a run without a GPU.
SHAPES = {
    "tiny": dict(hidden=64, layers=2, heads=4, kv_heads=2, head_dim=16, inner=128, vocab=256, context=256),
    "1b": dict(hidden=2048, layers=16, heads=32, kv_heads=8, head_dim=64, inner=8192, vocab=128256, context=4096),
    "8b": dict(hidden=4096, layers=32, heads=32, kv_heads=8, head_dim=128, inner=14336, vocab=128256, context=4096),
}


class Failed(Exception):
    pass


def run(command):
    """A program's output; its complaint if it fails."""
    print("$", " ".join(map(str, command)), flush=True)
    try:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    except OSError as error:
        raise Failed(f"{command[0]} does not start: {error.strerror}")
    if done.returncode != 0:
        raise Failed(f"exit code {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


# --- the machine


class Driver:
    """The few calls of the CUDA driver that tell what a GPU is and how fast it copies."""

    def __init__(self, ordinal):
        name = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
        try:
            self.lib = ctypes.CDLL(name)
        except OSError:
            raise Failed(f"there is no NVIDIA driver here: {name} does not load")
        self.call("cuInit", 0)
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(device), ordinal)
        name = ctypes.create_string_buffer(128)
        self.call("cuDeviceGetName", name, 128, device)
        self.name = name.value.decode()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)
        version = ctypes.c_int()
        self.call("cuDriverGetVersion", ctypes.byref(version))
        self.version = f"{version.value // 1000}.{version.value % 1000 // 10}"
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(major), 75, device)
        self.call("cuDeviceGetAttribute", ctypes.byref(minor), 76, device)
        self.arch = f"sm_{major.value}{minor.value}" + ("a" if major.value == 9 else "")
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        self.free = free.value

    def call(self, name, *arguments):
        status = getattr(self.lib, name)(*arguments)
        if status != 0:
            raise Failed(f"the driver's {name} fails with status {status}")

    def copy_bytes_s(self, size):
        """Bytes read and written a second by copies within the GPU's memory: the ceiling of what is bound by bandwidth."""
        size = min(size, self.free // 4)
        a, b, stream = ctypes.c_uint64(), ctypes.c_uint64(), ctypes.c_void_p()
        self.call("cuMemAlloc_v2", ctypes.byref(a), ctypes.c_size_t(size))
        self.call("cuMemAlloc_v2", ctypes.byref(b), ctypes.c_size_t(size))
        self.call("cuStreamCreate", ctypes.byref(stream), 1)
        best = 0.0
        for _ in range(5):
            started = time.perf_counter()
            for _ in range(20):
                self.call("cuMemcpyDtoDAsync_v2", b, a, ctypes.c_size_t(size), stream)
            self.call("cuStreamSynchronize", stream)
            best = max(best, 40 * size / (time.perf_counter() - started))
        self.call("cuStreamDestroy_v2", stream)
        self.call("cuMemFree_v2", a)
        self.call("cuMemFree_v2", b)
        return best


def torch_here():
    try:
        import torch

        return torch if torch.cuda.is_available() else None
    except ImportError:
        return None


def gemm_flops(torch):
    """bf16 multiply-adds of random matrices, two operations each: the ceiling of what is bound by arithmetic."""
    n = 8192
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    torch.matmul(a, b)
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(20):
        torch.matmul(a, b)
    torch.cuda.synchronize()
    return 20 * 2 * n**3 / (time.perf_counter() - started)


def beside(torch, measure):
    """What PyTorch reaches, or nothing if it cannot (memory, or a release that lacks something). The GPU's memory is free again afterwards."""
    try:
        return measure(torch)
    except Exception as error:
        print("PyTorch is not measured:", type(error).__name__, error, file=sys.stderr)
        return None
    finally:
        torch.cuda.empty_cache()


# --- models of random weights


def tensors(shape):
    """Names and shapes of a checkpoint, in the order in which they are written."""
    s = shape
    yield "model.embed_tokens.weight", (s["vocab"], s["hidden"])
    for layer in range(s["layers"]):
        at = f"model.layers.{layer}."
        yield at + "input_layernorm.weight", (s["hidden"],)
        yield at + "self_attn.q_proj.weight", (s["heads"] * s["head_dim"], s["hidden"])
        yield at + "self_attn.k_proj.weight", (s["kv_heads"] * s["head_dim"], s["hidden"])
        yield at + "self_attn.v_proj.weight", (s["kv_heads"] * s["head_dim"], s["hidden"])
        yield at + "self_attn.o_proj.weight", (s["hidden"], s["heads"] * s["head_dim"])
        yield at + "post_attention_layernorm.weight", (s["hidden"],)
        yield at + "mlp.gate_proj.weight", (s["inner"], s["hidden"])
        yield at + "mlp.up_proj.weight", (s["inner"], s["hidden"])
        yield at + "mlp.down_proj.weight", (s["hidden"], s["inner"])
    yield "model.norm.weight", (s["hidden"],)


def write_checkpoint(shape, folder):
    """A checkpoint with random bf16 weights. Norms are ones; matrices repeat a block of random numbers at shifting places."""
    folder.mkdir(parents=True, exist_ok=True)
    s = shape
    config = dict(
        architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=s["hidden"], num_hidden_layers=s["layers"],
        num_attention_heads=s["heads"], num_key_value_heads=s["kv_heads"], head_dim=s["head_dim"], intermediate_size=s["inner"],
        vocab_size=s["vocab"], max_position_embeddings=s["context"], rms_norm_eps=1e-5, rope_theta=500000.0, hidden_act="silu",
        tie_word_embeddings=True, torch_dtype="bfloat16", bos_token_id=1, eos_token_id=2,
    )
    (folder / "config.json").write_text(json.dumps(config))
    chance = random.Random(1)
    # Two bytes a number: the upper half of a float. Odd in length, so that no two rows are the same.
    block = b"".join(struct.pack("<f", chance.gauss(0.0, 0.02))[2:] for _ in range((1 << 18) + 1))
    header, offset = {}, 0
    for name, dims in tensors(s):
        count = 1
        for dim in dims:
            count *= dim
        header[name] = dict(dtype="BF16", shape=list(dims), data_offsets=[offset, offset + 2 * count])
        offset += 2 * count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name, dims in tensors(s):
            if len(dims) == 1:
                out.write(struct.pack("<f", 1.0)[2:] * dims[0])
                continue
            left = 2 * dims[0] * dims[1]
            while left > 0:
                out.write(block[:left])
                left -= len(block)
    return folder


# --- PyTorch beside it


def torch_speed(torch, shape, prompt, generate):
    """Tokens a second of the same model in bf16: prefill as one pass, decode as one captured graph a token."""
    s = shape
    with torch.inference_mode():
        make = lambda *dims: torch.randn(*dims, device="cuda", dtype=torch.bfloat16) * 0.02
        table = make(s["vocab"], s["hidden"])
        layers = [
            dict(
                qkv=make((s["heads"] + 2 * s["kv_heads"]) * s["head_dim"], s["hidden"]), o=make(s["hidden"], s["heads"] * s["head_dim"]),
                gate_up=make(2 * s["inner"], s["hidden"]), down=make(s["hidden"], s["inner"]),
                k=torch.zeros(1, s["kv_heads"], s["context"], s["head_dim"], device="cuda", dtype=torch.bfloat16),
                v=torch.zeros(1, s["kv_heads"], s["context"], s["head_dim"], device="cuda", dtype=torch.bfloat16),
            )
            for _ in range(s["layers"])
        ]
        F = torch.nn.functional
        half = s["head_dim"] // 2
        angle = torch.arange(s["context"], device="cuda")[:, None] / 500000.0 ** (torch.arange(half, device="cuda") / half)
        cos, sin = (torch.cat([f(angle)] * 2, 1).to(torch.bfloat16) for f in (torch.cos, torch.sin))
        turn = lambda x, c, d: x * c + torch.cat([-x[..., half:], x[..., :half]], -1) * d

        def forward(tokens, at):
            x = table[tokens]
            rows = tokens.shape[0]
            for w in layers:
                h = F.rms_norm(x, (s["hidden"],))
                q, k, v = (h @ w["qkv"].T).view(rows, -1, s["head_dim"]).transpose(0, 1).split([s["heads"], s["kv_heads"], s["kv_heads"]])
                q, k = turn(q, cos[at], sin[at]), turn(k, cos[at], sin[at])
                w["k"][0].index_copy_(1, at, k)
                w["v"][0].index_copy_(1, at, v)
                mask = torch.arange(s["context"], device="cuda")[None] <= at[:, None]
                a = F.scaled_dot_product_attention(q[None], w["k"], w["v"], attn_mask=mask, enable_gqa=True)[0]
                x = x + a.transpose(0, 1).reshape(rows, -1) @ w["o"].T
                gate, up = (F.rms_norm(x, (s["hidden"],)) @ w["gate_up"].T).chunk(2, -1)
                x = x + (F.silu(gate) * up) @ w["down"].T
            return F.rms_norm(x[-1:], (s["hidden"],)) @ table.T

        tokens, at = torch.zeros(prompt, dtype=torch.long, device="cuda"), torch.arange(prompt, device="cuda")
        for _ in range(2):
            forward(tokens, at)
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(3):
            forward(tokens, at)
        torch.cuda.synchronize()
        prefill = 3 * prompt / (time.perf_counter() - started)

        token, place = torch.zeros(1, dtype=torch.long, device="cuda"), torch.zeros(1, dtype=torch.long, device="cuda")
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                forward(token, place)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            forward(token, place)
        torch.cuda.synchronize()
        started = time.perf_counter()
        for i in range(generate):
            place.fill_(prompt + i)
            graph.replay()
        torch.cuda.synchronize()
        return dict(prefill_tok_s=prefill, decode_tok_s=generate / (time.perf_counter() - started))


# --- Bessemer


def verify(bessemer, engine, device, *more):
    """Every hash; every step and the logits against the CPU; recorded passes against launched ones. The bounds are tight where `exact` is
    said: where the CPU rounds no activations."""
    out = json.loads(run([bessemer, "verify", engine, "--trust", "--device", device, "--json", *more]))
    devices = out["devices"]
    worst = max(devices["steps"], key=lambda step: step[1])
    return dict(
        device=devices["device"], steps=len(devices["steps"]), worst_step=worst, worst_logits=max(devices["positions"]),
        exact=devices["exact"], replay_is_exact=devices["replay_is_exact"],
    )


def bench(bessemer, engine, device, prompt, generate, repetitions):
    command = [bessemer, "bench", engine, "--trust", "--device", device, "-p", prompt, "-n", generate, "-r", repetitions, "-o", "json"]
    out = json.loads(run(command))
    if device.startswith("cuda") and not out["device"].startswith("cuda"):
        raise Failed(f"it ran on {out['device']}")
    return dict(
        prefill_tok_s=out["prefill"]["tok_s"], decode_tok_s=out["decode"]["tok_s"], first_token_ms=out["first_token_ms"],
        file_bytes=out["file_bytes"], device=out["device"],
    )


def table(results):
    """What the README shows."""
    machine, c = results["machine"], results["ceilings"]
    gemm = f"{c['gemm_flops'] / 1e12:.0f} TFLOP/s bf16" if c["gemm_flops"] else "GEMM not measured (no PyTorch)"
    lines = [
        f"{results['date']}, {machine['gpu']} (CUDA {machine['driver']}): copy {c['copy_bytes_s'] / 1e9:.0f} GB/s, {gemm}.",
        "",
        "| model | prefill tok/s | decode tok/s | of copy bandwidth | PyTorch bf16 prefill | PyTorch bf16 decode |",
        "|---|---|---|---|---|---|",
    ]
    for speed in results["speed"]:
        theirs = speed.get("torch")
        beside = f"{theirs['prefill_tok_s']:.0f} | {theirs['decode_tok_s']:.1f}" if theirs else "– | –"
        lines.append(
            f"| {speed['shape']} {speed['precision']} | {speed['prefill_tok_s']:.0f} | {speed['decode_tok_s']:.1f} | "
            f"{100 * speed['share_of_copy']:.0f} % | {beside} |"
        )
    lines += ["", "| engine | steps checked | worst step, to the CPU's | worst logits | replay exact |", "|---|---|---|---|---|"]
    for name, check in results["checks"].items():
        if "error" in check:
            lines.append(f"| {name} | FAILED: {check['error'].splitlines()[0]} | | | |")
        else:
            step, error = check["worst_step"]
            loose = "" if check["exact"] else " (the CPU rounds activations)"
            lines.append(f"| {name} | {check['steps']} | {error:.1e} ({step}) | {check['worst_logits']:.1e}{loose} | yes |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", nargs="*", type=pathlib.Path, help="small engines for cpu and cuda, to be checked")
    parser.add_argument("--bessemer", type=pathlib.Path, required=True, help="the program")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for results.json and table.md")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--shape", action="append", choices=SHAPES, help="models of random weights to generate, check and measure")
    parser.add_argument("--precision", action="append", help="their precisions; bf16 and int4:64 by default")
    parser.add_argument("--work", type=pathlib.Path, help="folder for them (twice their size); a temporary one by default")
    parser.add_argument("-p", type=int, default=512, help="tokens of a prompt")
    parser.add_argument("-n", type=int, default=128, help="tokens to generate")
    parser.add_argument("-r", type=int, default=3, help="repetitions")
    args = parser.parse_args()
    kind, _, ordinal = args.device.partition(":")
    if kind != "cuda" or not (ordinal or "0").isdigit():
        parser.error(f"--device is cuda or cuda:N, not {args.device}")
    if not args.engines and not args.shape:
        parser.error("nothing to do: name engines, or --shape")
    try:
        return check_all(args, Driver(int(ordinal or 0)))
    except Failed as error:
        print("error:", error, file=sys.stderr)
        return 2


def check_all(args, driver):
    for folder in filter(None, [args.out, args.work]):
        folder.mkdir(parents=True, exist_ok=True)
    bessemer = args.bessemer.resolve()
    torch = torch_here()
    results = dict(
        date=datetime.date.today().isoformat(),
        machine=dict(gpu=driver.name, arch=driver.arch, driver=driver.version, cpu=platform.processor() or platform.machine()),
        bessemer=run([bessemer, "--version"]).strip(),
        torch=torch.__version__ if torch else None,
        ceilings=dict(copy_bytes_s=driver.copy_bytes_s(1 << 30), gemm_flops=beside(torch, gemm_flops) if torch else None),
        checks={}, speed=[],
    )

    def save():
        (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        (args.out / "table.md").write_text(table(results))

    def failed(name, error):
        results["checks"][name] = dict(error=str(error))
        print("FAILED", name, error, file=sys.stderr)

    def check(name, engine):
        try:
            results["checks"][name] = verify(bessemer, engine, args.device)
            name += ", divided"
            # The last layer on the GPU, the others on the CPU.
            results["checks"][name] = verify(bessemer, engine, args.device, "--gpu-layers", 1)
        except Failed as error:
            if name.endswith("divided") and "all run on one device" in str(error):
                return  # an encoder
            failed(name, error)
        save()

    for engine in args.engines:
        check(engine.name, engine)
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        for name in args.shape or []:
            shape, source = SHAPES[name], write_checkpoint(SHAPES[name], pathlib.Path(work) / name)
            theirs = beside(torch, lambda torch: torch_speed(torch, shape, args.p, args.n)) if torch else None
            for precision in args.precision or ["bf16", "int4:64"]:
                engine = pathlib.Path(work) / "model.engine"
                engine.unlink(missing_ok=True)
                try:
                    # The CPU is what the GPU is held to, so it rounds no activations either.
                    target = ["--target", "cpu", "--target", f"cuda:{driver.arch}", "--f32-activations"]
                    run([bessemer, "compile", source, "-o", engine, "--precision", precision, *target])
                    check(f"{name} {precision}", engine)
                    speed = bench(bessemer, engine, args.device, args.p, args.n, args.r)
                except Failed as error:
                    failed(f"{name} {precision}, speed", error)
                    save()
                    continue
                speed.update(shape=name, precision=precision, torch=theirs)
                # A decoded token reads every weight once; two engines' worth of metadata is nothing beside them.
                speed["share_of_copy"] = speed["decode_tok_s"] * speed["file_bytes"] / results["ceilings"]["copy_bytes_s"]
                results["speed"].append(speed)
                save()
            for file in source.iterdir():
                file.unlink()
    save()
    failures = sum("error" in check for check in results["checks"].values())
    print("\n" + table(results))
    print("ALL GREEN" if failures == 0 else f"{failures} FAILED")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
