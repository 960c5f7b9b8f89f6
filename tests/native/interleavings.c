/* Each hazard of the protocol in the one order of events that shows it: threads of the core are
 * held at named points meanwhile.
 *
 *   interleavings SCENE
 *
 * What scene finds which mistake is in mistakes.py, and tried by test_interleavings.py. */
#include "pauses.h"

#include <fcntl.h>

#define PAGE HM_PAGE_SIZE

static const struct hm_config small = {
    .nodes = 3, .threads = 1, .express = 1, .capacity = {2048, 2048, 2048}};

static struct hm_config keeping(void)
{
    struct hm_config config = small;
    config.keep_clean = 1;
    return config;
}

/* ---- WRITEs -----------------------------------------------------------------------------------
 */

/* A WRITE of several pages that was read first is carried out last. */
static void delayed_write(void)
{
    struct hm_request late, soon;
    begin(small, 8 * PAGE);
    late = a_write(0, 4, 'A', 0);
    soon = a_write(1, 1, 'B', 0);
    hm_order_read(core, late.unique);
    send_request(&soon);
    hm_access(core, &late);
    CHECK(!answer(soon.unique).error && !answer(late.unique).error, "errors");
    CHECK(load(0) == 'A' && load(3) == 'A', "the rest of it is lost");
    CHECK(load(1) == 'B', "it overwrote what a later one wrote");
}

/* The page cache's WRITE of a page overtakes the write(2) that made the page there. */
static void writeback_overtakes(void)
{
    struct hm_request made, back;
    begin(small, 8 * PAGE);
    made = a_write(0, 1, 'A', 0);
    back = a_write(0, 1, 'B', FUSE_WRITE_CACHE);
    hm_order_read(core, made.unique);
    send_request(&back);
    hm_access(core, &made);
    CHECK(!answer(made.unique).error && !answer(back.unique).error, "errors");
    CHECK(!run_job(a_move(1, 0, 1)), "migrate");
    CHECK(invalidations(0), "the device took a page that the CPU has");
    CHECK(device_load(1, 0) == 'B', "the page cache's stores are lost");
}

/* The page cache's stores have no other copy: they are admitted to a full host. */
static void writeback_to_a_full_host(void)
{
    struct hm_request back;
    uint64_t taken = 0;
    begin(small, 8 * PAGE);
    while (!hm_reserve(core, HM_HOST, 1, 1))
        taken++;
    back = a_write(0, 1, 'A', FUSE_WRITE_CACHE);
    send_request(&back);
    CHECK(is_answered(back.unique), "it waits for capacity");
    CHECK(!answer(back.unique).error, "refused with %d", answer(back.unique).error);
    hm_release(core, HM_HOST, taken);
    core->nodes[HM_HOST].peak = 0; /* no mount has its staging reserve taken by a test */
    CHECK(load(0) == 'A', "the page cache's stores are lost");
}

/* A WRITE of a device's page and a hole, for which the host is full: until it is carried out the
 * page has what it had, and when it is refused, too. */
static void refused_write(void)
{
    struct hm_job fail = {.kind = HM_JOB_FAIL, .cookie = ++uniques, .error = ENOSPC};
    struct hm_request write;
    uint64_t taken = 0;
    begin(small, 8 * PAGE);
    store(0, 1, 'A');
    CHECK(!run_job(a_move(1, 0, 1)), "migrate");
    while (!hm_reserve(core, HM_HOST, 1, 0))
        taken++;
    hm_release(core, HM_HOST, 1); /* for the page to come home */
    write = a_write(0, 2, 'B', 0);
    send_request(&write);
    CHECK(!is_answered(write.unique), "it needs no capacity");
    CHECK(load(0) == 'A', "a WRITE that waits has taken what there was");
    run_job(fail);
    CHECK(answer(write.unique).error == -ENOSPC, "%d", answer(write.unique).error);
    CHECK(load(0) == 'A', "a WRITE that was refused has taken what there was");
    hm_release(core, HM_HOST, taken - 1);
}

/* A WRITE of two blocks must not wait, and brings home many pages that a device has: in pieces, and
 * between them others get at the block. */
