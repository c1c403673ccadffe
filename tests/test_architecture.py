"""The rules of the code base, read from its source: who imports whom, how large things are, what is not done.

Imports inside functions count like any other. Each rule also runs on a small tree that breaks it.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from launch.recipes.data import DATA_RECIPES
from launch.recipes.eval import EVAL_RECIPES
from launch.recipes.rl import RL_RECIPES
from launch.recipes.sft import SFT_RECIPES

ROOT = Path(__file__).parents[1]
CHAIN = ["data_pipeline", "megatron_omr", "rl", "launch"]

ORDER = " <- ".join(CHAIN)

ROOMS = {  # the modules and folders of a package; each imports only earlier ones
    "data_pipeline": [
        *(
            "types",
            "errors",
            "failures",
            "config",
            "files",
            "imports",
            "left_over",
            "scratch",
            "storage",
            "tables",
            "ray_session",
        ),
        "parts",
        *(
            "served",
            "verify",
            "encode",
            "shards",
            "loader",
            "sources",
            "benchmarks",
            "distill",
            "select",
            "curate",
        ),
    ],
    "megatron_omr": [
        *(
            "dtypes",
            "families",
            "model_config",
            "flops",
            "layout",
            "config",
            "fallbacks",
            "cpu",
            "faults",
            "parallel",
            "tiny",
            "peers",
            "oracle",
        ),
        *(
            "model",
            "convert",
            "train",
            "swap",
            "checkpoint",
            "plan",
            "preload",
            "convert_folders",
            "parity",
            "session",
            "validation",
            "sft",
        ),
    ],
    "rl": [
        *(
            "types",
            "timer",
            "algorithms",
            "rewards",
            "config",
            "prompts",
            "pack",
            "groups",
            "metrics",
            "mismatch",
            "weight_sync",
            "routing",
        ),
        *(
            "rollout",
            "trainer",
            "placement",
            "trainer_group",
            "evaluation",
            "results",
            "parity",
            "held_out",
            "learning",
            "modes",
            "loop",
        ),
    ],
    "launch": [
        *(
            "config",
            "recipes",
            "published",
            "arguments",
            "ranks",
            "doctor",
            "report",
            "watch",
            "stages",
            "summary",
            "demo",
            "studies",
        ),
        *(
            "data_commands",
            "plan_command",
            "submit",
            "evaluation",
            "executors",
            "submission",
            "launch_command",
            "parity",
            "cli",
        ),
    ],
}

CONFINED = {
    "megatron": ("megatron_omr/",),
    "transformer_engine": ("megatron_omr/",),
    "ray": ("rl/", "data_pipeline/parts.py", "data_pipeline/ray_session.py"),
    "vllm": ("rl/",),
    "webdataset": ("tests/",),
    "datasets": ("data_pipeline/sources/readers.py",),
    "fsspec": ("data_pipeline/storage.py",),
    "openai": ("data_pipeline/served/client.py",),
    "usearch": ("data_pipeline/select/neighbours.py",),
    "model2vec": ("data_pipeline/select/encoders.py",),
    "pyarrow": ("data_pipeline/sources/readers.py",),
    "ijson": ("data_pipeline/sources/readers.py",),
    "simplejpeg": ("data_pipeline/encode/images.py",),
    "av": ("data_pipeline/sources/media/video_decoder.py", "tests/"),
    "math_verify": ("data_pipeline/verify/math.py",),
    "wandb": ("megatron_omr/train/metrics.py",),
    "tyro": ("launch/",),
    "nemo_run": ("launch/executors.py",),
}
PURE = (
    *("rl/types.py", "rl/algorithms/", "rl/rewards/", "rl/pack.py", "rl/mismatch/"),
    *("rl/rollout/calls.py", "rl/rollout/members.py", "rl/rollout/manager.py", "rl/rollout/spans.py"),
    *("rl/rollout/deaths.py", "rl/rollout/starter.py"),
    *("rl/rollout/collect.py", "rl/rollout/carried.py", "rl/modes/line.py"),
)
HEAVY = ("torch", "ray", "vllm", "megatron", "transformers", "transformer_engine")
CONFIGS = [
    path.relative_to(ROOT).as_posix()
    for paths in (
        *((ROOT / package).rglob("config.py") for package in CHAIN),
        [ROOT / "megatron_omr" / "model_config.py"],
        (ROOT / "megatron_omr" / "families").glob("[!_]*.py"),
    )
    for path in paths
]
LIGHT = re.compile(r".*\.(config|model_config|dtypes|files)|megatron_omr\.families(\..*)?")

MAX_FILE, MAX_FUNCTION, MAX_PAGE, MAX_NESTING, MAX_FOLDER = 400, 60, 100, 3, 12
PAGES = ("megatron_omr/sft.py", "rl/loop.py", "data_pipeline/curate/curate.py", "launch/demo.py")

BROAD_EXCEPTS = {
    # reading a folder's tokenizer: transformers and tokenizers raise all sorts; the folder is named
    "data_pipeline/encode/chat_format.py": {"_load_tokenizer"},
    # decoding a sample: image decoders raise all sorts of errors; the loader counts it and names the sample
    "data_pipeline/encode/images.py": {"load_pixels"},
    # the same, where the broken image is a finding
    "data_pipeline/shards/check_sample.py": {"_check_image"},
    # asking for Transformer Engine: a broken install raises nearly anything; the reason is kept and shown
    "megatron_omr/cpu.py": {"find_import_error"},
    # a rank's exception, sent to the process that started it
    "data_pipeline/failures.py": {"call_or_fail"},
    # the same from a Ray Data task, to the process that asked for it
    "data_pipeline/parts.py": {"run"},
    # a reward function, a user's own too: the response counts as 0, is named, and too many stop the run
    "rl/rewards/compute.py": {"compute_reward"},
    # the scorer's thread: what goes wrong is handed to whoever waits for the responses
    "rl/rewards/scorer.py": {"_work"},
    # the live state of a run: what cannot be shown is named, and must end neither the run nor who logs
    "rl/modes/status.py": {"emit", "_write"},
    # the feeder's thread: the same, for whoever waits for the groups of a step
    "rl/modes/feeder.py": {"turn"},
    # where the scorer's results are joined: the same
    "rl/rollout/solutions.py": {"join"},
    # loading a user's own function and trying it: what it raises is named before anything starts
    "rl/rewards/own.py": {"load_own"},
    # the same from a thread, to the one that waits for its result
    "rl/placement/transfer.py": {"run"},
    # an engine's thread, to those who call it; the thread of the manager, to those who wait for responses
    "rl/rollout/server.py": {"_run", "_answer"},
    "rl/rollout/manager.py": {"_run", "_take_started"},
    # what an engine's start raised, to the manager
    "rl/rollout/starter.py": {"_start_one"},
    # what an engine raised, to the manager
    "rl/placement/engines.py": {"_take"},
}
UNPICKLER = "megatron_omr/checkpoint/metadata.py"  # whose job is to refuse
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "shelve", "marshal"}
BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.AsyncFor, ast.AsyncWith, ast.Match)
Function = ast.FunctionDef | ast.AsyncFunctionDef
IMPORT = (ast.Import, ast.ImportFrom)


class Source(NamedTuple):
    """One parsed file of the chain."""

    path: str  # relative to the root, with slashes
    text: str
    tree: ast.Module

    @property
    def package(self) -> str:
        return self.path.split("/")[0]

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


class Import(NamedTuple):
    names: tuple[str, ...]  # from a import b: ("a", "a.b")
    line: int


def read_sources(root: Path) -> list[Source]:
    paths = sorted(path for package in CHAIN for path in (root / package).rglob("*.py"))
    texts = {path.relative_to(root).as_posix(): path.read_text() for path in paths}
    return [Source(path, text, ast.parse(text)) for path, text in texts.items()]


@cache
def sources_of_this_code() -> list[Source]:
    return read_sources(ROOT)


@cache
def imports(source: Source) -> tuple[Import, ...]:
    return tuple(_find_imports(source))


def _find_imports(source: Source) -> Iterator[Import]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from (Import((alias.name,), node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            members = (f"{node.module}.{alias.name}" for alias in node.names)
            yield Import((node.module, *members), node.lineno)
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            yield from (
                Import((arg.value,), node.lineno) for arg in node.args if isinstance(arg, ast.Constant)
            )


def length(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def functions(source: Source) -> Iterator[Function]:
    return (node for node in ast.walk(source.tree) if isinstance(node, Function))


def _called(call: ast.Call) -> str:
    """Last part of what is called: "system" for os.system(...)."""
    return ast.unparse(call.func).rpartition(".")[2]


# ---- the rules: each yields "file:line: what is wrong" ----


def against_the_chain(sources: list[Source]) -> Iterator[str]:
    for source in sources:
        for found in imports(source):
            package = found.names[0].split(".")[0]
            if package in CHAIN and CHAIN.index(package) > CHAIN.index(source.package):
                yield f"{source.path}:{found.line}: {source.package} must not import {package} ({ORDER})"
            if package in ("tests", "benchmarks"):
                yield f"{source.path}:{found.line}: nothing imports {package}"


def against_the_rooms(sources: list[Source]) -> Iterator[str]:
    for source in sources:
        rooms = ROOMS[source.package]
        if source.module == source.package:
            continue
        room = source.module.split(".")[1]
        if room not in rooms:
            yield f"{source.path}:1: {room} is missing in ROOMS; put it behind what it imports"
            continue
        for found in imports(source):
            ours = (name.split(".")[1] for name in found.names if name.startswith(f"{source.package}."))
            for target in sorted(set(ours) & set(rooms[rooms.index(room) + 1 :])):
                yield f"{source.path}:{found.line}: {room} must not import {target} ({' <- '.join(rooms)})"


def crowded(sources: list[Source]) -> Iterator[str]:
    folders = Counter(source.path.rpartition("/")[0] for source in sources if "__init__" not in source.path)
    for folder, count in folders.items():
        if count > MAX_FOLDER:
            yield f"{folder}/: {count} Python files, at most {MAX_FOLDER}"


def out_of_confinement(sources: list[Source]) -> Iterator[str]:
    for source in sources:
        for found in imports(source):
            top = found.names[0].split(".")[0]
            rooms = CONFINED.get(top)
            if rooms and not source.path.startswith(rooms):
                yield f"{source.path}:{found.line}: {top} belongs in {' or '.join(rooms)}"
            if source.path.startswith(PURE) and top in ("ray", "vllm", "megatron"):
                yield f"{source.path}:{found.line}: {source.path} must not import {top}"


def relative_imports(sources: list[Source]) -> Iterator[str]:
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                yield f"{source.path}:{node.lineno}: relative import; write the full name"


def cycles(sources: list[Source]) -> Iterator[str]:
    modules = {source.module: source for source in sources}
    edges: dict[str, dict[str, int]] = {name: {} for name in modules}
    for name, source in modules.items():
        for found in imports(source):
            known = [target for target in found.names if target in modules]
            if known and known[-1] != name:
                edges[name].setdefault(known[-1], found.line)
    done: set[str] = set()
    for start in sorted(modules):
        yield from _cycles_from(start, edges, modules, [], done)


def _cycles_from(
    name: str, edges: dict[str, dict[str, int]], modules: dict[str, Source], trail: list[str], done: set[str]
) -> Iterator[str]:
    if name in trail:
        loop = [*trail[trail.index(name) :], name]
        yield f"{modules[loop[-2]].path}:{edges[loop[-2]][name]}: cycle {' -> '.join(loop)}"
    elif name not in done:
        for target in sorted(edges[name]):
            yield from _cycles_from(target, edges, modules, [*trail, name], done)
        done.add(name)


def heavy_configs(sources: list[Source]) -> Iterator[str]:
    for source in sources:
        for found in imports(source) if source.path in CONFIGS else ():
            name = found.names[0]
            light = name.split(".")[0] in sys.stdlib_module_names or LIGHT.fullmatch(name)
            if not light:
                yield f"{source.path}:{found.line}: a config must not import {name}"


def oversized(sources: list[Source]) -> Iterator[str]:
    for source in sources:
        num_lines = len(source.text.splitlines())
        if num_lines > MAX_FILE:
            yield f"{source.path}:1: {num_lines} lines, at most {MAX_FILE}"
        body = num_lines - sum(length(node) for node in source.tree.body if isinstance(node, IMPORT))
        if source.path in PAGES and body > MAX_PAGE:
            yield f"{source.path}:1: {body} lines besides its imports, a page has at most {MAX_PAGE}"
        for node in functions(source):
            if length(node) > MAX_FUNCTION:
                yield f"{source.path}:{node.lineno}: {node.name} has {length(node)} lines, at most {MAX_FUNCTION}"


def too_deep(sources: list[Source]) -> Iterator[str]:
    for source in sources:
        for node in functions(source):
            if (depth := _nesting(node)) > MAX_NESTING:
                yield f"{source.path}:{node.lineno}: {node.name} nests {depth} deep, at most {MAX_NESTING}"


def _nesting(node: ast.AST) -> int:
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*Function.__args__, ast.ClassDef, ast.Lambda)):
            continue
        is_elif = isinstance(node, ast.If) and node.orelse == [child] and isinstance(child, ast.If)
        deepest = max(deepest, _nesting(child) + (isinstance(child, BLOCKS) and not is_elif))
    return deepest


def broad_excepts(sources: list[Source]) -> Iterator[str]:
    for source in sources:
        allowed = BROAD_EXCEPTS.get(source.path, set())
        inside = {id(node): function.name for function in functions(source) for node in ast.walk(function)}
        for node in ast.walk(source.tree):
            if _catches_everything(node) and inside.get(id(node)) not in allowed:
                line = getattr(node, "lineno", 0)
                yield f"{source.path}:{line}: broad except; name the errors, or list it in BROAD_EXCEPTS"


def _catches_everything(node: ast.AST) -> bool:
    if isinstance(node, ast.ExceptHandler):
        last = node.body[-1]
        if isinstance(last, ast.Raise) and last.exc is None:  # tidies up, and re-raises
            return False
        types = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    elif isinstance(node, ast.Call) and _called(node) == "suppress":
        types = node.args
    else:
        return False
    return any(
        t is None or (isinstance(t, ast.Name) and t.id in ("Exception", "BaseException")) for t in types
    )


def unsafe(sources: list[Source]) -> Iterator[str]:
    for source in sources:
        for found in imports(source):
            if found.names[0].split(".")[0] in UNSAFE_MODULES and source.path != UNPICKLER:
                yield f"{source.path}:{found.line}: {found.names[0]} runs code from data; use JSON"
        for node in ast.walk(source.tree):
            for what in _unsafe_call(node) if isinstance(node, ast.Call) else ():
                yield f"{source.path}:{node.lineno}: {what}"


def _unsafe_call(call: ast.Call) -> Iterator[str]:
    given = {word.arg: word.value for word in call.keywords}
    if isinstance(call.func, ast.Name) and call.func.id in ("eval", "exec"):
        yield f"{call.func.id}() runs text"
    if _called(call) == "system":
        yield "system() runs a shell; use subprocess.run with a list"
    for name in ("shell", "trust_remote_code"):
        if name in given and not _is(False, given[name]):
            yield f"{name} is on"
    if ast.unparse(call.func) == "torch.load" and not _is(True, given.get("weights_only")):
        yield "torch.load without weights_only=True unpickles"


def _is(value: bool, node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


GROUPS = ("init_process_group", "new_group", "init_device_mesh", "initialize_model_parallel", "TCPStore")


def waits_without_end(sources: list[Source]) -> Iterator[str]:
    """Groups of processes whose operations have torch's limit instead of the run's, fault.timeout."""
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Call) and _called(node) in GROUPS:
                given = {word.arg for word in node.keywords}
                if not given & {"timeout", "distributed_timeout_minutes"}:
                    yield f"{source.path}:{node.lineno}: {_called(node)} without timeout"


def json_elsewhere(sources: list[Source]) -> Iterator[str]:
    for source in sources:
        for node in ast.walk(source.tree) if source.path != "data_pipeline/files.py" else ():
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.dumps", "json.dump"):
                yield f"{source.path}:{node.lineno}: writes NaN as if JSON had it; use to_json of files.py"


ALL = {
    f"{kind} {name}": recipe
    for kind, recipes in {
        "data": DATA_RECIPES,
        "sft": SFT_RECIPES,
        "rl": RL_RECIPES,
        "eval": EVAL_RECIPES,
    }.items()
    for name, recipe in recipes.items()
}

Rule = Callable[[list[Source]], Iterator[str]]
RULES: list[Rule] = [
    against_the_chain,
    against_the_rooms,
    crowded,
    out_of_confinement,
    relative_imports,
    cycles,
    heavy_configs,
    oversized,
    too_deep,
    broad_excepts,
    unsafe,
    waits_without_end,
    json_elsewhere,
]

BREAKS = {
    "against_the_chain": {"rl/x.py": "def f():\n    import launch.cli\n"},
    "against_the_rooms": {
        "data_pipeline/served/x.py": "from data_pipeline import verify, types\n",
    },
    "crowded": {f"rl/x{i}.py": "" for i in range(13)},
    "out_of_confinement": {"launch/x.py": "from vllm import LLM\n"},
    "relative_imports": {"rl/x.py": "from . import types\n"},
    "cycles": {"rl/x.py": "import rl.y\n", "rl/y.py": "def f():\n    from rl import x\n"},
    "heavy_configs": {"rl/config.py": "import torch\n"},
    "oversized": {"rl/x.py": "def f():\n" + "    g()\n" * 60},
    "too_deep": {
        "rl/x.py": "def f(x):\n  for a in x:\n    if a:\n      while a:\n        with a:\n          g()\n"
    },
    "broad_excepts": {
        "rl/x.py": "def f():\n    try:\n        g()\n    except (OSError, Exception):\n        pass\n"
    },
    "unsafe": {"rl/x.py": "load(x, trust_remote_code=True)\n"},
    "waits_without_end": {"rl/x.py": "dist.new_group([0], timeout=t)\ndist.init_process_group('gloo')\n"},
    "json_elsewhere": {"rl/x.py": "def f(x):\n    return json.dumps(x)\n"},
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_code_follows_rule(rule: Rule):
    broken = list(rule(sources_of_this_code()))
    assert not broken, "\n" + "\n".join(broken)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_sees_what_breaks_it(rule: Rule, tmp_path: Path):
    for name, text in BREAKS[rule.__name__].items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    found = list(rule(read_sources(tmp_path)))
    assert len(found) == 1 and found[0].startswith(("rl/", "launch/", "data_pipeline/")), found


def test_a_page_is_short_as_a_whole():
    text = "import a\n" + "g()\n" * MAX_PAGE
    page = Source("rl/loop.py", text, ast.parse(text))
    assert not list(oversized([page]))
    longer = text + "g()\n"
    assert list(oversized([page._replace(text=longer, tree=ast.parse(longer))]))


@pytest.mark.parametrize(
    "text",
    [
        "eval(x)",
        "import pickle",
        "torch.load(f)",
        "run(c, shell=True)",
        "os.system(c)",
        "from pickle import loads",
    ],
)
def test_each_unsafe_thing_is_seen(text: str):
    assert list(unsafe([Source("rl/x.py", text, ast.parse(text))]))


def test_elif_chains_do_not_nest():
    text = (
        "def f(x):\n"
        + "    if x == 0:\n        g()\n"
        + "".join(f"    elif x == {i}:\n        g()\n" for i in range(9))
    )
    assert not list(too_deep([Source("rl/x.py", text, ast.parse(text))]))


def test_every_listed_boundary_still_needs_its_place():
    for source in sources_of_this_code():
        for name in BROAD_EXCEPTS.get(source.path, ()):
            body = next(node for node in functions(source) if node.name == name)
            assert any(map(_catches_everything, ast.walk(body))), (
                f"{source.path}: {name} catches nothing broadly"
            )


def modules_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after `statement`."""
    code = f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("name", ALL)
def test_recipe_builds(name: str):
    config = ALL[name]()
    assert is_dataclass(config) and config.__dataclass_params__.frozen
    assert ALL[name]() == config, "a recipe is a plain function: the same call gives the same config"
    assert (ALL[name].__doc__ or "").strip(), "the first line of its docstring is what `omr` lists"


def test_configs_recipes_and_command_line_load_nothing_heavy():
    recipes = [f"launch.recipes.{path.stem}" for path in (ROOT / "launch" / "recipes").glob("[!_]*.py")]
    configs = [path.removesuffix(".py").replace("/", ".") for path in CONFIGS]
    loaded = modules_after(f"import {', '.join([*configs, *recipes, 'launch.cli', 'launch.doctor'])}")
    assert not loaded & {*HEAVY, "numpy"}


def test_algorithms_and_rewards_load_neither_ray_nor_vllm_nor_megatron_nor_transformers():
    paths = [path for path in (source.path for source in sources_of_this_code()) if path.startswith(PURE)]
    names = [path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in paths]
    assert not modules_after(f"import {', '.join(names)}") & {"ray", "vllm", "megatron", "transformers"}


def test_heavy_modules_are_seen_by_the_probe():
    assert "torch" in modules_after("import torch")
