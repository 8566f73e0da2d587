"""The amateur phase of LightReasoner: one forward for all steps, against one a prefix, batches of prefixes, a KV cache.

An answer of 128 or 512 tokens behind a prompt of 128 is put before an amateur of the shape of Qwen2.5-0.5B in
bfloat16 with random weights; every arm ends with log-probabilities of the whole vocabulary at every answer token. The
loop of the public project pads batches of 64 prefixes on the right and takes the logits of every position; it is timed
on batches drawn from strata of lengths, and so are single prefixes, and the sums scaled up. The KV cache decodes
the answer token by token and is timed whole for the short answer, on the first and last tokens of the long one.

Sampling runs the amateur on several answers a forward: an answer's share of a forward for 4 stands beside that for one.

Bars: one forward is at least 80 (128 tokens) and 250 (512 tokens) times faster than one a prefix, 80 times than batches
of prefixes, 20 times than the KV cache; its peak memory is under 10 % of that of one batch of prefixes. The verdict of
`twinrun.verify` on the same text stands beside the speeds.

  python benchmarks/contrast_amateur.py                       about seven minutes on two cores
  python benchmarks/contrast_amateur.py --quick --out x.json  a smoke test, seconds
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from _record import at_least, at_most, ratios_json, run, say, timings_json
from _shapes import build, random_ids
from torch import Tensor

import twinrun as tr
from twinrun.bench.memory import peak_extra_bytes
from twinrun.bench.timing import AGAIN, Timing, interleave, noise, ratio
from twinrun.contrast.select import ANSWER_BLOCK, ANSWER_CALL
from twinrun.numerics.blocks import log_softmax, row_blocks

ABOUT = "the amateur on one answer: one forward, against the ways that run it on every prefix"
ANSWERS = 4
"""Answers a forward of ours."""
ALL = f"{ANSWERS} answers a forward"
BARS = {128: 80.0, 512: 250.0}
BATCHES, CACHE, MEMORY = 80.0, 20.0, 0.1
PREFIXES = 64
"""Prefixes a batch in the public code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one measurement."""

    shape: str = field(default="qwen2.5-0.5b", metadata={"help": "shape of the model"})
    prompt_tokens: int = field(default=128, metadata={"help": "tokens of the prompt"})
    short: int = field(default=128, metadata={"help": "tokens of the short answer"})
    long: int = field(default=512, metadata={"help": "tokens of the long answer"})
    repeats: int = field(default=6, metadata={"help": "interleaved rounds"})
    strata: int = field(default=8, metadata={"help": "single prefixes and cached steps timed a round"})
    rows: int = field(default=4, metadata={"help": "rows of a batch of prefixes that are timed, and scaled"})
    judge_positions: int = field(
        default=9, metadata={"help": "last positions of the short answer the verdict covers"}
    )
    seed: int = field(default=0, metadata={"help": "of weights, tokens and sampled lengths"})

    @classmethod
    def quick(cls) -> Config:
        """Sizes for a smoke test."""
        return cls(
            shape="quick", prompt_tokens=8, short=8, long=16, repeats=2, rows=2, strata=2, judge_positions=3
        )


class Amateur:
    """One model and one text, and every way to get the distribution at each answer token."""

    def __init__(self, model: tr.Model, ids: Sequence[int], start: int, config: Config) -> None:
        self.model, self.ids, self.start, self.config = model, list(ids), start, config
        self.answer = len(ids) - start
        self.others = [
            random_ids(len(ids) - 1, model.vocab_size, config.seed + 1 + n) for n in range(ANSWERS - 1)
        ]
        self._single, self._pick = tr.SinglePass(model), random.Random(config.seed)

    def one_forward(self) -> object:
        """Ours: every answer token from one forward; log-probabilities in float32, streamed through the head."""
        return self._all_rows([self.ids[:-1]])

    def four_answers(self) -> object:
        """Ours, as sampling runs it: one forward for several answers."""
        return self._all_rows([self.ids[:-1], *self.others])

    def _all_rows(self, rows: list[list[int]]) -> object:
        block = None
        for scores in self._single.score_batch(rows, [self.start] * len(rows)):
            with torch.inference_mode():
                blocks = row_blocks(scores.logits, block_bytes=ANSWER_BLOCK, head_blocks=ANSWER_CALL)
                for _, (logits,) in blocks:
                    block = log_softmax(logits)
                    del logits  # before the next call of the head makes new ones
        return block

    def _strata(self, count: int) -> list[int]:
        """Prefix lengths, one from each of `count` equal strata."""
        size = self.answer / count
        return [self.start + int(k * size + self._pick.random() * size) for k in range(count)]

    def prefixes(self) -> None:
        """A draw of single prefixes, logits of the last position."""
        for length in self._strata(self.config.strata):
            self._read(torch.tensor([self.ids[:length]]), [length], last=True)

    def batches(self) -> None:
        """A few rows of one batch of 64 prefixes from the middle of the answer, padded to the batch's width."""
        low, high = self.middle_batch()
        lengths = [low + (high - low) * k // max(1, self.config.rows - 1) for k in range(self.config.rows)]
        self.padded(lengths)

    def whole_batch(self) -> None:
        """All rows of that batch, as the public code runs it."""
        low, high = self.middle_batch()
        self.padded(range(low, high + 1))

    def middle_batch(self) -> tuple[int, int]:
        """Shortest and longest prefix of the batch whose longest row is nearest to the mean over all batches."""
        ends = range(min(PREFIXES, self.answer), self.answer + 1, PREFIXES)
        mean = sum(ends) / len(ends)
        end = min(ends, key=lambda n: abs(n - mean))
        return self.start + max(0, end - PREFIXES), self.start + end - 1

    def padded(self, lengths: Sequence[int]) -> None:
        """One forward of prefixes padded on the right, float32 softmax of the last row of each."""
        width = max(lengths)
        batch = torch.tensor([self.ids[:n] + [0] * (width - n) for n in lengths])
        self._read(batch, lengths, last=False)

    def _read(self, batch: Tensor, lengths: Sequence[int], *, last: bool) -> None:
        mask = (torch.arange(batch.shape[1])[None] < torch.tensor(lengths)[:, None]).long()
        with torch.inference_mode():
            logits = self.model.model(batch, attention_mask=mask, logits_to_keep=int(last)).logits
            for row, n in zip(logits, lengths, strict=True):
                torch.softmax(row[-1 if last else n - 1].float(), -1)

    def cached(self) -> None:
        """Decode `strata` tokens with a KV cache behind half of the answer, which is the mean length."""
        for k in range(self.config.strata):
            with torch.inference_mode():
                out = self.model.model(
                    torch.tensor([[self.ids[self.start + k]]]), past_key_values=self.cache, use_cache=True
                )
                torch.softmax(out.logits[0, -1].float(), -1)
        self.cache.crop(-self.config.strata)

    def fill_cache(self) -> None:
        """Prompt and half of the answer in the cache."""
        with torch.inference_mode():
            at = self.start + self.answer // 2
            self.cache = self.model.model(torch.tensor([self.ids[:at]]), use_cache=True).past_key_values


def scaled(timing: Timing, factor: float) -> Timing:
    """Times of a draw as estimates of the whole."""
    return Timing.of([seconds * factor for seconds in timing.samples])


def arms_of(
    side: Amateur, name: str, config: Config
) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """Arms of one length, and what each timed draw is multiplied with."""
    side.fill_cache()
    arms: dict[str, Callable[[], object]] = {
        f"one answer a forward, {name}": side.one_forward,
        f"{ANSWERS} answers a forward, {name}": side.four_answers,
        f"one a prefix, {name}": side.prefixes,
        f"batches of {PREFIXES}, {name}": side.batches,
        f"kv cache, {name}": side.cached,
    }
    draws = side.answer / config.strata
    factors = (1.0, 1 / ANSWERS, draws, side.answer / config.rows, draws)
    return arms, dict(zip(arms, factors, strict=True))


def measure(config: Config) -> dict[str, Any]:
    """Time both lengths, the memory of the short one, and the verdict."""
    say(f"building {config.shape}")
    model = build(config.shape, seed=config.seed)
    timings: dict[str, Timing] = {}
    ratios: dict[str, Any] = {}
    bars: list[dict[str, Any]] = []
    for tokens, bar in ((config.short, BARS[128]), (config.long, BARS[512])):
        ids = random_ids(config.prompt_tokens + tokens, model.vocab_size, config.seed)
        side = Amateur(model, ids, config.prompt_tokens, config)
        name = f"{tokens} tokens"
        say(f"{config.repeats} rounds, {name}")
        arms, factors = arms_of(side, name, config)
        raw = interleave(arms, repeats=config.repeats)
        ours, together, *others = list(arms)
        found = {arm: scaled(t, factors[arm.removesuffix(AGAIN)]) for arm, t in raw.items()}
        mine = {arm: ratio(found[arm], found[ours]) for arm in others}
        ratios |= {f"{arm} / one answer a forward": r for arm, r in mine.items()}
        ratios |= {
            f"{arm} / {ANSWERS} answers a forward": ratio(found[arm], found[together]) for arm in others
        }
        ratios[f"A/A noise, {name}"] = noise(raw)
        limits = (bar, BATCHES, CACHE)
        bars += [
            at_least(f"one forward for all steps against {arm}", r.median, limit)
            for (arm, r), limit in zip(mine.items(), limits, strict=True)
        ]
        timings |= found
        if tokens == config.short:
            say("peak memory")
            ways = {
                ALL: side.four_answers,
                "one answer a forward": side.one_forward,
                f"batch of {PREFIXES}": side.whole_batch,
            }
            peaks = {way: peak_extra_bytes(call) for way, call in ways.items()}
            verdict = _verdict(model, side, config)
    share = peaks["one answer a forward"] / peaks[f"batch of {PREFIXES}"]
    bars.append(at_most("peak memory against one batch of prefixes", share, MEMORY))
    return {
        "model": repr(model),
        "arms": timings_json(timings),
        "ratios": ratios_json(ratios),
        "peak_extra_bytes": peaks,
        "estimates": "all arms but ours are timed on a draw and scaled to the whole answer",
        "verdicts": {"one forward for all steps, short answer": verdict},
        "bars": bars,
    }


def _verdict(model: tr.Model, side: Amateur, config: Config) -> dict[str, Any]:
    say("verify")
    start = len(side.ids) - config.judge_positions + 1
    case = tr.Case(label="the timed text", rows=(tuple(side.ids),), starts=(start,))
    found = tr.verify(tr.Recompute(model), tr.SinglePass(model), [case]).to_json()
    del found["env"]  # the record has it once
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """0 all bars passed (or --quick), 1 a bar was missed, 2 bad request."""
    return run("contrast_amateur", ABOUT, Config, measure, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
