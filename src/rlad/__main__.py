"""`python -m rlad`, which launchers want: accelerate launch -m rlad train recipe.yaml."""

import sys

from rlad.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
