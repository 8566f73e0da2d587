"""What pruning a prompt is worth: the paper's Table 2 on this machine, in the frame of `twinrun.bench`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twinrun.bench.bench import Progress, bench
from twinrun.bench.plan import named
from twinrun.errors import ConfigError
from twinrun.records.pruning import PruningBench
from twinrun.records.write import write_json, write_text

BUDGET_KL = 0.1
"""Mean KL in nats up to which a pruned prompt counts as lossy by design, unless another budget is given."""


def prune_bench(
    sides: Mapping[str, Any],
    *,
    lengths: Sequence[int],
    new_tokens: int = 128,
    out: str | Path | None = None,
    resume: bool = False,
    on_progress: Progress | None = None,
    **settings: Any,
) -> PruningBench:
    """Time runs behind pruned prompts against runs behind whole ones, with a verdict beside every speed.

    Source: SDTP, arXiv 2504.04514, Table 2: prefill and end to end with 128 new tokens, operations, peak memory; batch
    1. Differs: all sides ask for the logits of the last token alone (the paper's baseline computed those of every
    token, which was most of its memory), operations are counted by torch and not estimated, and every time stands
    beside a verdict and an A/A run.

    Args:
        sides: name -> runner; the first runs whole prompts (`KVCache`), the others prune.
        lengths: prompt lengths in tokens.
        new_tokens: tokens that every run is forced to write.
        out: a folder for the sweep's rows (as `bench` writes them), pruning.json and pruning.md.
        resume: go on with the rows that `out` holds.
        on_progress: called before every piece of work.
        **settings: further settings of `bench`; without a `budget`, 0.1 nats of mean KL.

    Raises:
        ConfigError: fewer than two sides, and whatever `bench` refuses.
        OutOfMemoryError: no side fits at any length.

    Cost: as `bench`.

    Example:
        >>> m = load("builtin:expert")
        >>> pruned = {"none": KVCache(m), "half": Pruned(m, selector="recency", schedule={1: 0.5})}
        >>> found = prune_bench(pruned, lengths=[24], new_tokens=3, repeats=2, budget={"kl": 9.0})
        >>> found.rows[0]["pruned"]["tokens_kept"], found.rows[0]["kv_reduction"] > 0.2
        (12, True)
    """
    if len(named(sides)) < 2:
        raise ConfigError(
            "one side alone has nothing to be compared with; give a plain runner and a pruned one"
        )
    given = {"budget": {"kl": BUDGET_KL}, **settings}
    sweep = bench(
        sides,
        lengths=lengths,
        new_tokens=new_tokens,
        out=out,
        resume=resume,
        on_progress=on_progress,
        **given,
    )
    found = PruningBench(sweep=sweep)
    if out is not None:
        write_json(Path(out) / "pruning.json", found.to_json())
        write_text(Path(out) / "pruning.md", found.to_markdown())
    return found
