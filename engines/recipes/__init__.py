"""Recipes and the small weights that ship with them: data only."""
