"""What a run changes of its recipe: keys given on the command line, lengths of phases, where files lie."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from .recipe import Recipe, validated

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_PHASES = ("train.ungated_epochs", "train.settled_epochs")


def parse_setting(setting: str) -> tuple[str, Any]:
    """``"train.lr=0.01"`` to its dotted key and its value: what TOML reads there, else the text itself.

    Raises:
        UserError: it is not KEY=VALUE.

    >>> parse_setting("train.milestones=[2, 3]")
    ('train.milestones', [2, 3])
    >>> parse_setting("init=start.safetensors")
    ('init', 'start.safetensors')
    """
    key, equals, text = (part.strip() for part in setting.partition("="))
    if not (key and equals and text):
        raise UserError(f"setting is {setting!r}; expected KEY=VALUE, such as train.lr=0.01")
    try:
        return key, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return key, text


def override(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe with other values of some keys.

    Where the length of the training becomes another, phases and milestones that are not given change in proportion.

    Args:
        recipe: left as it is.
        settings: by dotted key, such as ``"train.lr"``.

    Raises:
        UserError: a key is unknown or a value does not fit.
    """
    content = recipe.model_dump()
    before = recipe.train.length
    for key, value in settings.items():
        table, *rest = content, *key.split(".")
        for name in rest[:-1]:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                raise UserError(f"recipe {recipe.name}: {key!r} lies within {name!r}, which is no table")
        table[rest[-1]] = value
    train = content["train"]
    for unit, other in (("epochs", "iterations"), ("iterations", "epochs")):
        if f"train.{unit}" in settings and f"train.{other}" not in settings:
            train[other] = None
    after = train.get("epochs") or train.get("iterations")
    if isinstance(after, int) and after > 0 and after != before:
        _shrink(train, settings, before, after)
    return validated(content, f"recipe {recipe.name}")


def _shrink(train: dict[str, Any], settings: Mapping[str, Any], before: int, after: int) -> None:
    left = after
    for key in _PHASES:
        name = key.partition(".")[2]
        if key not in settings and train[name]:
            train[name] = min(round(train[name] * after / before), left)
            left -= train[name]
    if "train.milestones" not in settings and train["milestones"]:
        train["milestones"] = sorted({max(1, round(at * after / before)) for at in train["milestones"]})


def find_checkpoints(recipe: Recipe, beside: Path | None, shipped: Sequence[Path]) -> Recipe:
    """The recipe with ``init``, ``gater.init`` and ``policy.teacher`` as they are found.

    A name is looked up beside the recipe, then in the working directory, then among ``shipped`` networks, by their
    name with or without ``.safetensors``. ``runs/NAME.safetensors`` is also where training by default leaves it,
    ``runs/NAME/NAME.safetensors``.

    Args:
        recipe: left as it is.
        beside: the folder of the recipe; None if it has none.
        shipped: files.

    Raises:
        UserError: there is no such file; says where it was looked for.
    """
    found = {"init": recipe.init, "gater.init": recipe.gater.init, "policy.teacher": recipe.policy.teacher}
    settings = {key: _find(key, name, beside, shipped) for key, name in found.items() if name is not None}
    changed = {key: name for key, name in settings.items() if name != found[key]}
    return override(recipe, changed) if changed else recipe


def _find(key: str, name: str, beside: Path | None, shipped: Sequence[Path]) -> str:
    folders = [*([] if beside is None else [beside]), Path()]
    path = Path(name)
    for folder in folders:
        for candidate in (folder / path, folder / path.with_suffix("") / path.name):
            if candidate.is_file():
                return str(candidate)
    for file in shipped:
        if name in (file.name, file.stem):
            return str(file)
    looked = " or ".join(str(folder.absolute()) for folder in folders)
    raise UserError(
        f"{key} is {name}, which is neither in {looked} nor a shipped network "
        f"({', '.join(file.stem for file in shipped) or 'there are none'}); give the path of a checkpoint"
    )
