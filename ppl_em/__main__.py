"""`python -m ppl_em` is the command `ppl-em`."""

import sys

from ppl_em.cli import main

sys.exit(main())
