"""Giving people a model to talk to."""
