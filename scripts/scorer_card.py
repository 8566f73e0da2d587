"""Place trained scorers in the built-in's folder, with a card drawn from their measurements."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from builtin_recipe import MAX_FOLDER_BYTES
from scorer_recipe import ScorerRecipe

from twinrun.prune.scorer import FACTS, WEIGHTS, Scorer

TEXT = """# Scorers of {model}

One MLP for each pruned layer ({width} -> {hidden} -> 1), {share:.2%} of the model's operations, for the schedule
{schedule}. Trained by `python scripts/train_scorers.py` on {samples} retrieval texts of up to {tokens} tokens with the
question at the end, {epochs} epochs, the model frozen; targets are gradient x hidden state of the answer's loss.
Measured on {held_out} held-out texts. Licence: Apache-2.0.

What scorers know: they see a token's hidden state at the input of the layer and nothing behind it, so not the question.
They can tell a needle from noise. They cannot tell which of many needles will be asked for.

| task | layer | Spearman with held-out saliency | overlap of the kept | by chance |
|---|---|---|---|---|
{prediction}

| tokens kept by the last stage | in needle sentences | in noise |
|---|---|---|
{kept}

Exact answers (greedy), 95 % intervals:

| tokens chosen by | {tasks} |
|---|{bars}|
{exact}
"""


def place(folder: Path, target: Path, recipe: ScorerRecipe) -> None:
    """Copy the scorers of `folder` to `target` with quality and card; the rest of the built-in is not touched."""
    scorer = Scorer.load(folder)
    report = json.loads((folder / "quality.json").read_text())
    scorer.facts["quality"] = report
    fresh = folder / "placing"
    shutil.rmtree(fresh, ignore_errors=True)
    scorer.save(fresh)
    (fresh / "README.md").write_text(render(scorer, report, recipe))
    around = sum(
        f.stat().st_size for f in target.parent.rglob("*") if f.is_file() and target not in f.parents
    )
    own = sum(f.stat().st_size for f in fresh.iterdir())
    if around + own > MAX_FOLDER_BYTES:
        raise SystemExit(f"{target.parent} would hold {around + own:,} bytes, limit {MAX_FOLDER_BYTES:,}")
    target.mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS, FACTS, "README.md"):
        (fresh / name).replace(target / name)
    fresh.rmdir()
    print(f"{target}: {own:,} bytes")


def render(scorer: Scorer, report: dict[str, Any], recipe: ScorerRecipe) -> str:
    """The card; every number comes from the report or the scorer."""
    tasks = list(report["prediction"])
    return TEXT.format(
        model=scorer.facts["model"],
        width=scorer.width,
        hidden=scorer.hidden,
        share=scorer.facts["share_of_model_flops"],
        schedule=", ".join(f"layer {layer}: {keep:.3g}" for layer, keep in (scorer.schedule or {}).items()),
        samples=recipe.samples,
        tokens=recipe.tokens,
        epochs=recipe.epochs,
        held_out=report["held_out_samples"],
        prediction="\n".join(
            f"| {task} | {q['layer']} | {q['spearman']:.2f} | {q['overlap']:.2f} | {q['chance']:.2f} |"
            for task in tasks
            for q in report["prediction"][task]
        ),
        kept="\n".join(
            f"| {task} | {shares['needle']:.0%} | {shares['noise']:.0%} |"
            for task, shares in report["kept"].items()
        ),
        tasks=" | ".join(tasks),
        bars="|".join("---" for _ in tasks),
        exact="\n".join(
            f"| {arm} | " + " | ".join(_rate(rates[task]) for task in tasks) + " |"
            for arm, rates in report["exact"].items()
        ),
    )


def _rate(rate: dict[str, Any]) -> str:
    low, high = rate["interval_95"]
    return f"{rate['exact']:.0%} ({low:.0%} to {high:.0%})"
