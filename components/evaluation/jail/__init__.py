"""The inside of the sandbox: a program of its own, stdlib only, which sandbox.py starts as `python components/evaluation/jail`. It begins in __main__.py."""
