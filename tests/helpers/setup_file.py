"""Reads what setup.py declares."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def setup_arguments() -> dict:
    """Returns the arguments that setup.py gives to setuptools."""
    code = (
        "import json, setuptools\nsetuptools.setup = lambda **given: print(json.dumps(given))\n"
        "__file__ = 'setup.py'\nexec(compile(open('setup.py').read(), 'setup.py', 'exec'))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    return json.loads(done.stdout)
