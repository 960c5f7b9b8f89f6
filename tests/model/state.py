"""The states of the model in protocol.py, the settings it is explored in, what can be changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeVar

T = TypeVar("T")

HOST = 0
NONE = -1  # a pool without the page
FIRST = 1  # the store that every page has seen at first
STABLE, RECALL, FROZEN = range(3)
# A folio of the kernel's page cache. AHEAD: locked by a readahead READ; LOCKED: by a write(2) of
# part of it; LAUNDER: by an invalidation that waits for its WRITE. WRITEBACK holds no lock.
ABSENT, CLEAN, DIRTY, WRITEBACK, READING, AHEAD, LOCKED, LAUNDER = range(8)
# A request. FILLING: a write(2) that puts its bytes in the page cache, before its WRITE.
# HOLE: an admitted READ of a page that had no bytes then.
IDLE, FILLING, QUEUED, PARKED, ADMITTED, HOLE = range(6)
(OFF, READY, REPLAYED, INVAL, RELOCK, DRAIN, COPY, FLIP, PUNCH, EXEC, FINISH, REPLAY, DONE) = range(
    13
)


@dataclass(frozen=True)
class Protocol:
    """What can be planted. The second group are mistakes that the native core once made: this
    model, or reading the code for it, found them."""

    no_retry: bool = False  # freeze after one invalidation, whatever was answered meanwhile
    park_in_recall: bool = False  # park instead of answering while the recall is under way
    park_readahead: bool = False  # park a READ of several pages
    no_drain: bool = False  # copy and flip without waiting for requests in flight
    no_generation: bool = False  # flip without looking whether a truncate came
    punch_first: bool = False  # free the old pages before the flip
    inval_hull: bool = False  # invalidate the pages between the recalled ones, too
    keep_written: bool = False  # a device's store leaves the kept host copy valid
    wide_waits: bool = False  # a WRITE of several pages waits for a recall to end

    frozen_holds_write: bool = False  # a WRITE waits for a page frozen before the others
    parked_in_round: bool = False  # invalidate pages on which requests are parked
    order_by_request: bool = False  # an old WRITE of several pages overwrites a newer one's page
    writeback_unmarked: bool = False  # a WRITE from the page cache doesn't mark its page as cached
    fill_past_end: bool = False  # a device's store makes pages that were truncated meanwhile
    blind_store: bool = False  # a truncate between flip and store is not noticed
    thaw_early: bool = False  # let CPU accesses go on between the flip and the punch
    blind_load: bool = False  # a page that is cut while it is copied from stays allocated
    allocate_frozen: bool = False  # fallocate gives pages to a block between plan and punch
    first_open_ends: bool = False  # of several opens at once only the first waits for copies' end
    end_unnoticed: bool = False  # a migration counts on a copy that an open ended meanwhile

    # A device's worker and its true faults (native/device/faults.c).
    no_protect: bool = False  # copy a page away while the worker may still store to it
    protect_late: bool = False  # protect it only after the copy
    fill_writable: bool = False  # a page arrives without protection: its first store is not a fault
    wake_arrived: bool = False  # wake only who waits for a page that is there now

    # Copies of read-mostly pages (native/directory/copies.c).
    read_keeps_copies: bool = False  # what a READ hands out while a file is open for writing
    write_keeps_copies: bool = False  # a WRITE leaves the copies of its pages
    open_keeps_copies: bool = False  # an open for writing is answered with copies left
    copy_unrecalled: bool = False  # copy what the CPU has, and may store to once it may write
    copy_of_a_cut_page: bool = False  # mark it all the same
    flip_keeps_copies: bool = False  # a device becomes the owner and others keep theirs


class Op(NamedTuple):
    # load, load_ahead, store, write, truncate, punch, zero, open (for writing), close (of that)
    kind: str
    pages: int  # write: several pages are whole but the last


class Task(NamedTuple):
    kind: str  # read, write: device operations; migrate; recall; device_fault: a worker's
    node: int
    pages: int


class Worker(NamedTuple):
    """A thread of a kernel on a device: loads and stores in its window."""

    node: int
    ops: tuple[Op, ...]


@dataclass(frozen=True)
class Setting:
    """One block, who touches it, and where its pages are at first."""

    programs: tuple[tuple[Op, ...], ...]
    tasks: tuple[Task, ...]
    owner: tuple[int, ...] = (HOST,)
    workers: tuple[Worker, ...] = ()
    cached: int = 0  # these pages are in the page cache at first
    forgotten: int = 0  # these were, as far as the directory knows, but the kernel dropped them
    nodes: int = 2
    express: bool = True  # the gate brings a page home itself; else a job of the service does
    keep_clean: bool = True
    reclaim: bool = False  # the kernel may drop clean pages at any time
    rounds: int = 1  # of a recall over all pages, before it goes page by page
    tries: int = 3  # after which the recall fails
    forgive_torn: bool = True  # "Not covered" in docs/coherence.md: ignore such bytes
    # A program goes on before its page is dropped again, a worker before what it was woken for
    # leaves; no recall may fail.
    prompt: bool = False
    slow_copy: bool = False  # a copy reads, then writes
    mostly: bool = False  # pages are read-mostly: a worker that loads gets a copy
    writers: bool = True  # a file is open for writing at first
    holes: int = 0  # these pages have no bytes at first
    drop_kept: bool = False  # kept copies may go at any time, for their memory


class Write(NamedTuple):
    """The write(2) under way; the inode lock allows one."""

    stage: int = IDLE
    pages: int = 0
    bit: int = 0
    filled: int = 0
    attached: int = 0  # its folios that are still in the page cache
    values: tuple[int, ...] = ()  # what its WRITE carries
    overtaken: int = 0


class Job(NamedTuple):
    phase: int
    rounds: int = 0
    round: int = 0
    left: int = 0  # pages of the round that are still to be invalidated
    move: int = 0
    copy: int = 0
    fill: int = 0
    source: tuple[int, ...] = ()
    values: tuple[int, ...] = ()  # what a slow copy has read
    freed: tuple[int, ...] = ()
    there: int = 0
    cut: bool = False  # the generation moved since it was looked at
    copying: bool = False  # for a worker's load of a read-mostly page


class State(NamedTuple):
    # the directory
    owner: tuple[int, ...]
    present: int
    cached: int
    recalling: int
    dirty: int  # written by their owner since they came to it
    kept: int
    mode: int
    frozen: int  # pages frozen one by one
    busy: int  # the job that holds the block, or NONE
    pool: tuple[tuple[int, ...], ...]  # [node][page]
    # the kernel
    folio: tuple[tuple[int, int], ...]  # (kind, bytes)
    inode: int  # the program in write(2), truncate or fallocate, or NONE
    nowrite: bool  # writeback is held back until a SETATTR is answered
    end: int  # pages past the end of the file
    # requests
    read: tuple[int, ...]
    ahead: int
    writeback: tuple[int, ...]
    later: int  # page cache WRITEs sent after the one of write(2)
    overtaken: int  # page cache WRITEs that a later write(2)'s was applied before
    write: Write
    # who touches the block: (index of the operation, its stage)
    programs: tuple[tuple[int, int], ...]
    jobs: tuple[Job, ...]
    workers: tuple[tuple[int, bool], ...]  # (index of the operation, whether it waits for a fault)
    copies: tuple[int, ...]  # [node] host-owned pages that it has a copy of
    writers: int  # files open for writing
    ended: bool  # since there is one, all copies that may differ have ended
    writable: tuple[int, ...]  # [node] pages that are not write-protected in its worker's window
    # what is true: stores that every load must see, or must not see any more
    required: tuple[int, ...]
    forbidden: tuple[int, ...]
    void: tuple[int, ...]  # being overwritten: what was required before; NONE: it is not
    torn: int  # a recall dropped what a write(2) had filled, before its WRITE was answered


class Violation(Exception):
    """What went wrong, in one sentence."""


Steps = list[tuple[str, State]]


def put(items: tuple[T, ...], at: int, value: T) -> tuple[T, ...]:
    return (*items[:at], value, *items[at + 1 :])


def bits(mask: int) -> list[int]:
    return [p for p in range(mask.bit_length()) if mask >> p & 1]


class Block:
    """What both sides of the model share."""

    def __init__(self, setting: Setting, protocol: Protocol) -> None:
        self.setting, self.protocol = setting, protocol
        self.pages = range(len(setting.owner))
        names = [(i, at) for i, ops in enumerate(setting.programs) for at in range(len(ops))]
        self.bit_of_op = {name: 2 << at for at, name in enumerate(names)}
        self.bit_of_task = [2 << (len(names) + j) for j in range(len(setting.tasks))]
        of_workers = [
            (w, at) for w, worker in enumerate(setting.workers) for at in range(len(worker.ops))
        ]
        first = len(names) + len(setting.tasks)
        self.bit_of_worker = {name: 2 << (first + k) for k, name in enumerate(of_workers)}
        # After the tasks given, one for each page that brings it home for the service, and one for
        # each fault that a worker can take.
        home = tuple(Task("home", HOST, 1 << p) for p in self.pages)
        faults = tuple(
            Task("device_fault", setting.workers[w].node, setting.workers[w].ops[at].pages)
            for w, at in of_workers
        )
        self.tasks = setting.tasks + home + faults
        base = len(setting.tasks) + len(home)
        self.fault_of = {name: base + k for k, name in enumerate(of_workers)}
        self.access_of = {j: name for name, j in self.fault_of.items()}

    def start(self) -> State:
        n, setting = len(self.pages), self.setting
        first = tuple(0 if setting.holes >> p & 1 else FIRST for p in self.pages)
        return State(
            owner=setting.owner,
            present=(1 << n) - 1 & ~setting.holes,
            cached=setting.cached | setting.forgotten,
            recalling=0,
            dirty=0,
            kept=0,
            mode=STABLE,
            frozen=0,
            busy=NONE,
            pool=tuple(
                tuple(
                    first[p] or NONE if owner == node else NONE
                    for p, owner in enumerate(setting.owner)
                )
                for node in range(setting.nodes)
            ),
            folio=tuple(
                (CLEAN, first[p]) if setting.cached >> p & 1 else (ABSENT, 0) for p in self.pages
            ),
            inode=NONE,
            nowrite=False,
            end=0,
            read=(IDLE,) * n,
            ahead=IDLE,
            writeback=(IDLE,) * n,
            later=0,
            overtaken=0,
            write=Write(),
            programs=((0, 0),) * len(setting.programs),
            jobs=(Job(READY),) * len(setting.tasks)
            + (Job(OFF),) * (len(self.tasks) - len(setting.tasks)),
            workers=((0, False),) * len(setting.workers),
            copies=(0,) * setting.nodes,
            writers=int(setting.writers),
            ended=setting.writers,
            writable=(0,) * setting.nodes,
            required=first,
            forbidden=(0,) * n,
            void=(NONE,) * n,
            torn=0,
        )

    def saw(self, s: State, p: int, value: int, who: str) -> None:
        if s.torn >> p & 1 and self.setting.forgive_torn:
            return
        if missing := s.required[p] & ~value:
            raise Violation(
                f"{who} read {self.names(value)} in page {p}: without "
                f"{self.names(missing)}, which had completed."
            )
        if stale := s.forbidden[p] & value:
            raise Violation(
                f"{who} read {self.names(value)} in page {p}: "
                f"{self.names(stale)} was overwritten or cut off before."
            )

    def names(self, value: int) -> str:
        ops = ["the first bytes"]
        ops += [f"P{i}'s {self.setting.programs[i][at].kind}" for (i, at) in self.bit_of_op]
        ops += [f"D{j}'s {task.kind}" for j, task in enumerate(self.setting.tasks)]
        ops += [f"W{w}'s {self.setting.workers[w].ops[at].kind}" for (w, at) in self.bit_of_worker]
        return "{" + ", ".join(ops[b] for b in bits(value)) + "}"

    def stored(self, s: State, p: int, bit: int) -> State:
        """A store took effect; while the page is being overwritten it may get lost."""
        if s.void[p] != NONE:
            in_fallocate = s.write.stage == IDLE and not s.nowrite and not s.end >> p & 1
            torn = 1 << p if in_fallocate and self.setting.forgive_torn else 0
            return s._replace(torn=s.torn | torn)
        return s._replace(required=put(s.required, p, s.required[p] | bit))

    def voids(self, s: State, p: int) -> State:
        return s._replace(void=put(s.void, p, s.required[p]), required=put(s.required, p, 0))

    def voided(self, s: State, p: int, bit: int = 0) -> State:
        return s._replace(
            forbidden=put(s.forbidden, p, s.forbidden[p] | s.void[p]),
            required=put(s.required, p, bit),
            void=put(s.void, p, NONE),
        )

    def set_pool(self, s: State, node: int, p: int, value: int) -> State:
        return s._replace(pool=put(s.pool, node, put(s.pool[node], p, value)))

    def bump(self, s: State) -> State:
        if s.busy == NONE:
            return s
        return s._replace(jobs=put(s.jobs, s.busy, s.jobs[s.busy]._replace(cut=True)))

    def device(self, s: State, mask: int) -> int:
        return sum(1 << p for p in bits(mask) if s.owner[p] != HOST)

    def inflight(self, s: State) -> bool:
        pending = (*s.read, s.ahead, *s.writeback, s.write.stage)
        return any(r in (ADMITTED, HOLE) for r in pending)

    def protected(self, s: State, node: int, mask: int) -> State:
        return s._replace(writable=put(s.writable, node, s.writable[node] & ~mask))

    def bring_home(self, s: State, mask: int) -> State:
        for p in bits(self.device(s, mask)):
            s = self.protected(s, s.owner[p], 1 << p)
            value = s.pool[HOST if s.kept >> p & 1 else s.owner[p]][p]
            s = self.set_pool(s, HOST, p, value)
            if self.leaves_copy(s):
                s = self.copied(s, s.owner[p], 1 << p)
            else:
                s = self.set_pool(s, s.owner[p], p, NONE)
            keep = ~(1 << p)
            s = s._replace(owner=put(s.owner, p, HOST), kept=s.kept & keep, dirty=s.dirty & keep)
        return s

    # ---- read-mostly pages

    def leaves_copy(self, s: State) -> bool:
        """A page that comes home leaves one with the device that had it."""
        return self.setting.mostly and not s.writers

    def copied(self, s: State, node: int, mask: int) -> State:
        return s._replace(copies=put(s.copies, node, s.copies[node] | mask))

    def collapse(self, s: State, mask: int) -> State:
        for node, copies in enumerate(s.copies):
            for p in bits(copies & mask):
                s = self.set_pool(s, node, p, NONE)
        return s._replace(copies=tuple(copies & ~mask for copies in s.copies))

    def writing(self, s: State) -> bool:
        return ADMITTED in s.writeback or s.write.stage == ADMITTED

    def send_back(self, s: State, p: int, kind: int) -> State:
        sent = s.write.stage in (QUEUED, PARKED)
        return s._replace(
            folio=put(s.folio, p, (kind, s.folio[p][1])),
            writeback=put(s.writeback, p, QUEUED),
            later=s.later | 1 << p if sent else s.later & ~(1 << p),
            overtaken=s.overtaken & ~(1 << p),
        )

    def unpark(self, s: State, mask: int = NONE) -> State:
        """Requests that touch the mask, or all."""

        def again(r: int, pages: int) -> int:
            return QUEUED if r == PARKED and pages & mask else r

        everything = (1 << len(self.pages)) - 1
        return s._replace(
            read=tuple(again(r, 1 << p) for p, r in enumerate(s.read)),
            ahead=again(s.ahead, everything),
            writeback=tuple(again(r, 1 << p) for p, r in enumerate(s.writeback)),
            write=s.write._replace(stage=again(s.write.stage, s.write.pages)),
        )

    def enter(self, s: State, j: int, job: Job, phase: int) -> State:
        return s._replace(jobs=put(s.jobs, j, job._replace(phase=phase)))
