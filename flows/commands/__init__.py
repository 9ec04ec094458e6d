"""The commands of `modelyard`, one file a subject. Nothing heavy is imported at the door; each command imports what it needs."""
