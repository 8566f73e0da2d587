"""Run under torchrun: load a checkpoint split over the processes, judge it against the whole one, and write it down."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

import twinrun as tr


def main(folder: str, out: str) -> None:
    torch.set_num_threads(1)
    split = tr.load(folder, tp_plan="auto")
    whole = tr.load(folder)
    texts = tuple(range(30, 60)), tuple(range(40, 90))
    cases = [tr.Case(label="ids", rows=texts, starts=(26, 46))]
    v = tr.verify(tr.KVCache(whole), tr.KVCache(split), cases)
    pruned = [tr.Pruned(m, selector="recency", schedule={1: 0.5}) for m in (whole, split)]
    w = tr.verify(*pruned, cases)
    runs = [tr.KVCache(m).generate(list(texts[0]), 8).tokens for m in (whole, split)]
    weight = split.layout.layers[0].self_attn.q_proj.weight
    with torch.no_grad():  # the control: one wrong weight of the split model
        split.layout.layers[0].self_attn.o_proj.weight.mul_(1.01)
    wrong = tr.verify(tr.KVCache(whole), tr.KVCache(split), cases)
    rank = torch.distributed.get_rank()
    record = {
        "verdicts": [v.verdict, w.verdict],
        "reason": v.reason,
        "wrong": wrong.verdict,
        "same_text": runs[0] == runs[1],
        "share": weight.to_local().numel() / weight.numel(),
        "device": split.choices["device"],
        "cache": list(tr.KVCache(split).score(texts[0], 26).cache_lengths),
    }
    (Path(out) / f"rank{rank}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main(*sys.argv[1:])
