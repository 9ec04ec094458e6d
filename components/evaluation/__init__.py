"""Measuring models: lm-eval's own tasks on local data, model-written code in a sandbox, and the gate's decision."""
