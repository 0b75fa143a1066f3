"""Tests of the comparison that need no build and no network: python3 -m unittest discover -s tests/peers"""

import contextlib
import io
import json
import sys
import tempfile
import time
import unittest
from pathlib import Path

import bessemer
import compare
import llama_cpp
import measure

# Shortened from what the two programs print.
LLAMA_BENCH = """[
  {"n_prompt": 512, "n_gen": 0, "n_depth": 0, "avg_ts": 700.0, "samples_ns": [1, 2], "samples_ts": [ 690.0, 710.0 ]},
  {"n_prompt": 0, "n_gen": 128, "n_depth": 0, "avg_ts": 99.0, "samples_ns": [1, 2], "samples_ts": [ 98.0, 100.0 ]}
]"""
BESSEMER_BENCH = {
    "nests": "generated",
    "prefill": {"tok_s": 800.0, "samples": [790.0, 810.0], "share_of_ceiling": 0.3},
    "decode": {"tok_s": 120.0, "samples": [119.0, 121.0], "share_of_ceiling": 0.4},
}


def python(code: str) -> list:
    return [sys.executable, "-c", code]


class Parsing(unittest.TestCase):
    def test_llama_bench_tells_its_tests_apart_by_their_prompt(self):
        found = llama_cpp.samples(LLAMA_BENCH)
        self.assertEqual(found, {"prefill": [690.0, 710.0], "decode": [98.0, 100.0]})

    def test_bessemer_bench_gives_every_repetition(self):
        found = bessemer.samples(json.dumps(BESSEMER_BENCH))
        self.assertEqual(found, {"prefill": [790.0, 810.0], "decode": [119.0, 121.0]})

    def test_interpreted_nests_are_not_taken_for_compiled_code(self):
        with self.assertRaisesRegex(measure.PeerError, "interpreted"):
            bessemer.samples(json.dumps({**BESSEMER_BENCH, "nests": "interpreted"}))

    def test_a_part_that_was_not_asked_for_is_left_out(self):
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder) / "bessemer"
            program.write_text(f"#!/bin/sh\necho '{json.dumps(BESSEMER_BENCH)}'\n")
            program.chmod(0o755)
            ours = bessemer.Bessemer(program, Path("x.engine"), 2)
            self.assertEqual(ours.bench(0, 128, 512, 3), {"decode": [119.0, 121.0]})


class Statistics(unittest.TestCase):
    def test_a_summary_shows_how_far_rounds_lie_apart(self):
        found = measure.summary([[9.0, 10.0, 11.0], [18.0, 20.0, 22.0]])
        self.assertEqual((found["median"], found["min"], found["max"]), (14.5, 10.0, 20.0))
        self.assertAlmostEqual(found["spread"], 10 / 14.5)

    def test_a_slow_round_cancels_in_a_ratio(self):
        found = measure.ratios([[20.0], [2.0], [20.0]], [[10.0], [1.0], [10.0]])
        self.assertEqual(found, {"median": 2.0, "min": 2.0, "max": 2.0})

    def test_the_better_variant_stands_for_the_peer(self):
        samples = {"bessemer": [[30.0]], "llama.cpp -fa 0": [[10.0]], "llama.cpp -fa 1": [[15.0]]}
        speed = compare.judge("decode_128", samples)
        self.assertEqual((speed["llama.cpp_best"], speed["ratio"]["median"]), ("llama.cpp -fa 1", 2.0))
        start = compare.judge(compare.FIRST_TOKEN, samples)
        self.assertEqual((start["llama.cpp_best"], start["unit"]), ("llama.cpp -fa 0", "ms"))
        self.assertAlmostEqual(start["ratio"]["median"], 10 / 30)


class Contestant:
    """Answers at once and writes down when it was asked."""

    def __init__(self, name: str, log: list):
        self.name, self.log = name, log

    def bench(self, prompt, generate, depth, repetitions):
        self.log.append((self.name, prompt, generate, depth))
        return {part: [1.0] * repetitions for part, wanted in (("prefill", prompt), ("decode", generate)) if wanted}

    def first_token_command(self, prompt):
        self.log.append((self.name, prompt))
        return python("print(1)")


class Turns(unittest.TestCase):
    def test_contestants_alternate(self):
        log = []
        args = compare.arguments(["x", "--rounds", "2", "-r", "2", "-p", "8", "-n", "4", "-d", "16"])
        with contextlib.redirect_stderr(io.StringIO()):
            found = compare.measure([Contestant("a", log), Contestant("b", log)], args)
        self.assertEqual([entry[0] for entry in log], ["a", "b"] * 10)
        self.assertEqual([entry[1:] for entry in log[:6:2]], [(8, 0, 0), (0, 4, 0), (0, 4, 16)])
        self.assertEqual(list(found), ["prefill_8", "decode_4", "decode_4_at_16", "first_token"])
        self.assertTrue(all(len(r) == 2 for sides in found.values() for rounds in sides.values() for r in rounds))

    def test_names_that_leave_the_folder_are_refused(self):
        for name in ("../x", "a/b", "", ".hidden"):
            with self.assertRaises(SystemExit), contextlib.redirect_stderr(io.StringIO()):
                compare.arguments([name])


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

    def test_failures_tell_how_and_with_which_words(self):
        with self.assertRaisesRegex(measure.PeerError, "(?s)signal 4.*last words"):
            measure.run(python("import os, sys; print('last words', file=sys.stderr, flush=True); os.kill(os.getpid(), 4)"))
        with self.assertRaises(measure.Missing):
            measure.run(["no-such-program-anywhere"])


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
