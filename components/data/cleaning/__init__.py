"""Mending what is wrong with a text and telling its language: encodings, Unicode forms, boilerplate lines."""
