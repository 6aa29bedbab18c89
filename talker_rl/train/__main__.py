"""``python -m talker_rl.train task.json``: one training, as one process or, under torchrun, as one of several."""

import sys

from talker_rl.train.launch import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