static void write_in_pieces(void)
{
    struct hm_request write, read;
    struct aside writer = {0};
    struct hold piece;
    begin(small, 2 * HM_BLOCK_BYTES);
    store(300, 212, 'A');
    CHECK(!run_job(a_move(1, 300, 212)), "migrate");
    write = a_write(400, 200, 'B', 0);
    read = a_read(300, 0);
    hold(&piece, "write.goes.on");
    run_aside(&writer, request_aside, &write);
    await(&piece);
    CHECK(!hm_test(region->blocks[0].device, 415) && hm_test(region->blocks[0].device, 416),
          "not as many pages as a stripe is held for");
    send_request(&read);
    CHECK(answer(read.unique).byte == 'A', "the page was not in the WRITE");
    let_go(&piece);
    join(&writer);
    CHECK(!answer(write.unique).error, "%d", answer(write.unique).error);
    CHECK(region->blocks[0].cpu_faults == 2, "it is one fault, and the READ another");
    CHECK(load(399) == 'A' && load(400) == 'B' && load(511) == 'B' && load(599) == 'B', "bytes");
}

/* Holes of a whole block get memory, and of a second one a part. */
static void allocated_in_pieces(void)
{
    begin(small, 2 * HM_BLOCK_BYTES);
    store(3, 1, 'A');
    CHECK(!hm_region_allocate(core, INO, 0, 700 * PAGE), "allocate");
    CHECK(hm_bits(region->blocks[0].present) == HM_BLOCK_PAGES, "a block");
    CHECK(hm_bits(region->blocks[1].present) == 700 - HM_BLOCK_PAGES, "a part");
    CHECK(load(3) == 'A' && load(4) == 0 && load(699) == 0, "bytes");
}

/* Pages with a label are punched, and the host is full: they become zeros, in pieces. */
static void cut_of_labelled_pages(void)
{
    struct hm_config config = small;
    uint64_t taken = 0;
    config.device_kind[1] = HM_KIND_COHERENT;
    config.visible[1] = 2048;
    begin(config, 2 * HM_BLOCK_BYTES);
    store(100, 60, 'A');
    CHECK(!run_job(a_move(1, 100, 60)), "migrate");
    CHECK(hm_labelled(region, 0) == 60, "%u are labelled", hm_labelled(region, 0));
    for (uint32_t page = 100; page < 160; page++)
        CHECK(load(page) == 'A', "bytes");
    while (!hm_reserve(core, HM_HOST, 1, 0))
        taken++;
    CHECK(!hm_region_punch(core, INO, 101 * PAGE - 1, 50 * PAGE), "punch");
    CHECK(hm_labelled(region, 0) == 60, "%u are labelled", hm_labelled(region, 0));
    hm_release(core, HM_HOST, taken);
    CHECK(load(100) == 'A' && load(101) == 0 && load(149) == 0 && load(159) == 'A', "bytes");
}

/* Two jobs wait for a block, and when their turn comes the file is too short for both. */
static void past_the_end(void)
{
    struct hm_job one = a_fill(1, 0, PAGE, 'B'), two = a_fill(1, PAGE, PAGE, 'C');
    struct hm_job first = a_fill(1, 0, PAGE, 'A');
    struct hold operation;
    int result;
    begin(small, 8 * PAGE);
    hold(&operation, "operate.begun");
    submit(first);
    await(&operation);
    submit(one);
    submit(two);
    UNTIL(hm_stripe_of(core, INO, 0)->deferred && hm_stripe_of(core, INO, 0)->deferred->next);
    CHECK(!hm_region_truncate(core, INO, 0), "truncate");
    let_go(&operation);
    CHECK(job_ends(two.cookie, &result), "nobody runs the last of them");
    CHECK(result == -ERANGE, "%d", result);
}

