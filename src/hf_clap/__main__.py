"""`python -m hf_clap` is `hf-clap`."""

import sys

from .cli import main

sys.exit(main())
