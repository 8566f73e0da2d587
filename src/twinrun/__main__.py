"""`python -m twinrun` is the command line."""

from __future__ import annotations

import sys

from twinrun.cli.main import main

sys.exit(main())
