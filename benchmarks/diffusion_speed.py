"""Masked-diffusion decoding of `builtin:diffusion`: every cache with every commit rule, against plain decoding.

Three questions (1, 3 and 5 steps: short and long texts), each alone, in a canvas of 256 tokens and blocks of 32, and
the longest of them in canvases of 256 and 512 with blocks of 32 and 64. Plain is one full forward for every token of
the canvas. Tokens are counted up to the end of the text. No arm stops early, so that forwards saved behind the end of
a text win nothing over plain; the rows with early stop have it on both sides. Canvases of 256 in blocks of 32 are
decoded whole by every arm; in the other sizes the arms of one token a step are estimated (`estimated`) from sampled
steps, and each kind of estimate is held against a whole decode. Beyond 320 tokens the model is untrained: speeds hold
there, texts do not. What the settings do to answers is measured by diffusion_quality.py; verdicts of `twinrun.verify`
stand here beside the speeds.
Bars: dual cache with threshold 0.9 is at least 8 times plain in tokens a second, every side to the end of its canvas,
as in the paper's table; no cache is outside the budget. The same quotient with early stop on both sides stands beside
them without a bar: there it follows from how sure the model is of three texts. diffusion_answers.py has a bar with
early stop on both sides, over problems whose answers are checked.

  python benchmarks/diffusion_speed.py                       the full measurement, some minutes on one core
  python benchmarks/diffusion_speed.py --quick --out x.json  a smoke test, seconds
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from _diffusion import (
    EARLY,
    FAST,
    PLAIN,
    StepCosts,
    Work,
    all_inside,
    arms,
    caches,
    forwards,
    products,
    row,
    runners,
    settings,
    verdicts,
)
from _record import at_least, ratios_json, run, say, timings_json
from _skip import held_out, prompts

import twinrun as tr
from twinrun.bench.timing import Timing, interleave, noise, ratio
from twinrun.tasks.arithmetic import problem

ABOUT = "masked-diffusion decoding of the built-in model: caches and commit rules against plain decoding"
FASTER = 8.0
LOWER = (0.8, 0.7)
STEPS = (1, 3, 5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one measurement."""

    threads: int = field(default=1, metadata={"help": "threads of torch"})
    room: int = field(default=256, metadata={"help": "tokens of the canvases that are decoded whole"})
    block: int = field(default=32, metadata={"help": "tokens of their blocks"})
    questions: int = field(default=3, metadata={"help": "1 to 3: of one, three and five steps"})
    repeats: int = field(default=3, metadata={"help": "interleaved rounds"})
    judged: int = field(default=8, metadata={"help": "texts that verdicts cover"})

    @classmethod
    def quick(cls) -> Config:
        """Sizes for a smoke test."""
        return cls(room=16, block=8, questions=1, repeats=1, judged=1)


def measure(config: Config) -> dict[str, Any]:
    """Run all arms and the verdicts; return the measured part of the record."""
    torch.set_num_threads(config.threads)
    model = tr.load("builtin:diffusion", dtype="float32")
    items = [problem(1_000, seed=7, split="heldout", steps=(n, n)) for n in STEPS[: config.questions]]
    work = Work(prompts=prompts(model, items), room=config.room, block=config.block)
    found: dict[str, Any] = {"model": repr(model), "arms": {}, "ratios": {}, "rows": []}
    _whole(found, model, work, config)
    check = _check(model, work, found)
    for room, block in ((1, 2), (2, 1), (2, 2)):
        longest = replace(work, prompts=work.prompts[-1:], room=room * work.room, block=block * work.block)
        _sized(found, model, longest, config)
    judged = prompts(model, held_out(config.judged))
    texts = tr.Diffusion(model, block_length=config.block).generate(judged, config.block)
    rows = [[*p, *t] for p, t in zip(texts.prompts, texts.tokens, strict=True)]
    kinds = {name: how for name, how in caches(int(model.config.num_hidden_layers)).items() if name != PLAIN}
    found["verdicts"] = verdicts(model, rows, [len(p) for p in judged], config.block, kinds)
    found["estimates_against_whole_decodes"] = check
    found["by_question"] = _by_question(found["rows"], config)
    found["products"] = _products(model, work, found["rows"])
    gains = {early: _gain(found["rows"], work, early) for early in (False, True)}
    found["without_a_bar"] = {f"{FAST} against plain, early stop on both sides": gains[True]}
    found["notes"] = _notes(found)
    found["bars"] = [
        at_least(f"{FAST} against plain, no early stop", gains[False], FASTER),
        all_inside(found["verdicts"]),
    ]
    return found


