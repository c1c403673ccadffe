"""`omr data split`: shards -> out/train and out/test, so that no image of the test part is trained on.

    out/split.json            what decided the result: digest of the input, and settings
    out/groups/000003.npz     of input shard 3 the hashes of each sample's images, or of its question without images
    out/groups/test.npy       the sorted hashes of the test part
    out/train, out/test       the two parts, as stage.py writes them

Samples that share an image are one group, also over several steps (A and B share one image, B and C another). Groups
are ordered by a hash of the seed and their images: the parts do not depend on the order of the samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from data_pipeline.errors import BadSample
from data_pipeline.files import atomic_writer, claim_folder
from data_pipeline.parts import run_parts
from data_pipeline.select.config import SplitConfig
from data_pipeline.select.fingerprints import hash_bytes, hash_images, question_text
from data_pipeline.shards.format import read_shard
from data_pipeline.shards.index import load_samples
from data_pipeline.shards.stage import Drop, StageReport, run_stage
from data_pipeline.types import Sample

MANIFEST, GROUPS, TEST = "split.json", "groups", "test.npy"


def split(config: SplitConfig) -> dict[str, StageReport]:
    """Writes both parts; what is done already is not done again.

    Returns:
        The reports of `train` and `test`.

    Raises:
        ValueError: `out` holds another split, a part would be empty, or too many samples are unreadable.
    """
    out, index = Path(config.out), load_samples(config.shards)
    wanted = {"input": index.digest, "test": config.test, "seed": config.seed}
    is_chosen = (out / GROUPS / TEST).exists()  # until then another size or seed may be tried
    claim_folder(out, MANIFEST, wanted, replace=() if is_chosen else ("test", "seed"))
    numbers = range(len(index.shards))
    run_parts(partial(_hash_shard, config), numbers, work=config.work, desc="hash images")
    if not is_chosen:
        chosen = _choose_test(config)
        with atomic_writer(out / GROUPS / TEST) as file:
            np.save(file, chosen)
    return {
        part: run_stage(
            partial(_keep_part, config.out, part),
            config.shards,
            str(out / part),
            settings={"part": part, "test": config.test, "seed": config.seed},
            writer=config.writer,
            max_bad_samples=config.max_bad_samples,
            work=config.work,
        )
        for part in ("train", "test")
    }


def _keys(sample: Sample) -> list[int]:
    """Returns a hash of each image and of each video, and without them one of the question.

    A frame alone, such as a black one, does not tie two videos together.
    """
    videos = [hash_bytes(*map(str.encode, map(str, hash_images(video.frames)))) for video in sample.videos]
    return [*hash_images(sample.images), *videos] or [hash_bytes(b"text", question_text(sample).encode())]


def _hash_shard(config: SplitConfig, number: int) -> None:
    """Writes the hashes of one shard; what is written is left as it is. Unreadable samples are counted later."""
    path = Path(config.out) / GROUPS / f"{number:06d}.npz"
    if path.exists():
        return

    def skip(_name: str, _error: BadSample) -> None: ...

    keys = list(map(_keys, read_shard(load_samples(config.shards), number, skip)))
    flat = np.array([key for each in keys for key in each], dtype=np.uint64)
    with atomic_writer(path, shared=True) as file:
        np.savez(file, keys=flat, counts=np.array([len(each) for each in keys], dtype=np.int32))


def _choose_test(config: SplitConfig) -> np.ndarray:
    """Returns the sorted hashes of the test part: in their order the groups that still fit in its size."""
    files = sorted((Path(config.out) / GROUPS).glob("*.npz"))
    tables = [dict(np.load(file, allow_pickle=False)) for file in files]
    keys, counts = (np.concatenate([table[name] for table in tables]) for name in ("keys", "counts"))
    unique, group, sizes = _find_groups(keys, counts)
    lowest = np.full(len(sizes), np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(lowest, group, unique)
    total = int(sizes.sum())
    wanted = config.test if isinstance(config.test, int) else round(config.test * total)
    names = [hash_bytes(f"{config.seed} {key}".encode()) for key in lowest.tolist()]
    taken, left = np.zeros(len(sizes), dtype=bool), wanted
    for number in np.argsort(np.array(names, dtype=np.uint64), kind="stable").tolist():
        if sizes[number] <= left:
            taken[number] = True
            left -= int(sizes[number])
    if not taken.any() or taken.all():
        raise ValueError(
            f"test={config.test} of {total} samples leaves an empty part: they form {len(sizes)} groups that share "
            f"images, the largest of {sizes.max()} samples; choose another size"
        )
    return unique[taken[group]]


def _find_groups(keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the different hashes, the group of each, and the number of samples of each group."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    unique, place = np.unique(keys, return_inverse=True)
    first = place[np.cumsum(counts) - counts]  # of each sample
    edges = (np.ones(len(place), dtype=bool), (np.repeat(first, counts), place))
    num, group = connected_components(coo_array(edges, shape=(len(unique), len(unique))), directed=False)
    return unique, group, np.bincount(group[first], minlength=num)


def _keep_part(out: str, part: str, samples: Iterator[Sample], _drop: Drop, _shard: int) -> Iterator[Sample]:
    """Yields the samples of one shard that belong to `part`."""
    test = np.load(Path(out) / GROUPS / TEST, allow_pickle=False)
    for sample in samples:
        key = _keys(sample)[0]
        place = int(np.searchsorted(test, np.uint64(key)))
        if (place < len(test) and int(test[place]) == key) == (part == "test"):
            yield sample
