"""From a recipe to a bundle (offline only)."""

from opa_trt.builder.pipeline import STAGES, build
from opa_trt.builder.recipe import Recipe, read_recipe, recipe_from_dict, shipped_recipes

__all__ = ["STAGES", "Recipe", "build", "read_recipe", "recipe_from_dict", "shipped_recipes"]
