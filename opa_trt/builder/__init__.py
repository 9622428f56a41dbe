"""From a recipe to a bundle (offline only)."""

from opa_trt.builder.pipeline import build
from opa_trt.builder.recipe import Recipe, read_recipe, recipe_from_dict, shipped_recipes
from opa_trt.builder.stages import STAGES

__all__ = ["STAGES", "Recipe", "build", "read_recipe", "recipe_from_dict", "shipped_recipes"]
