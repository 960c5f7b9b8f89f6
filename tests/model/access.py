"""Programs, the kernel by itself, and the gate: see protocol.py and native/gate/access.c."""

from __future__ import annotations

from .state import (
    ABSENT,
    ADMITTED,
    AHEAD,
    CLEAN,
    DIRTY,
    FILLING,
    FROZEN,
    HOLE,
    HOST,
    IDLE,
    LAUNDER,
    LOCKED,
    NONE,
    OFF,
    PARKED,
    QUEUED,
    READING,
    READY,
    RECALL,
    WRITEBACK,
    Block,
    Job,
    Op,
    State,
    Steps,
    Write,
    bits,
    put,
)


class Access(Block):
    # ---- programs ---------------------------------------------------------------------------

    def program(self, s: State, i: int, out: Steps) -> None:
        at, stage = s.programs[i]
        if at == len(self.setting.programs[i]):
            return
        op = self.setting.programs[i][at]
        if op.kind in ("load", "load_ahead", "store"):
            self.program_access(s, i, op, out)
        elif op.kind == "write":
            self.write_file(s, i, op, out)
        elif op.kind == "open":
            self.open_file(s, i, stage, out)
        elif op.kind == "close":
            self.close_file(s, i, out)
        else:
            self.cut_file(s, i, op, stage, out)

    def next(self, s: State, i: int) -> State:
        return s._replace(programs=put(s.programs, i, (s.programs[i][0] + 1, 0)))

    def program_access(self, s: State, i: int, op: Op, out: Steps) -> None:
        p = op.pages.bit_length() - 1
        kind, value = s.folio[p]
        if op.kind != "store" and kind in (CLEAN, DIRTY, WRITEBACK):
            self.saw(s, p, value, f"P{i}")
            out.append((f"P{i} loads {self.names(value)} from page {p}", self.next(s, i)))
        elif op.kind == "store" and kind in (CLEAN, DIRTY):
            bit = self.bit_of_op[i, s.programs[i][0]]
            write = s.write
            if write.stage == FILLING and write.attached >> p & 1:
                write = write._replace(values=put(write.values, p, write.values[p] | bit))
            s = s._replace(folio=put(s.folio, p, (DIRTY, value | bit)), write=write)
            out.append((f"P{i} stores to page {p}", self.next(self.stored(s, p, bit), i)))
        elif kind == ABSENT and not s.end >> p & 1:
            self.miss(s, i, p, op.kind == "load_ahead" and not s.programs[i][1], out)

    def open_file(self, s: State, i: int, stage: int, out: Steps) -> None:
        """For writing: it is counted, then copies end, then it is answered. While the copies that
        another open found still end, it ends them, too; once they have, there is nothing to do."""
        if not stage:
            ends = not s.writers if self.protocol.first_open_ends else not s.ended
            stage = 1 if ends and not self.protocol.open_keeps_copies else 2
            s = s._replace(writers=s.writers + 1)
            s = s._replace(programs=put(s.programs, i, (s.programs[i][0], stage)))
            out.append((f"P{i} opens for writing", s))
        elif stage == 1:
            s = self.end_copies(s)._replace(programs=put(s.programs, i, (s.programs[i][0], 2)))
            out.append((f"P{i}'s open ends all copies", s))
        else:
            out.append((f"P{i}'s open returns", self.next(s, i)))

    def end_copies(self, s: State) -> State:
        """A transaction that counts on one begins again, as after a cut."""
        if any(s.copies) and not self.protocol.end_unnoticed:
            s = self.bump(s)
        return self.collapse(s, (1 << len(self.pages)) - 1)._replace(ended=True)

    def close_file(self, s: State, i: int, out: Steps) -> None:
        """The kernel writes back what was stored through a mapping before it lets the file go."""
        if any(kind in (DIRTY, WRITEBACK, LAUNDER) for kind, _ in s.folio):
            return
        writers = s.writers - 1
        s = self.next(s._replace(writers=writers, ended=s.ended and writers > 0), i)
        out.append((f"P{i} closes its file", s))

    def miss(self, s: State, i: int, p: int, ahead: bool, out: Steps) -> None:
        if ahead and all(kind == ABSENT for kind, _ in s.folio):
            s = s._replace(ahead=QUEUED, folio=((AHEAD, 0),) * len(s.folio))
            out.append((f"P{i} misses page {p}: the kernel locks all and sends one READ", s))
            return
        s = s._replace(read=put(s.read, p, QUEUED), folio=put(s.folio, p, (READING, 0)))
        out.append((f"P{i} misses page {p}: the kernel locks it and sends a READ", s))

    def write_file(self, s: State, i: int, op: Op, out: Steps) -> None:
        """Fill the folios one by one, each unlocked again at once, then send the WRITE. Only a
        page written in part that is not up to date stays locked until the answer."""
        write = s.write
        if s.inode not in (i, NONE) or write.stage not in (IDLE, FILLING):
            return
        bit = self.bit_of_op[i, s.programs[i][0]]
        if s.inode == NONE:
            write = Write(FILLING, op.pages, bit, values=(0,) * len(self.pages))
        left = bits(op.pages & ~write.filled)
        if not left:
            if not any(s.folio[p][0] == WRITEBACK for p in bits(write.attached)):
                s = s._replace(write=write._replace(stage=QUEUED), later=0)
                out.append((f"P{i} sends the WRITE", s))
            return
        p = left[0]
        kind, value = s.folio[p]
        if kind not in (ABSENT, CLEAN, DIRTY):
            return
        if s.inode == NONE:
            for whole in self.whole(op.pages):
                s = self.voids(s, whole)
        if p in self.whole(op.pages):
            folio = (DIRTY if kind == DIRTY else CLEAN, bit)
        else:
            folio = (LOCKED, 0) if kind == ABSENT else (kind, value | bit)
        write = write._replace(
            filled=write.filled | 1 << p,
            attached=write.attached | 1 << p,
            values=put(write.values, p, bit),
        )
        s = s._replace(inode=i, write=write, folio=put(s.folio, p, folio))
        out.append((f"P{i} in write(2) fills page {p}", s))

    def whole(self, pages: int) -> list[int]:
        return bits(pages)[:-1] if pages & (pages - 1) else bits(pages)

    def cut_file(self, s: State, i: int, op: Op, stage: int, out: Steps) -> None:
        """truncate down and up again; fallocate's punch, and its zero range, which allocates
        under a lock taken anew. The kernel drops its copy after the answer."""
        p = op.pages.bit_length() - 1
        kind = s.folio[p][0]

        def then(stage: int, label: str, s: State) -> None:
            programs = put(s.programs, i, (s.programs[i][0], stage))
            out.append((f"P{i} {label}", s._replace(programs=programs)))

        if stage == 0 and s.inode == NONE:
            idle = all(r == IDLE for r in s.writeback)
            if idle if op.kind == "truncate" else kind not in (DIRTY, WRITEBACK, LAUNDER):
                s = self.voids(s, p)._replace(inode=i, nowrite=op.kind == "truncate")
                then(1, f"sends a {op.kind} of page {p}", s)
        elif stage == 1:
            s = self.cut(s, p, op.kind == "truncate")._replace(nowrite=False)
            then(2 if op.kind == "zero" else 3, f"- the gate: the {op.kind} cuts page {p}", s)
        elif stage == 2 and (s.mode != FROZEN or self.protocol.allocate_frozen):
            then(3, f"- the gate allocates page {p}", self.allocate(s, p))
        elif stage == 3 and kind in (ABSENT, CLEAN, DIRTY):
            s = s._replace(folio=put(s.folio, p, (ABSENT, 0)), end=s.end & ~(1 << p), inode=NONE)
            out.append((f"P{i}'s {op.kind} returns", self.next(self.voided(s, p), i)))

    def cut(self, s: State, p: int, truncate: bool) -> State:
        keep = ~(1 << p)
        s = self.bump(s)._replace(
            owner=put(s.owner, p, HOST),
            present=s.present & keep,
            dirty=s.dirty & keep,
            kept=s.kept & keep,
            pool=tuple(put(pool, p, NONE) for pool in s.pool),
            copies=tuple(copies & keep for copies in s.copies),
            writeback=tuple(QUEUED if r == ADMITTED else r for r in s.writeback),
        )
        if not truncate:
            return s
        return s._replace(cached=s.cached & keep, recalling=s.recalling & keep, end=s.end | 1 << p)

    def allocate(self, s: State, p: int) -> State:
        if s.present >> p & 1:
            return s
        return self.set_pool(s._replace(present=s.present | 1 << p), HOST, p, 0)

    # ---- the kernel by itself ---------------------------------------------------------------

    def kernel(self, s: State, p: int, out: Steps) -> None:
        kind = s.folio[p][0]
        if kind == DIRTY and not s.nowrite:
            out.append((f"kernel writes page {p} back", self.send_back(s, p, WRITEBACK)))
        if self.setting.reclaim and kind == CLEAN and not s.write.attached >> p & 1:
            s = s._replace(folio=put(s.folio, p, (ABSENT, 0)))
            out.append((f"kernel reclaims clean page {p}", s))

    def capacity(self, s: State, out: Steps) -> None:
        """The host needs memory, and nothing is lost with kept copies."""
        if not (self.setting.drop_kept and s.kept and s.busy == NONE):
            return
        for p in bits(s.kept):
            s = self.set_pool(s, HOST, p, NONE)
        out.append(("kept copies are dropped", s._replace(kept=0)))

    # ---- the gate: READ ---------------------------------------------------------------------

    def is_frozen(self, s: State, mask: int) -> bool:
        return s.mode == FROZEN or bool(s.frozen & mask)

    def ask_service(self, s: State, mask: int) -> State:
        for p in bits(self.device(s, mask)):
            j = len(self.setting.tasks) + p
            if s.jobs[j].phase == OFF:
                s = s._replace(jobs=put(s.jobs, j, Job(READY)))
        return s

    def gate_read(self, s: State, p: int, out: Steps) -> None:
        state, mask = s.read[p], 1 << p
        if state in (ADMITTED, HOLE):
            value = 0 if state == HOLE else max(0, s.pool[HOST][p])
            if state == ADMITTED and s.pool[HOST][p] == NONE and self.protocol.blind_load:
                s = self.set_pool(s, HOST, p, 0)
            s = s._replace(read=put(s.read, p, IDLE), folio=put(s.folio, p, (CLEAN, value)))
            out.append((f"gate answers the READ of page {p} with {self.names(value)}", s))
        if state != QUEUED:
            return
        parks = self.is_frozen(s, mask) or (self.protocol.park_in_recall and s.mode == RECALL)
        if s.end & mask:
            s = s._replace(read=put(s.read, p, IDLE), folio=put(s.folio, p, (CLEAN, 0)))
            out.append((f"gate answers the READ of page {p}, past the end", s))
            return
        if not parks and self.device(s, mask):
            parks = s.busy != NONE or not self.setting.express
            if s.busy == NONE and parks:
                s = self.ask_service(s, mask)
        if parks:
            out.append(
                (f"gate parks the READ of page {p}", s._replace(read=put(s.read, p, PARKED)))
            )
            return
        s = self.handed_out(self.bring_home(s, mask), mask)
        admitted = ADMITTED if s.present & mask else HOLE
        s = s._replace(read=put(s.read, p, admitted), cached=s.cached | mask)
        out.append((f"gate admits the READ of page {p}", s))

    def handed_out(self, s: State, mask: int) -> State:
        """What is in the page cache may be stored to while a file is open for writing."""
        if not s.writers or self.protocol.read_keeps_copies:
            return s
        return self.collapse(s, mask)

    def gate_ahead(self, s: State, out: Steps) -> None:
        mask = (1 << len(self.pages)) - 1
        if s.ahead == ADMITTED:
            folio = tuple((CLEAN, max(0, value)) for value in s.pool[HOST])
            out.append(("gate answers the READ of all pages", s._replace(ahead=IDLE, folio=folio)))
        if s.ahead != QUEUED:
            return
        if self.is_frozen(s, mask) or s.recalling & mask or self.device(s, mask) or s.end & mask:
            if self.protocol.park_readahead:
                if s.busy == NONE:
                    s = self.bring_home(s, mask)
                s = s._replace(ahead=PARKED if s.busy != NONE else QUEUED)
                out.append(("gate parks the READ of all pages", s))
                return
            programs = tuple(
                (at, 1) if at < len(ops) and ops[at].kind == "load_ahead" else (at, stage)
                for (at, stage), ops in zip(s.programs, self.setting.programs, strict=True)
            )
            s = s._replace(ahead=IDLE, folio=((ABSENT, 0),) * len(s.folio), programs=programs)
            out.append(("gate answers the READ of all pages with EAGAIN", s))
            return
        s = self.handed_out(s, mask)._replace(ahead=ADMITTED, cached=s.cached | mask)
        out.append(("gate admits the READ of all pages", s))

    # ---- the gate: WRITE --------------------------------------------------------------------

    def holds_write(self, s: State, mask: int) -> bool:
        if s.mode == RECALL and self.protocol.park_in_recall:
            return True
        return s.mode == FROZEN or bool(s.frozen & mask and self.protocol.frozen_holds_write)

    def gate_writeback(self, s: State, p: int, out: Steps) -> None:
        state, mask = s.writeback[p], 1 << p
        if state == ADMITTED:
            s = s._replace(present=s.present | mask, dirty=s.dirty | mask)
            s = self.set_pool(s, HOST, p, s.folio[p][1])
            out.append((f"gate applies the page cache's WRITE of page {p}", self.written(s, p)))
        if state != QUEUED:
            return
        label = f"gate admits the page cache's WRITE of page {p}"
        if s.end & mask:
            out.append((f"gate drops the WRITE of page {p}, past the end", self.written(s, p)))
            return
        parks = self.holds_write(s, mask)
        if not parks and self.writing(s):
            return
        if not parks and s.overtaken & mask:
            out.append((f"gate skips the overtaken WRITE of page {p}", self.written(s, p)))
            return
        if parks or (self.device(s, mask) and s.busy != NONE and s.mode != RECALL):
            s = s._replace(writeback=put(s.writeback, p, PARKED))
            out.append((f"gate parks the page cache's WRITE of page {p}", s))
            return
        s = self.bring_home(s, mask)
        if not self.protocol.write_keeps_copies:
            s = self.collapse(s, mask)
        write = s.write
        older = s.later & write.pages & mask and write.stage in (QUEUED, PARKED)
        # What is remembered: that all of the older WRITE is overwritten, or each of its pages.
        if older and (not self.protocol.order_by_request or write.pages == mask):
            write = write._replace(overtaken=write.overtaken | mask)
        if self.protocol.writeback_unmarked:
            mask &= ~s.present & ~s.recalling
        s = s._replace(writeback=put(s.writeback, p, ADMITTED), cached=s.cached | mask, write=write)
        out.append((label, s))

    def written(self, s: State, p: int) -> State:
        kind, value = s.folio[p]
        kind = CLEAN if kind == WRITEBACK else kind
        return s._replace(writeback=put(s.writeback, p, IDLE), folio=put(s.folio, p, (kind, value)))

    def gate_write(self, s: State, out: Steps) -> None:
        write = s.write
        mask, wide = write.pages, bool(write.pages & (write.pages - 1))
        if write.stage == ADMITTED:
            out.append(("gate applies the WRITE of write(2)", self.apply_write(s)))
        if write.stage != QUEUED:
            return
        urgent = wide and s.mode == RECALL and not self.protocol.wide_waits
        parks = self.holds_write(s, mask)
        if not parks and self.writing(s):
            return
        mask &= ~write.overtaken
        if not parks and not mask:
            out.append(("gate skips the overtaken WRITE of write(2)", self.apply_write(s)))
            return
        if not parks and self.device(s, mask) and not urgent:
            parks = s.busy != NONE or not self.setting.express
            if s.busy == NONE and parks:
                s = self.ask_service(s, mask)
        if parks:
            s = s._replace(write=write._replace(stage=PARKED))
            out.append(("gate parks the WRITE of write(2)", s))
            return
        whole = sum(1 << p for p in self.whole(write.pages))
        s = self.bring_home(s, mask)
        if not self.protocol.write_keeps_copies:
            s = self.collapse(s, mask)
        older = sum(1 << p for p in bits(mask & whole) if s.writeback[p] in (QUEUED, PARKED))
        s = s._replace(
            write=write._replace(stage=ADMITTED),
            cached=s.cached | mask,
            overtaken=s.overtaken | older & ~s.later,
        )
        out.append(("gate admits the WRITE of write(2)", s))

    def apply_write(self, s: State) -> State:
        write, i = s.write, s.inode
        whole = self.whole(write.pages)
        for p in bits(write.pages):
            if not write.overtaken >> p & 1:
                old = 0 if p in whole else max(0, s.pool[HOST][p])
                s = self.set_pool(s, HOST, p, write.values[p] | old)
                s = s._replace(present=s.present | 1 << p, dirty=s.dirty | 1 << p)
            if s.folio[p][0] == LOCKED:
                s = s._replace(folio=put(s.folio, p, (ABSENT, 0)))
            s = self.voided(s, p, write.bit) if p in whole else self.stored(s, p, write.bit)
        return self.next(s._replace(write=Write(), inode=NONE, later=0), i)
