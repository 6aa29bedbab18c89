"""Options of ``talker-rl plan`` and ``talker-rl doctor``. Imports nothing heavy: every command parses them."""

from __future__ import annotations

import argparse

PLAN_EXAMPLES = """\
talker-rl plan -c qwen2.5-omni-7b-dpo --prompts 5000 --seconds 6
  talker-rl plan -c demo --rates runs/demo        at the rates of a run that has finished"""

DOCTOR_EXAMPLES = """\
talker-rl doctor --model /models/Qwen2.5-Omni-7B model.dtype=bfloat16     a checkpoint, before anything is configured
  talker-rl doctor -c qwen2.5-omni-7b-dpo                 all that a run needs
  talker-rl doctor --run-dir runs/demo                    of a run that has begun: what its pairs teach of stopping"""


def add_doctor_options(doctor: argparse.ArgumentParser) -> None:
    """All but the configuration's."""
    doctor.add_argument("--model", metavar="DIR", help="checkpoint folder or hub name, in place of model.path; without "
                        "--config only the machine and the model are looked at")
    doctor.add_argument("--run-dir", metavar="DIR", help="folder of a run that has pairs: also tells which losses "
                        "would push the stop down in them; without a configuration that of the run is used")
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON; the exit code is the same")
    doctor.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)


def add_plan_options(plan: argparse.ArgumentParser) -> None:
    """All but the configuration's."""
    plan.add_argument("--geometry", metavar="NAME", help="qwen2.5-omni-7b, qwen2.5-omni-3b, "
                      "qwen3-omni-30b-a3b, micro, or a folder or hub "
                      "name with a config.json (default: model.path)")
    plan.add_argument("--prompts", type=int, metavar="N", help="train prompts (default: those of the configuration)")
    plan.add_argument("--candidates", type=int, metavar="N", help="candidates per prompt")
    plan.add_argument("--seconds", type=float, metavar="S", help="of speech per utterance (default: as in the measured "
                      "run, else 5)")
    plan.add_argument("--gpus", type=int, default=1, metavar="G", help="GPUs to divide the work among (default 1)")
    plan.add_argument("--hardware", metavar="NAME", help="h200, a100, or cpu: one core per worker (default: the "
                      "measured one, else cpu for micro and h200 for all others)")
    plan.add_argument("--tflops", type=float, metavar="X", help="what a device sustains, in place of an assumed share "
                      "of its peak")
    plan.add_argument("--bandwidth", type=float, metavar="GB/S", help="likewise, of its memory")
    plan.add_argument("--rates", metavar="RUN_DIR|FILE", help="take rates and lengths from a finished run, or from the "
                      "JSON that such a plan printed")
    plan.add_argument("--json", action="store_true", help="print JSON")
    plan.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
