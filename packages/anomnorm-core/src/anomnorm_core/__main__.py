"""``python -m anomnorm_core``: the command line, see `anomnorm_core.cli`."""

import sys

from anomnorm_core.cli import main

if __name__ == "__main__":
    sys.exit(main())
