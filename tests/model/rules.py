"""Whether the model allows a step of one page: states of the model are made that look to the page
like the one before, the rule of that name is carried out on them, and what comes out is looked at.

What a page does not see is made up: a second page, in each state that matters, the job that holds
the block, requests on their way. So a step is allowed if in some such state the model takes it.
That the state before comes about was shown by the step that led there."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from .projection import BITS, Chain, Step, flipped, names, planned, recalled, see, thawed, told
from .protocol import Model
from .state import (
    ABSENT,
    ADMITTED,
    CLEAN,
    COPY,
    DRAIN,
    FINISH,
    FIRST,
    FLIP,
    FROZEN,
    HOLE,
    HOST,
    IDLE,
    INVAL,
    NONE,
    PARKED,
    PUNCH,
    QUEUED,
    READING,
    READY,
    RECALL,
    RELOCK,
    STABLE,
    WRITEBACK,
    Job,
    Op,
    Protocol,
    Setting,
    State,
    Steps,
    Task,
    Worker,
    Write,
    put,
)

TARGET, OTHER = 1, 2  # nodes
BOTH = 3  # pages
WRITTEN = (BOTH, 1, 2)  # by the programs
BIT = {name: 1 << at for at, name in enumerate(BITS)}
PAGE = BIT["RECALL"] - 1  # the bits of a page; the others are its block's


class Page(NamedTuple):
    """What the directory has of it, and whether a request that may have locked it is parked."""

    owner: int = HOST
    present: bool = True
    cached: bool = False
    recalling: bool = False
    dirty: bool = False
    kept: bool = False
    frozen: bool = False
    parked: bool = False
    copies: tuple[bool, bool] = (False, False)  # of TARGET and OTHER


BESIDE = (
    Page(),
    Page(cached=True),
    Page(present=False),
    Page(TARGET),
    Page(OTHER),
    Page(cached=True, parked=True),
    Page(OTHER, parked=True),
    Page(recalling=True),
    Page(TARGET, kept=True),
    Page(OTHER, kept=True),
    Page(copies=(True, False)),
    Page(copies=(False, True)),
)

# Who may hold the block: by where pages are brought to.
AWAY = [Task(kind, TARGET, pages) for kind in ("migrate", "read", "write") for pages in (1, 2, 3)]
HOME = [Task("migrate", HOST, pages) for pages in (1, 2, 3)]
NOWHERE = [Task("recall", TARGET, pages) for pages in (1, 2, 3)]
ACCESSES = [Worker(TARGET, (Op(kind, page),)) for kind in ("load", "store") for page in (1, 2)]


def pages_like(code: int) -> Iterator[Page]:
    """The pages that a page could be which has these bits."""
    has = names(code)
    owners, copies = [HOST], [("copy_target" in has, "copy_other" in has)]
    if "device" in has:
        owners = [TARGET] if "target" in has else [OTHER] if "away" in has else [TARGET, OTHER]
    if "away" not in has and "copy_other" in has:
        copies = [(True, False), (False, True), (True, True)]
    for owner in owners:
        for of in copies:
            yield Page(
                owner,
                "present" in has,
                "cached" in has,
                "recalling" in has,
                "dirty" in has,
                "kept" in has,
                "frozen" in has,
                "parked" in has,
                of,
            )


@functools.cache
def model_of(task: Task | None, worker: Worker | None, **more: Any) -> Model:
    setting = Setting(
        programs=tuple((Op("write", pages),) for pages in WRITTEN),
        tasks=(task,) if task else (),
        workers=(worker,) if worker else (),
        owner=(HOST, HOST),
        nodes=3,
        tries=2,
        drop_kept=True,
    )
    return Model(replace(setting, **more), Protocol())


def state_of(model: Model, code: int, pages: tuple[Page, Page]) -> State:
    """The state with these pages, where the block has the bits of the code. The job that holds it
    is the last of the model's."""
    mode = FROZEN if code & BIT["FROZEN"] else RECALL if code & BIT["RECALL"] else STABLE
    holder = holder_of(model) if code & BIT["busy"] else NONE

    def mask(of: Callable[[Page], bool]) -> int:
        return sum(1 << p for p, page in enumerate(pages) if of(page))

    def pool(node: int, page: Page) -> int:
        there = page.present and page.owner == node
        there |= node == HOST and page.kept
        there |= node != HOST and page.copies[node - 1]
        return FIRST if there else NONE

    s = model.start()
    s = s._replace(
        owner=tuple(page.owner for page in pages),
        present=mask(lambda page: page.present),
        cached=mask(lambda page: page.cached),
        recalling=mask(lambda page: page.recalling),
        dirty=mask(lambda page: page.dirty),
        kept=mask(lambda page: page.kept),
        frozen=mask(lambda page: page.frozen),
        mode=mode,
        busy=holder,
        pool=tuple(tuple(pool(node, page) for page in pages) for node in range(3)),
        folio=tuple((CLEAN, FIRST) if page.cached else (ABSENT, 0) for page in pages),
        copies=(0, mask(lambda page: page.copies[0]), mask(lambda page: page.copies[1])),
        writeback=tuple(PARKED if page.parked else IDLE for page in pages),
        required=(0, 0),  # bytes don't matter here
    )
    if code & BIT["in_flight"]:
        s = s._replace(ahead=ADMITTED)
    if holder != NONE:
        phase = {STABLE: FINISH, RECALL: INVAL, FROZEN: FLIP if code & BIT["cut"] else DRAIN}[mode]
        s = model.enter(s, holder, Job(phase, cut=bool(code & BIT["cut"])), phase)
    return s


