"""Casebook: LightReasoner's sampling decodes what it wrote and tokenises it again, and loses samples when it stops."""

from __future__ import annotations

from transformers.utils import logging as hf_logging

import twinrun as tr
from twinrun.contrast.plan import Plan
from twinrun.contrast.problems import read_questions
from twinrun.contrast.sampler import Sampler
from twinrun.contrast.settings import SampleSettings
from twinrun.faults.registry import FAULTS, get_fault
from twinrun.faults.sampled import SampledRun
from twinrun.faults.sampling_judged import judge_run, sample_clean

PROBLEMS = 8
GREEDY = SampleSettings(batch_size=4, max_new_tokens=64)
DRAWN = SampleSettings(batch_size=4, max_new_tokens=64, temperature=2.0)


def survivors(expert: tr.Model, amateur: tr.Model, settings: SampleSettings) -> tuple[int, int]:
    """Prefixes of the answers, and how many of them are the same ids when they are decoded and tokenised again."""
    sampler = Sampler(expert, amateur, settings)
    plan = Plan.of(sampler, read_questions("builtin:arithmetic", limit=PROBLEMS))
    total = same = 0
    for number in range(plan.num_batches):
        for found in sampler.sample(plan.batch(number)):
            row = found.trajectory
            for n in range(1, len(row.answer_ids)):
                ids = [*row.prompt_ids, *row.answer_ids[:n]]
                again = expert.tokenizer(expert.tokenizer.decode(ids))["input_ids"]
                total, same = total + 1, same + (list(again) == ids)
    return total, same


def main() -> None:
    """Count the prefixes that survive, then plant each defect in a run that is stopped and continued."""
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    expert, amateur = (tr.load(f"builtin:{name}", dtype="float32") for name in ("expert", "amateur"))
    for words, settings in (("greedy answers", GREEDY), ("answers drawn at temperature 2", DRAWN)):
        total, same = survivors(expert, amateur, settings)
        print(f"{words}: {same} of {total} prefixes are the same ids when decoded and tokenised again")
    run = SampledRun(expert, amateur, read_questions("builtin:arithmetic", limit=PROBLEMS), DRAWN)
    verdict, _ = sample_clean(run)
    print(f"\nno fault, stopped and continued: {verdict}")
    for fault in (get_fault(name) for name in FAULTS):
        if fault.way == "sampling":
            found = judge_run(fault, run)
            print(f"\n{fault.name}: {'caught' if found.caught else 'missed'}, named: {found.named}")
            print(f"  {fault.where}: {found.sentence}")


if __name__ == "__main__":
    main()
