#!/bin/sh
# The `modelyard` command: the code is the worker's clone (PYTHONPATH), or the image's own.
exec python -m flows.cli "$@"
