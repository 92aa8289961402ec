"""The recipe: one YAML file that says everything about a run."""

from distmem.recipe.load import Loaded, dump_recipe, json_schema, load_recipe, recipe_from_text
from distmem.recipe.schema import Recipe

__all__ = ["Loaded", "Recipe", "dump_recipe", "json_schema", "load_recipe", "recipe_from_text"]
