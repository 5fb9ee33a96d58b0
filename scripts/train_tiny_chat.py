#!/usr/bin/env python3
"""Make tiny-chat, the demonstration model: train it, write it, measure it.

All text is made by scripts/tiny_chat, from words of our own writing, syllables, letters and numbers, with a seed; there
is no data set. Training and writing need torch, numpy, gguf and safetensors; --evaluate needs only llmsession.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "llmsession" / "models" / "tiny-chat.gguf"


def main() -> None:
    """Parse, and do what was asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long to train (60)")
    parser.add_argument("--seed", type=int, default=1, help="of the text and the first weights (1)")
    parser.add_argument("--rate", type=float, default=8e-3, help="largest learning rate (0.008)")
    parser.add_argument("--tokens", type=int, default=5120, help="in a step (5120)")
    parser.add_argument("--threads", type=int, default=2, help="of the processor (2)")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights to go on from, and to write")
    parser.add_argument("--out", type=Path, default=MODEL, metavar="GGUF", help="the file to write (the bundled one)")
    does = parser.add_argument_group("instead of training")
    does.add_argument("--show", type=int, metavar="N", help="print N conversations of the training")
    does.add_argument("--evaluate", type=Path, metavar="GGUF", help="print what a model gets right, through a Session")
    does.add_argument("--cases", type=int, default=200, help="of each task, for --evaluate (200)")
    does.add_argument("--misses", type=int, default=0, help="of each task to print, for --evaluate (0)")
    does.add_argument(
        "--export-safetensors", type=Path, metavar="FOLDER", help="write --out's weights for other libraries"
    )
    arguments = parser.parse_args()
    if arguments.show:
        show(arguments)
    elif arguments.evaluate:
        evaluate(arguments)
    elif arguments.export_safetensors:
        from tiny_chat.to_safetensors import export_safetensors

        export_safetensors(arguments.out, arguments.export_safetensors)
        print(f"{arguments.export_safetensors}: the weights of {arguments.out}", file=sys.stderr)
    else:
        train(arguments)


def show(arguments: argparse.Namespace) -> None:
    """Some of what it is taught."""
    from tiny_chat.layout import BRANCH
    from tiny_chat.talk import make_conversation

    rng = random.Random(arguments.seed)
    for _ in range(arguments.show):
        print(*(f"{turn.role}: {turn.content.replace(BRANCH, '')}" for turn in make_conversation(rng)), "", sep="\n")


def train(arguments: argparse.Namespace) -> None:
    """Until the minutes are over; Ctrl-C ends it earlier, and what was learned is written."""
    import torch

    from tiny_chat.model import Model, Shape
    from tiny_chat.to_gguf import write_gguf
    from tiny_chat.training import Plan
    from tiny_chat.training import train as run

    # First of all, since threads take it over when they begin: sharp attention is full of denormals, which are slow.
    torch.set_flush_denormal(True)
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    model = Model(Shape())
    if arguments.checkpoint is not None and arguments.checkpoint.exists():
        model.load_state_dict(torch.load(arguments.checkpoint, weights_only=True))

    def save() -> None:
        if arguments.checkpoint is not None:
            half = arguments.checkpoint.with_suffix(".new")
            torch.save(model.state_dict(), half)
            half.replace(arguments.checkpoint)
        write_gguf(model, arguments.out)

    plan = Plan(arguments.minutes, arguments.seed, arguments.rate, arguments.tokens)
    try:
        print(f"{run(model, plan, save)} steps of {arguments.tokens} tokens", file=sys.stderr)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
    save()
    print(f"{arguments.out}: {arguments.out.stat().st_size} bytes", file=sys.stderr)


def evaluate(arguments: argparse.Namespace) -> None:
    """A row of the table as soon as it is known."""
    import anyio

    from tiny_chat.cases import TASKS
    from tiny_chat.evaluation import measure, open_doors

    async def run() -> None:
        right = ended = cases = 0
        print("| task | right | ended by itself |\n|---|---|---|", flush=True)
        async with open_doors(str(arguments.evaluate), threads=arguments.threads) as doors:
            for title in TASKS:
                score = await measure(doors, title, arguments.cases)
                print(f"| {title} | {score.right} of {score.cases} | {score.ended} |", flush=True)
                for miss in score.misses[: arguments.misses]:
                    print(f"    {miss}", file=sys.stderr)
                right, ended, cases = right + score.right, ended + score.ended, cases + score.cases
        print(f"| **all** | {right} of {cases} | {ended} |")

    anyio.run(run)


if __name__ == "__main__":
    main()