/* A WRITE is being copied when a device wants its page. */
static void write_under_way(void)
{
    struct hm_job move = a_move(1, 0, 1);
    struct hm_request write;
    int result;
    struct aside writer = {0};
    struct hold copy;
    begin(small, 8 * PAGE);
    store(0, 1, 'A');
    write = a_write(0, 1, 'B', 0);
    hold(&copy, "write.admitted");
    run_aside(&writer, request_aside, &write);
    await(&copy);
    submit(move);
    if (!job_ends(move.cookie, &result)) { /* it waits, as it should */
        let_go(&copy);
        result = await_job(move.cookie);
    } else {
        let_go(&copy);
    }
    join(&writer);
    CHECK(!result, "migrate: %d", result);
    CHECK(device_load(1, 0) == 'B', "the device has what was there before the WRITE");
}

/* ---- recalls ----------------------------------------------------------------------------------
 */

/* The page is loaded again after the kernel dropped it, and before the recall looks. */
static void loaded_again(void)
{
    struct hm_job move = a_move(1, 0, 1);
    struct hold done;
    begin(small, 8 * PAGE);
    store(0, 1, 'A');
    hold(&done, "recall.done");
    submit(move);
    await(&done);
    load(0);
    let_go(&done);
    CHECK(!await_job(move.cookie), "migrate");
    CHECK(invalidations(0) == 2, "the CPU has a page that a device took");
}

/* A READ of the page comes while the kernel is to drop it, for which the kernel needs the folio
 * that the READ has locked. */
static void read_in_a_recall(void)
{
    struct hm_job move = a_move(1, 0, 1);
    struct hm_request read;
    struct hold begun;
    begin(small, 8 * PAGE);
    store(0, 1, 'A');
    hold(&begun, "recall.begun");
    submit(move);
    await(&begun);
    read = a_read(0, 0);
    send_request(&read);
    CHECK(is_answered(read.unique), "the kernel waits for a READ that waits for this recall");
    let_go(&begun);
    CHECK(!await_job(move.cookie), "migrate");
}

/* A READ of several pages, which holds the locks of all, meets one that moves. */
static void read_of_several_pages(void)
{
    struct hm_job move = a_move(2, 0, 1);
    struct hm_request read;
    struct hold planned;
    begin(small, 8 * PAGE);
    store(0, 2, 'A');
    CHECK(!run_job(a_move(1, 0, 1)), "migrate");
    hold(&planned, "bring.planned");
    submit(move);
    await(&planned);
    read = a_read(0, 0);
    read.size = 2 * PAGE;
    send_request(&read);
    CHECK(is_answered(read.unique), "it ties its pages together");
    CHECK(answer(read.unique).error == -EAGAIN, "error %d", answer(read.unique).error);
    let_go(&planned);
    CHECK(!await_job(move.cookie), "migrate");
}

/* Between two pages that are recalled lies one that a device has, on which a READ may be parked. */
static void page_between(void)
{
    begin(small, 8 * PAGE);
    store(0, 3, 'A');
    CHECK(!run_job(a_move(1, 1, 1)), "migrate");
    CHECK(invalidations(1) == 1, "the page was the CPU's");
    CHECK(!run_job(a_move(2, 0, 3)), "migrate");
    CHECK(invalidations(1) == 1, "the kernel was asked to drop a page that a device had");
    CHECK(invalidations(0) == 1 && invalidations(2) == 1, "the CPU has pages that a device took");
}

/* A contended recall has frozen page 0 early when a WRITE comes that holds page 1's folio, which
 * the recall is about to have dropped. */
static void write_past_a_frozen_page(void)
{
    struct hm_job move = a_move(1, 0, 2);
    struct hm_request write;
    struct hold done[HM_RECALL_ROUNDS + 1], first, second;
    begin(small, 8 * PAGE);
    store(0, 2, 'A');
    hold(&done[0], "recall.done");
    submit(move);
    for (int round = 0; round < HM_RECALL_ROUNDS; round++) {
        await(&done[round]);
        load(0);
        load(1);
        if (round == HM_RECALL_ROUNDS - 1)
            hold(&first, "recall.begun");
        else
            hold(&done[round + 1], "recall.done");
        let_go(&done[round]);
    }
    await(&first); /* of page 0 alone */
    hold(&second, "recall.begun");
    let_go(&first);
    await(&second); /* of page 1, with page 0 frozen */
    write = a_write(0, 2, 'B', 0);
    send_request(&write);
    CHECK(is_answered(write.unique), "the WRITE is parked, and the kernel waits for its folio");
    let_go(&second);
    CHECK(!await_job(move.cookie), "migrate");
    CHECK(device_load(1, 0) == 'B' && device_load(1, PAGE) == 'B', "the WRITE is lost");
}

