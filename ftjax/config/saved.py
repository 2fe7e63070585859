"""Configurations as JSON, as a work folder keeps them."""

import json
from typing import Any

from ml_collections import ConfigDict

from ftjax.config.keys import default_config, flat_keys, known_options, use_method, use_optimizer
from ftjax.errors import UserError, summary
from ftjax.registry import NotFound


def to_json(config: ConfigDict) -> str:
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ConfigDict:
    """The inverse of `to_json`: lists become tuples again, and keys that came later are there.

    Raises:
        NotFound: it names what is not installed here.
        UserError: it is not what `to_json` wrote.
    """
    try:
        config = _from_saved(json.loads(text))
        known = known_options(config)
    except NotFound:
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"not the configuration of a run ({summary(error)})") from error
    flat = flat_keys(config)
    for key, option in known.items():
        if key not in flat:
            raise UserError(f"not the configuration of a run: it lacks {key!r}")
        option.read(key, flat[key])
    return config


def _from_saved(saved: dict[str, Any]) -> ConfigDict:
    method = saved["method"]
    config = default_config(method["name"], saved["task"]["name"])
    use_optimizer(config, saved.get("optimizer", {}).get("name", "adamw"))
    if "over" in method:
        use_method(config, method["name"], method["over"]["name"])
        saved["method"] = {**method, "over": {**config.method.over.to_dict(), **method["over"]}}
    with config.unlocked():
        for section, values in saved.items():
            if isinstance(values, dict):
                values = ConfigDict({**config[section].to_dict(), **values})
            config[section] = values
    for key, value in flat_keys(config).items():
        if isinstance(value, list):
            *parents, last = key.split(".")
            node = config
            for parent in parents:
                node = node[parent]
            with node.unlocked(), node.ignore_type():
                node[last] = tuple(value)
    config.lock()
    return config
