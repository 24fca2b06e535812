"""A progress bar for whoever looks on."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack

from anomnorm_core.cli.table import Block, Table


def blocks_of(tables: Iterable[Table], *, whole: bool = False) -> Iterator[Block]:
    """The rows of all ``tables``, with a bar on standard error if that is a terminal and tqdm is installed."""
    tables = list(tables)
    with ExitStack() as stack:
        bar = None
        if sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                pass
            else:
                total = sum(table.size for table in tables)
                bar = stack.enter_context(tqdm(total=total, unit="B", unit_scale=True, leave=False, file=sys.stderr))
        for table in tables:
            for block in table.blocks(whole=whole):
                yield block
                if bar is not None:
                    bar.update(block.size)