/* A READ is parked at a page of a device's. A WRITE of several pages brings the page home, so that
 * the recall's next round is about it: the kernel would wait for the READ. */
static void parked_in_a_round(void)
{
    struct hm_job move = a_move(2, 0, 2);
    struct hm_request read, write;
    struct hold first, second;
    struct said found;
    begin(small, 8 * PAGE);
    store(0, 3, 'A');
    CHECK(!run_job(a_move(1, 1, 1)), "migrate");
    hold(&first, "recall.begun");
    submit(move);
    await(&first);
    read = a_read(1, 0);
    send_request(&read);
    CHECK(!answered(read.unique, &found), "a READ of a page that moves is answered");
    write = a_write(1, 2, 'B', 0);
    send_request(&write);
    CHECK(is_answered(write.unique), "the kernel waits for a WRITE that waits for this recall");
    CHECK(!answer(write.unique).error, "error");
    hold(&second, "recall.begun");
    let_go(&first);
    await(&second);
    CHECK(is_answered(read.unique), "the kernel waits for a READ that waits for this recall");
    let_go(&second);
    CHECK(!await_job(move.cookie), "migrate");
    CHECK(device_load(2, PAGE) == 'B', "the WRITE is lost");
}

/* ---- cuts -------------------------------------------------------------------------------------
 */

static void cut_and_grow(void)
{
    CHECK(!hm_region_truncate(core, INO, 0), "cut");
    CHECK(!hm_region_truncate(core, INO, 8 * PAGE), "grow");
}

/* A page is cut and written anew between the change of its owner and the punch of its old place. */
static void written_before_the_punch(void)
{
    struct hm_job move = a_move(1, 0, 1);
    struct hm_request write;
    struct hold flipped;
    begin(small, 8 * PAGE);
    store(0, 1, 'A');
    hold(&flipped, "bring.flipped");
    submit(move);
    await(&flipped);
    cut_and_grow();
    write = a_write(0, 1, 'B', 0);
    send_request(&write);
    let_go(&flipped);
    CHECK(!await_job(move.cookie), "migrate");
    CHECK(!answer(write.unique).error, "error");
    CHECK(load(0) == 'B', "the punch took new bytes");
}

static void cut_while_it_is_copied(void)
{
    uint64_t cursor = 0;
    char text[4096];
    int64_t length;
    struct hm_job move = a_move(1, 0, 1);
    struct hold copied;
    begin(small, 8 * PAGE);
    CHECK(!hm_trace_resize(core, 64) && !hm_trace_kinds(core, UINT32_MAX), "trace");
    store(0, 1, 'A');
    hold(&copied, "bring.copied");
    submit(move);
    await(&copied);
    cut_and_grow();
    let_go(&copied);
    CHECK(!await_job(move.cookie), "migrate");
    audit();
    CHECK(load(0) == 0, "bytes that were cut are back");
    length = hm_trace_text(core, &cursor, UINT64_MAX, text, sizeof(text) - 1);
    CHECK(length > 0, "trace: %lld", (long long)length);
    text[length] = 0;
    CHECK(strstr(text, "migrate_start") && strstr(text, "migrate_end"),
          "its start, or its end:\n%s", text);
}

/* Another page of the block is cut, so that the migration begins again. */
static void cut_elsewhere_while_it_is_copied(void)
{
    struct hm_job move = a_move(1, 0, 1);
    struct hold copied;
    begin(small, 8 * PAGE);
    store(0, 1, 'A');
    store(5, 1, 'B');
    hold(&copied, "bring.copied");
    submit(move);
    await(&copied);
    CHECK(!hm_region_punch(core, INO, 5 * PAGE, PAGE), "punch");
    let_go(&copied);
    CHECK(!await_job(move.cookie), "migrate");
    CHECK(device_load(1, 0) == 'A', "the page was freed before it had moved");
}

