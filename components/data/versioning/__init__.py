"""Versions of data: what DVC is told of a recipe, what it makes, and what changed between two revisions."""
