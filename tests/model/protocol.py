"""An explored model of the coherence protocol of one block: every interleaving, breadth first.

It follows native/gate/access.c and native/transaction/migrate.c. A step is what one thread does
under the stripe's lock, or one thing the kernel does; between two steps anything else may happen.
Capacity and several blocks are left out; so are crashes. A set of pages is a bit mask.

The bytes of a page are modelled as the set of the stores it has seen, as a bit mask: each store
(of a program, of write(2), of a device) sets a bit of its own, as if it had a byte of its own. A
load must then see every store that completed before it, however pages were copied meanwhile, and
none that was overwritten or cut off before it. A load through a mapping is one instant: the fault
before it is not part of it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass

from .access import Access
from .state import (
    ABSENT,
    CLEAN,
    COPY,
    DIRTY,
    DONE,
    DRAIN,
    EXEC,
    FINISH,
    FLIP,
    FROZEN,
    HOST,
    IDLE,
    INVAL,
    LAUNDER,
    NONE,
    OFF,
    PARKED,
    PUNCH,
    QUEUED,
    READY,
    RECALL,
    RELOCK,
    REPLAY,
    REPLAYED,
    STABLE,
    WRITEBACK,
    Job,
    Protocol,
    Setting,
    State,
    Steps,
    Violation,
    bits,
    put,
)


class Model(Access):
    def steps(self, s: State) -> Steps:
        out: Steps = []
        for i in range(len(s.programs)):
            self.program(s, i, out)
        for p in self.pages:
            self.kernel(s, p, out)
            self.gate_read(s, p, out)
            self.gate_writeback(s, p, out)
        self.capacity(s, out)
        self.gate_ahead(s, out)
        self.gate_write(s, out)
        for w in range(len(s.workers)):
            self.worker(s, w, out)
        for j in range(len(s.jobs)):
            self.job(s, j, out)
        return out

    # ---- a device's worker ------------------------------------------------------------------

    def worker(self, s: State, w: int, out: Steps) -> None:
        """Run on, or take a fault. Bytes that are in the pool can be reached, no matter who owns
        the page: that is what protecting, and punching last, are for."""
        at, waits = s.workers[w]
        if waits or at == len(self.setting.workers[w].ops):
            return
        after = self.access(s, w)
        if after is not None:
            node, op = self.setting.workers[w].node, self.setting.workers[w].ops[at]
            out.append((f"W{w} on node {node} {op.kind}s page {bits(op.pages)[0]}", after))
            return
        if s.jobs[self.fault_of[w, at]].phase != OFF:
            return  # the job of its last fault ends first: a new one would wait for the block
        s = s._replace(
            workers=put(s.workers, w, (at, True)),
            jobs=put(s.jobs, self.fault_of[w, at], Job(READY)),
        )
        out.append((f"W{w} faults", s))

    def access(self, s: State, w: int) -> State | None:
        """The worker's next load or store; None: it faults."""
        at, node = s.workers[w][0], self.setting.workers[w].node
        op = self.setting.workers[w].ops[at]
        p = bits(op.pages)[0]
        value = s.pool[node][p]
        if value == NONE or (op.kind == "store" and not s.writable[node] >> p & 1):
            return None
        if op.kind == "load":
            self.saw(s, p, value, f"W{w}")
        else:
            bit = self.bit_of_worker[w, at]
            s = self.stored(self.set_pool(s, node, p, value | bit), p, bit)
        return s._replace(workers=put(s.workers, w, (at + 1, False)))

    def fault_served(self, s: State, j: int) -> State:
        """The end of a device fault, under the lock: what is stored to becomes dirty and
        writable."""
        (w, at), task = self.access_of[j], self.tasks[j]
        node, p = task.node, bits(task.pages)[0]
        if s.end & task.pages:
            end = len(self.setting.workers[w].ops)  # the kernel is ended
            s = s._replace(workers=put(s.workers, w, (end, False)))
            return self.enter(s, j, Job(FINISH), FINISH)
        there = bool(s.present & task.pages) and s.owner[p] == node
        there = there or bool(s.copies[node] & task.pages)
        store = self.setting.workers[w].ops[at].kind == "store"
        if store and there and s.owner[p] == node:
            if not self.protocol.keep_written and s.kept & task.pages:
                s = self.set_pool(s, HOST, p, NONE)._replace(kept=s.kept & ~task.pages)
            s = s._replace(
                dirty=s.dirty | task.pages,
                writable=put(s.writable, node, s.writable[node] | task.pages),
            )
        if there or not self.protocol.wake_arrived:
            s = s._replace(workers=put(s.workers, w, (at, False)))
            if self.setting.prompt:
                s = self.access(s, w) or s
        return self.enter(s, j, Job(FINISH), FINISH)

    def protect(self, s: State, j: int) -> State:
        """What is copied away, and what arrives, can't be stored to."""
        job = s.jobs[j]
        if not self.protocol.no_protect:
            for p in bits(job.move):
                s = self.protected(s, job.source[p], 1 << p)
        node, arriving = self.tasks[j].node, job.copy | job.fill
        if self.protocol.fill_writable and node != HOST:
            return s._replace(writable=put(s.writable, node, s.writable[node] | arriving))
        return self.protected(s, node, arriving)

    # ---- transactions -----------------------------------------------------------------------

    def job(self, s: State, j: int, out: Steps) -> None:
        job, name = s.jobs[j], f"D{j}" if j < len(self.setting.tasks) else "service's job"
        if job.phase == READY:
            if s.busy == NONE:
                self.begin(s, j, name, out)
        elif job.phase == REPLAYED:
            out.append((f"{name} goes on with the recall", self.recall(s, j)))
        elif job.phase == INVAL:
            self.invalidate(s, j, name, out)
        elif job.phase == RELOCK:
            out.append((f"{name} looks whether pages were answered", self.relock(s, j)))
        elif job.phase == DRAIN:
            if self.protocol.no_drain or not self.inflight(s):
                out.append((f"{name} plans: nothing is in flight", self.plan(s, j)))
        elif job.phase == COPY:
            out.append((f"{name} copies", self.copy(s, j)))
        elif job.phase == FLIP:
            out.append((f"{name} flips", self.flip(s, j)))
        elif job.phase == PUNCH:
            out.append((f"{name} punches what was left behind", self.punch(s, j)))
        elif job.phase == EXEC:
            out.append((f"{name} operates", self.operate(s, j, name)))
        elif job.phase == FINISH:
            s = s._replace(busy=NONE, jobs=put(s.jobs, j, Job(REPLAY)))
            out.append((f"{name} lets the block go", s))
        elif job.phase == REPLAY:
            end = DONE if j < len(self.setting.tasks) else OFF
            w, at = self.access_of.get(j, (-1, 0))
            if w >= 0 and s.workers[w] == (at, True):
                end = OFF if self.protocol.wake_arrived else READY  # the recall gave up: try again
            s = self.unpark(s)._replace(jobs=put(s.jobs, j, Job(end)))
            out.append((f"{name} has what is parked looked at again", s))

    def begin(self, s: State, j: int, name: str, out: Steps) -> None:
        task = self.tasks[j]
        if task.kind in ("read", "write") and task.pages & s.end:
            s = s._replace(jobs=put(s.jobs, j, Job(DONE)))
            out.append((f"{name} is refused: past the end", s))
            return
        label = f"{name} takes the block for {task.kind} of pages {bits(task.pages)}"
        out.append((label, self.recall(s._replace(busy=j), j, self.ready(s, j))))

    def ready(self, s: State, j: int) -> Job:
        """At the beginning, and when it begins again."""
        task = self.tasks[j]
        copying = False
        if self.setting.mostly and task.kind == "device_fault":
            w, at = self.access_of[j]
            there = task.pages & (s.present | s.cached | s.recalling)
            mine = self.device(s, task.pages) and s.owner[bits(task.pages)[0]] == task.node
            load = self.setting.workers[w].ops[at].kind == "load"
            copying = load and bool(there) and not mine
        return Job(READY, copying=copying)

    def recall(self, s: State, j: int, job: Job | None = None) -> State:
        """Under the lock: choose the next round, or find that the pages are proven clean."""
        entering = job is not None and job.phase == READY and not job.rounds
        job, mask = job or s.jobs[j], self.tasks[j].pages
        if self.tasks[j].node == HOST and self.tasks[j].kind != "recall":
            mask = 0  # what comes home is owned by devices: the CPU has none of it
        if job.copying and self.protocol.copy_unrecalled:
            mask = 0
        cached = s.cached & mask
        if entering and cached and self.protocol.parked_in_round and not self.protocol.wide_waits:
            wide = s.write.pages & (s.write.pages - 1)
            if s.write.stage == PARKED and wide:
                s = s._replace(mode=RECALL, write=s.write._replace(stage=QUEUED))
                return self.enter(s, j, job, REPLAYED)
        if not cached or (self.protocol.no_retry and job.rounds):
            s = s._replace(mode=FROZEN, frozen=0, recalling=0, cached=s.cached & ~mask)
            job = Job(DRAIN, copying=job.copying)
            if self.tasks[j].kind == "recall":
                return self.enter(s._replace(mode=STABLE), j, job, FINISH)
            return self.enter(s, j, job, DRAIN)
        if job.rounds >= self.setting.tries:
            if self.setting.prompt:
                raise Violation("A recall gave up, though the programs' accesses are finite.")
            s = s._replace(mode=STABLE, frozen=0, cached=s.cached | s.recalling, recalling=0)
            return self.enter(s, j, Job(FINISH), FINISH)
        if job.rounds >= self.setting.rounds:
            s = s._replace(frozen=mask & ~cached)
            cached &= -cached
        return self.round(s, j, job, cached)

    def relock(self, s: State, j: int) -> State:
        job, rounds = s.jobs[j], self.setting.rounds
        proven = job.rounds >= rounds and not s.cached & job.round
        again = job._replace(phase=READY, rounds=rounds if proven else job.rounds + 1)
        return self.recall(s, j, again._replace(round=0, left=0, cut=False))

    def round(self, s: State, j: int, job: Job, pages: int) -> State:
        s = s._replace(mode=RECALL)
        if not self.protocol.parked_in_round:
            again = self.unpark(s, pages)
            if again != s and not self.protocol.wide_waits:
                return self.enter(again, j, job, REPLAYED)
        s = s._replace(cached=s.cached & ~pages, recalling=s.recalling | pages)
        left = pages
        if self.protocol.inval_hull:
            left = (1 << pages.bit_length()) - (pages & -pages)
        return self.enter(s, j, job._replace(round=pages, left=left), INVAL)

    def invalidate(self, s: State, j: int, name: str, out: Steps) -> None:
        """The kernel, page by page: wait for its lock, unmap, write back, drop."""
        job = s.jobs[j]
        p = bits(job.left)[0]
        kind, _ = s.folio[p]
        if kind == DIRTY and not s.nowrite:
            label = f"{name}'s invalidation unmaps page {p} and has it written back"
            out.append((label, self.send_back(s, p, LAUNDER)))
        elif kind in (ABSENT, CLEAN) or (kind == LAUNDER and s.writeback[p] == IDLE):
            if self.setting.prompt and kind == CLEAN and self.about_to_access(s, p):
                return
            left = job.left & ~(1 << p)
            s = s._replace(
                folio=put(s.folio, p, (ABSENT, 0)),
                write=s.write._replace(attached=s.write.attached & ~(1 << p)),
                torn=s.torn | s.write.attached & 1 << p if self.setting.forgive_torn else 0,
            )
            label = f"{name}'s invalidation drops page {p}"
            out.append(
                (label, self.enter(s, j, job._replace(left=left), INVAL if left else RELOCK))
            )

    def about_to_access(self, s: State, p: int) -> bool:
        for (at, _), ops in zip(s.programs, self.setting.programs, strict=True):
            if at < len(ops) and ops[at].kind != "write" and ops[at].pages == 1 << p:
                return True
        return False

    def plan_copy(self, s: State, j: int) -> State:
        """Of a read-mostly page for a worker. Another device's comes home before."""
        job, task = s.jobs[j], self.tasks[j]
        s = self.bring_home(s, task.pages)
        if not s.present & task.pages:  # a hole after all: it becomes the device's
            return self.recall(s._replace(mode=STABLE), j, Job(READY))
        if task.pages & s.copies[task.node]:
            return self.fault_served(s._replace(mode=STABLE), j)
        job = job._replace(phase=COPY, copy=task.pages, source=s.owner, cut=False)
        return self.protect(self.enter(s, j, job, COPY), j)

    def mark_copy(self, s: State, j: int) -> State:
        job, node = s.jobs[j], self.tasks[j].node
        if job.cut and not self.protocol.copy_of_a_cut_page:
            for p in bits(job.copy):
                s = self.set_pool(s, node, p, NONE)
            return self.recall(s._replace(mode=STABLE), j, self.ready(s, j))
        return self.fault_served(self.copied(s, node, job.copy)._replace(mode=STABLE), j)

    def plan(self, s: State, j: int) -> State:
        if s.jobs[j].copying:
            return self.plan_copy(s, j)
        task, move = self.tasks[j], 0
        for p in bits(task.pages & s.present):
            move |= (s.owner[p] != task.node) << p
        copy = move & ~s.kept if task.node == HOST else move & ~s.copies[task.node]
        fill = task.pages & ~s.present if task.kind in ("write", "device_fault") else 0
        if not self.protocol.fill_past_end:
            fill &= ~s.end
        if task.kind == "read":
            for p in bits(task.pages & ~s.present & ~s.end):
                self.saw(s, p, 0, f"D{j}")
        if not move | fill:
            return self.brought(s._replace(mode=STABLE), j)
        job = Job(COPY, 0, move=move, copy=copy, fill=fill, source=s.owner)
        s = self.enter(s, j, job, COPY)
        return s if self.protocol.protect_late else self.protect(s, j)

    def copy(self, s: State, j: int) -> State:
        job, node = s.jobs[j], self.tasks[j].node
        if self.setting.slow_copy and not job.values:
            values = tuple(s.pool[job.source[p]][p] for p in self.pages)
            return self.enter(s, j, job._replace(values=values), COPY)
        for p in bits(job.copy):
            value = job.values[p] if job.values else s.pool[job.source[p]][p]
            if value == NONE and self.protocol.blind_load:
                s = self.set_pool(s, job.source[p], p, 0)
            s = self.set_pool(s, node, p, max(0, value))
        for p in bits(job.fill):
            s = self.set_pool(s, node, p, max(0, s.pool[node][p]))
        if self.protocol.punch_first:
            for p in bits(job.move):
                s = self.set_pool(s, job.source[p], p, NONE)
        return self.enter(s, j, job, FLIP)

    def flip(self, s: State, j: int) -> State:
        if s.jobs[j].copying:
            return self.mark_copy(s, j)
        if self.protocol.protect_late:
            s = self.protect(s, j)
        job, node = s.jobs[j], self.tasks[j].node
        if job.cut and not self.protocol.no_generation:
            for p in bits(job.copy | job.fill):
                lives = s.present >> p & 1 and s.owner[p] == node
                if not lives and not (node == HOST and s.kept >> p & 1):
                    s = self.set_pool(s, node, p, NONE)
            return self.recall(s._replace(mode=STABLE), j, self.ready(s, j))
        freed, owner = [0] * self.setting.nodes, list(s.owner)
        kept = s.kept
        for p in bits(job.move):
            source, owner[p] = owner[p], node
            if source == HOST and self.setting.keep_clean:
                kept |= 1 << p
            elif node == HOST:
                kept &= ~(1 << p)
            if node == HOST and self.leaves_copy(s):
                s = self.copied(s, source, 1 << p)
            elif source != HOST or not kept >> p & 1:
                freed[source] |= 1 << p
        if node != HOST:
            for other, copies in enumerate(s.copies):
                if other != node and not self.protocol.flip_keeps_copies:
                    freed[other] |= copies & job.move
            s = s._replace(copies=tuple(copies & ~job.move for copies in s.copies))
        for p in bits(job.fill):
            owner[p] = node
        mode = STABLE if self.protocol.thaw_early else FROZEN
        s = s._replace(
            owner=tuple(owner),
            present=s.present | job.fill,
            dirty=s.dirty & ~(job.move | job.fill),
            kept=kept,
            mode=mode,
        )
        return self.enter(s, j, Job(PUNCH, freed=tuple(freed)), PUNCH)

    def punch(self, s: State, j: int) -> State:
        job = s.jobs[j]
        for node, mask in enumerate(job.freed):
            for p in bits(mask):
                s = self.set_pool(s, node, p, NONE)
        return self.brought(s._replace(mode=STABLE), j)

    def brought(self, s: State, j: int) -> State:
        """The pages are on the node, unless a cut came between; still under the lock."""
        task, there = self.tasks[j], 0
        if task.kind == "device_fault":
            return self.fault_served(s, j)
        if task.kind not in ("read", "write"):
            return self.enter(s, j, Job(FINISH), FINISH)
        for p in bits(task.pages & s.present):
            there |= (s.owner[p] == task.node) << p
        if task.kind == "write":
            s = s._replace(dirty=s.dirty | s.present & task.pages)
        if task.kind == "write" and not self.protocol.keep_written:
            for p in bits(s.kept & task.pages):
                s = self.set_pool(s, HOST, p, NONE)
            s = s._replace(kept=s.kept & ~task.pages)
        return self.enter(s, j, Job(EXEC, there=there), EXEC)

    def operate(self, s: State, j: int, name: str) -> State:
        job, task = s.jobs[j], self.tasks[j]
        for p in bits(task.pages):
            there, value = job.there >> p & 1, max(0, s.pool[task.node][p])
            if task.kind == "read":
                if there and not job.cut:
                    self.saw(s, p, value, name)
                continue
            bit = self.bit_of_task[j]
            s = self.set_pool(s, task.node, p, value | bit)
            lives = s.present >> p & 1 and s.owner[p] == task.node
            if lives:
                s = self.stored(s, p, bit)
            elif job.cut or not self.protocol.blind_store:
                s = self.set_pool(s, task.node, p, NONE)
        return self.enter(s, j, Job(FINISH), FINISH)

    # ---- what must hold ---------------------------------------------------------------------

    def check(self, s: State) -> None:
        """In every state."""
        for p in self.pages:
            owner, mask = s.owner[p], 1 << p
            self.check_copies(s, p)
            if s.present & mask and s.pool[owner][p] == NONE:
                raise Violation(f"Node {owner} owns page {p} but has no bytes of it.")
            if owner != HOST:
                self.check_device_page(s, p, owner)
            elif s.kept & mask:
                raise Violation(f"Host copy of page {p} is kept, but the host owns the page.")
            for node in range(1, self.setting.nodes):
                mine = owner == node and s.present & mask and not s.kept & mask
                if s.writable[node] & mask and s.pool[node][p] != NONE and not mine:
                    raise Violation(f"Device {node} may store to page {p}, which is not its own.")
            if s.busy == NONE and not self.writing(s):
                if s.present & s.end & mask:
                    raise Violation(f"Page {p} has bytes, but is past the end of the file.")
                for node in range(self.setting.nodes):
                    there = s.copies[node] | (s.kept if node == HOST else 0)
                    there |= s.present if owner == node else 0
                    if (s.pool[node][p] != NONE) != bool(there & mask):
                        raise Violation(
                            f"The pool of node {node} disagrees with the directory on page {p}."
                        )

    def check_copies(self, s: State, p: int) -> None:
        for node, copies in enumerate(s.copies):
            if not copies >> p & 1:
                continue
            if s.owner[p] != HOST or not s.present >> p & 1:
                raise Violation(f"Device {node} has a copy of page {p}, which is not the host's.")
            if s.pool[node][p] != s.pool[HOST][p]:
                raise Violation(f"Device {node}'s copy of page {p} differs from the host's.")

    def check_device_page(self, s: State, p: int, owner: int) -> None:
        mask = 1 << p
        if not s.present & mask:
            raise Violation(f"Device {owner} owns page {p}, which is not present.")
        if (s.cached | s.recalling) & mask:
            raise Violation(f"Page {p} is cached by the CPU and owned by device {owner}.")
        unsent = s.write.attached & mask or s.void[p] != NONE
        if s.folio[p][0] in (CLEAN, DIRTY, WRITEBACK, LAUNDER) and not unsent:
            raise Violation(f"The CPU still has page {p}, which device {owner} owns.")
        if s.kept & s.dirty & mask:
            raise Violation(f"The kept host copy of page {p} is of one that a device wrote.")
        if s.kept & mask and s.pool[HOST][p] != s.pool[owner][p]:
            raise Violation(f"The kept host copy of page {p} differs from device {owner}'s.")

    def check_end(self, s: State) -> None:
        """In a state without a next one."""
        ends = [len(ops) for ops in self.setting.programs]
        running = [f"P{i}" for i, (at, _) in enumerate(s.programs) if at < ends[i]]
        running += [f"D{j}" for j, job in enumerate(s.jobs) if job.phase not in (DONE, OFF)]
        workers = zip(s.workers, self.setting.workers, strict=True)
        running += [f"W{w}" for w, ((at, _), of) in enumerate(workers) if at < len(of.ops)]
        if running:
            raise Violation(f"Deadlock: {', '.join(running)} can't go on.")
        for p in self.pages:
            bytes_of_owner = max(0, s.pool[s.owner[p]][p])
            self.saw(s, p, bytes_of_owner, "A device's last look")
            if s.folio[p][0] != ABSENT:
                self.saw(s, p, s.folio[p][1], "A program's last look")
                if s.folio[p][1] != bytes_of_owner and not s.torn >> p & 1:
                    raise Violation(f"Page {p} in the page cache differs from its owner's.")
                if not s.cached >> p & 1:
                    raise Violation(f"Page {p} is in the page cache and no recall knows of it.")


