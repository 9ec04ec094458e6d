"""AI feedback: a critic reads a policy's answers by a constitution, revises them, and says which is better."""
