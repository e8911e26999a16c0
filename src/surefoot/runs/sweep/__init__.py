"""A search over settings of a recipe: every trial is an ordinary run; killed at any instant it goes on."""
