"""What the page of contrast samples shows: tiles, facts, texts and tips, worded and made harmless. No HTML here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from twinrun.report.words import harmless, short

Pairs = Sequence[tuple[str, float]]


def tiles(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """First lines of the page: a number and what it counts."""
    counts = record["counts"]
    found = [
        (f"{counts['answers']:,}", f"answers of {counts['problems']:,} problems", ""),
        (f"{counts['steps']:,}", "answer tokens, all of them candidates", ""),
        (f"{counts['kept']:,}", f"steps kept, {share(counts)} of the tokens", "good"),
    ]
    if counts["refused"]:
        found.append((f"{counts['refused']:,}", "problems refused: logits that are no numbers", "bad"))
    return [{"number": number, "text": text, "state": state} for number, text, state in found]


def share(counts: Mapping[str, int]) -> str:
    """Return the share of answer tokens that were kept.

    Example:
        >>> share({"kept": 3, "steps": 40})
        '7.5 %'
    """
    return f"{100 * counts['kept'] / max(1, counts['steps']):.1f} %"


def texts(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the answers, every text in them harmless."""
    return [
        {
            **text,
            "question": harmless(text["question"]),
            "answer": harmless(text["answer"]),
            "prompt_id": harmless(text["prompt_id"]),
            "tokens": [harmless(token) for token in text["tokens"]],
        }
        for text in record["texts"]
    ]


def tips(record: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """What hover and focus show at each token: KL, likeliest ids of both models, and the label of a kept step."""
    return [list(_tips_of(text)) for text in record["texts"]]


def _tips_of(text: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for i, (token, kl) in enumerate(zip(text["tokens"], text["kl"], strict=True)):
        yield {
            "token": harmless(token),
            "where": f"step {i}, position {text['start'] + i}",
            "kl": kl,
            "expert": _shares(text["expert"][i] if text["expert"] else ()),
            "amateur": _shares(text["amateur"][i] if text["amateur"] else ()),
            "label": _shares(text["labels"].get(i, ())),
        }


def _shares(pairs: Pairs) -> list[list[Any]]:
    return [[harmless(text), float(f"{value:.4g}")] for text, value in pairs]


def facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where the samples came from, in name and text."""
    settings, batches = record["settings"], record["batches"]
    found = [("folder", record["folder"])]
    for who, told in record["models"].items():
        known = [told[key] for key in ("name", "dtype", "device") if told.get(key)]
        found.append(
            (who, ", ".join([*known, *([f"digest {told['digest']}"] if told.get("digest") else [])]) or "–")
        )
    found.append(("batches", f"{batches['done']} of {batches['all']} done"))
    found += [(name.replace("_", " "), f"{value}" or "–") for name, value in settings.items()]
    if record["kl_gap_max"] is not None:
        found.append(
            ("KL again", f"computed here, within {short(record['kl_gap_max'])} nats of the folder's")
        )
    return [(name, harmless(text)) for name, text in found]


def lead(record: Mapping[str, Any]) -> str:
    """How many of the answers stand below, and what a token shows."""
    count, answers = len(record["texts"]), record["counts"]["answers"]
    whole = "All answers" if count == answers else f"{count} of {answers:,} answers"
    alternatives = (
        "the likeliest tokens of both models"
        if has_models(record)
        else "its KL; give --expert and --amateur for "
        "the text of every token and the likeliest tokens of both models"
    )
    return f"{whole}. A token shows {alternatives}; a kept step also its label, the distribution that is learned there."


def has_models(record: Mapping[str, Any]) -> bool:
    """Whether alternatives were computed."""
    return any(text["expert"] for text in record["texts"])
