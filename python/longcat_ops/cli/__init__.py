"""The command line, `python -m longcat_ops`: one module a command, imported when it runs."""

from .main import main

__all__ = ["main"]
