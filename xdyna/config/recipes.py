"""Recipes of several stages: experiments of one folder that hand on to each other by `init` and `out`."""

import os
from collections.abc import Mapping
from typing import Any

from xdyna.config.loader import compose, names
from xdyna.config.train import TrainConfig
from xdyna.core.errors import ConfigError

# What a plan is made with where no data set is named.
PLACEHOLDERS: Mapping[str, Any] = {"data.manifests": ["(none given)"]}


def stages_of(recipe: str, config_dir: str | os.PathLike[str] | None = None) -> list[str]:
    """The experiments of a recipe in the order in which they run: each begins where the one before it ends.

    Args:
        recipe: folder in `configs/experiment`: "tiny" has "tiny/vae", "tiny/base", ...
        config_dir: a folder of the user's own.

    Returns:
        Names for experiment=NAME.

    Raises:
        ConfigError: there is no such recipe, or its experiments do not follow from each other.
    """
    members = [name for name in names("experiment", config_dir) if name.rpartition("/")[0] == recipe]
    if not members:
        recipes = sorted({name.rpartition("/")[0] for name in names("experiment", config_dir)} - {""})
        raise ConfigError(f"--stages {recipe}: there is no such recipe; expected one of {', '.join(recipes)}")
    configs = {
        name: compose(
            TrainConfig, "train", [f"experiment={name}"], config_dir=config_dir, placeholders=PLACEHOLDERS
        ).config
        for name in members
    }
    made_by = {f"{config.out}/final": name for name, config in configs.items()}
    before = {name: made_by.get(config.init or "") for name, config in configs.items()}
    order: list[str] = []
    while len(order) < len(members):
        free = [name for name in members if name not in order and before[name] in (None, *order)]
        if not free:
            raise ConfigError(f"--stages {recipe}: {', '.join(set(members) - set(order))} begin with each other's ends")
        order.extend(free[:1])
    return order
