"""Documentation texts of the running Python: deterministic, deduplicated, split by their own hash."""

import subprocess
import sys

import twinrun.tasks.texts as texts
from twinrun.tasks.texts import documents, python_docs


def test_there_is_enough_text_and_it_is_text():
    docs = python_docs()
    assert len(docs) > 2000
    assert sum(map(len, docs)) > 1_000_000
    assert all(len(text) >= texts.MIN_CHARS for text in docs)
    assert all(text == text.encode().decode() for text in docs)
    assert not any(line != line.rstrip() for text in docs for line in text.split("\n"))


def test_no_text_twice_and_splits_are_disjoint():
    train, heldout = python_docs("train"), python_docs("heldout")
    assert len(set(python_docs())) == len(python_docs()) == len(train) + len(heldout)
    assert not set(train) & set(heldout)
    assert 0.02 < len(heldout) / len(train) < 0.12


def test_names_are_relative_and_come_from_the_standard_library():
    names = [text.name for text in documents()]
    assert len(set(names)) == len(names)
    assert any(name.startswith("topic/") for name in names)
    assert any(name.startswith("json/") for name in names)
    assert not any(name.startswith("/") or "site-packages" in name or "\\" in name for name in names)


def test_another_process_finds_the_same():
    code = (
        "import hashlib; from twinrun.tasks.texts import python_docs; "
        "print(hashlib.sha256(chr(0).join(python_docs()).encode()).hexdigest())"
    )
    import hashlib

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == hashlib.sha256("\0".join(python_docs()).encode()).hexdigest()


def test_a_file_that_does_not_parse_is_passed_over(tmp_path):
    (tmp_path / "good.py").write_text('"""A docstring."""\n\ndef f():\n    """Another one."""\n')
    (tmp_path / "bad.py").write_text("def (:\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "skipped.py").write_text('"""Not wanted."""\n')
    assert list(texts._docstrings(tmp_path)) == [("good.py:1", "A docstring."), ("good.py:3", "Another one.")]
