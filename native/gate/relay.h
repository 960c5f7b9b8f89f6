/* The way to pyfuse3 and back. */
#ifndef HMMFS_GATE_RELAY_H
#define HMMFS_GATE_RELAY_H
#include "base/core.h"

int hm_relay_start(struct hm_core *core, int fd, struct hm_relay **ret);
void hm_relay_stop(struct hm_relay *relay);
void hm_relay_send(struct hm_relay *relay, uint8_t *message, size_t length);
void hm_relay_interrupt(struct hm_relay *relay, uint64_t target);

#endif