def holder_of(model: Model) -> int:
    return 0 if model.setting.tasks else model.fault_of[0, 0]


# The step's name, the pages that it is about, before, after.
Found = Iterator[tuple[str, Model, int, State, State]]


class Case(NamedTuple):
    model: Model
    state: State
    job: int  # who holds the block, or could


def cases(code: int, **more: Any) -> Iterator[Case]:
    """States in which page 0 looks so."""
    if not code & BIT["busy"]:
        tasks = [None, *AWAY, *HOME, *NOWHERE]
    else:
        tasks = list(AWAY if code & BIT["away"] else HOME if code & BIT["home"] else NOWHERE)
    workers = ACCESSES if code & BIT["away"] or not code & BIT["busy"] else []
    models = [model_of(task, None, **more) for task in tasks]
    models += [model_of(None, worker, **more) for worker in workers]
    for model in models:
        job = holder_of(model) if model.setting.tasks or model.setting.workers else NONE
        for page in pages_like(code):
            for beside in BESIDE:
                yield Case(model, state_of(model, code, (page, beside)), job)


def idle(code: int, **more: Any) -> Iterator[Case]:
    """The same for what does not depend on who holds the block."""
    task = AWAY[0] if code & BIT["away"] else HOME[0] if code & BIT["home"] else NOWHERE[0]
    model = model_of(task, None, **more)
    for page in pages_like(code):
        for beside in BESIDE:
            s = state_of(model, code, (page, beside))
            yield Case(model, s, 0)
            if s.mode == FROZEN and s.busy != NONE:
                yield Case(model, model.enter(s, 0, s.jobs[0], COPY), 0)


# ---- the gate ----------------------------------------------------------------------------------


def at_the_gate(step: Step) -> Found:
    """What a READ or WRITE brings about that is on its way."""
    for express in (True, False):
        for mostly in (True, False):
            for case in idle(step.before, express=express, mostly=mostly):
                for writers in (0, 1):
                    s = case.state._replace(writers=writers)
                    alone = s._replace(ahead=IDLE)  # no other request is in flight
                    for asked in (*REQUESTS[step.name](s), *REQUESTS[step.name](alone)):
                        yield from told_by(case.model, asked)


def told_by(model: Model, s: State) -> Found:
    out: Steps = []
    for p in model.pages:
        model.gate_read(s, p, out)
        model.gate_writeback(s, p, out)
    model.gate_ahead(s, out)
    model.gate_write(s, out)
    for label, t in out:
        yield from links(model, s, told(model, s, label, t))


