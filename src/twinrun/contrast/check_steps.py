"""Numbers of every step of a text: both models, token by token against one pass. Logits are read in blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from twinrun.contrast.checked import LOGITS, PROBABILITIES, SIDES, TOP, CheckText, SideStep, Step
from twinrun.models.model import Model
from twinrun.numerics.blocks import log_softmax, row_blocks
from twinrun.numerics.divergence import kl_of_rows, restrict
from twinrun.records.scores import Scores
from twinrun.runners.recompute import Recompute
from twinrun.runners.singlepass import SinglePass

Seconds = dict[str, dict[str, float]]


def measured(
    expert: Model, amateur: Model, text: CheckText, beta: float, seconds: Seconds
) -> tuple[Step, ...]:
    """Steps of one text. The last token is predicted, never fed."""
    row, rows = list(text.ids[:-1]), []
    for who, model in zip(SIDES, (expert, amateur), strict=True):
        ways: tuple[Scores, Scores] = (
            Recompute(model).score(row, text.start),
            SinglePass(model).score(row, text.start),
        )
        rows += [way.logits for way in ways]
        for name, way in zip(("sequential", "single"), ways, strict=True):
            seconds[who][name] += way.seconds
    found: list[Step] = []
    with torch.inference_mode():
        for at, (e_seq, e_one, a_seq, a_one) in row_blocks(*rows):
            sides = (_compared(e_seq, e_one), _compared(a_seq, a_one))
            kl = (_contrast(e_seq, a_seq), _contrast(e_one, a_one))
            for i in range(len(e_seq)):
                step = at.start + i
                found.append(_step(text, step, (sides[0][i], sides[1][i]), (kl[0][i], kl[1][i]), beta))
    return tuple(found)


def _step(
    text: CheckText, step: int, sides: tuple[SideStep, SideStep], kl: tuple[float, float], beta: float
) -> Step:
    position = text.start + step
    return Step(
        step=step,
        position=position,
        token_id=text.ids[position],
        token=text.tokens[position] if text.tokens else None,
        expert=sides[0],
        amateur=sides[1],
        kl_sequential=kl[0],
        kl_single=kl[1],
        kept_sequential=kl[0] > beta,
        kept_single=kl[1] > beta,
    )


def _contrast(expert: Tensor, amateur: Tensor) -> list[float]:
    shared = min(expert.shape[-1], amateur.shape[-1])
    log_e, log_a = (restrict(log_softmax(rows), shared)[0].clone() for rows in (expert, amateur))
    return [float(v) for v in kl_of_rows(log_e, log_a)]


def _compared(sequential: Tensor, single: Tensor) -> list[SideStep]:
    """Rows of logits of one model, one way against the other."""
    a, b = sequential.double(), single.double()
    log_a, log_b = log_softmax(a), log_softmax(b)
    p, q = log_a.exp(), log_b.exp()
    k = min(TOP, a.shape[-1])
    columns = (
        (a - b).abs().amax(-1),
        (p - q).abs().amax(-1),
        torch.isclose(b, a, atol=LOGITS[0], rtol=LOGITS[1]).all(-1),
        torch.isclose(q, p, atol=PROBABILITIES[0], rtol=PROBABILITIES[1]).all(-1),
        (a.topk(k).indices == b.topk(k).indices).all(-1),
        kl_of_rows(log_a, log_b),
    )
    return [
        SideStep(
            logit_gap=gap,
            probability_gap=apart,
            logits_close=near,
            probabilities_close=alike,
            same_top=same,
            kl=kl,
        )
        for gap, apart, near, alike, same, kl in zip(*(c.tolist() for c in columns), strict=True)
    ]