def _whole(found: dict[str, Any], model: tr.Model, work: Work, config: Config) -> None:
    """Decode whole canvases with every setting, and to the end of the text with some."""
    kinds = settings(int(model.config.num_hidden_layers))
    made = runners(model, work.block, kinds)
    soon = {name: made[name] for name in (PLAIN, "dual", FAST, "dual, factor 1")}
    low = {f"dual, threshold {p}": {"cache": "dual", "commit": tr.Threshold(p)} for p in LOWER}
    soon |= runners(model, work.block, low)
    early = replace(work, early_stop=True)
    calls = arms(made, work.decode) | {f"{n}{EARLY}": c for n, c in arms(soon, early.decode).items()}
    say(f"{work.room} tokens in blocks of {work.block}: {len(calls)} arms, {config.repeats} rounds")
    runs: dict[str, Any] = {}
    times = interleave(calls, repeats=config.repeats, warmups=0, on_result=runs.__setitem__)
    for name, timing in times.items():
        kind = early if EARLY in name else work
        plain = PLAIN + EARLY * kind.early_stop
        found["rows"].append(row(name, kind, runs[name], timing, runs[plain]))
    _keep(found, work, times)


def _sized(found: dict[str, Any], model: tr.Model, work: Work, config: Config) -> None:
    """Another size: arms of one token a step from sampled steps, the others whole."""
    kinds = settings(int(model.config.num_hidden_layers))
    made = runners(model, work.block, kinds)
    one = {name: r for name, r in made.items() if r.settings.commit == tr.Quota()}
    # What is skipped depends on the text, so two steps say nothing of it: diffusion_skip.py decodes whole canvases.
    slow = {name: r for name, r in one.items() if r.settings.skip is None}
    fast = {name: r for name, r in made.items() if name not in one}
    calls = arms(slow, work.sample) | arms(fast, work.decode)
    say(f"{work.room} tokens in blocks of {work.block}: {len(calls)} arms, {config.repeats} rounds")
    runs: dict[str, list[Any]] = {}
    times = interleave(
        calls, repeats=config.repeats, warmups=0, on_result=lambda n, r: runs.setdefault(n, []).append(r)
    )
    for name in times:
        base = name.removesuffix(" (A/A)")
        if base not in slow:
            found["rows"].append(row(name, work, runs[name][0], times[name], runs[name][0]))
            found["rows"][-1] |= {"same_tokens_as_plain": None, "plain_tokens": None}
            continue
        every = slow[base].settings.refresh_every
        times[name] = Timing.of([StepCosts.of(each).seconds(work, 1, every) for each in runs[name]])
        found["rows"].append(_estimated(name, work, slow[base], times[name]))
    _keep(found, work, times)


def _estimated(name: str, work: Work, runner: tr.Diffusion, timing: Timing) -> dict[str, Any]:
    """The row of an arm that was not decoded: forwards are known, tokens are not."""
    full, later = forwards(work, 1, runner.settings.refresh_every)
    if runner.settings.cache == "none":
        full, later = full + later, 0
    count = len(work.prompts)
    return {
        "arm": name, "room": work.room, "block": work.block, "early_stop": False, "estimated": True,
        "nfe": count * (full + later), "nfe_full": count * full, "nfe_block": count * later,
        "new_tokens": None, "tokens_per_forward": None, "tokens_per_second": None,
        "seconds_median": timing.seconds_median, "skip_ratio": None,
        "same_tokens_as_plain": None, "plain_tokens": None,
    }  # fmt: skip


