"""Does contrast training work? builtin:expert before and after, against SFT and random steps of the same budget.

The expert answers training problems, builtin:amateur shows the steps, adapters are trained in several ways, and every
one of them answers the same held-out problems. Each arm is on disk when it is done: the same command goes on.

  python benchmarks/contrast_train.py --minutes 7      one sitting; repeat until it says that nothing is left
  python benchmarks/contrast_train.py --quick --out x.json --work w
  python benchmarks/contrast_train.py --arm contrast   one arm only

The arm with an older self as the amateur wants --older FOLDER, a checkpoint of the expert's own training:
`python scripts/train_builtin.py expert --no-place`, stopped at step 500, tokenizer files copied beside it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from _contrast_arms import ARMS, OLDER, Arm, arm_named
from _contrast_labels import label_facts, label_notes
from _record import RESULTS, at_least, run, say, write_atomically

import twinrun as tr
from twinrun.contrast.adapt import open_adapted
from twinrun.contrast.evaluate import Answers, AnswerSettings, answer_all, compare
from twinrun.contrast.exam import ARITHMETIC, ExamItem, ExamSettings, exam, judge_by, references
from twinrun.contrast.lessons import Cost, contrast_lessons
from twinrun.contrast.problems import read_questions
from twinrun.contrast.sample import sample
from twinrun.contrast.settings import SampleSettings
from twinrun.contrast.store import SampleStore
from twinrun.contrast.train import train
from twinrun.errors import SamplesError

ABOUT = "contrast training of builtin:expert against the base, SFT and random steps of the same budget"
BASE, FEWER = "base", 10.0
BETAS = (0.4, 0.2, 0.1, 0.05, 0.01, 0.0)
"""Thresholds at which forward tokens are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one measurement."""

    problems: int = field(default=1000, metadata={"help": "training problems that are sampled"})
    heldout: int = field(default=4000, metadata={"help": "held-out problems that every arm answers"})
    steps: int = field(default=300, metadata={"help": "optimizer steps of every arm that names no other"})
    seed: int = field(
        default=100, metadata={"help": "stream of the training problems; held-out ones have 200"}
    )
    minutes: float = field(
        default=0.0, metadata={"help": "begin no arm after so many minutes; 0 is no limit"}
    )
    other: str = field(
        default="", metadata={"help": "JSONL with other questions, whose forward tokens are counted too"}
    )
    older: str = field(default="", metadata={"help": "folder of an older checkpoint of the expert, or none"})
    arm: str = field(default="", metadata={"help": "run one arm only"})
    work: str = field(
        default="", metadata={"help": "folder of what is done (benchmarks/partial/contrast_train)"}
    )

    @classmethod
    def quick(cls) -> Config:
        """Sizes for a smoke test."""
        return cls(problems=24, heldout=12, steps=2, arm="contrast")


def _work(config: Config) -> Path:
    return Path(config.work) if config.work else RESULTS.parent / "partial" / "contrast_train"


def sampled(config: Config, expert: tr.Model, arm: Arm) -> SampleStore:
    """The samples of an arm, with every step whatever its KL; made once."""
    alpha, temperature = arm.alpha, arm.temperature
    older = arm.amateur == OLDER
    folder = _work(config) / f"samples-alpha{alpha:g}-t{temperature:g}{'-older' if older else ''}"
    settings = SampleSettings(
        beta=0.0, alpha=alpha, temperature=temperature, system_prompt="", batch_size=50, max_new_tokens=160
    )
    questions = read_questions(ARITHMETIC, limit=config.problems, seed=config.seed)
    say(f"samples: {folder.name}")
    amateur = tr.load(config.older if older else arm.amateur, dtype="float32")
    sample(expert, amateur, questions, folder, settings=settings)
    return SampleStore(folder)


def arm_result(config: Config, arm: Arm, items: Sequence[ExamItem]) -> dict[str, Any]:
    """Train one arm and let it answer, or read what it answered before."""
    folder = _work(config) / arm.name
    done = _work(config) / f"{arm.name}.json"
    wanted = {
        **asdict(arm),
        "problems": config.problems,
        "heldout": len(items),
        "steps_default": config.steps,
    }
    if done.exists():
        found: dict[str, Any] = json.loads(done.read_text())
        if found["request"] == json.loads(json.dumps(wanted)):
            return found
    model = tr.load("builtin:expert", dtype="float32")
    training = None
    if arm.method is not None:
        store = sampled(config, model, arm)
        is_right = judge_by(references(ARITHMETIC, [t.prompt_id for t in store.trajectories()]))
        settings = arm.settings(config.steps)
        say(f"training {arm.name}: {settings.steps} steps")
        began = time.perf_counter()
        training = train(model, store, folder, settings, is_right=is_right).to_json()
        training |= {"folder": folder.name, "seconds_this_sitting": time.perf_counter() - began}
        model = open_adapted(tr.load("builtin:expert", dtype="float32"), folder)
    say(f"{arm.name} answers {len(items)} problems")
    answers = answer_all(model, items, AnswerSettings(max_new_tokens=160, batch_size=100))
    record = {
        "request": wanted,
        "right": "".join("01"[r] for r in answers.right),
        "unfinished": answers.finished.count(False),
        "training": training,
    }
    write_atomically(done, json.dumps(record, indent=1) + "\n")
    say(f"{arm.name}: {sum(answers.right)} of {len(items)} right")
    return record


def other_costs(config: Config) -> list[dict[str, Any]]:
    """The same of other questions, with 128 new tokens and the paper's system prompt; nothing is trained on them."""
    if not config.other:
        return []
    pair = [tr.load(name, dtype="float32") for name in ("builtin:expert", "builtin:amateur")]
    folder = _work(config) / "samples-other"
    sample(*pair, read_questions(config.other, limit=100), folder, settings=SampleSettings(beta=0.0))
    return costs(folder)


