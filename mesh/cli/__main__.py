"""`python -m mesh.cli`: the `bitactor` command."""

import sys

from mesh.cli.app import main

sys.exit(main())
