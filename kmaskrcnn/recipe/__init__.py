"""The automatic recipe: settings made from the data set, the machine and the weights that can be had."""

from kmaskrcnn.recipe.facts import Facts, Machine, facts_of, this_machine
from kmaskrcnn.recipe.given import Choice
from kmaskrcnn.recipe.recipe import Recipe, make_recipe
from kmaskrcnn.recipe.rules import RULES
from kmaskrcnn.recipe.starts import Start, find_start

__all__ = [
    "RULES",
    "Choice",
    "Facts",
    "Machine",
    "Recipe",
    "Start",
    "facts_of",
    "find_start",
    "make_recipe",
    "this_machine",
]
