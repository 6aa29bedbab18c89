"""Ablation: every loss of a sweep in one table with intervals, WER against drift, and the claims, as one HTML page.

With a browser of the pairs: listen, filter, vote blindly.
"""

import sys

from talker_rl.report.dashboards import main

if __name__ == "__main__":
    sys.exit(main("loss_ablation", __doc__))
