"""Tests of the comparison that need no build and no network: python3 -m unittest discover -s tests/peers"""

import contextlib
import importlib.util
import io
import json
import math
import sys
import tempfile
import time
import unittest
from pathlib import Path

import bessemer
import checkpoints
import compare
import contest
import llama_cpp
import measure
import quality
import tables
from loads import FIRST_TOKEN, Load, loads
from workloads import FORMATS, PEERS, WORKLOADS

# Shortened from what the two programs print.
LLAMA_BENCH = """[
  {"n_prompt": 512, "n_gen": 0, "n_depth": 0, "avg_ts": 700.0, "samples_ns": [1, 2], "samples_ts": [ 690.0, 710.0 ]},
  {"n_prompt": 0, "n_gen": 128, "n_depth": 0, "avg_ts": 99.0, "samples_ns": [1, 2], "samples_ts": [ 98.0, 100.0 ]}
]"""
BATCHED_BENCH = """warning: something
{"n_kv_max": 2048, "pp": 1, "tg": 32, "pl": 8, "speed_pp": 591.9, "t_tg": 0.40, "speed_tg": 632.4, "speed": 631.1}
{"n_kv_max": 2048, "pp": 1, "tg": 32, "pl": 8, "speed_pp": 643.0, "t_tg": 0.41, "speed_tg": 612.2, "speed": 613.1}
"""
BESSEMER_BENCH = {
    "nests": "generated",
    "prefill": {"tok_s": 800.0, "samples": [790.0, 810.0], "share_of_ceiling": 0.3, "share_of_tile": 0.5},
    "decode": {"tok_s": 120.0, "samples": [119.0, 121.0], "share_of_ceiling": 0.4},
    "open_ms": 2.5,
    "ceilings": {"read_bytes_s": 27e9, "int8_multiply_adds_s": 5e12},
}


def python(code: str) -> list:
    return [sys.executable, "-c", code]


class Parsing(unittest.TestCase):
    def test_llama_bench_tells_its_tests_apart_by_their_prompt(self):
        found = llama_cpp.samples(LLAMA_BENCH)
        self.assertEqual(found, {"prefill": [690.0, 710.0], "decode": [98.0, 100.0]})

    def test_batched_bench_counts_the_tokens_of_all_sequences(self):
        self.assertEqual(llama_cpp.batched_samples(BATCHED_BENCH), [632.4, 612.2])

    def test_interpreted_nests_are_not_taken_for_compiled_code(self):
        with self.assertRaisesRegex(measure.PeerError, "interpreted"):
            bessemer.checked(json.dumps({**BESSEMER_BENCH, "nests": "interpreted"}))

    def test_bessemer_gives_the_part_that_was_asked_for_and_keeps_the_ceilings(self):
        with tempfile.TemporaryDirectory() as folder:
            program, engine = Path(folder) / "bessemer", Path(folder) / "x.engine"
            program.write_text(f"#!/bin/sh\necho '{json.dumps(BESSEMER_BENCH)}'\n")
            program.chmod(0o755)
            engine.write_bytes(b"12345")
            ours = bessemer.Bessemer(program, "q4_0", engine, 2)
            self.assertEqual(ours.bench(Load("decode_8", "decode", generate=8), 2), [119.0, 121.0])
            self.assertEqual(ours.bench(Load("prefill_8", "prefill", prompt=8), 2), [790.0, 810.0])
        of_prefill = {"share_of_ceiling": 0.3, "share_of_tile": 0.5}
        self.assertEqual(ours.shares, {"decode_8": [{"share_of_ceiling": 0.4}], "prefill_8": [of_prefill]})
        self.assertEqual(ours.file_bytes, 5)
        self.assertEqual(contest.medians(ours.ceilings), BESSEMER_BENCH["ceilings"])
        self.assertEqual(ours.open_ms, [2.5, 2.5])

    def test_a_ceiling_that_this_machine_lacks_is_left_out(self):
        self.assertEqual(contest.medians([{"a": 1.0, "b": None}, {"a": 3.0, "b": None}]), {"a": 2.0})