def _keep(found: dict[str, Any], work: Work, times: dict[str, Timing]) -> None:
    """Put timings and the ratios of plain to every arm into the record."""
    where = f"{work.room}/{work.block}"
    found["arms"] |= {f"{where}: {name}": t for name, t in timings_json(times).items()}
    gains = {}
    for name in times:
        base = PLAIN + EARLY * (EARLY in name)
        if base != name and base in times and "(A/A)" not in name:
            gains[f"{where}: {base} / {name}"] = ratio(times[base], times[name])
    found["ratios"] |= ratios_json(gains | {f"{where}: A/A noise": noise(times)})


def _check(model: tr.Model, work: Work, found: dict[str, Any]) -> dict[str, float]:
    """Seconds of a whole decode over those that sampled steps give, for the arms that are estimated elsewhere."""
    kinds = {
        name: how
        for name, how in settings(int(model.config.num_hidden_layers)).items()
        if how["commit"] == tr.Quota() and "skip" not in how
    }
    whole = {r["arm"]: r["seconds_median"] for r in found["rows"]}
    out = {}
    for name, runner in runners(model, work.block, kinds).items():
        some = sorted(
            StepCosts.of(work.sample(runner)).seconds(work, 1, runner.settings.refresh_every)
            for _ in range(3)
        )
        out[name] = whole[name] / some[1]
    return out


def _gain(rows: list[dict[str, Any]], work: Work, early: bool) -> float:
    """Tokens per second of the fast arm over those of plain, up to the end of the text on both sides."""
    mine = {
        r["arm"]: r["tokens_per_second"]
        for r in rows
        if (r["room"], r["block"], r["early_stop"]) == (work.room, work.block, early)
    }
    suffix = EARLY * early
    return float(mine[FAST + suffix] / mine[PLAIN + suffix])


def _products(model: tr.Model, work: Work, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What of the decodes with early stop is matrix products and attention; the rest is everything around them."""
    width = sum(map(len, work.prompts)) // len(work.prompts) + work.room
    full, block = (products(model, tokens, width) for tokens in (width, work.block))
    shares = {
        r["arm"]: (r["nfe_full"] * full + r["nfe_block"] * block) / r["seconds_median"]
        for r in rows
        if r["early_stop"] and "(A/A)" not in r["arm"]
    }
    return {"full_seconds": full, "block_seconds": block, "share_of_decode": shares}


def _by_question(rows: list[dict[str, Any]], config: Config) -> list[dict[str, Any]]:
    """Forwards and seconds to the end of each text, early stop on both sides: short sure texts gain most."""
    plain, fast = (next(r for r in rows if r["arm"] == name + EARLY) for name in (PLAIN, FAST))
    return [
        {
            "steps": STEPS[i],
            **{f"plain_{k}": plain[f"{k}_by_prompt"][i] for k in ("nfe", "tokens", "seconds")},
            **{f"fast_{k}": fast[f"{k}_by_prompt"][i] for k in ("nfe", "tokens", "seconds")},
        }
        for i in range(config.questions)
    ]


def _notes(found: dict[str, Any]) -> list[str]:
    """The rows and the checks of the estimates, in words."""
    lines = []
    for r in found["rows"]:
        rate = "estimated" if r["estimated"] else f"{r['tokens_per_second']:.1f} tokens/s"
        lines.append(
            f"{r['room']}/{r['block']}: {r['arm']}: {r['nfe_full']}+{r['nfe_block']} forwards, "
            f"{r['seconds_median']:.2f} s, {rate}"
        )
    for q in found["by_question"]:
        rates = (q["fast_tokens"] / q["fast_seconds"]) / (q["plain_tokens"] / q["plain_seconds"])
        lines.append(
            f"early stop, question of {q['steps']} steps: {q['plain_nfe']} and {q['fast_nfe']} forwards, "
            f"{FAST} {rates:.1f}x plain in tokens a second (last round)"
        )
    lines += [f"{name}: {value:.1f}x, no bar" for name, value in found["without_a_bar"].items()]
    shares = found["products"]["share_of_decode"]
    lines += [f"products and attention, share of {arm}: {share:.2f}" for arm, share in shares.items()]
    return lines + [
        f"whole decode over its estimate, {name}: {value:.2f}"
        for name, value in found["estimates_against_whole_decodes"].items()
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """0 all bars passed (or --quick), 1 a bar was missed, 2 bad request."""
    return run("diffusion_speed", ABOUT, Config, measure, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
