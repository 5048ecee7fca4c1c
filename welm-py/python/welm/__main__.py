"""``python -m welm``; see :mod:`welm._cli`."""

import sys

from welm._cli import main

if __name__ == "__main__":
    sys.exit(main())
