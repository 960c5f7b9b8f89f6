/* FALLOCATE. */
#ifndef HMMFS_GATE_FALLOCATE_H
#define HMMFS_GATE_FALLOCATE_H
#include "base/core.h"

struct hm_request;

void hm_fallocate(struct hm_core *core, const struct hm_request *request);

#endif
