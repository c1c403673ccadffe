"""Writes the cards of studies: python -m benchmarks.study_cards RUNS/studies COMMIT NAME...

RUNS/studies is the folder of `omr study`, COMMIT that of the code that ran its cells. NAME/results.json becomes
results/study_NAME.json, below a card's head; the seconds of each stage are in results/study_times.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.environment import describe_environment, digest_shards, write_result
from data_pipeline.files import read_json


def main() -> None:
    """Writes a card for each study, and one of the times."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study_cards")
    parser.add_argument("folder", type=Path)
    parser.add_argument("commit")
    parser.add_argument("names", nargs="+")
    options = parser.parse_args()
    data = digest_shards(options.folder / "data", *options.folder.glob("cells/*/samples"))
    # the load is that of now, and the studies ran before
    head = {"commit": options.commit, "environment": describe_environment() | {"load_average": None}}
    for name in options.names:
        command = {"command": f"omr study {name} --out {options.folder}"}
        found = read_json(options.folder / name / "results.json")
        print(write_result(f"study_{name}", command | head | found, data))
    seconds = {"seconds": read_json(options.folder / "times.json")["seconds"]}
    print(
        write_result("study_times", {"command": f"omr study --out {options.folder}"} | head | seconds, data)
    )


if __name__ == "__main__":
    main()
