"""YAML files, which may be a stranger's: read within bounds, as plain values."""

import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from geoseg_gan.utils.errors import UserError, one_line

_LARGEST = 500_000  # bytes of a file
_MOST = 30_000  # values in it, once its aliases are followed


def load_yaml(path: Path) -> tuple[str, dict[Any, Any]]:
    """A YAML file's text, and its content as plain dicts and lists.

    Raises:
        UserError: If it is no mapping, larger than a configuration, or names Python objects.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file.")
    with path.open("rb") as file:
        content = file.read(_LARGEST + 1)
    try:
        if len(content) > _LARGEST:
            raise ValueError(f"more than {_LARGEST:,} bytes are no configuration")
        text = content.decode()
        root = yaml.compose(text, yaml.SafeLoader)
        if root is None:
            return text, {}
        if not isinstance(root, yaml.MappingNode):
            raise ValueError("it holds no key: value")
        if _count(root, {}) > _MOST:
            raise ValueError(f"more than {_MOST:,} values are no configuration")
        return text, OmegaConf.to_container(OmegaConf.create(text))  # type: ignore[return-value]
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        why = re.sub(r' *in "<[^>]*>",', "", one_line(str(error)))
    except RecursionError:
        why = "it is nested too deeply"
    raise UserError(f"{path} cannot be read as YAML: {why}.")


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for, with each alias as the values that it repeats."""
    if id(node) not in known:
        if node.tag.startswith("tag:yaml.org,2002:python"):
            raise ValueError(f"the tag {node.tag.rpartition(':')[2]} stands for a Python object")
        known[id(node)] = _MOST  # met inside itself, it has no end
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in parts for part in pair]
        known[id(node)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(node)]
