/* READ and WRITE on region files. */
#ifndef HMMFS_GATE_ACCESS_H
#define HMMFS_GATE_ACCESS_H
#include "base/core.h"

/* A READ or WRITE from the gate: answers it, parks it or refuses it. */
void hm_access(struct hm_core *core, const struct hm_request *request);
/* A user without privileges changes a file's bytes: its set-user-ID bits go, as on any file system.
 * The kernel flags a WRITE for that (CAP_FSETID); for fallocate and copy_file_range it tells only
 * who the user is. */
void hm_drop_privileges(struct hm_region_record *record);
/* core->answer: one that was parked, or with an error answer it. True: it waits again, and `had`
 * with it. */
bool hm_answer(struct hm_core *core, const struct hm_request *request, struct hm_parked *had,
               int error);

#endif
