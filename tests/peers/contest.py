"""Who measures what, and when: everyone takes turns, and the best settings of each peer reach the rounds."""

import statistics
import sys

from loads import Load
from measure import first_byte, peak_memory, ratios, summary


def sample(contestant, load: Load, repetitions: int) -> list:
    """Samples of one load by one contestant."""
    if load.part in ("prefill", "decode"):
        return contestant.bench(load, repetitions)
    command = contestant.generate_command(load.prompt, load.generate)
    if load.part == "first_token":
        return [first_byte(command)[0] for _ in range(repetitions)]
    return [peak_memory(command)["anon"] / 1e6]


def qualify(peers: list, load: Load, finalists: int, known: dict) -> tuple:
    """The settings of each peer that are worth measuring again, by one sample of each, and those samples.

    Samples that are `known` from an earlier comparison are not taken again.
    """
    groups = {}
    for contestant in peers:
        groups.setdefault(contestant.peer, []).append(contestant)
    chosen, heats = [], {}
    for group in groups.values():
        if len(group) > finalists:
            found = {c.name: known[c.name] if c.name in known else sample(c, load, 1)[0] for c in group}
            group = sorted(group, key=lambda c: found[c.name], reverse=not load.less_is_better)[:finalists]
            heats |= found
        chosen += group
    return chosen, heats


def measure(ours, peers: list, loads: list, args, known: dict) -> tuple:
    """Samples as {load: {contestant: [samples of a round, ...]}}, and what the heats before them showed.

    `known` are heats of an earlier comparison.
    """
    heats, entries = {}, {}
    for load in loads:
        print(f"heats: {load.name}", file=sys.stderr)
        chosen, heats[load.name] = qualify(peers, load, args.finalists, known.get(load.name, {}))
        entries[load.name] = [ours, *chosen]
    found = {load.name: {c.name: [] for c in entries[load.name]} for load in loads}
    for turn in range(args.rounds):
        print(f"round {turn + 1} of {args.rounds}", file=sys.stderr)
        for load in loads:
            samples = {c.name: [] for c in entries[load.name]}
            # A speed is sampled several times by one process; whole processes alternate one by one.
            in_one = load.part in ("prefill", "decode")
            for _ in range(1 if in_one else args.repetitions):
                for contestant in entries[load.name]:
                    samples[contestant.name] += sample(contestant, load, args.repetitions if in_one else 1)
            for name, new in samples.items():
                found[load.name][name].append(new)
    return found, heats


def judge(load: Load, samples: dict, ours: str, peer_of: dict) -> dict:
    """Both sides of a load: ours, every peer's, the best of each peer, and how many times better ours is."""
    sides = {name: summary(rounds) for name, rounds in samples.items() if name != ours}
    order = sorted(sides, key=lambda name: sides[name]["median"], reverse=not load.less_is_better)
    best = {}
    for name in order:
        best.setdefault(peer_of[name], name)

    def times(name: str) -> dict:
        # Above 1, Bessemer is the better one, whatever the unit.
        sides = (samples[name], samples[ours]) if load.less_is_better else (samples[ours], samples[name])
        return ratios(*sides)

    return {
        "unit": load.unit,
        "bessemer": summary(samples[ours]),
        "peers": sides,
        "best": best,
        "best_of_all": order[0],
        "ratio": {peer: times(name) for peer, name in best.items()},
    }


def table(metrics: dict) -> str:
    lines = ["| | unit | Bessemer | peer | at its best | setting | ratio | ratio, min to max |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for metric, found in metrics.items():
        for peer, name in found["best"].items():
            ratio = found["ratio"][peer]
            cells = [
                metric.replace("_", " "),
                found["unit"],
                cell(found["bessemer"]),
                peer,
                cell(found["peers"][name]),
                name.removeprefix(f"{peer} "),
                f"{ratio['median']:.2f}",
                f"{ratio['min']:.2f} to {ratio['max']:.2f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(side: dict) -> str:
    return f"{side['median']:.1f} ±{50 * side['spread']:.0f} %"


def medians(reports: list) -> dict:
    """The median of every number in a list of flat objects; what is no number in each of them is left out."""
    keys = [key for key in reports[0] if all(isinstance(report[key], int | float) for report in reports)]
    return {key: statistics.median(report[key] for report in reports) for key in keys}
