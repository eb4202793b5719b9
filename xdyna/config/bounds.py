"""How large a YAML file may be once its aliases are written out: a few lines of them can stand for 10^9 values."""

from pathlib import Path

import yaml

from xdyna.core.errors import ConfigError

MOST_BYTES = 4_000_000
MOST_VALUES = 200_000
DEEPEST = 100


def check_size(path: Path) -> None:
    """See that a YAML file can be read with little memory; whether it is right is for its reader to see.

    Args:
        path: the file.

    Raises:
        ConfigError: too many bytes, values (aliases written out) or levels, or an alias inside of what it stands for.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ConfigError(f"config file {path} has {path.stat().st_size} bytes; expected at most {MOST_BYTES}")
        # Each open collection: its anchor, and the values in it so far.
        known: dict[str, int | None] = {}
        open_nodes: list[tuple[str | None, int]] = [(None, 0)]
        for event in yaml.parse(path.read_bytes(), Loader=yaml.SafeLoader):
            anchor = getattr(event, "anchor", None)
            if isinstance(event, yaml.CollectionStartEvent):
                if anchor:
                    known[anchor] = None
                open_nodes.append((anchor, 1))
                values = 0
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, values = open_nodes.pop()
                if anchor:
                    known[anchor] = values
            elif isinstance(event, yaml.AliasEvent):
                found = known.get(event.anchor, 1)
                if found is None:
                    raise ConfigError(
                        f"config file {path}: the alias *{event.anchor} stands inside of what it stands for"
                    )
                values = found
            elif isinstance(event, yaml.ScalarEvent):
                values = 1
                if anchor:
                    known[anchor] = 1
            else:
                continue
            open_nodes[-1] = (open_nodes[-1][0], open_nodes[-1][1] + values)
            if open_nodes[-1][1] > MOST_VALUES:
                raise ConfigError(
                    f"config file {path} stands for more than {MOST_VALUES} values once its aliases are written out; "
                    "expected a config: write out what is meant"
                )
            if len(open_nodes) > DEEPEST:
                raise ConfigError(f"config file {path} is nested more than {DEEPEST} levels deep; expected a config")
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return  # its reader says what is wrong
