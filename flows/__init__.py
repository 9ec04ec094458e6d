"""When and where the stages run: Prefect flows, and the `modelyard` command that starts the same flows from a terminal."""
