"""Training recipes to compare: what each changes in one common config, and the runs with several seeds."""

import json
import shlex
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from elastic_dit.cli.stages import Stage
from elastic_dit.config import explain
from elastic_dit.errors import ConfigError, UnknownNameError
from elastic_dit.training.yaml_file import read_yaml


class Recipe(BaseModel):
    """One recipe."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    about: str
    """What it does otherwise, in a few words."""
    set: dict[str, Any] = Field(default_factory=dict)
    """What it changes, by key: `elastic.decision_noise: 0.5`. `{seed}` in a value is the run's seed."""


class Recipes(BaseModel):
    """Recipes that share a base; the first is the one that the others are compared with."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    about: str
    """What is compared, in a sentence."""
    base: Path
    """The training config that all start from."""
    output: Path
    """Folder of the runs: RECIPE-SEED each."""
    set: dict[str, Any] = Field(default_factory=dict)
    """What all recipes change in it."""
    recipes: dict[str, Recipe] = Field(min_length=1)
    """By name."""

    @classmethod
    def read(cls, file: Path) -> "Recipes":
        """From a YAML file.

        Raises:
            ConfigError: no such file, or not one of recipes.
        """
        try:
            return cls.model_validate(read_yaml(file, "recipes"))
        except ValidationError as error:
            raise ConfigError(f"{file}: {explain(error, cls)}") from error

    def folder(self, name: str, seed: int) -> Path:
        """Of one run."""
        return self.output / f"{name}-{seed}"

    def stage(self, name: str, seed: int) -> Stage:
        """One run: a recipe with a seed.

        Raises:
            UnknownNameError: no such recipe.
        """
        if name not in self.recipes:
            raise UnknownNameError("recipe", name, self.recipes)
        changes = {"seed": seed} | self.set | self.recipes[name].set
        words = ["train", str(self.base), "--output", str(self.folder(name, seed))]
        for key, value in changes.items():
            own = (
                value.replace("{seed}", str(seed)) if isinstance(value, str) else value
            )  # where an earlier recipe ended
            words += ["--set", f"{key}={json.dumps(own)}"]  # JSON is YAML
        made = "conversion.json" if changes.get("conversion") else "elastic_config.json"
        folder = self.folder(name, seed) / "adapter"
        return Stage(about=self.recipes[name].about, run=shlex.join(words), makes=folder / made)
