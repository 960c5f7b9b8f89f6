#include "transaction/kinds.h"

#include "transaction/migrate.h"
#include "transaction/operation.h"
#include "transaction/shared_jobs.h"

const struct hm_kind_ops hm_private_ops = {.bring = hm_migrate, .operate = hm_operate};
const struct hm_kind_ops hm_shared_ops = {.bring = hm_shared_relabel, .operate = hm_shared_operate};