/* What is copied has just been cut: reading it through the mapping makes it again. */
static void cut_before_it_is_copied(void)
{
    struct hm_job move = a_move(1, 0, 1);
    struct hold planned;
    begin(small, 8 * PAGE);
    store(0, 1, 'A');
    hold(&planned, "bring.planned");
    submit(move);
    await(&planned);
    cut_and_grow();
    let_go(&planned);
    CHECK(!await_job(move.cookie), "migrate");
    audit();
    CHECK(load(0) == 0, "bytes that were cut are back");
}

/* A READ is answered from the mapping while the page is cut. */
static void cut_while_it_is_read(void)
{
    struct hm_request read;
    struct aside reader = {0};
    struct hold admitted;
    begin(small, 8 * PAGE);
    store(0, 1, 'A');
    read = a_read(0, 0);
    hold(&admitted, "read.admitted");
    run_aside(&reader, request_aside, &read);
    await(&admitted);
    cut_and_grow();
    let_go(&admitted);
    join(&reader);
    audit();
}

/* A device loads from a page that is cut. */
static void cut_before_a_load(void)
{
    uint8_t byte = 1;
    struct hm_job read = {
        .kind = HM_JOB_READ, .cookie = 77, .node = 1, .length = 1, .buffer = &byte};
    struct hold begun;
    begin(small, 8 * PAGE);
    CHECK(!run_job(a_fill(1, 0, PAGE, 'A')), "fill");
    hold(&begun, "operate.begun");
    submit(read);
    await(&begun);
    cut_and_grow();
    let_go(&begun);
    CHECK(!await_job(77), "read");
    audit();
}

/* A device stores to a page that is cut. */
static void cut_before_a_store(void)
{
    struct hm_job fill = a_fill(1, 0, PAGE, 'A');
    struct hold begun;
    begin(small, 8 * PAGE);
    hold(&begun, "operate.begun");
    submit(fill);
    await(&begun);
    cut_and_grow();
    let_go(&begun);
    CHECK(!await_job(fill.cookie), "fill");
    CHECK(!run_job(a_fill(1, 100, 10, 'C')), "fill");
    CHECK(device_load(1, 0) == 0, "bytes that were cut are back");
    CHECK(device_load(1, 100) == 'C', "a store is lost");
}

/* The file is cut after a device's store has looked at its size. */
static void store_past_the_end(void)
{
    struct hm_job fill = a_fill(1, 0, 4 * PAGE, 'A');
    struct hold begun;
    begin(small, 4 * PAGE);
    store(0, 1, 'B');
    hold(&begun, "recall.begun");
    submit(fill);
    await(&begun);
    CHECK(!hm_region_truncate(core, INO, PAGE), "cut");
    let_go(&begun);
    CHECK(!await_job(fill.cookie), "fill");
    CHECK(!hm_region_truncate(core, INO, 8 * PAGE), "grow");
    CHECK(load(2) == 0, "a page past the end shows");
    CHECK(load(0) == 'A', "a page within is lost");
}

struct allocation {
    int result;
    struct aside aside;
};

static void allocate(void *arg)
{
    struct allocation *allocation = arg;
    allocation->result = hm_region_allocate(core, INO, 0, PAGE);
}

/* fallocate of a page that a transaction is filling. */
static void allocated_while_frozen(void)
{
    struct hm_job fill = a_fill(1, 0, PAGE, 'A');
    struct allocation allocation = {0};
    struct hold planned;
    begin(small, 8 * PAGE);
    hold(&planned, "bring.planned");
    submit(fill);
    await(&planned);
    run_aside(&allocation.aside, allocate, &allocation);
    CHECK(!happens(&allocation.aside.done), "it did not wait");
    let_go(&planned);
    CHECK(!await_job(fill.cookie), "fill");
    join(&allocation.aside);
    CHECK(!allocation.result, "allocate: %d", allocation.result);
    CHECK(load(0) == 'A', "a device's store is lost");
}

