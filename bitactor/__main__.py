"""`python -m bitactor`: the `bitactor` command."""

import sys

from bitactor.launcher import main

sys.exit(main())
