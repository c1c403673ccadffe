"""Configs from command lines: fields, positional fields, recipes and presets as base configs."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from tyro import MISSING

from data_pipeline.select.config import FilterConfig, SelectConfig
from launch.arguments import FLAT, pick, presets, recipes, run
from launch.config import DigitsConfig
from launch.recipes.sft import SFT_RECIPES
from megatron_omr.config import SFTConfig
from megatron_omr.convert_folders.config import ToMegatronConfig


def parsed(config_type: type, words: list[str], *, bases: dict | None = None, by_preset: bool = False) -> Any:
    """The config that a command gets from `words`."""
    seen = []

    def command(config: Any) -> None:
        """Takes a config."""
        seen.append(config)

    command.__annotations__["config"] = Annotated[config_type, FLAT]
    grouped = presets(command, bases or {}) if by_preset else recipes(command, bases or {})
    run(grouped if bases else command, words)
    return seen[0]


@pytest.mark.parametrize(
    "words", [["--optim.lr", "1e-2", "--parallel.tp", "2"], ["--optim.lr=1e-2", "--parallel.tp=2"]]
)
def test_overrides_reach_the_config(words: list[str]):
    config = parsed(SFTConfig, ["demo", *words], bases=SFT_RECIPES)
    assert (config.optim.lr, config.parallel.tp) == (1e-2, 2)
    assert config.loader == SFT_RECIPES["demo"]().loader


@pytest.mark.parametrize(
    "words",
    [
        ["--preset=long", "a", "b", "--filters.max_images=2"],
        ["a", "--preset", "long", "b", "--filters.max_images", "2"],
        ["a", "b", "--filters.max-images", "2", "--preset", "long"],
    ],
)
def test_preset_is_a_base_whose_fields_can_be_changed(words: list[str]):
    bases = {
        name: SelectConfig(shards=MISSING, out=MISSING, filters=FilterConfig(min_words=least))
        for name, least in (("short", 1), ("long", 100))
    }
    config = parsed(SelectConfig, words, bases=bases, by_preset=True)
    assert (config.shards, config.out) == ("a", "b")
    assert config.filters == FilterConfig(min_words=100, max_images=2)
    plain = parsed(SelectConfig, ["a", "b"], bases=bases, by_preset=True)
    assert plain.filters == FilterConfig(min_words=1), "the first preset is the default"


def test_fields_without_a_default_are_positional():
    config = parsed(ToMegatronConfig, ["a", "b", "--parallel.tp", "2"])
    assert (config.source, config.out, config.parallel.tp) == ("a", "b", 2)
    assert parsed(DigitsConfig, ["out", "--train", "5"]).counts["train"] == 5


def test_pick_lists_all_choices_when_nothing_is_near():
    with pytest.raises(ValueError, match="no recipe 'zzz'; there are demo, other"):
        pick("recipe", {"demo": 1, "other": 2}, "zzz")