# ---- exploring ------------------------------------------------------------------------------


Watch = Callable[[Model, State, str, State], None]


@dataclass(frozen=True)
class Explored:
    states: int
    steps: int
    violation: str  # empty: none
    trace: tuple[str, ...]  # a shortest way to the violation
    finite: bool  # no state is met twice on one way, so every run ends

    def __str__(self) -> str:
        lines = [f"{at:3}. {step}" for at, step in enumerate(self.trace, 1)]
        return "\n".join([*lines, f"     => {self.violation}"])


def explore(
    setting: Setting, protocol: Protocol, watch: Watch | None = None, limit: int = 1 << 30
) -> Explored:
    """`watch` is told of every step: from where, its label, to where. Ends after `limit` states."""
    model = Model(setting, protocol)
    first = model.start()
    found: dict[State, int] = {first: 0}
    states = [first]
    parent, label = array("l", [NONE]), [""]
    edges, edge_ends = array("l"), array("l")

    def failed(at: int, last: str, error: Violation) -> Explored:
        trace = [last] if last else []
        while at:
            trace.append(label[at])
            at = parent[at]
        return Explored(len(states), len(edges), str(error), tuple(reversed(trace)), False)

    at = 0
    while at < min(len(states), limit):
        s = states[at]
        try:
            model.check(s)
            steps = model.steps(s)
            if not steps:
                model.check_end(s)
        except Violation as error:
            return failed(at, "", error)
        for name, after in steps:
            if watch:
                watch(model, s, name, after)
            index = found.setdefault(after, len(states))
            if index == len(states):
                states.append(after)
                parent.append(at)
                label.append(name)
            edges.append(index)
        edge_ends.append(len(edges))
        at += 1
    finite = at == len(states) and is_finite(edges, edge_ends)
    return Explored(len(states), len(edges), "", (), finite)


def is_finite(edges: array[int], ends: array[int]) -> bool:
    """No cycle: taking away states that nothing leads to, again and again, leaves none."""
    waiting = array("l", bytes(8 * len(ends)))
    for index in edges:
        waiting[index] += 1
    free, gone = [at for at in range(len(ends)) if not waiting[at]], 0
    while free:
        at = free.pop()
        gone += 1
        for index in edges[ends[at - 1] if at else 0 : ends[at]]:
            waiting[index] -= 1
            if not waiting[index]:
                free.append(index)
    return gone == len(ends)
