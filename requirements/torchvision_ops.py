"""Makes `import torchvision` work where its compiled operators do not load. A no-op everywhere else.

PyPI's torchvision is built against CUDA torch. Beside the CPU build of torch its operators stay unloaded,
and registering shape functions for two of them, `nms` and `qnms`, fails at import. Nothing here calls them.
torchvision's own check, `_has_ops()`, guards its other registrations; this adds it to these two.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

REGISTRATION = re.compile(r'^@torch\.library\.register_fake\("torchvision::(q?nms)"\)$', re.M)
GUARDED = (
    r'@(torch.library.register_fake("torchvision::\1") if torchvision.extension._has_ops() '
    r"else (lambda function: function))"
)


def main() -> int:
    if subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True).returncode == 0:
        return 0
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        print("torchvision is not installed", file=sys.stderr)
        return 1
    path = Path(spec.origin).with_name("_meta_registrations.py")
    guarded, count = REGISTRATION.subn(GUARDED, path.read_text())
    if count:
        replace(path, guarded)
        print(f"torchvision's operators do not load here; guarded {count} registrations in {path.name}")
    return subprocess.run([sys.executable, "-c", "import torchvision"]).returncode


def replace(path: Path, text: str) -> None:
    """Write a new file in place of the old, whose inode the package cache may share."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


if __name__ == "__main__":
    sys.exit(main())