/* ---- copies -----------------------------------------------------------------------------------
 */

static HM_UNLOCKED uint32_t copies(uint32_t node)
{
    struct hm_mask mask = hm_copies_on(region, 0, node);
    return hm_bits(mask.word);
}

static int copy_to_device(uint32_t node)
{
    struct hm_job copy = a_move(node, 0, 1);
    copy.flags = HM_JOB_ASKED;
    return run_job(copy);
}

static void with_a_copy(void)
{
    begin(keeping(), 8 * PAGE);
    CHECK(!run_job(a_fill(1, 0, PAGE, 'A')), "fill");
    CHECK(!run_job(a_move(HM_HOST, 0, 1)), "home");
    CHECK(!hm_advise(core, INO, 0, HM_BLOCK_PAGES, HM_ADVICE_READ_MOSTLY, 1), "advise");
    CHECK(!copy_to_device(1), "copy");
    CHECK(copies(1) == 1, "%u copies", copies(1));
}

static void open_aside(void *arg)
{
    (void)arg;
    CHECK(!hm_region_writers(core, INO, 1), "open");
}

/* Two opens for writing at once: the first is at it. */
static void two_openers(void)
{
    struct aside opener = {0};
    struct hold first;
    with_a_copy();
    hold(&first, "open.collapses");
    run_aside(&opener, open_aside, NULL);
    await(&first);
    CHECK(!hm_region_writers(core, INO, 1), "open");
    CHECK(!copies(1), "the second was answered while a copy stands");
    let_go(&first);
    join(&opener);
}

static void one_opener(void)
{
    with_a_copy();
    CHECK(!hm_region_writers(core, INO, 1), "open");
    CHECK(!copies(1), "it was answered while a copy stands");
}

/* While a file is open for writing, what the CPU is given may be stored to without a word. */
static void read_of_a_copied_page(void)
{
    with_a_copy();
    CHECK(!hm_region_writers(core, INO, 1), "open");
    CHECK(!copy_to_device(1) && copies(1) == 1, "copy");
    CHECK(load(0) == 'A', "load");
    CHECK(!copies(1), "a copy stands of a page that may be stored to");
}

static void write_to_a_copied_page(void)
{
    with_a_copy();
    CHECK(!hm_region_writers(core, INO, 1), "open");
    CHECK(!copy_to_device(1) && copies(1) == 1, "copy");
    store(0, 1, 'B');
    CHECK(!copies(1), "a copy stands of what was there before");
}

/* One of two devices with a copy stores to the page. */
static void store_to_a_copied_page(void)
{
    with_a_copy();
    CHECK(!copy_to_device(2) && copies(2) == 1, "copy");
    CHECK(!run_job(a_fill(1, 0, PAGE, 'B')), "fill");
    CHECK(!copies(2), "a copy stands of what was there before");
}

/* A file is opened for writing while a page that the page cache has is copied. */
static void open_while_it_is_copied(void)
{
    struct hm_job copy = a_move(1, 0, 1);
    struct hold copied;
    with_a_copy();
    CHECK(!hm_region_writers(core, INO, 1) && !hm_region_writers(core, INO, -1), "open, close");
    load(0);
    copy.flags = HM_JOB_ASKED;
    hold(&copied, "duplicate.copied");
    submit(copy);
    await(&copied);
    CHECK(!hm_region_writers(core, INO, 1), "open");
    let_go(&copied);
    CHECK(!await_job(copy.cookie), "copy");
    CHECK(invalidations(0), "the CPU has a page for writing that has a copy");
}

static void cut_while_it_is_duplicated(void)
{
    struct hm_job copy = a_move(2, 0, 1);
    struct hold copied;
    with_a_copy();
    copy.flags = HM_JOB_ASKED;
    hold(&copied, "duplicate.copied");
    submit(copy);
    await(&copied);
    cut_and_grow();
    let_go(&copied);
    CHECK(!await_job(copy.cookie), "copy");
    audit();
    CHECK(!copies(2), "a page that was cut has a copy");
}

