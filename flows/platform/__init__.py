"""The platform: servers, workers and watchers that stay up, started by `modelyard up` and ended by `modelyard down`.

settings.py what the environment asks for, children.py what is run, supervisor.py keeps it running, state.py what is known about it on disk,
register.py what the Prefect server is told, up.py and status.py the commands.
"""
