"""Final answers: what counts, what does not, and exact values."""

from __future__ import annotations

from fractions import Fraction

import pytest

from twinrun.tasks.arithmetic import is_exact, problem
from twinrun.tasks.final_answer import final_answer, same_answer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3 + 4 = 7\n#### 7", 7),
        ("#### 1,204", 1204),
        ("#### $18", 18),
        ("#### -3", -3),
        ("first #### 5 then \\boxed{6}", 5),
        ("so \\boxed{12} and \\boxed{13}.", 13),
        (r"\boxed{\frac{3}{4}}", Fraction(3, 4)),
        (r"\boxed{x = \text{$14$ apples}}", 14),
        ("The answer is 42. That is more than 3.", 42),
        ("the answer: 2.50 dollars", Fraction(5, 2)),
        ("He has 3 apples, then 8.", 8),
        ("about 3/4", Fraction(3, 4)),
        ("no number", None),
        ("\\boxed{", None),
        ("\\boxed{many} of the 7", None),
        ("#### ", None),
        ("1/0", None),
        ("", None),
    ],
)
def test_the_number_an_answer_ends_in(text: str, value: int | Fraction | None) -> None:
    assert final_answer(text) == value


def test_a_missing_or_wrong_number_is_never_right() -> None:
    assert same_answer("it is 18.00", "#### 18")
    assert not same_answer("it is 18.01", "#### 18")
    assert not same_answer("nothing", "nothing")
    assert not same_answer("it is 18", "#### 18", marked_only=True)


def test_generated_problems_are_judged_as_their_own_rule_does() -> None:
    for index in range(30):
        item = problem(index, split="heldout")
        for text in (item.answer_text, f"#### {item.answer + 1}", f"it is {item.answer}", "####"):
            assert same_answer(text, item.answer_text, marked_only=True) == is_exact(text, item)
