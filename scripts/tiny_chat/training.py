"""Trains the network until the minutes are over."""

from __future__ import annotations

import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

from tiny_chat.layout import BRANCH, END, NEWLINE, Turn, encode, encode_turn
from tiny_chat.model import Model
from tiny_chat.talk import make_conversation

# The one byte that decides what is calculated would drown among the hundred that are always the same.
DECISION = re.compile(r'"operation": "()|calculate \S+ ()[-+*/] ')
PROMPT_WEIGHT, FIRST_WEIGHT, DECISION_WEIGHT = 0.05, 4.0, 10.0
# A name is a few bytes of a long conversation, and the hardest; of counting nearly every byte is easy but the last.
BODY_WEIGHTS = {"ask": 4.0, "json": 1.5, "count": 0.4}


@dataclass(frozen=True)
class Plan:
    """How long and how fast."""

    minutes: float
    seed: int
    rate: float
    tokens: int  # in a step


@dataclass
class Batch:
    """`ids`, `targets`, `weights` and `answers` (which answer a token is of, 0: none), of shape [rows, length]; so are
    `positions`, which may leave gaps between turns.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    answers: np.ndarray


@dataclass
class Encoded:
    """A conversation: its tokens, where they stand, how much each counts, and which of its answers each is of."""

    ids: list[int]
    positions: list[int]
    weights: list[float]
    answers: list[int]
    tasks: list[str]


def encode_conversation(rng: random.Random, turns: list[Turn], most: int) -> Encoded:
    """What the model says counts in full, its first token more; what it is told hardly.

    Half of the conversations have a gap or two in their positions, so that long distances are learnt without the cost
    of long conversations (as in PoSE, https://arxiv.org/abs/2309.10400).
    """
    made = Encoded([], [], [], [], [])
    spare = most - sum(len(turn.content.encode()) + 16 for turn in turns)
    gaps: dict[int, int] = {}
    if spare > 0 and rng.random() < 0.5:
        for _ in range(rng.choice([1, 1, 2])):
            gap = rng.randint(0, spare)
            gaps[rng.randrange(len(turns))] = gap
            spare -= gap
    place = 0
    for number, turn in enumerate(turns):
        before, branch, after = turn.content.partition(BRANCH)
        head, body = encode_turn(Turn(turn.role, before + after))
        place += gaps.get(number, 0)
        made.positions += range(place, place + len(head) + len(body) + 1)
        place += len(head) + len(body) + 1
        made.ids += [*head, *body, NEWLINE]
        taught = [PROMPT_WEIGHT if turn.role == "user" else 0.0] * len(body)
        if turn.task:
            made.tasks.append(turn.task)
            taught = [BODY_WEIGHTS.get(turn.task, 1.0)] * len(body)
            taught[0] = FIRST_WEIGHT
            if turn.task == "count":
                taught[-1] = FIRST_WEIGHT
            if branch:
                taught[len(encode(before))] = DECISION_WEIGHT
            if found := DECISION.search(before + after):
                taught[len(encode((before + after)[: found.end(found.lastindex or 0)]))] = DECISION_WEIGHT
        made.weights += [0.0] * len(head) + taught + [0.0]
        answer = len(made.tasks) if turn.task else 0
        made.answers += [0] * len(head) + [answer] * len(body) + [0]
    return Encoded(made.ids[:most], made.positions[:most], made.weights[:most], made.answers[:most], made.tasks)


def make_step(rng: random.Random, tokens: int, context: int) -> Iterator[tuple[Batch, list[list[str]]]]:
    """Conversations of about `tokens` in all, those of like length side by side, each from position 0."""
    drawn: list[Encoded] = []
    while sum(len(each.ids) for each in drawn) < tokens:
        drawn.append(encode_conversation(rng, make_conversation(rng), context))
    drawn.sort(key=lambda each: len(each.ids))
    while drawn:
        longest = len(drawn[-1].ids)
        rows = max(1, min(len(drawn), 2600 // longest))
        while rows > 1 and len(drawn[-rows].ids) < 0.6 * longest:
            rows -= 1
        taken, drawn = drawn[-rows:], drawn[:-rows]
        shape = (rows, longest)
        ids, weights = np.full(shape, END, dtype=np.int64), np.zeros(shape, dtype=np.float32)
        answers, positions = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for row, each in enumerate(taken):
            ids[row, : len(each.ids)] = each.ids
            positions[row, : len(each.ids)] = each.positions
            weights[row, : len(each.ids)] = each.weights
            answers[row, : len(each.ids)] = each.answers
        batch = Batch(
            torch.from_numpy(ids[:, :-1]),
            torch.from_numpy(positions[:, :-1]).clamp(max=context - 1),
            torch.from_numpy(ids[:, 1:]),
            torch.from_numpy(weights[:, 1:]),
            answers[:, 1:],
        )
        yield batch, [each.tasks for each in taken]


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal: of each matrix's update all directions are equally long. In float32.

    After Keller Jordan's Muon; torch's own computes in bfloat16, which processors without matrix units do ten times
    slower. Parameters of [k × n, m] that hold k matrices side by side are taken apart by `parts`.
    """

    def __init__(self, groups: list[dict[str, object]], lr: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": 0.95, "parts": 1})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Each group's matrices have one shape, and are worked on together."""
        del closure
        for group in self.param_groups:
            updates = []
            for parameter in group["params"]:
                state = self.state[parameter]
                momentum = state.setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 1 - group["momentum"])
                updates.append(parameter.grad.lerp(momentum, group["momentum"]))
            stacked = torch.cat([u.view(group["parts"], -1, u.shape[1]) for u in updates])
            flat = orthogonal(stacked).view(len(updates), -1, stacked.shape[2])
            size = 0.2 * max(stacked.shape[1:]) ** 0.5
            for parameter, update in zip(group["params"], flat, strict=True):
                parameter.mul_(1 - 0.02 * group["lr"]).add_(update, alpha=-group["lr"] * size)


def orthogonal(x: torch.Tensor) -> torch.Tensor:
    """Nearly orthogonal matrices for `x` of shape [count, rows, columns], by five steps of Newton and Schulz."""
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if tall else x


def optimizers(model: Model, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for the embedding and the norms."""
    groups: dict[str, list[torch.nn.Parameter]] = {"qkv_proj": [], "o_proj": [], "gate_up_proj": [], "down_proj": []}
    rest: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        groups.get(name.split(".")[-1], rest).append(parameter)
    parts = {"qkv_proj": 3, "gate_up_proj": 2}
    matrices = [{"params": found, "parts": parts.get(name, 1)} for name, found in groups.items()]
    return [Muon(matrices, lr=rate), torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)]


class Scores:
    """How many of the latest answers were right in every token, by task."""

    def __init__(self) -> None:
        self.right: Counter[str] = Counter()
        self.all: Counter[str] = Counter()

    def add(self, batch: Batch, tasks: list[list[str]], wrong: np.ndarray) -> None:
        """`wrong` of shape [rows, length]: where the likeliest token was another."""
        for answers, missed, names in zip(batch.answers, wrong, tasks, strict=True):
            misses = np.bincount(answers, weights=missed, minlength=len(names) + 1)[1:]
            for task, miss in zip(names, misses, strict=False):
                self.all[task] += 1
                self.right[task] += not miss

    def take(self) -> str:
        """For the terminal; what comes next is counted again."""
        line = " ".join(f"{task} {100 * self.right[task] / self.all[task]:.0f}" for task in sorted(self.all))
        self.right.clear()
        self.all.clear()
        return line


def train(model: Model, plan: Plan, save: Callable[[], None]) -> int:
    """Until the minutes are over. Saves now and then. Gives the number of steps."""
    rng = random.Random(plan.seed)
    steppers = optimizers(model, plan.rate)
    begun = saved = time.monotonic()
    scores, step, loss_shown, shown = Scores(), 0, 0.0, 0.0
    while (share := (time.monotonic() - begun) / (60 * plan.minutes)) < 1:
        rate = plan.rate * min(1.0, (step + 1) / 100) * max(0.02, min(1.0, (1 - share) / 0.9))
        for stepper in steppers:
            for group in stepper.param_groups:
                group["lr"] = rate if isinstance(stepper, Muon) else 0.5 * rate
        batches = list(make_step(rng, plan.tokens, model.shape.context))
        total = sum(batch.weights.sum().item() for batch, _ in batches)
        loss_step = 0.0
        for batch, tasks in batches:
            logits = model(batch.ids, batch.positions)
            losses = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
            loss = (losses * batch.weights.flatten()).sum() / total
            loss.backward()
            loss_step += loss.item()
            scores.add(batch, tasks, (logits.detach().argmax(-1) != batch.targets).numpy())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad()
        step += 1
        loss_shown = 0.95 * loss_shown + 0.05 * loss_step if step > 1 else loss_step
        if time.monotonic() - shown > 60:
            shown = time.monotonic()
            line = f"{100 * share:3.0f} %  step {step}  loss {loss_shown:.4f}  {scores.take()}"
            print(line, file=sys.stderr, flush=True)
        if time.monotonic() - saved > 240:
            save()
            saved = time.monotonic()
    return step
