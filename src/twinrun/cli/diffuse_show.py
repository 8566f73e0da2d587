"""What `twinrun diffuse` prints: the texts with their forwards, and the table in which speed stands beside verdict."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from twinrun.bench.timing import Timing
from twinrun.cli.diffuse_compare import Compared
from twinrun.records.diffusion_run import DiffusionRun
from twinrun.report.tables import verdict_text
from twinrun.report.words import short, times


def show_run(run: DiffusionRun, out: Console) -> None:
    """Print the text of every row, then how many forwards they took."""
    texts = run.texts if run.texts is not None else [str(ids) for ids in run.tokens]
    for number, (text, why) in enumerate(zip(texts, run.finish, strict=True), 1):
        if len(texts) > 1:
            out.print(f"--- {number} ({why})", markup=False)
        out.print(text, markup=False)
    skipped = f", {run.skip_ratio:.0%} of the block forwards' work skipped" if run.skip_ratio else ""
    out.print(
        Text(
            f"{run.runner}, commit {run.settings['commit']}: NFE {run.nfe} ({run.nfe_full} full, "
            f"{run.nfe_block} block), {run.new_tokens} tokens up to the end of the text, "
            f"{run.tokens_per_forward:.2f} a forward{skipped}",
            style="dim",
        )
    )


def show_comparison(found: Compared, out: Console) -> None:
    """Print both settings, the verdict and, if that passes, the speeds."""
    out.print(comparison_table(found))
    if found.verdict is None:
        out.print("This setting is the one compared with; nothing can differ. Speeds are its own.")
        return
    agree, total = found.same_tokens
    out.print(
        verdict_text(found.verdict.verdict)
        + Text(f": {found.verdict.reason}")
        + Text("\n(teacher forced, one token a step: what cache and skip change, not the commit rule)", "dim")
    )
    out.print(f"free running, the commit rule with it: {agree} of {total} tokens are the same")
    if found.passed:
        speed, noise = found.speed_up, found.noise
        out.print(
            f"{times(speed.median)} tokens per second of {found.theirs.runner} ({times(speed.p10)} to "
            f"{times(speed.p90)}, {speed.pairs} rounds in turns; A/A {times(noise.median)})"
        )
    else:
        out.print("no speed: the verdict is `different` (budget: --max-kl, --min-top1)")


def comparison_table(found: Compared) -> Table:
    """Table of both settings, NFE as full + block forwards; speeds stand only beside a verdict that passes."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("setting", overflow="fold")
    table.add_column("verdict", no_wrap=True)
    for name in ("KL mean", "NFE", "tokens", "tokens/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for run, timing in found.rows():
        judged = found.verdict if run is found.ours else None
        table.add_row(
            Text(f"{run.runner}, {run.settings['commit']}"),
            verdict_text("reference" if judged is None else judged.verdict),
            short(None if judged is None else judged.kl_mean),
            f"{run.nfe_full}+{run.nfe_block}",
            str(run.new_tokens),
            _speed(run, timing) if found.passed else "–",
        )
    return table


def _speed(run: DiffusionRun, timing: Timing) -> str:
    return f"{run.new_tokens / timing.seconds_median:.1f}"