class Commands(unittest.TestCase):
    def test_llama_cpp_gets_a_context_that_holds_prompt_and_answer(self):
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "x.gguf"
            model.write_bytes(b"")
            peer = llama_cpp.LlamaCpp({"llama-completion": Path("p")}, "q4_0", model, 2, 1)
            for repeats, count, context in ((1, 1, 256), (102, 32, 768), (51, 1, 256), (51, 2, 512)):
                command = peer.generate_command(repeats, count)
                self.assertEqual(command[command.index("-c") + 1], context)
                self.assertEqual(command[-1].count("France"), repeats)

    def test_both_instruction_sets_of_llama_cpp_say_what_they_are(self):
        self.assertEqual(llama_cpp.INSTRUCTIONS["native"], ("-DGGML_NATIVE=ON",))
        self.assertIn("-DGGML_AVX2=ON", llama_cpp.INSTRUCTIONS["avx2"])
        self.assertFalse(any("AVX512" in flag for flag in llama_cpp.INSTRUCTIONS["avx2"]))


class Statistics(unittest.TestCase):
    def test_a_summary_shows_how_far_rounds_lie_apart(self):
        found = measure.summary([[9.0, 10.0, 11.0], [18.0, 20.0, 22.0]])
        self.assertEqual((found["median"], found["min"], found["max"]), (14.5, 10.0, 20.0))
        self.assertAlmostEqual(found["spread"], 10 / 14.5)

    def test_a_slow_round_cancels_in_a_ratio(self):
        found = measure.ratios([[20.0], [2.0], [20.0]], [[10.0], [1.0], [10.0]])
        self.assertEqual(found, {"median": 2.0, "min": 2.0, "max": 2.0})

    def test_the_best_setting_stands_for_a_peer_and_the_best_peer_for_all(self):
        samples = {"ours": [[30.0]], "a 0": [[10.0]], "a 1": [[15.0]], "b": [[20.0]]}
        peer_of = {"a 0": "a", "a 1": "a", "b": "b"}
        speed = contest.judge(Load("decode_8", "decode", generate=8), samples, "ours", peer_of)
        self.assertEqual((speed["best"], speed["best_of_all"]), ({"b": "b", "a": "a 1"}, "b"))
        self.assertEqual({peer: ratio["median"] for peer, ratio in speed["ratio"].items()}, {"a": 2.0, "b": 1.5})
        start = contest.judge(FIRST_TOKEN, samples, "ours", peer_of)
        self.assertEqual((start["best"], start["unit"]), ({"a": "a 0", "b": "b"}, "ms"))
        self.assertAlmostEqual(start["ratio"]["a"]["median"], 10 / 30)
        self.assertIn("| first token | ms | 30.0 ±0 % | a | 10.0 ±0 % | 0 | 0.33 |", contest.table({"first_token": start}))

    def test_bases_that_saw_different_texts_are_refused(self):
        side = {"tokens": 100, "base_ppl": 20.0}
        quality.check({"a": side, "b": {"tokens": 100, "base_ppl": 20.001}})
        for other in ({"tokens": 99, "base_ppl": 20.0}, {"tokens": 100, "base_ppl": 20.1}):
            with self.assertRaisesRegex(measure.PeerError, "bases differ"):
                quality.check({"a": side, "b": other})


class Contestant:
    """Answers at once and writes down when it was asked."""

    def __init__(self, name: str, log: list, speed: float = 1.0):
        self.name, self.peer, self.log, self.speed = name, name.split()[0], log, speed

    def bench(self, load, repetitions):
        self.log.append((self.name, load.name))
        return [self.speed] * repetitions

    def generate_command(self, repeats, count):
        self.log.append((self.name, repeats, count))
        return python("print(1)")


