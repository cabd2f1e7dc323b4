/* Makes timed waits of C11 threads, which librdkafka uses, follow faketime's clock. faketime itself covers only POSIX
 * waits. Without this, a deadline by the changed clock would be compared with the real clock. As with the kernel's own
 * clock, a wait in progress lasts longer when the clock is set back. */
#define _GNU_SOURCE
#include <pthread.h>
#include <threads.h>
#include <time.h>

#define SLICE 20000000L /* ns */
#define SECOND 1000000000L

int cnd_timedwait(cnd_t *cond, mtx_t *mutex, const struct timespec *until) {
    for (;;) {
        struct timespec now, next;
        clock_gettime(CLOCK_REALTIME, &now);
        long long left = (until->tv_sec - now.tv_sec) * (long long)SECOND + until->tv_nsec - now.tv_nsec;
        if (left <= 0)
            return thrd_timedout;
        clock_gettime(CLOCK_MONOTONIC, &next);
        next.tv_nsec += left < SLICE ? left : SLICE;
        next.tv_sec += next.tv_nsec / SECOND;
        next.tv_nsec %= SECOND;
        int woken = pthread_cond_clockwait((pthread_cond_t *)cond, (pthread_mutex_t *)mutex, CLOCK_MONOTONIC, &next);
        if (woken == 0)
            return thrd_success;
    }
}