def costs(folder: Path) -> list[dict[str, Any]]:
    """Forward tokens a tuned token of real samples, packed against a row a step, at several thresholds."""
    held = list(SampleStore(folder).sampled())
    found = []
    for beta in BETAS:
        try:
            cost = Cost.of(contrast_lessons(held, beta))
        except SamplesError:  # nothing above so high a threshold
            continue
        found.append({"beta": beta, **asdict(cost), "row_per_step_over_packed": cost.saved})
    return found


def labels(config: Config) -> dict[str, Any]:
    """What the labels know: whether they prefer the right token where the expert is about to go wrong."""
    store = SampleStore(_work(config) / "samples-alpha0.2-t0")
    return label_facts(store, tr.load("builtin:expert", dtype="float32"))


def measure(config: Config) -> dict[str, Any]:
    """Run what is left; return the measured part of the record."""
    began = time.monotonic()
    items = exam(ExamSettings(limit=config.heldout))
    chosen = [arm_named(BASE), arm_named(config.arm)] if config.arm else list(ARMS)
    chosen = [arm for arm in chosen if arm.amateur != OLDER or config.older]
    results: dict[str, dict[str, Any]] = {}
    left = []
    for arm in chosen:
        late = config.minutes and time.monotonic() - began > 60 * config.minutes
        if late and not (_work(config) / f"{arm.name}.json").exists():
            left.append(arm.name)
        else:
            results[arm.name] = arm_result(config, arm, items)
    compared = compare(items, {name: _answers(found) for name, found in results.items()})
    counted = costs(_work(config) / "samples-alpha0.2-t0") if len(results) > 1 else []
    known = labels(config) if counted else {}
    return {
        "arms": {},
        "ratios": {},
        "sides": compared["sides"],
        "pairs": compared["pairs"],
        "intervals": compared["intervals"],
        "results": results,
        "costs": counted,
        "other_costs": other_costs(config),
        "labels": known,
        "left": left,
        "notes": [*_notes(compared, counted, left), *label_notes(known)],
        "bars": _bars(compared, counted),
    }


def _answers(found: dict[str, Any]) -> Answers:
    right = tuple(c == "1" for c in found["right"])
    unfinished = found["unfinished"]
    finished = tuple(i >= unfinished for i in range(len(right)))
    return Answers(texts=("",) * len(right), right=right, finished=finished)


def _notes(compared: dict[str, Any], counted: list[dict[str, Any]], left: list[str]) -> list[str]:
    found = []
    for name, side in compared["sides"].items():
        gaps = [p for p in compared["pairs"] if p["a"] == name and p["b"] == BASE]
        gap = "".join(
            f"; {100 * p['difference']:+.2f} points on the base ({100 * p['low']:+.2f} to {100 * p['high']:+.2f}, "
            f"McNemar p = {p['sign_p']:.2g})"
            for p in gaps
        )
        found.append(f"{name}: {100 * side['accuracy']:.2f} % right{gap}")
    found += [
        f"beta {c['beta']:g}: {c['steps']} steps in {c['lessons']} answers, {c['row_per_step_over_packed']:.2f} times "
        "fewer forward tokens than a row a step"
        for c in counted
    ]
    return [*found, *([f"left to do: {', '.join(left)}"] if left else [])]


def _bars(compared: dict[str, Any], counted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def low(after: str, before: str) -> float | None:
        pairs = compared["pairs"]
        signed = {(p["a"], p["b"]): p["low"] for p in pairs} | {(p["b"], p["a"]): -p["high"] for p in pairs}
        return signed.get((after, before))

    saved = next((c["row_per_step_over_packed"] for c in counted if c["beta"] == 0.4), None)
    tiny = sys.float_info.min  # above zero, not at it
    return [
        at_least("gain on the base, lower end of the interval", low("contrast", BASE), tiny, "share right"),
        at_least("gain on SFT, lower end of the interval", low("contrast", "sft"), tiny, "share right"),
        at_least("forward tokens a tuned token, row a step over packed, beta 0.4", saved, FEWER),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """0 all bars passed (or --quick), 1 a bar was missed, 2 bad request."""
    return run("contrast_train", ABOUT, Config, measure, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
