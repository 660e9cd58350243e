"""Load a recipe: a shipped one by name or a YAML file by path, with overrides."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from retrieval.errors import RecipeError
from training.recipe.schema import Recipe


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return a shipped recipe by name, or the recipe in a YAML file, with `dotted.key=value` overrides applied.

    Raises RecipeError, which names the key, the value and the expected value.
    """
    data = _read(name_or_path)
    for override in overrides:
        _override(data, override)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"recipe '{name_or_path}': {_sentence(error)}") from error


def shipped_recipes() -> list[str]:
    """Return the names of the shipped recipes, sorted."""
    folder = files("training") / "recipes"
    items = [("", item) for item in folder.iterdir()] + [("systems/", item) for item in (folder / "systems").iterdir()]
    return sorted(prefix + item.name.removesuffix(".yaml") for prefix, item in items if item.name.endswith(".yaml"))


def _read(name_or_path: str) -> dict[str, Any]:
    if name_or_path in shipped_recipes():
        text = (files("training") / "recipes" / f"{name_or_path}.yaml").read_text(encoding="utf-8")
    elif Path(name_or_path).is_file():
        text = _text(Path(name_or_path))
    else:
        known = ", ".join(shipped_recipes())
        raise RecipeError(f"recipe '{name_or_path}' is neither a shipped recipe ({known}) nor a file")
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe '{name_or_path}' is not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"recipe '{name_or_path}' is a {type(data).__name__}, not a mapping of keys")
    return data


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe '{path}' is not a UTF-8 text file ({error.reason})") from error


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, raw = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"override '{override}' is not of the form key=value, such as batching.batch_size=512")
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise RecipeError(f"override '{override}': '{raw}' is not a YAML value: {error}") from error
    # YAML 1.1 reads 1e-3 as a string; the number is meant.
    if isinstance(value, str):
        value = _number(value)
    *parents, last = key.strip().split(".")
    node = data
    for parent in parents:
        if node.get(parent) is None:
            node[parent] = {}
        node = node[parent]
        if not isinstance(node, dict):
            raise RecipeError(f"override '{override}': '{parent}' is a value, not a section")
    node[last] = value


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("static", "transformer")) or "the recipe"
    if first["type"] == "extra_forbidden":
        return f"'{where}' is not a key of a recipe (value {first['input']!r})"
    given = "" if isinstance(first["input"], dict) else f" (given {first['input']!r})"
    more = f"; {error.error_count() - 1} more like this" if error.error_count() > 1 else ""
    return f"'{where}': {first['msg'].removeprefix('Value error, ')}{given}{more}"
