/* The tables of the kinds whose pages are in files. */
#ifndef HMMFS_TRANSACTION_KINDS_H
#define HMMFS_TRANSACTION_KINDS_H
#include "transaction/transaction.h"

extern const struct hm_kind_ops hm_private_ops, hm_shared_ops;

#endif
