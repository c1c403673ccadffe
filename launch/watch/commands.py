"""The commands that show runs: `omr report`, `omr compare`, `omr watch`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from tyro.conf import Positional


def report(run: Positional[Path]) -> None:
    """Write a run's report, one self-contained HTML page: omr report RUN.

    Args:
        run: Folder of a run.

    Examples:
      omr report runs/demo
    """
    if not run.is_dir():
        raise ValueError(f"{run} is not a folder; give the folder of a run, such as runs/demo")
    from launch.report.run_page import write_report

    print(write_report(run))


def compare(runs: Positional[tuple[Path, ...]], *, out: Path = Path("compare.html")) -> None:
    """Write a page with the curves of several runs side by side, and how they differ: omr compare RUN RUN ...

    Runs that differ in nothing but their seed become one line with a band. A demo's folder stands for all of its RL
    runs. Runs may be unfinished.

    Args:
        runs: Folders of runs, of RL or of SFT.
        out: File to write.

    Examples:
      omr compare runs/openmmreasoner_gspo runs/openmmreasoner_grpo
      omr compare runs/demo runs/demo7 --out seeds.html
    """
    from launch.report.compare_page import write_comparison

    print(write_comparison(runs, out))


def watch(runs: Positional[tuple[Path, ...]], *, port: int = 8421, host: str = "127.0.0.1") -> None:
    """Show runs as they go, on a page that renews itself: omr watch RUN [RUN ...]

    Curves, time by phase, engines and the versions of their weights, mismatch, warnings, and the latest responses with
    their images and rewards. Runs may not have begun yet, may end and be resumed; a demo's folder stands for all of
    its runs. It only reads their files: runs do not notice it, and go on when it ends. docs/watch.md says how to read
    the page, and what to do when a number goes wrong.

    The page is for this machine alone, and for those who have its address, which holds a key. From elsewhere, on a
    login node too, open a tunnel and then the printed address: ssh -L 8421:127.0.0.1:8421 MACHINE

    Args:
        runs: Folders of runs, of RL, SFT or the demo.
        port: Port to listen on; 0 takes a free one.
        host: Address to listen on. Any but loopback shows the runs to the network, without encryption.

    Examples:
      omr watch runs/demo
      omr watch runs/gspo runs/dapo --port 0
    """
    from launch.watch.server import watch as serve

    serve(list(runs), host=host, port=port, say=partial(print, flush=True))
