"""`python -m zoo.cli`, where the script `zoo` is not on the path."""

import sys

from zoo.cli import main

sys.exit(main())
