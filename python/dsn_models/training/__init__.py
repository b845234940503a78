"""Training of the reference models by recipe, and their evaluation."""

from .evaluation import evaluate
from .loop import train
from .recipe import Recipe, load_recipe, recipe_names

__all__ = ["Recipe", "evaluate", "load_recipe", "recipe_names", "train"]
