"""The model's steps as one page sees them, by the names that the native core has for them
(native/base/step.h). What the core did is looked for among them.

What the model does in one step the core may tell in two (a transaction takes the block, then begins
the first round of its recall); then the state between is made here. Bytes, and what the kernel and
the programs do meanwhile, the core does not see, and a page does not see other pages: of those
the rest of the tests tell."""

from __future__ import annotations

import re
from typing import NamedTuple

from .protocol import Model
from .state import (
    COPY,
    DRAIN,
    EXEC,
    FINISH,
    FLIP,
    FROZEN,
    HOST,
    INVAL,
    NONE,
    PARKED,
    PUNCH,
    READY,
    REPLAYED,
    STABLE,
    Job,
    State,
    bits,
    put,
)

# As tests/native/steps.c has them: of a page, then of its block.
BITS = (
    *("present", "device", "target", "cached", "recalling", "dirty", "kept", "frozen", "parked"),
    *("copy_target", "copy_other", "RECALL", "FROZEN", "busy", "home", "away", "in_flight", "cut"),
)


class Step(NamedTuple):
    """One page in one step: whether the step is about it, and the page's bits before and after."""

    name: str
    about: bool
    before: int
    after: int

    def __str__(self) -> str:
        of = "its page" if self.about else "a page beside it"
        return f"{self.name}, {of}: {say(self.before)} -> {say(self.after)}"


def names(code: int) -> list[str]:
    return [name for at, name in enumerate(BITS) if code >> at & 1]


def say(code: int) -> str:
    return " ".join(names(code)) or "nothing"


def see(model: Model, s: State, p: int) -> int:
    """The bits of a page."""
    mask, task = 1 << p, model.tasks[s.busy] if s.busy != NONE else None
    target = NONE if task is None or task.kind == "recall" else task.node
    parked = s.read[p] == PARKED or s.writeback[p] == PARKED or s.ahead == PARKED
    parked |= s.write.stage == PARKED and bool(s.write.pages & mask)
    there = bool(s.present & mask)
    cut = s.busy != NONE and s.jobs[s.busy].phase in (COPY, FLIP) and s.jobs[s.busy].cut
    seen = (
        there,
        there and s.owner[p] != HOST,
        there and target > HOST and s.owner[p] == target,
        s.cached & mask,
        s.recalling & mask,
        s.dirty & mask,
        s.kept & mask,
        s.frozen & mask,
        parked,
        target > HOST and s.copies[target] & mask,
        any(copies & mask for node, copies in enumerate(s.copies) if node != target),
        s.mode & 1,
        s.mode & 2,
        s.busy != NONE,
        target == HOST,
        target > HOST,
        s.mode == FROZEN and model.inflight(s),
        cut,
    )
    return sum(bool(bit) << at for at, bit in enumerate(seen))


# What the core tells, if anything, about which pages, and the state after it.
Chain = list[tuple[str, int, State]]

# By words of a label.
GATE = {
    "gate parks the READ of page": "read.parked",
    "gate admits the READ of page": "read.admitted",
    "gate answers the READ of": "read.answered",
    "gate admits the READ of all": "ahead.admitted",
    "gate parks the READ of all": "ahead.parked",  # which none may be
    "gate parks the page cache's WRITE": "back.parked",
    "gate admits the page cache's WRITE": "back.admitted",
    "gate applies the page cache's WRITE": "back.applied",
    "gate parks the WRITE": "write.parked",
    "gate admits the WRITE": "write.admitted",
    "gate applies the WRITE": "write.applied",
}
ALONE = {
    "kept copies are dropped": "kept.dropped",
    "lets the block go": "finished",
    "looked at again": "replayed",
    "open ends all copies": "open.ended",
}
# What the core tells nothing of: programs and the kernel by themselves; the block does not change.
UNTOLD = (
    *("EAGAIN", "past the end", "skips the overtaken", " is refused", "invalidation", "kernel "),
    *(" loads ", " stores ", " misses ", " fills ", " sends ", " opens ", " returns", " closes"),
    *(" faults", " operates", " copies"),
)


def told(model: Model, s: State, label: str, t: State) -> Chain:
    """What the core tells of a step from s to t."""
    if any(words in label for words in UNTOLD) and "all copies" not in label:
        return []
    for words, name in ALONE.items():
        if words in label:
            return [(name, 0, t)]
    for words, name in GATE.items():
        if words in label:
            return at_the_gate(model, s, name, label, t)
    for words, tell in TOLD.items():
        if words in label:
            return tell(model, s, label, t)
    raise ValueError(f"projection.py has no name for: {label}")


def page_in(label: str) -> int:
    """The page that a label names."""
    found = re.search(r" page (\d)", label)
    assert found, label
    return 1 << int(found[1])


