"""The code of a run: its git revision, what was changed since, and all of it as one tree that can be packed."""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import launch

MAX_NEW_BYTES = 50_000_000
"""New files of a checkout are code; more than this is data, a model or a run."""


@dataclass(frozen=True, kw_only=True)
class Code:
    """The checkout that this package is imported from."""

    root: Path
    revision: str = ""
    """Commit; empty where the package is installed without git."""
    tree: str = ""
    """Git's name of all files as they are now, changed and new ones too, those that git ignores left out."""
    diff: bytes = b""
    """From the commit to the tree; binary files whole."""

    def describe(self) -> str:
        if not self.revision:
            return f"{self.root} is no git checkout: its code is not packed, and runs as it is where the job runs"
        changed = self.diff.count(b"\ndiff --git ") + self.diff.startswith(b"diff --git ")
        return f"revision {self.revision[:12]}" + (
            f" and {changed} changed file{'s' * (changed > 1)}" if changed else ""
        )

    def holds(self, file: str) -> bool:
        """Returns True if the code that a job runs has a file of this relative path."""
        if not self.tree:
            return (self.root / file).is_file()
        return bool(_git(self.root, "ls-tree", self.tree, file, check=False))


def find_code(root: Path | None = None) -> Code:
    """Returns the code of this package, or of another checkout; changes neither its files nor its index.

    Raises:
        ValueError: new files, which would be packed, are too large for code.
    """
    root = (root or Path(launch.__file__).parents[1]).resolve()
    top = _git(root, "rev-parse", "--show-toplevel", check=False)
    if not top or Path(top.decode().strip()) != root:
        return Code(root=root)
    revision = _git(root, "rev-parse", "HEAD").decode().strip()
    _refuse_large_files(root)
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": f"{folder}/index"}  # the user's own stays as it is
        _git(root, "read-tree", "HEAD", env=index)
        _git(root, "add", "--all", env=index)
        tree = _git(root, "write-tree", env=index).decode().strip()
    diff = _git(root, "diff", "--binary", "--no-ext-diff", "--no-color", revision, tree)
    return Code(root=root, revision=revision, tree=tree, diff=diff)


def _refuse_large_files(root: Path) -> None:
    new = _git(root, "ls-files", "--others", "--exclude-standard", "-z").decode(errors="surrogateescape")
    sizes = {name: (root / name).lstat().st_size for name in new.split("\0") if name}
    if sum(sizes.values()) > MAX_NEW_BYTES:
        largest = max(sizes, key=sizes.__getitem__)
        raise ValueError(
            f"{root} has {sum(sizes.values()) / 1e6:,.0f} MB of new files, which would be packed with the code, above "
            f"all {largest}; put what is no code into .gitignore, or into another folder"
        )


def _git(root: Path, *words: str, env: dict[str, str] | None = None, check: bool = True) -> bytes:
    """Returns what git prints; nothing where it is not installed or refuses, unless `check`."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words], env=os.environ | (env or {}), capture_output=True, check=False
        )
    except FileNotFoundError:
        return b""
    if check and done.returncode:
        raise OSError(f"git {words[0]} failed in {root}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout if done.returncode == 0 else b""
