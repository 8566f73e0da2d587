"""`twinrun models`: what can be loaded without a download, and what each can do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from twinrun.cli.common import JsonOption, console, emit


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("models")
    def models(as_json: JsonOption = False) -> None:
        """List the trained models inside the package, with their measured skill."""
        from rich.table import Table

        from twinrun.models.builtin_names import builtin_names

        rows = [_describe(name) for name in builtin_names()]
        table = Table("name", "parameters", "size", "measured on held-out problems or text", box=None)
        for row in rows:
            table.add_row(
                f"builtin:{row['name']}",
                f"{row['parameters']:,}",
                f"{row['bytes'] / 1e6:.1f} MB",
                _skill(row),
            )
        out = console(as_json)
        out.print(table)
        for row in rows:
            if row["scorer_layers"]:
                layers = ", ".join(map(str, row["scorer_layers"]))
                out.print(
                    f"builtin:{row['name']} has trained scorers for layers {layers}: `--runner pruned`, "
                    f"`--scorer builtin:{row['name']}`, tr.Pruned(m, 'builtin:{row['name']}')."
                )
        out.print(
            "Besides these: any checkpoint folder or hub name of a transformers causal LM, or of LLaDA or Dream."
        )
        emit({"models": rows}, as_json)


def _skill(row: dict[str, Any]) -> str:
    if row["exact"] is None:
        return f"{row['bits_per_byte']:.2f} bits per byte of text"
    low, high = row["exact_interval_95"]
    those = f" to problems of {row['problems_of']}" if row["problems_of"] else ""
    kind = f"; {row['kind']}" if row["kind"] != "causal" else ""
    return f"{row['exact']:.1%} exact answers{those} ({low:.1%} to {high:.1%}){kind}"


def _describe(name: str) -> dict[str, Any]:
    from safetensors import safe_open

    from twinrun.models.builtin_names import builtin_folder

    folder = builtin_folder(name)
    parameters = 0
    with safe_open(folder / "model.safetensors", framework="pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118  safe_open is no mapping
            size = 1
            for side in tensors.get_slice(key).get_shape():
                size *= side
            parameters += size
    report = json.loads((folder / "skill.json").read_text())
    skill = report.get("skill", {})  # a model of text alone solves no problems
    return {
        "name": name,
        "kind": report.get("kind", "causal"),
        "folder": str(folder),
        "parameters": parameters,
        "bytes": sum(f.stat().st_size for f in folder.iterdir()),
        "exact": skill.get("exact"),
        "exact_interval_95": skill.get("interval_95"),
        "problems": skill.get("problems"),
        "problems_of": skill.get("problems_of"),
        "bits_per_byte": report["text"]["bits_per_byte"],
        "scorer_layers": _scorer_layers(folder),
    }


def _scorer_layers(folder: Path) -> list[int] | None:
    """Layers that the scorers beside a model are for, or None."""
    facts = folder / "scorer" / "scorer.json"
    return list(json.loads(facts.read_text())["layers"]) if facts.is_file() else None
