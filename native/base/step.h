/* The steps that the protocol takes with a block, each told under its stripe's lock, when what it
 * changes is changed. They are there with -DHM_STEPS alone, and then the test has the function
 * (tests/native/steps.c); tests/model/conformance.py holds them against the model.
 *
 * A step is "who.what"; docs/coherence.md names the states. pages: those that it is about, or NULL.
 */
#ifndef HM_STEP_H
#define HM_STEP_H
#include <stdint.h>

#define HM_BY_GATE 254 /* in place of a node: a step of who does not hold the block */

#ifdef HM_STEPS
struct hm_mask;
struct hm_region;
/* node: where the transaction brings pages; HM_NOWHERE: it only takes them from the CPU. */
void hm_step(const struct hm_region *region, uint64_t block, const char *step, uint32_t node,
             const struct hm_mask *pages);
#else
#define hm_step(region, block, step, node, pages) ((void)0)
#endif

#endif
