"""The words the parts of Modelyard share: recipes (what is asked for) and records (what was done)."""
