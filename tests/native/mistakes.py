"""Mistakes in the protocol's code, each a change of a few lines of the core, and the scene of
interleavings.c that finds it. Those that the model makes by a switch have the switch's name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from core_build import compile_into, source_of


class Mistake(NamedTuple):
    scene: str
    file: str
    right: str  # stands in the file once
    wrong: str
    also: tuple[str, str] = ("", "")  # a second change of the file


MISTAKES = {
    # ---- recalls
    "no_retry": Mistake(
        "loaded_again",
        "recall.c",
        "        if (!hm_bits(round.word))\n            break;\n        if (tries >=",
        "        if (!hm_bits(round.word) || tries)\n            break;\n        if (tries >=",
    ),
    "park_in_recall": Mistake(
        "read_in_a_recall",
        "access.c",
        "    if (is_frozen(part))\n        return waits",
        "    if (is_frozen(part) || record->state == HM_RECALL)\n        return waits",
    ),
    "park_readahead": Mistake(
        "read_of_several_pages",
        "access.c",
        "waits = direct || !is_wide(request), parked",
        "waits = true, parked",
    ),
    "inval_hull": Mistake(
        "page_between",
        "recall.c",
        "    for (; hm_next_run(round->word, &first, &count); first += count)\n        hm_inval",
        "    first = 0;\n    count = HM_BLOCK_PAGES;\n    hm_inval",
    ),
    "wide_waits": Mistake(
        "parked_in_a_round",
        "access.c",
        "record->busy && !(urgent && record->state == HM_RECALL)",
        "record->busy",
    ),
    "frozen_holds_write": Mistake(
        "write_past_a_frozen_page",
        "access.c",
        "    if (record->state == HM_FROZEN)\n        return PARK_BUSY;",
        "    if (record->state == HM_FROZEN || is_frozen(part))\n        return PARK_BUSY;",
    ),
    "parked_in_round": Mistake(
        "parked_in_a_round",
        "recall.c",
        "while (hm_replay_pages(t->region, t->block, &round))",
        "while (false)",
    ),
    # ---- jobs
    "refused_job_ends_the_line": Mistake(
        "past_the_end",
        "jobs.c",
        "    next = next_deferred(t);\n",
        "    next = held ? next_deferred(t) : NULL;\n",
    ),
    # ---- WRITEs
    "write_at_once": Mistake(
        "write_in_pieces",
        "access.c",
        "    hm_limit(&window, HM_INLINE_PAGES);\n",
        "",
    ),
    "cut_at_once": Mistake(
        "cut_of_labelled_pages",
        "cut.c",
        "in_pieces ? HM_INLINE_PAGES * HM_PAGE_SIZE",
        "in_pieces ? HM_BLOCK_BYTES",
    ),
    "allocated_at_once": Mistake(
        "allocated_in_pieces",
        "extent.c",
        "n = pass ? HM_INLINE_PAGES : HM_BLOCK_PAGES;",
        "n = HM_BLOCK_PAGES;",
    ),
    "home_without_bytes": Mistake(
        "refused_write",
        "migrate.c",
        "        error = copy_pages(&t, &plan, &plan.copy);\n",
        "        error = 0; /* they are about to be overwritten */\n",
    ),
    "order_by_request": Mistake(
        "delayed_write",
        "access.c",
        "    if (hm_bits(overtaken.word))\n",
        "    if (hm_bits(overtaken.word) < part->count)\n"
        "        memset(&overtaken, 0, sizeof(overtaken));\n"
        "    if (hm_bits(overtaken.word))\n",
    ),
    "writeback_unmarked": Mistake(
        "writeback_overtakes",
        "access.c",
        "    hm_add(record->cached, part->mask.word);\n"
        "    record->inflight++;\n    record->writing",
        "    if (!from_cache)\n        hm_add(record->cached, part->mask.word);\n"
        "    record->inflight++;\n    record->writing",
    ),
    "writeback_refused": Mistake(
        "writeback_to_a_full_host",
        "access.c",
        "        overcommit = HM_OVERCOMMIT_ALWAYS;",
        "        overcommit = HM_OVERCOMMIT_STAGING;",
    ),
    "no_drain": Mistake(
        "write_under_way",
        "migrate.c",
        "        while (record->inflight)\n",
        "        while (false)\n",
    ),
    # ---- cuts
    "thaw_early": Mistake(
        "written_before_the_punch",
        "migrate.c",
        "    hm_unlock(HM_RANK_STRIPE, &t->stripe->lock);\n"
        '    hm_pause("bring.flipped");\n    give_back(t, &leaving);',
        "    hm_thaw(record, t->stripe);\n    hm_unlock(HM_RANK_STRIPE, &t->stripe->lock);\n"
        '    hm_pause("bring.flipped");\n    give_back(t, &leaving);',
    ),
    "no_generation": Mistake(
        "cut_while_it_is_copied",
        "migrate.c",
        "        if (!error && record->generation == generation)\n",
        "        if (!error)\n",
    ),
    "punch_first": Mistake(
        "cut_elsewhere_while_it_is_copied",
        "migrate.c",
        "        error = carry(t, &plan);\n",
        "        error = carry(t, &plan);\n"
        "        hm_punch_runs(t->region, HM_HOST, t->block, plan.copy.word);\n",
    ),
    "blind_read": Mistake(
        "cut_while_it_is_read",
        "access.c",
        "    if (part->record->generation != part->generation) {\n",
        "    if (false) {\n",
    ),
    "blind_load": Mistake(
        "cut_before_a_load",
        "operation.c",
        "    if (stores || t->record->generation != generation) {\n",
        "    if (stores) {\n",
    ),
    "blind_store": Mistake(
        "cut_before_a_store",
        "operation.c",
        "    if (stores || t->record->generation != generation) {\n",
        "    if (!stores && t->record->generation != generation) {\n",
    ),
    "fill_past_end": Mistake(
        "store_past_the_end",
        "migrate.c",
        "struct hm_mask inside = hm_inside_file(t->region, t->block);",
        "struct hm_mask inside = hm_mask_range(0, HM_BLOCK_PAGES);",
    ),
    "allocate_frozen": Mistake(
        "allocated_while_frozen",
        "extent.c",
        "    while (record->state == HM_FROZEN)\n",
        "    while (false)\n",
    ),
    "keep_written": Mistake(
        "store_to_a_kept_page",
        "migrate.c",
        "        t->record->kept[w] &= ~mask->word[w];\n",
        "        stale.word[w] = 0;\n",
    ),
    # ---- copies of read-mostly pages
    "first_open_ends": Mistake(
        "two_openers",
        "copies.c",
        "    } else if (!(atomic_fetch_add(&region->writers, 1) & HM_COPIES_ENDED)) {\n",
        "    } else if (!atomic_fetch_add(&region->writers, 1)) {\n",
    ),
    "open_keeps_copies": Mistake(
        "one_opener", "copies.c", "        hm_collapse_all(region);\n", ""
    ),
    "end_unnoticed": Mistake(
        "copy_ends_in_a_migration",
        "copies.c",
        "            region->blocks[block].generation++;\n",
        "            (void)block;\n",
    ),
    "read_keeps_copies": Mistake(
        "read_of_a_copied_page",
        "access.c",
        "atomic_load(&part->region->writers) && !direct)",
        "false)",
    ),
    "write_keeps_copies": Mistake(
        "write_to_a_copied_page",
        "access.c",
        "    if (atomic_load_explicit(&part->region->copies, memory_order_relaxed)) {\n",
        "    if (false) {\n",
    ),
    "flip_keeps_copies": Mistake(
        "store_to_a_copied_page",
        "migrate.c",
        "    if (to != HM_HOST)\n        for (uint32_t node = 1; node < t->core->config.nodes",
        "    if (to != HM_HOST)\n        for (uint32_t node = to; node < to + 1",
    ),
    "copy_unrecalled": Mistake(
        "open_while_it_is_copied",
        "duplicate.c",
        "            error = hm_recall(t, mask);\n",
        "            error = hm_recall(t, &(struct hm_mask){{0}});\n",
    ),
    "copy_of_a_cut_page": Mistake(
        "cut_while_it_is_duplicated",
        "duplicate.c",
        "        if (!error && record->generation == generation) {\n            count_copies",
        "        if (!error) {\n            count_copies",
    ),
    # ---- workers
    "no_protect": Mistake(
        "store_while_it_is_copied",
        "migrate.c",
        "    int error = pool ? protect(t, plan) : -errno;\n",
        "    int error = pool ? 0 : -errno;\n    (void)protect;\n",
    ),
    "protect_late": Mistake(
        "store_while_it_is_copied",
        "migrate.c",
        "    int error = pool ? protect(t, plan) : -errno;\n",
        "    int error = pool ? 0 : -errno;\n",
        (
            '    hm_pause("carry.copied");\n',
            '    hm_pause("carry.copied");\n    error = error ? error : protect(t, plan);\n',
        ),
    ),
    "fill_writable": Mistake(
        "first_store",
        "windows.c",
        "UFFDIO_COPY_MODE_WP | UFFDIO_COPY_MODE_DONTWAKE",
        "UFFDIO_COPY_MODE_DONTWAKE",
    ),
    "fill_many_writable": Mistake(
        "first_store_of_many",
        "migrate.c",
        "    error = hm_window_protect(t->region, t->job->node, t->block, &arriving);\n",
        "",
    ),
    "wake_arrived": Mistake(
        "cut_before_the_wake",
        "device_fault.c",
        "        t->wake = hm_either(faulted.word, stores.word);\n",
        "        t->wake = hm_both(hm_either(faulted.word, stores.word).word, record->present);\n",
    ),
    "discard_keeps_source": Mistake(
        "cut_before_it_is_handed_over",
        "migrate.c",
        "        if (copied && !lives(t->record, page, plan->from[page]))\n",
        "        if (false)\n",
    ),
    "mark_late": Mistake(
        "store_before_the_wake",
        "device_fault.c",
        "    hm_mark_written(t, &stores);\n",
        "",
        (
            "    if (hm_bits(stores.word)) /* and not before",
            "    t->record->busy = 0;\n"
            "    hm_unlock(HM_RANK_STRIPE, &t->stripe->lock);\n"
            '    hm_pause("fault.unmarked");\n'
            "    hm_lock(HM_RANK_STRIPE, &t->stripe->lock);\n"
            "    t->record->busy = 1;\n"
            "    hm_mark_written(t, &stores);\n"
            "    if (hm_bits(stores.word)) /* and not before",
        ),
    ),
    "wake_before_it_is_free": Mistake(
        "woken_when_it_is_free",
        "jobs.c",
        "        hm_window_wake(t->region, t->job->node, t->block, &t->wake);\n",
        "",
        (
            "        hm_lock(HM_RANK_STRIPE, &t->stripe->lock);\n        t->record->busy = 0;\n",
            "        hm_window_wake(t->region, t->job->node, t->block, &t->wake);\n"
            "        hm_lock(HM_RANK_STRIPE, &t->stripe->lock);\n        t->record->busy = 0;\n",
        ),
    ),
    # ---- programs' own memory
    "let_go_before_it_is_free": Mistake(
        "fault_at_a_held_block",
        "jobs.c",
        "        if (ops->freed)\n            ops->freed(t->region, t->block);\n",
        "",
        (
            "        hm_lock(HM_RANK_STRIPE, &t->stripe->lock);\n        t->record->busy = 0;\n",
            "        if (ops->freed)\n            ops->freed(t->region, t->block);\n"
            '        hm_pause("job.freed");\n'
            "        hm_lock(HM_RANK_STRIPE, &t->stripe->lock);\n        t->record->busy = 0;\n",
        ),
    ),
    "move_in_a_take": Mistake(
        "moved_while_it_is_taken",
        "space.c",
        "        if (record->busy)\n            error = -EBUSY;\n",
        "",
        (
            "        busy = record->busy &&\n"
            "               (hm_any(record->device, mask.word) || "
            "hm_any(record->recalling, mask.word));\n",
            "        busy = false;\n",
        ),
    ),
    "discard_in_a_take": Mistake(
        "discarded_while_it_is_taken",
        "space.c",
        "        busy = record->busy &&\n"
        "               (hm_any(record->device, mask.word) || "
        "hm_any(record->recalling, mask.word));\n",
        "        busy = false;\n",
    ),
    "takes_what_goes": Mistake(
        "about_to_be_discarded",
        "take.c",
        "        hm_drop(pages->word, discards.word);\n",
        "",
    ),
    "discard_unnoted": Mistake(
        "discarded_unsaid",
        "pending.c",
        "        note_discard(process, message->arg.remove.start, message->arg.remove.end);\n",
        "        ;\n",
    ),
    # Of these two a second line of defence is taken away as well.
    "asked_in_vain": Mistake(
        "stopped_while_it_is_asked",
        "take.c",
        "        if (state == HM_SLOT_PENDING && hm_now() > end &&\n"
        "            __atomic_compare_exchange_n(&request->state, &state, HM_SLOT_FREE, false,\n"
        "                                        __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))\n",
        "        if (state == HM_SLOT_PENDING && hm_now() > end)\n",
        ("    __atomic_store_n(&process->control->slot[slot].runs, 0, __ATOMIC_RELAXED);\n", ""),
    ),
    "unsent_but_asked": Mistake(
        "asked_too_much",
        "take.c",
        "    return __atomic_compare_exchange_n(&request->state, &state, HM_SLOT_FREE, false,\n"
        "                                       __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)\n"
        "               ? -EBUSY\n"
        "               : 0;\n",
        "    return (void)state, -EBUSY;\n",
        ("    __atomic_store_n(&process->control->slot[slot].runs, 0, __ATOMIC_RELAXED);\n", ""),
    ),
    # The kernel refuses zeros until the program, of whose move was read, goes on.
    "faults_at_once": Mistake(
        "faults_come_first",
        "pending.c",
        "            messages[own++] = messages[i];\n",
        "            usleep(5000), serve_own(process, &messages[i]);\n",
    ),
}

# What takes a system call that fails, or does a part of what it was asked for: a schedule finds it.
FAULTY = {
    "failed_write_stays": Mistake(
        "",
        "access.c",
        "        hm_punch_runs(part->region, HM_HOST, part->block, new_pages.word);\n",
        "",
    ),
    "read_of_a_part": Mistake(
        "",
        "pool.c",
        "        to += n;\n        offset += (uint64_t)n;\n        length -= (size_t)n;\n",
        "        length = 0;\n",
    ),
    "copy_of_a_part": Mistake(
        "",
        "pool.c",
        "        length -= (size_t)n;\n    }\n    return 0;\n}\n\nuint64_t hm_pool_allocated",
        "        length = 0;\n    }\n    return 0;\n}\n\nuint64_t hm_pool_allocated",
    ),
    "signal_ends_a_copy": Mistake(
        "",
        "pool.c",
        "        ssize_t n = copy_file_range(from->fd, &in, to->fd, &out, length, 0);\n"
        "        if (n < 0 && errno == EINTR)\n            continue;\n",
        "        ssize_t n = copy_file_range(from->fd, &in, to->fd, &out, length, 0);\n",
    ),
}


def spoil(name: str, directory: Path) -> Path:
    """The file with the mistake, made in the directory."""
    _, file, right, wrong, also = (MISTAKES | FAULTY)[name]
    text = source_of(file).read_text()
    for before, after in ((right, wrong), also):
        assert not before or text.count(before) == 1, f"{file} has changed: make the mistake anew"
        text = text.replace(before, after) if before else text
    path = directory / file
    path.write_text(text)
    return path


def spoilt(name: str, directory: Path, flags: Iterable[str], objects: Iterable[Path]) -> list[Path]:
    """These objects with the mistake: one is compiled anew in the directory."""
    (made,) = compile_into(directory, flags, [spoil(name, directory)])
    return [made, *(path for path in objects if path.name != made.name)]
