/* FALLOCATE: reserves, punches, or makes zeros of a range of a region. It evicts nothing: what is
 * free on the host, and what clean copies there can be dropped, is what it can have. */
#include "gate/fallocate.h"

#include "base/fuse.h"
#include "base/fuse_wire.h"
#include "base/region.h"
#include "base/times.h"
#include "gate/access.h"
#include "gate/retry.h"

#include <errno.h>

#define FALLOC_KEEP_SIZE 0x01
#define FALLOC_PUNCH_HOLE 0x02
#define FALLOC_ZERO_RANGE 0x10

static int fill_holes(struct hm_core *core, const struct hm_request *request)
{
    int error = hm_region_allocate(core, request->ino, request->offset, request->length);
    if (error == -ENOSPC && hm_drop_kept(core, request->length / HM_PAGE_SIZE + 1) > 0)
        error = hm_region_allocate(core, request->ino, request->offset, request->length);
    return error;
}

/* Fill the holes of a range, and make the file as long. An error changes nothing. */
static int allocate(struct hm_core *core, struct hm_region *region,
                    const struct hm_request *request)
{
    uint64_t end = request->offset + request->length, size = hm_region_size(region);
    bool grows = !(request->mode & FALLOC_KEEP_SIZE) && end > size;
    int error = 0;
    if (grows && hm_is_shared(region)) /* it reserves by its size, so that comes first */
        error = hm_region_truncate(core, request->ino, end);
    if (error)
        return error;
    error = fill_holes(core, request);
    if (grows && hm_is_shared(region) && error)
        hm_region_truncate(core, request->ino, size);
    else if (grows && !hm_is_shared(region) && !error)
        error = hm_region_truncate(core, request->ino, end);
    return error;
}

void hm_fallocate(struct hm_core *core, const struct hm_request *request)
{
    uint64_t end = request->offset + request->length;
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, request->ino);
    uint32_t mode = request->mode & ~(uint32_t)FALLOC_KEEP_SIZE;
    int error = 0;
    if (!region) {
        hm_reply(core, request->unique, ENOENT, NULL, 0);
        return;
    }
    if (!request->length)
        error = -EINVAL;
    else if (end > HM_MAX_BYTES)
        error = -EFBIG;
    else if (!mode || mode == FALLOC_ZERO_RANGE)
        error = allocate(core, region, request);
    else if (mode != FALLOC_PUNCH_HOLE)
        error = -EOPNOTSUPP;
    if (error == -ENOSPC && hm_retry_later(core, request))
        return;
    if (!error && mode) /* zeroed only once it was reserved; it is reserved again below */
        error = hm_region_punch(core, request->ino, request->offset, request->length);
    /* What devices had needs the host now, which may be full. Then holes are left, zeros as well:
     * an error here would come too late, and the kernel would go on showing the old bytes. */
    if (!error && mode == FALLOC_ZERO_RANGE)
        (void)fill_holes(core, request);
    if (!error) {
        if (request->uid)
            hm_drop_privileges(region->record);
        hm_region_changed(region, true);
    }
    hm_reply(core, request->unique, -error, NULL, 0);
}
