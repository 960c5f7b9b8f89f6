/* Points at which a test holds a thread, so that it decides what happens meanwhile. They are there
 * with -DHM_PAUSES alone, and then the test has the function: in what users build nothing is left
 * (tests/native/test_interleavings.py compares the objects).
 *
 * A point is "what.moment", as in "bring.copied", and is reached without a lock. */
#ifndef HM_PAUSE_H
#define HM_PAUSE_H

#ifdef HM_PAUSES
void hm_pause(const char *point); /* returns when the test lets go on */
#else
#define hm_pause(point) ((void)0)
#endif

#endif