def reads(stages: tuple[int, ...]) -> Callable[[State], Iterator[State]]:
    def asked(s: State) -> Iterator[State]:
        for p in (0, 1):
            for stage in stages:
                folio = put(s.folio, p, (READING, 0))
                yield s._replace(read=put(s.read, p, stage), folio=folio)

    return asked


def aheads(stage: int) -> Callable[[State], Iterator[State]]:
    def asked(s: State) -> Iterator[State]:
        yield s._replace(ahead=stage)

    return asked


def backs(stage: int) -> Callable[[State], Iterator[State]]:
    def asked(s: State) -> Iterator[State]:
        for p in (0, 1):
            folio = put(s.folio, p, (WRITEBACK, FIRST))
            read = put(s.read, p, PARKED) if s.writeback[p] == PARKED else s.read
            yield s._replace(read=read, writeback=put(s.writeback, p, stage), folio=folio)

    return asked


def writes(stage: int) -> Callable[[State], Iterator[State]]:
    def asked(s: State) -> Iterator[State]:
        for inode, pages in enumerate(WRITTEN):
            for overtaken in (0, 1, 2):
                if pages & ~overtaken:
                    write = Write(stage, pages, 2 << inode, pages, pages, (1, 1), overtaken)
                    yield s._replace(write=write, inode=inode)

    return asked


def any_request(s: State) -> Iterator[State]:
    for asked in (reads((QUEUED,)), backs(QUEUED), writes(QUEUED)):
        yield from asked(s)


def answers(s: State) -> Iterator[State]:
    yield from reads((ADMITTED, HOLE))(s)
    yield from aheads(ADMITTED)(s)


REQUESTS = {
    "read.parked": reads((QUEUED,)),
    "read.admitted": reads((QUEUED,)),
    "read.answered": answers,
    "ahead.admitted": aheads(QUEUED),
    "back.parked": backs(QUEUED),
    "back.admitted": backs(QUEUED),
    "back.applied": backs(ADMITTED),
    "write.parked": writes(QUEUED),
    "write.admitted": writes(QUEUED),
    "write.applied": writes(ADMITTED),
    "gate.home": any_request,
}


# ---- files -------------------------------------------------------------------------------------


def cut(step: Step) -> Found:
    for model, s, _ in idle(step.before):
        for p in model.pages:
            yield step.name, model, 1 << p, s, model.cut(s, p, step.name == "cut.truncate")


def allocated(step: Step) -> Found:
    for model, s, _ in idle(step.before):
        for p in model.pages:
            if s.mode != FROZEN:
                t = model.allocate(s, p)
                yield step.name, model, s.present ^ t.present, s, t


def copies_end(step: Step) -> Found:
    for model, s, _ in idle(step.before):
        yield step.name, model, 0, s, model.end_copies(s)


def kept_goes(step: Step) -> Found:
    for model, s, _ in idle(step.before):
        out: Steps = []
        model.capacity(s, out)
        for _, t in out:
            yield step.name, model, 0, s, t


# ---- transactions ------------------------------------------------------------------------------


def taken(step: Step) -> Found:
    for model, s, job in cases(step.before):
        if s.busy == NONE and job != NONE:
            yield step.name, model, 0, s, s._replace(busy=job)


def given_back(step: Step) -> Found:
    for model, s, _ in cases(step.before):
        yield step.name, model, 0, s, s._replace(busy=NONE)


def replayed(step: Step) -> Found:
    for model, s, _ in idle(step.before):
        yield step.name, model, 0, s, model.unpark(s)


def one_write(s: State) -> State:
    """What is parked on both pages is one request."""
    if s.writeback != (PARKED, PARKED):
        return s
    return s._replace(
        writeback=(IDLE, IDLE), write=Write(PARKED, BOTH, 2, BOTH, BOTH, (1, 1)), inode=0
    )


