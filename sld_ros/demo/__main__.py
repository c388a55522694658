"""`python -m sld_ros.demo`."""

import sys

from sld_ros.demo.demo import main

sys.exit(main())
