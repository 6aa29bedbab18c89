"""Stability: cap hits, early stops, silence, repetition and the tails of durations, base beside trained, as one HTML
page.

With a browser of the pairs: listen, filter, vote blindly.
"""

import sys

from talker_rl.report.dashboards import main

if __name__ == "__main__":
    sys.exit(main("stability", __doc__))
