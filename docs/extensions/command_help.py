"""A directive that shows what a command of the command line prints with ``--help``: ``.. command-help:: fit``."""

import contextlib
import io
import os
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

from anomnorm_core.cli import main


class CommandHelp(Directive):
    """The help of ``anomnorm``, or of the command that is its argument."""

    optional_arguments: ClassVar[int] = 1

    def run(self) -> list[nodes.Node]:
        """One block of text."""
        printed = io.StringIO()
        os.environ["COLUMNS"] = "88"
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([*self.arguments, "--help"])
        return [nodes.literal_block(printed.getvalue(), printed.getvalue(), language="text")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
