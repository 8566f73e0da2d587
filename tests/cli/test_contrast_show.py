"""`twinrun contrast show`: a folder becomes one page and one picture; bad requests in one line."""

from __future__ import annotations

import pytest

from tests.support.command import last_record, run
from tests.support.contrast_record import HOSTILE, sample_folder


@pytest.fixture
def folder(tmp_path):
    return str(sample_folder(tmp_path / "samples").folder)


def test_a_folder_becomes_a_page_and_a_picture(capsys, folder, tmp_path):
    page, png = tmp_path / "deep" / "page.html", tmp_path / "page.png"
    code, out, err = run(
        capsys, "contrast", "show", folder, "--out", str(page), "--png", str(png), "--limit", "1", "--json"
    )
    found = last_record(out)
    assert code == 0
    assert page.read_text("utf-8").startswith("<!doctype html>")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert found["counts"]["kept"] == 8
    assert found["shown"] == [f"one {HOSTILE}"]
    assert found["written"] == [str(page), str(png)]
    assert "kl" not in found
    assert "8 of 18 steps kept (44.4 %); 1 shown" in err
    assert "some tokens stand as ids" in err


def test_models_that_sampled_give_the_alternatives_and_others_are_refused(capsys, tmp_path):
    pair = ["--expert", "builtin:expert", "--amateur", "builtin:amateur"]
    place, page = str(tmp_path / "s"), str(tmp_path / "p.html")
    code, *_ = run(
        capsys, "contrast", "sample", *pair, "--data", "builtin:arithmetic", "--limit", "1", "-n", "4",
        "--dtype", "float32", "--out", place,
    )  # fmt: skip
    assert code == 0
    code, out, _ = run(capsys, "contrast", "show", place, "--out", page, *pair, "--json")
    assert code == 0
    assert last_record(out)["kl_gap_max"] < 1e-5, (
        "in the precision of the samples, whatever the checkpoint's own"
    )
    swapped = ["--expert", "builtin:amateur", "--amateur", "builtin:expert"]
    code, _, err = run(capsys, "contrast", "show", place, "--out", page, *swapped)
    assert code == 2
    assert "made of another model than builtin:amateur" in " ".join(err.split())


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["--expert", "builtin:expert"], "give both --expert and --amateur"),
        (["--limit", "0"], "limit must be at least 1"),
        (["--id", "nobody"], "no answer to 'nobody'"),
    ],
)
def test_bad_requests_exit_with_2(capsys, folder, tmp_path, argv, why):
    page = tmp_path / "page.html"
    code, _, err = run(capsys, "contrast", "show", folder, "--out", str(page), *argv)
    assert code == 2
    assert why in " ".join(err.split())
    assert not page.exists()


def test_a_folder_that_holds_no_samples(capsys, tmp_path):
    code, _, err = run(capsys, "contrast", "show", str(tmp_path), "--out", str(tmp_path / "p.html"))
    assert code == 2
    assert "holds no samples.json" in " ".join(err.split())
