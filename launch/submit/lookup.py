"""Finds the cluster file that a name stands for."""

from __future__ import annotations

from pathlib import Path

from launch.arguments import pick
from launch.submit.config import ClusterFile, read_cluster

EXAMPLES = Path(__file__).parents[1] / "clusters"
"""Files of this package: local.toml works as it is, the others are to be copied and changed."""


def find_cluster(name: str) -> tuple[Path, ClusterFile]:
    """Returns the file of a cluster, and what it says.

    Args:
        name: a path that ends in .toml, or a name: of ./clusters, ~/.config/megatron-omr, or the package's examples.

    Raises:
        ValueError: there is none (the names that exist are listed), or it is refused.
    """
    if not name:
        raise ValueError(f"--on is missing: the name of a cluster file, or a path to one; {_list_names()}")
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise ValueError(f"--on {name}: there is no such file; {_list_names()}")
    else:
        path = pick("cluster", _find_all(), name)
    return path, read_cluster(path)


def _find_all() -> dict[str, Path]:
    """Returns the cluster files by name; of two with one name, the user's."""
    folders = (EXAMPLES, Path.home() / ".config" / "megatron-omr", Path("clusters"))
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.toml"))}


def _list_names() -> str:
    return f"names are {', '.join(_find_all())}"
