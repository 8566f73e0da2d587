"""Put what the examples print into their pages of the casebook, so that no page shows an output that never was.

python scripts/casebook_pages.py
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "teaching_gpt_cache": ROOT / "docs" / "casebook" / "teaching-gpt-cache.md",
    "token_skip": ROOT / "docs" / "casebook" / "token-skip.md",
    "pruned_prefill": ROOT / "docs" / "casebook" / "pruned-prefill.md",
    "lightreasoner": ROOT / "docs" / "casebook" / "lightreasoner.md",
    "padded_training": ROOT / "docs" / "casebook" / "padded-training.md",
    "half_precision_logits": ROOT / "docs" / "casebook" / "half-precision-logits.md",
}
OUTPUT = re.compile(r"(```text\n).*?(```)", re.S)


def output_of(example: str) -> str:
    """What an example prints. Raises `CalledProcessError` if it fails."""
    script = ROOT / "examples" / f"{example}.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    return done.stdout


def main() -> None:
    """Run every example and rewrite the one text block of its page."""
    for example, page in PAGES.items():
        text, count = OUTPUT.subn(lambda m, e=example: f"{m[1]}{output_of(e)}{m[2]}", page.read_text())
        if count != 1:
            raise SystemExit(f"{page} has {count} text blocks; it should have one")
        page.write_text(text)
        print(f"{page.relative_to(ROOT)}: written")


if __name__ == "__main__":
    main()
