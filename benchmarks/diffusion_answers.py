"""Answers beside speed: `builtin:diffusion` under every combination, canvases of 256 and 512, blocks of 32 and 64.

Each held-out problem is answered alone by every arm, with early stop: what stands behind the end of a text is neither
an answer nor a speed. An arm has its exact answers with their 95 % Wilson interval, the paired difference to plain
decoding of the same problems, forwards, tokens a forward, and tokens a second of processor time of one thread, which
other work on the machine disturbs little; one arm is run twice to say how little. In the large canvas, beyond the 320
tokens that the model was trained on, and with a refresh in every step, `--few` problems are answered.
The run may be cut off: every answer is written to `--parts` and not asked for again; delete that file to begin anew.
Bars: refreshing in every step answers as plain decoding does; dual cache with threshold 0.9 is at least 8 times plain
in tokens a second at 256 / 32, and not below the 95 % interval of its answers.

  nice -n 19 python benchmarks/diffusion_answers.py            the full measurement, half an hour of one core
  python benchmarks/diffusion_answers.py --quick --out x.json  a smoke test, seconds
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from _diffusion import FAST, PLAIN
from _record import RESULTS, at_least, run, say
from _skip import FIRST, held_out, prompts, wilson

import twinrun as tr
from twinrun.tasks.arithmetic import Problem, is_exact

ABOUT = "answers beside speed: every cache, commit rule and skip at canvases of 256 and 512"
FASTER = 8.0
AGAIN = f"{FAST} (again)"
ALWAYS = "dual, refresh every 1"
Z = 1.959964


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one measurement."""

    problems: int = field(default=200, metadata={"help": "held-out problems of one step"})
    few: int = field(
        default=40, metadata={"help": "problems in the large canvas, or refreshed in every step"}
    )
    room: int = field(
        default=256, metadata={"help": "tokens of the small canvas; the large one is twice that"}
    )
    block: int = field(
        default=32, metadata={"help": "tokens of the small block; the large one is twice that"}
    )
    minutes: float = field(
        default=600.0, metadata={"help": "stop asking after so long; the record says how many"}
    )
    parts: str = field(
        default="diffusion_answers.parts.jsonl", metadata={"help": "answers so far, in benchmarks/results"}
    )

    @classmethod
    def quick(cls) -> Config:
        """Sizes for a smoke test."""
        return cls(problems=2, few=1, room=16, block=8, parts="")


def arms(layers: int) -> dict[str, dict[str, Any]]:
    """Every combination by name; the first is plain."""
    dual: dict[str, Any] = {"cache": "dual"}
    skip = tr.TokenSkip(layer_k=max(2, layers // 3), threshold=0.99)
    return {
        PLAIN: {},
        "prefix": {"cache": "prefix"},
        "dual": dual,
        **{f"dual, threshold {p}": {**dual, "commit": tr.Threshold(p)} for p in (0.9, 0.8, 0.7)},
        AGAIN: {**dual, "commit": tr.Threshold(0.9)},
        "dual, factor 1": {**dual, "commit": tr.Factor(1.0)},
        "dual, token skip": {**dual, "skip": skip},
        **{f"dual, refresh every {k}": {**dual, "refresh_every": k} for k in (1, 2, 4)},
        "dual, suffix window": {**dual, "suffix_window": tr.SuffixWindow()},
    }


def measure(config: Config) -> dict[str, Any]:
    """Answer what is not answered yet; return the measured part of the record."""
    torch.set_num_threads(1)
    model = tr.load("builtin:diffusion", dtype="float32")
    items = held_out(config.problems)
    done = _read(config.parts)
    late = time.monotonic() + 60 * config.minutes
    for number, size, arm, how in _plan(config, int(model.config.num_hidden_layers)):
        key = f"{size[0]}/{size[1]}: {arm}", number
        if key in done:
            continue
        if time.monotonic() > late:
            break
        done[key] = _answer(tr.Diffusion(model, block_length=size[1], **how), items[number], size[0])
        _write(config.parts, key, done[key])
    rows = _rows(done, config)
    return {
        "model": repr(model), "first_problem": FIRST, "threads": 1, "arms": {}, "ratios": {}, "rows": rows,
        "verdicts": {f"{r['size']}: {r['arm']}": _verdict(r) for r in rows},
        "notes": [_note(r) for r in rows], "bars": _bars(rows, config),
    }  # fmt: skip


def _plan(config: Config, layers: int) -> Iterable[tuple[int, tuple[int, int], str, dict[str, Any]]]:
    """What is asked, in this order: all arms and sizes of one problem, then of the next."""
    sizes = [(r, b) for r in (config.room, 2 * config.room) for b in (config.block, 2 * config.block)]
    for number in range(config.problems):
        if number % 10 == 0:
            say(f"problem {number} of {config.problems}")
        for size in sizes:
            for arm, how in arms(layers).items():
                slow = size[0] > config.room or arm == ALWAYS
                if number < (config.few if slow else config.problems):
                    yield number, size, arm, how


def _answer(runner: tr.Diffusion, item: Problem, room: int) -> dict[str, Any]:
    """One problem alone."""
    (asked,) = prompts(runner.model, [item])
    began = time.process_time()
    found = runner.generate(asked, room)
    seconds = time.process_time() - began
    return {
        "exact": is_exact(found.text or "", item), "nfe_full": found.nfe_full, "nfe_block": found.nfe_block,
        "tokens": found.new_tokens, "seconds_cpu": seconds,
    }  # fmt: skip


def _read(parts: str) -> dict[tuple[str, int], dict[str, Any]]:
    """Answers of an earlier run; a line that was cut off is asked again."""
    path = RESULTS / parts
    if not parts or not path.exists():
        return {}
    found = {}
    for line in path.read_text("utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[row["where"], row["number"]] = row["answer"]
    return found


def _write(parts: str, key: tuple[str, int], answer: dict[str, Any]) -> None:
    if parts:
        with (RESULTS / parts).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"where": key[0], "number": key[1], "answer": answer}) + "\n")