def at_the_gate(model: Model, s: State, name: str, label: str, t: State) -> Chain:
    all_pages = (1 << len(model.pages)) - 1
    if "all pages" in label:
        return [(name, all_pages, t)]
    if "write(2)" not in label:
        mask = page_in(label)
    else:
        mask = s.write.pages & ~s.write.overtaken
        if name == "write.parked":  # by which of its pages
            causes = s.frozen | model.device(s, mask)
            mask = s.write.pages if s.mode == FROZEN else mask & causes or mask
    chain: Chain = [(name, mask, t)]
    if brought := model.device(s, mask) & ~model.device(t, mask):
        chain.insert(0, ("gate.home", brought, model.bring_home(s, brought)))
    return chain


def cut(model: Model, s: State, label: str, t: State) -> Chain:
    return [("cut.truncate" if "truncate" in label else "cut.punch", page_in(label), t)]


def allocated(model: Model, s: State, label: str, t: State) -> Chain:
    return [("allocated", s.present ^ t.present, t)]


def begun(model: Model, s: State, label: str, t: State) -> Chain:
    taken = s._replace(busy=t.busy)
    return [("begun", 0, taken), *recalled(model, taken, label, t)]


def recalled(model: Model, s: State, label: str, t: State) -> Chain:
    """The next of a recall's steps, from s on."""
    job, task = t.jobs[t.busy], model.tasks[t.busy]
    mask = 0 if task.node == HOST else task.pages
    if task.kind == "recall":
        mask = task.pages
    if job.phase == REPLAYED:
        return [("recall.replays", 0, t)]
    if job.phase == INVAL:
        return [("recall.round", job.round, t)]
    if job.phase == DRAIN:
        return [("recall.frozen", mask, t)]
    assert job.phase == FINISH
    if t.cached & mask or not mask:
        return [("recall.failed", 0, t)]
    frozen = t._replace(mode=FROZEN)
    return [("recall.frozen", mask, frozen), ("thawed", 0, t)]


def begun_again(model: Model, name: str, s: State, label: str, t: State) -> Chain:
    """The transaction thaws the block, and its next recall begins under the same hold."""
    between = s._replace(mode=STABLE, jobs=put(s.jobs, s.busy, Job(READY)))
    return [(name, 0, between), *recalled(model, between, label, t)]


def planned(model: Model, s: State, label: str, t: State) -> Chain:
    phase = t.jobs[t.busy].phase
    if phase in (INVAL, DRAIN, REPLAYED):  # what was to be copied is a hole after all
        return begun_again(model, "thawed", s, label, t)
    if phase != COPY:
        return thawed(model, s, label, t)
    if not s.jobs[s.busy].copying:
        return [("planned", 0, t)]
    # Another device's page comes home first: by a transaction within the transaction, whose steps
    # are those of a job that brings pages home. So this one is not told.
    chain: Chain = [("", 0, t._replace(jobs=s.jobs))] if s.owner != t.owner else []
    return [*chain, ("copy.planned", 0, t)]


def flipped(model: Model, s: State, label: str, t: State) -> Chain:
    job, phase = s.jobs[s.busy], t.jobs[t.busy].phase
    if phase == PUNCH:
        return [("flipped", 0, t)]
    if phase in (INVAL, DRAIN, REPLAYED) or t.mode != STABLE:
        return begun_again(model, "discarded", s, label, t)
    return [("copy.made", job.copy, t)]


def thawed(model: Model, s: State, label: str, t: State) -> Chain:
    """And what the transaction writes then is marked."""
    task, phase = model.tasks[s.busy], t.jobs[s.busy].phase
    between = s._replace(mode=STABLE, jobs=t.jobs)
    writes = task.kind == "write" and phase == EXEC
    if task.kind == "device_fault":
        worker, at = model.access_of[s.busy]
        store = model.setting.workers[worker].ops[at].kind == "store"
        there = s.present & task.pages and s.owner[bits(task.pages)[0]] == task.node
        writes = store and bool(there)
    chain: Chain = [("thawed", 0, between)]
    return [*chain, ("written", task.pages, t)] if writes else chain


TOLD = {
    "- the gate allocates": allocated,
    "- the gate: the": cut,
    "takes the block for": begun,
    "goes on with the recall": recalled,
    "looks whether pages": recalled,
    " plans:": planned,
    " flips": flipped,
    " punches ": thawed,
}


class Allowed:
    """Gathers what the model's steps look like to a page; give it to explore() as `watch`."""

    def __init__(self) -> None:
        self.steps: set[Step] = set()

    def __call__(self, model: Model, s: State, label: str, t: State) -> None:
        for name, about, after in told(model, s, label, t):
            for p in model.pages if name else ():
                step = Step(name, bool(about >> p & 1), see(model, s, p), see(model, after, p))
                self.steps.add(step)
            s = after
