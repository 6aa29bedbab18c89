"""Length: WER, pauses and durations by step, drift, and what the implicit reward prefers, as one HTML page.

With a browser of the pairs: listen, filter, vote blindly.
"""

import sys

from talker_rl.report.dashboards import main

if __name__ == "__main__":
    sys.exit(main("length", __doc__))
