"""YAML files of keys and values, where no key stands twice."""

from pathlib import Path
from typing import Any

import yaml

from elastic_dit.errors import ConfigError


def read_yaml(file: Path, what: str) -> dict[str, Any]:
    """What a file says.

    Args:
        file: the YAML file; an empty one says nothing.
        what: what it should be, for an error: "a training config".

    Raises:
        ConfigError: it cannot be read, is not valid YAML, holds something else, or has a key twice.
    """
    try:
        values = yaml.load(file.read_text(), _UniqueKeys) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {what} from {file}: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file} holds a {type(values).__name__}; expected {what}, keys and values")
    return values


class _UniqueKeys(yaml.SafeLoader):
    """Refuses what YAML's parser would drop without a word: the first of two values of a key."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is a list or a mapping", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} is there twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return node