class Turns(unittest.TestCase):
    def measure(self, ours, peers, *options, known=None):
        known = known or {}
        args = compare.arguments(["x", "--rounds", "2", "-r", "2", "-p", "8", "-n", "4", "-d", "16,32", *options])
        wanted = loads(args.prompt, args.generate, args.depths, args.sequences)
        with contextlib.redirect_stderr(io.StringIO()):
            return contest.measure(ours, peers, wanted, args, known)

    def test_contestants_alternate(self):
        log = []
        found, heats = self.measure(Contestant("a", log), [Contestant("b", log)])
        self.assertEqual([entry[0] for entry in log[:10]], ["a", "b"] * 5)
        self.assertEqual(
            list(found),
            ["prefill_8", "decode_4", "decode_4_at_16", "decode_4_at_32", "decode_4_x8", "first_token", "peak_anon"],
        )
        self.assertTrue(all(len(rounds) == 2 for sides in found.values() for rounds in sides.values()))
        self.assertTrue(all(len(r) == 2 for sides in found.values() for rounds in sides.values() for r in rounds))
        self.assertFalse(any(heats.values()), "one setting needs no heat")
        processes = [entry for entry in log if len(entry) == 3]
        self.assertEqual(processes[:4], [("a", 1, 1), ("b", 1, 1)] * 2)

    def test_only_the_best_settings_of_each_peer_reach_the_rounds(self):
        log = []
        peers = [Contestant("b slow", log, 1.0), Contestant("b fast", log, 2.0), Contestant("c", log, 0.5)]
        found, heats = self.measure(Contestant("a", log), peers, "--finalists", "1")
        self.assertEqual(list(found["decode_4"]), ["a", "b fast", "c"])
        self.assertEqual(heats["decode_4"], {"b slow": 1.0, "b fast": 2.0})

    def test_heats_of_an_earlier_result_are_not_run_again(self):
        log = []
        peers = [Contestant("b slow", log, 1.0), Contestant("b fast", log, 2.0)]
        known = {"decode_4": {"b slow": 4.0, "b fast": 3.0}}
        found, heats = self.measure(Contestant("a", log), peers, "--finalists", "1", known=known)
        self.assertEqual(list(found["decode_4"]), ["a", "b slow"])
        self.assertEqual(heats["decode_4"], known["decode_4"])
        self.assertEqual(list(found["prefill_8"]), ["a", "b fast"], "what is not known is measured")

    def test_names_that_leave_the_folder_and_unknown_peers_are_refused(self):
        for given in (["../x"], ["a/b"], [""], [".hidden"], ["x", "--peers", "nobody"], ["x", "-d", "0"], []):
            with self.assertRaises(SystemExit), contextlib.redirect_stderr(io.StringIO()):
                compare.arguments(given)


class Workloads(unittest.TestCase):
    def test_every_workload_names_formats_that_can_be_made(self):
        for workload in WORKLOADS.values():
            for name in FORMATS:
                wishes = workload.peers(name)
                self.assertEqual(tuple(wishes), PEERS)
                self.assertLessEqual(set(wishes["llama.cpp"]), {*checkpoints.FORMATS, "source", "bf16"})
        self.assertEqual(WORKLOADS["w2"].peers("bf16")["openvino"], ("fp16",))

    def test_a_checkpoint_is_made_once_and_appears_whole(self):
        with tempfile.TemporaryDirectory() as folder:
            quantize = Path(folder) / "quantize"
            quantize.write_text('#!/bin/sh\necho "$@" > "$4"\n')
            quantize.chmod(0o755)
            final = Path(folder) / "w1-q4_0.gguf"
            for _ in range(2):
                with contextlib.redirect_stderr(io.StringIO()) as said:
                    checkpoints.quantized(Path("in.gguf"), final, quantize, ("--pure", "Q4_0"))
            self.assertEqual(said.getvalue(), "", "the second time there is nothing to do")
            self.assertIn("--allow-requantize --pure in.gguf", final.read_text())
            quantize.write_text("#!/bin/sh\nexit 1\n")
            with self.assertRaises(measure.PeerError), contextlib.redirect_stderr(io.StringIO()):
                checkpoints.quantized(Path("in.gguf"), Path(folder) / "other.gguf", quantize, ("Q8_0",))
            self.assertFalse((Path(folder) / "other.gguf").exists())