def recalls(step: Step) -> Found:
    """The first round, and the next of all pages, or of one."""
    for rounds, flying, wide in itertools.product((0, 1), (False, True), (False, True)):
        for model, s, job in cases(step.before, rounds=rounds):
            if s.busy == NONE or s.mode == FROZEN:
                continue
            s = s._replace(ahead=ADMITTED) if flying else s
            s = one_write(s) if wide else s
            fault = job in model.access_of
            for copying in {False, fault}:
                begins = Job(READY, copying=copying)
                ends = [model.recall(s, job, begins)]
                for done, round in itertools.product((0, 1, 2), (0, BOTH)):
                    looks = Job(RELOCK, done, round, copying=copying)
                    ends.append(model.relock(model.enter(s, job, looks, RELOCK), job))
                for t in ends:
                    yield from links(model, s, recalled(model, s, "", t))


def carried(step: Step) -> Found:
    """From the plan to the thaw: each of its steps begins in a block that is frozen, but the marks,
    which are made in the hold of the lock in which it is thawed."""
    before = step.before
    if step.name == "written":
        before |= BIT["FROZEN"]
    for keep in (True, False):
        for mostly in (True, False):
            for model, s, job in cases(before, keep_clean=keep, mostly=mostly):
                if s.busy == NONE or s.mode != FROZEN:
                    continue
                for writers in (0, 1):
                    yield from carry(model, s._replace(writers=writers), job)


def carry(model: Model, s: State, job: int) -> Found:
    was_cut = s.jobs[job].cut
    if model.tasks[job].kind == "recall":
        yield "thawed", model, 0, s, s._replace(mode=STABLE)
        return
    for copying in (False, True) if job in model.access_of else (False,):
        at_plan = s._replace(jobs=put(s.jobs, job, Job(DRAIN, copying=copying)))
        plan = model.plan(at_plan, job)
        if not model.inflight(s):
            yield from links(model, at_plan, planned(model, at_plan, "", plan))
        if was_cut:  # which may have taken what was to move
            task = model.tasks[job]
            moves = Job(FLIP, move=task.pages, copy=task.pages, source=s.owner, cut=True)
            at_flip = s._replace(jobs=put(s.jobs, job, moves._replace(copying=copying)))
            yield from links(model, at_flip, flipped(model, at_flip, "", model.flip(at_flip, job)))
        elif plan.jobs[job].phase == COPY:
            flips = plan.jobs[job]._replace(phase=FLIP, cut=was_cut)
            at_flip = s._replace(jobs=put(s.jobs, job, flips))
            flip = model.flip(at_flip, job)
            yield from links(model, at_flip, flipped(model, at_flip, "", flip))
    at_punch = s._replace(jobs=put(s.jobs, job, Job(PUNCH, freed=(0, 0, 0))))
    yield from links(model, at_punch, thawed(model, at_punch, "", model.punch(at_punch, job)))


def links(model: Model, s: State, chain: Chain) -> Found:
    for name, about, after in chain:
        yield name, model, about, s, after
        s = after


RULES: dict[str, Callable[[Step], Found]] = {
    **dict.fromkeys(REQUESTS, at_the_gate),
    **dict.fromkeys(("cut.truncate", "cut.punch"), cut),
    **dict.fromkeys(("recall.replays", "recall.round", "recall.frozen", "recall.failed"), recalls),
    **dict.fromkeys(("planned", "flipped", "discarded", "thawed", "written"), carried),
    **dict.fromkeys(("copy.planned", "copy.made"), carried),
    "allocated": allocated,
    "open.ended": copies_end,
    "kept.dropped": kept_goes,
    "begun": taken,
    "finished": given_back,
    "replayed": replayed,
}


@functools.cache
def allows(step: Step) -> bool:
    if step.name not in RULES:
        return False
    if not step.about and not (step.before ^ step.after) & PAGE:
        return happens(step._replace(before=step.before & ~PAGE, after=step.after & ~PAGE))
    return any(
        name == step.name
        and bool(about & 1) == step.about
        and see(model, s, 0) == step.before
        and see(model, t, 0) == step.after
        for name, model, about, s, t in RULES[step.name](step)
    )


@functools.cache
def happens(step: Step) -> bool:
    """Whether the model takes the step with some page: others see what it does to the block."""
    return any(
        name == step.name
        and see(model, s, p) & ~PAGE == step.before
        and see(model, t, p) & ~PAGE == step.after
        for name, model, _, s, t in RULES[step.name](step)
        for p in model.pages
    )