def _rows(done: dict[tuple[str, int], dict[str, Any]], config: Config) -> list[dict[str, Any]]:
    """One row a size and arm; speed and pairs against plain on the problems that both have."""
    by_where: dict[str, dict[int, dict[str, Any]]] = {}
    for (where, number), answer in done.items():
        if number < config.problems:
            by_where.setdefault(where, {})[number] = answer
    rows = []
    for where, mine in by_where.items():
        size, arm = where.split(": ", 1)
        plain = by_where.get(f"{size}: {PLAIN}", {})
        both = sorted(mine.keys() & plain.keys())
        hits, count = sum(a["exact"] for a in mine.values()), len(mine)
        total = {
            k: sum(a[k] for a in mine.values()) for k in ("nfe_full", "nfe_block", "tokens", "seconds_cpu")
        }
        rows.append({
            "size": size, "arm": arm, "problems": count, "hits": hits, "exact": hits / count,
            "interval_95": list(wilson(hits, count)), **total,
            "tokens_per_forward": total["tokens"] / (total["nfe_full"] + total["nfe_block"]),
            "tokens_per_second_cpu": total["tokens"] / total["seconds_cpu"],
            "pairs": len(both), **_pairs([mine[n] for n in both], [plain[n] for n in both]),
        })  # fmt: skip
    return rows


def _pairs(mine: Sequence[dict[str, Any]], plain: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Share of right answers minus plain's with its 95 % interval, and times plain in tokens a second.

    Source of the interval: Agresti and Min 2005, Statistics in Medicine 24(5), Wald with half a pair in each cell.
    """
    if not mine:
        return {"difference": None, "difference_95": None, "pairs_that_differ": None, "times_plain": None}
    won = sum(a["exact"] and not b["exact"] for a, b in zip(mine, plain, strict=True)) + 0.5
    lost = sum(b["exact"] and not a["exact"] for a, b in zip(mine, plain, strict=True)) + 0.5
    count = len(mine) + 2
    middle = (won - lost) / count
    half = Z * math.sqrt(won + lost - (won - lost) ** 2 / count) / count
    rates = [sum(a["tokens"] for a in side) / sum(a["seconds_cpu"] for a in side) for side in (mine, plain)]
    return {
        "difference": (won - lost) / len(mine), "difference_95": [middle - half, middle + half],
        "pairs_that_differ": int(won + lost) - 1,
        "times_plain": rates[0] / rates[1],
    }  # fmt: skip


def _verdict(row: dict[str, Any]) -> dict[str, str]:
    """What the answers say: a difference whose interval holds 0 is none that was seen."""
    if row["difference"] is None:
        return {"verdict": "different", "reason": "plain has answered none of these problems"}
    if row["arm"] == PLAIN:
        return {"verdict": "identical", "reason": f"the reference: {row['hits']} of {row['problems']}"}
    low, high = row["difference_95"]
    reason = f"{row['hits']} of {row['problems']}, {row['pairs']} pairs, difference {low:+.3f} to {high:+.3f}"
    return {"verdict": "lossy" if high >= 0 else "different", "reason": reason}


def _note(row: dict[str, Any]) -> str:
    times = "" if row["times_plain"] is None else f", {row['times_plain']:.2f}x plain"
    return (
        f"{row['size']}: {row['arm']}: {row['hits']} of {row['problems']}, {row['nfe_full']}+{row['nfe_block']} "
        f"forwards, {row['tokens_per_forward']:.2f} tokens a forward, "
        f"{row['tokens_per_second_cpu']:.0f} tokens/s{times}"
    )


def _bars(rows: Sequence[dict[str, Any]], config: Config) -> list[dict[str, Any]]:
    size = f"{config.room}/{config.block}"
    at = {row["arm"]: row for row in rows if row["size"] == size}
    always, fast, plain = at.get(ALWAYS), at.get(FAST), at.get(PLAIN)
    same = always is not None and always["pairs_that_differ"] == 0
    return [
        at_least(
            "refresh every step answers as plain", float(same and always["difference"] == 0), 1.0, "share"
        ),
        at_least(f"{size}: {FAST} against plain", fast["times_plain"] if fast else None, FASTER),
        at_least(
            f"{size}: exact answers of {FAST}",
            fast["exact"] if fast else None,
            plain["interval_95"][0] if plain else 1.0,
            "share",
        ),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """0 all bars passed (or --quick), 1 a bar was missed, 2 bad request."""
    return run("diffusion_answers", ABOUT, Config, measure, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
