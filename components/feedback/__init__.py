"""Feedback by people (people/), who rank answers on a page, and by an AI: a critic reads a policy's answers by a constitution, revises them, and says which is better."""
