"""`twinrun contrast show`: samples as a page to read: answers shaded by KL, the steps kept, what both models said."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twinrun.cli.common import DeviceOption, JsonOption, TrustOption, console, emit, open_model, progress

if TYPE_CHECKING:
    from twinrun.contrast.shown_text import Pair
    from twinrun.contrast.store import SampleStore

EPILOG = """Examples:

twinrun contrast show samples --out page.html

twinrun contrast show samples --expert builtin:expert --amateur builtin:amateur --out page.html --png page.png

twinrun contrast show samples --id arithmetic/train/0/7 --out page.html --json

Exit code 0: written; 2: bad request, other models than those that sampled among them; 3: something is missing here."""


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("show", epilog=EPILOG)
    def show(
        folder: Annotated[str, typer.Argument(metavar="DIR", help="written by `twinrun contrast sample`")],
        out: Annotated[str, typer.Option("--out", "-o", metavar="PAGE.html", help="the page; one file")],
        png: Annotated[str | None, typer.Option(metavar="FILE", help="also a picture")] = None,
        expert: Annotated[
            str | None, typer.Option(metavar="MODEL", help="the expert that sampled: text of every token")
        ] = None,
        amateur: Annotated[
            str | None, typer.Option(metavar="MODEL", help="the amateur that sampled: alternatives of both")
        ] = None,
        limit: Annotated[int, typer.Option(help="answers shown, from the first")] = 20,
        ids: Annotated[list[str] | None, typer.Option("--id", help="this problem; may be repeated")] = None,
        top_k: Annotated[int, typer.Option(help="alternatives of each model at a token")] = 5,
        device: DeviceOption = "auto",
        trust_remote_code: TrustOption = False,
        as_json: JsonOption = False,
    ) -> int:
        """Write samples as one page: answers shaded by KL, the steps kept, the labels, the alternatives."""
        from twinrun.contrast.shown import Selection, shown
        from twinrun.contrast.store import SampleStore
        from twinrun.errors import ConfigError
        from twinrun.records.write import write_bytes, write_text
        from twinrun.report.contrast_page import render_contrast
        from twinrun.report.contrast_plots import contrast_png

        if (expert is None) != (amateur is None):
            raise ConfigError("give both --expert and --amateur, or neither")
        selection = Selection(limit=limit, ids=tuple(ids or ()), top_k=top_k)
        store = SampleStore(folder)
        models = (
            None
            if expert is None or amateur is None
            else _open(store, expert, amateur, device, trust_remote_code)
        )
        with progress(None, "reading samples"):
            record = shown(store, models=models, selection=selection)
            paths = [write_text(Path(out), render_contrast(record))]
            if png is not None:
                paths.append(write_bytes(Path(png), contrast_png(record)))
        _say(record, [str(path) for path in paths], as_json)
        return 0


def _open(store: SampleStore, expert: str, amateur: str, device: str, trust: bool) -> Pair:
    """Both models, in the precision in which they sampled."""

    def side(who: str, name: str) -> Any:
        dtype = (store.header.get(who) or {}).get("dtype", "auto")
        return open_model(name, dtype, device, trust_remote_code=trust)

    return side("expert", expert), side("amateur", amateur)


def _say(record: dict[str, Any], paths: list[str], as_json: bool) -> None:
    from twinrun.report.contrast_view import share

    out, counts = console(as_json), record["counts"]
    whole = "" if record["complete"] else " so far"
    out.print(
        f"{counts['answers']} answers{whole}; {counts['kept']} of {counts['steps']} steps kept ({share(counts)}); "
        f"{len(record['texts'])} shown"
    )
    if record["kl_gap_max"] is not None:
        out.print(f"KL computed here lies within {record['kl_gap_max']:.2g} nats of the folder's")
    elif any(text["unnamed"] for text in record["texts"]):
        out.print(
            "some tokens stand as ids: give --expert and --amateur for the text of all, and the alternatives"
        )
    for path in paths:
        out.print(path, markup=False)
    left = ("kl", "texts")
    summary = {key: value for key, value in record.items() if key not in left}
    emit({**summary, "shown": [t["prompt_id"] for t in record["texts"]], "written": paths}, as_json)
