"""What Modelyard's stages do: plain Python that runs with no orchestrator present."""
