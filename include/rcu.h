/*
 * rcu: publication of one pointer with liburcu's bulletproof flavour, which registers threads by itself: those that
 * read are the HTTP library's.
 *
 * liburcu before 0.15 tells ThreadSanitizer nothing of a grace period. The two annotations say that all accesses inside
 * a read-side section happen before the end of the synchronize_rcu() that waited for it; without the sanitizer they are
 * nothing.
 */
#ifndef WIDEEP_RCU_H
#define WIDEEP_RCU_H

#include <urcu-bp.h>

#if defined(__SANITIZE_THREAD__)
#define RCU_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define RCU_TSAN 1
#endif
#endif

#ifdef RCU_TSAN
void __tsan_acquire(void *address);
void __tsan_release(void *address);
extern char rcu_grace_period;
#define RCU_READ_ENDS()          __tsan_release(&rcu_grace_period)
#define RCU_GRACE_PERIOD_ENDED() __tsan_acquire(&rcu_grace_period)
#else
#define RCU_READ_ENDS()          ((void)0)
#define RCU_GRACE_PERIOD_ENDED() ((void)0)
#endif

/* Inside a read-side section. Pairs with the exchange of rcu_publish(). */
#define rcu_read_pointer(pointer) __atomic_load_n(&(pointer), __ATOMIC_ACQUIRE)

/* Gives readers the new pointer and returns the old one, which they may still use until rcu_wait(). */
#define rcu_publish(pointer, fresh) __atomic_exchange_n(&(pointer), (fresh), __ATOMIC_ACQ_REL)

static inline void rcu_read_begin(void)
{
    rcu_read_lock();
}

static inline void rcu_read_end(void)
{
    RCU_READ_ENDS();
    rcu_read_unlock();
}

static inline void rcu_wait(void)
{
    synchronize_rcu();
    RCU_GRACE_PERIOD_ENDED();
}

#endif
