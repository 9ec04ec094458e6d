"""When and where the stages run: Prefect flows, and the `modelyard` command that starts the same flows from a terminal."""

import os

if "PREFECT__FLOW_RUN_ID" in os.environ:  # a worker started this process for one flow run, and it has just begun to load our code
    from flows import attempts

    attempts.begin_for_engine()