/* The host's copy of a page that a device has is worth something until the device stores. */
static void store_to_a_kept_page(void)
{
    begin(keeping(), 8 * PAGE);
    store(0, 1, 'A');
    CHECK(!run_job(a_move(1, 0, 1)), "migrate");
    CHECK(!run_job(a_fill(1, 0, PAGE, 'B')), "fill");
    CHECK(load(0) == 'B', "a device's store is lost");
}

/* Kept copies of one block after the other go, and those of a block that is busy stay. */
static void kept_copies_go(void)
{
    struct hm_stripe *stripe;
    begin(keeping(), 4 * HM_BLOCK_BYTES);
    for (uint32_t block = 0; block < 4; block++) {
        struct hm_job move = a_move(1, 7, 2);
        move.block = block;
        store(block * HM_BLOCK_PAGES + 7, 2, 'A');
        CHECK(!run_job(move), "migrate");
        CHECK(hm_bits(region->blocks[block].kept) == 2, "none is kept");
    }
    CHECK(hm_drop_kept(core, 1) == 2 && hm_drop_kept(core, 2) == 2, "one block's at a time");
    stripe = hm_stripe_of(core, INO, 2);
    hm_lock(HM_RANK_STRIPE, &stripe->lock);
    region->blocks[2].busy = 1;
    hm_unlock(HM_RANK_STRIPE, &stripe->lock);
    CHECK(hm_drop_kept(core, 9) == 2, "those of three blocks, in all");
    CHECK(hm_drop_kept(core, 9) == 0, "a busy block's copies");
    CHECK(hm_bits(region->blocks[2].kept) == 2, "they are gone");
    region->blocks[2].busy = 0;
    CHECK(hm_drop_kept(core, 9) == 2 && hm_drop_kept(core, 9) == 0, "the rest");
    CHECK(core->nodes[HM_HOST].used == 0, "their pages are not free");
}

/* A migration counts on a copy that ends meanwhile. */
static void copy_ends_in_a_migration(void)
{
    struct hm_job move = a_move(1, 0, 1);
    struct hold planned;
    with_a_copy();
    hold(&planned, "bring.planned");
    submit(move);
    await(&planned);
    CHECK(!hm_region_writers(core, INO, 1), "open");
    let_go(&planned);
    CHECK(!await_job(move.cookie), "migrate");
    CHECK(device_load(1, 0) == 'A', "the device owns a hole");
}

/* -----------------------------------------------------------------------------------------------
 */

static const struct scene scenes[] = {
    SCENE(delayed_write),
    SCENE(writeback_overtakes),
    SCENE(writeback_to_a_full_host),
    SCENE(write_under_way),
    SCENE(loaded_again),
    SCENE(read_in_a_recall),
    SCENE(read_of_several_pages),
    SCENE(page_between),
    SCENE(write_past_a_frozen_page),
    SCENE(parked_in_a_round),
    SCENE(written_before_the_punch),
    SCENE(cut_while_it_is_copied),
    SCENE(cut_elsewhere_while_it_is_copied),
    SCENE(cut_before_it_is_copied),
    SCENE(cut_while_it_is_read),
    SCENE(cut_before_a_load),
    SCENE(cut_before_a_store),
    SCENE(store_past_the_end),
    SCENE(allocated_while_frozen),
    SCENE(two_openers),
    SCENE(one_opener),
    SCENE(read_of_a_copied_page),
    SCENE(write_to_a_copied_page),
    SCENE(store_to_a_copied_page),
    SCENE(refused_write),
    SCENE(write_in_pieces),
    SCENE(allocated_in_pieces),
    SCENE(cut_of_labelled_pages),
    SCENE(past_the_end),
    SCENE(open_while_it_is_copied),
    SCENE(cut_while_it_is_duplicated),
    SCENE(store_to_a_kept_page),
    SCENE(kept_copies_go),
    SCENE(copy_ends_in_a_migration),
};

int main(int argc, char **argv)
{
    play(scenes, sizeof(scenes) / sizeof(*scenes), argc > 1 ? argv[1] : "");
    end();
    return 0;
}
