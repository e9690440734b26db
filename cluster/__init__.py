"""Starting and watching jobs. Importing it checks the Python version, so every entry point says a wrong one in one line."""

import sys

if sys.version_info[:2] != (3, 11):
    sys.exit(
        f"videoar: needs Python 3.11, found {sys.version_info[0]}.{sys.version_info[1]} ({sys.executable}); "
        "run `make setup` with python3.11 installed"
    )