class Processes(unittest.TestCase):
    def test_the_first_byte_is_timed_and_not_the_last(self):
        code = "import sys, time; sys.stdout.write('a'); sys.stdout.flush(); time.sleep(1); sys.stdout.write('b')"
        started = time.perf_counter()
        ms, text = measure.first_byte(python(code))
        whole_ms = (time.perf_counter() - started) * 1e3
        self.assertEqual(text, "ab")
        self.assertLess(ms, whole_ms - 900)

    def test_a_process_without_a_word_or_with_an_error_is_no_measurement(self):
        for code in ("pass", "print(1); raise SystemExit(3)"):
            with self.assertRaises(measure.PeerError):
                measure.first_byte(python(code))

    def test_memory_is_watched_while_a_process_runs(self):
        code = "import time; held = b'x' * 100_000_000; time.sleep(0.2)"
        small, large = (measure.peak_memory(python(text))["anon"] for text in ("import time; time.sleep(0.2)", code))
        self.assertGreater(large, small + 99_000_000)
        with self.assertRaises(measure.PeerError):
            measure.peak_memory(python("raise SystemExit(3)"))

    def test_failures_tell_how_and_with_which_words(self):
        with self.assertRaisesRegex(measure.PeerError, "(?s)signal 4.*last words"):
            measure.run(python("import os, sys; print('last words', file=sys.stderr, flush=True); os.kill(os.getpid(), 4)"))
        with self.assertRaises(measure.Missing):
            measure.run(["no-such-program-anywhere"])


@unittest.skipUnless(importlib.util.find_spec("numpy"), "numpy is not installed")
class Divergence(unittest.TestCase):
    def test_the_figures_are_those_of_bessemer_eval(self):
        import divergence
        import numpy

        # p = (1/2, 1/2), q = (3/4, 1/4): KL(p, q) = 1/2 ln(2/3) + 1/2 ln 2.
        base = numpy.zeros((4, 2), dtype=numpy.float32)
        other = numpy.tile(numpy.array([math.log(3), 0], dtype=numpy.float32), (4, 1))
        found = divergence.compare(base, other, [0, 0, 1, 1])
        self.assertAlmostEqual(found["mean_kl"], math.log(2 / 3) / 2 + math.log(2) / 2, places=6)
        self.assertAlmostEqual(found["ppl"], math.sqrt(16 / 3), places=6)
        self.assertAlmostEqual(found["base_ppl"], 2.0)
        same = divergence.compare(other, other, [0] * 4)
        self.assertEqual((same["mean_kl"], same["top1"], same["relative_error"]), (0.0, 1.0, 0.0))


class Tables(unittest.TestCase):
    def test_what_people_read_is_what_was_measured(self):
        self.assertEqual(tables.main(["--check"]), 0, "run tests/peers/tables.py")

    def test_another_figure_is_noticed(self):
        for kind, figure in ((tables.PLACE, r"\d\.\d\d ×"), (tables.PASSES_PLACE, r"\d\.\d\d \(")):
            place = kind.search(tables.README.read_text())
            self.assertTrue(place, f"no table in the README: {kind.pattern}")
            text = place[0]
            self.assertEqual(tables.fill(text), text)
            found = tables.re.search(figure, text)[0]
            changed = text.replace(found, "9.99" + found[4:])
            self.assertEqual(tables.fill(changed), text)

    def test_a_divergence_is_told_with_what_it_was_measured_on(self):
        side = {"mean_kl": 0.00123, "p99_kl": 0.02, "top1": 0.9612, "ppl": 31.4159}
        result = {
            "workload": "w9", "text": "a.txt", "base": "w9.gguf", "bessemer": "abc", "date": "2026-01-02T03:04:05",
            "machine": {"cpu": "A"}, "settings": {"max_tokens": 7, "window": 5}, "quality": {"someone": side},
        }
        text = tables.divergences(result)
        self.assertIn("| someone | 1.23e-03 | 2.00e-02 | 96.12 % | 31.416 |", text)
        self.assertIn("7 tokens of `a.txt` in windows of 5, weights of `w9.gguf`", text)


class Patch(unittest.TestCase):
    def test_the_barrier_stands_before_the_load_and_nothing_is_guessed(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "mmq.cpp"
            path.write_text("a;\n" + llama_cpp.AMX_LOAD + "b;\n")
            llama_cpp.patch(path)
            self.assertEqual(path.read_text(), "a;\n" + llama_cpp.AMX_BARRIER + llama_cpp.AMX_LOAD + "b;\n")
            path.write_text("another version")
            with self.assertRaisesRegex(measure.PeerError, "0 times"):
                llama_cpp.patch(path)


if __name__ == "__main__":
    unittest.main()
