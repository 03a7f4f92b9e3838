"""The command line: `bitactor VERB …`, one file per verb."""

from mesh.cli.app import main

__all__ = ["main"]
