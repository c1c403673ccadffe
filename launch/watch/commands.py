"""The commands that show runs: `omr report`, `omr compare`, `omr watch`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from tyro.conf import Positional

from data_pipeline.files import write_json


def report(
    run: Positional[Path], *, budgets: tuple[int, ...] = (), model: Path | None = None, seed: int = 42
) -> None:
    """Write the report of a run, or of an evaluation, as one self-contained HTML page: omr report RUN

    Of an evaluation, on one benchmark or several: accuracy, what went wrong in the responses that are not right, with
    examples, accuracy against tokens, and with --budgets the accuracy at smaller token limits, also in budgets.json.

    Args:
        run: Folder of a run or an evaluation.
        budgets: Of an evaluation: token limits at which its responses are cut and their answers read again.
        model: With --budgets: Hugging Face folder whose tokenizer cuts; by default the model that was evaluated.
        seed: Of an evaluation: seed of the intervals and of the examples.

    Examples:
      omr report runs/demo
      omr report runs/demo/eval/rl --budgets 16 24 32
    """
    if not run.is_dir():
        raise ValueError(f"{run} is not a folder; give the folder of a run, such as runs/demo")
    from rl.results.stored import is_evaluation

    if is_evaluation(run):
        from launch.report.evaluations.report import report_evaluation

        print(report_evaluation(run, budgets, model, seed))
        return
    if budgets:
        raise ValueError(
            f"--budgets {budgets[0]} is of evaluations, and {run} is a run; give the --out of `omr eval`"
        )
    from launch.report.run_page import write_report

    print(write_report(run))


def compare(
    folders: Positional[tuple[Path, ...]],
    *,
    out: Path = Path("compare.html"),
    json: Path | None = None,
    seed: int = 42,
) -> None:
    """Write a page with several runs, or several evaluations, side by side: omr compare FOLDER FOLDER ...

    Of runs: their curves, and how they differ. Runs that differ in nothing but their seed become one line with a
    band. A demo's folder stands for all of its RL runs. Runs may be unfinished.

    Of evaluations, each with the first: differences on the questions that both asked, with intervals and McNemar's
    test, by benchmark and in the mean; the questions that turned. They must have been scored by the same rules. The
    table is printed, too.

    Args:
        folders: Folders of runs, of RL or of SFT; or of evaluations, on one benchmark or on several.
        out: File to write.
        json: Of evaluations: file for all numbers and the ids of the questions that turned.
        seed: Of evaluations: seed of the bootstrap, and of the examples on the page.

    Examples:
      omr compare runs/openmmreasoner_gspo runs/openmmreasoner_grpo
      omr compare runs/demo runs/demo7 --out seeds.html
      omr compare runs/demo/eval/sft runs/demo/eval/rl --json gain.json
    """
    from rl.results.stored import is_evaluation

    if folders and all(map(is_evaluation, folders)):
        _compare_evaluations(folders, out, json, seed)
        return
    if json:
        raise ValueError(
            f"--json={json} holds the numbers of evaluations, and {folders[0]} is a run; leave it out"
        )
    from launch.report.compare_page import write_comparison

    print(write_comparison(folders, out))


def _compare_evaluations(folders: Sequence[Path], out: Path, json: Path | None, seed: int) -> None:
    from launch.report.evaluations.compare_page import compare_folders, describe_comparison, write_page_of

    evaluations, comparisons = compare_folders(folders, seed)
    print("\n\n".join(map(describe_comparison, comparisons)))
    if json:
        write_json(json, [asdict(each) for each in comparisons])
    print(write_page_of(evaluations, comparisons, out, seed))


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
