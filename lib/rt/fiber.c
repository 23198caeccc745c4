/* Fibers: stacks, switching, and who runs next.
 *
 * A fiber runs on a mapping of its own: guard page, stack, and on top the struct fiber. It is
 * entered once by setcontext; from then on a switch is sigsetjmp on this side and siglongjmp to the
 * other, without the signal mask and so without a system call. Fibers never switch to each other,
 * only to the loop and back: the loop is a plain function that calls fiber_step.
 *
 * When fn has returned the stack goes to a pool with the trampoline still on it, so that a pooled
 * fiber needs neither mmap nor makecontext again.
 *
 * A fiber stays on its thread, so the thread-local state below has the same address before and
 * after a switch. Its values change meanwhile, and the compiler knows it because every switch is an
 * opaque returns-twice call.
 *
 * Lost wakes: fiber_wake on a fiber that is running, or that is ready because it yielded, leaves a
 * token that its next suspend takes. One that is ready because it was woken already has yet to look
 * at its condition, so a second wake adds nothing.
 */
#undef _FORTIFY_SOURCE /* its longjmp takes a jump to another stack for an attack */

#include "lib/rt/fiber.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "lib/base/check.h"
#include "lib/base/metric.h"
#include "lib/rt/env_priv.h"

#if defined(__SANITIZE_ADDRESS__)
#define FIBER_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FIBER_ASAN 1
#endif
#endif

#ifdef FIBER_ASAN
#include <dlfcn.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define FIBER_MAP_SIZE (4u * FIBER_STACK_SIZE) /* red zones make frames larger */
#else
#define FIBER_MAP_SIZE (FIBER_STACK_SIZE + 8192)
#endif

#define FIBER_GUARD    4096u
#define FIBER_POOL_MAX 512u

enum fiber_state {
    FIBER_POOLED,
    FIBER_READY,   /* new or woken */
    FIBER_YIELDED, /* ready, and a wake must not get lost */
    FIBER_RUNNING,
    FIBER_SUSPENDED,
    FIBER_ENDED,
};

struct fiber {
    struct list link; /* in the env's ready list or in the pool */
    struct list all;
    struct env *env;
    const char *name, *why;
    fiber_fn fn;
    void *arg;
    enum fiber_state state;
    bool woken;   /* a wake that came first */
    bool started; /* the trampoline is on the stack */
    void *fake;   /* ASan's */
    sigjmp_buf jmp;
};

static _Thread_local struct {
    struct fiber *current;
    sigjmp_buf jmp;
    void *fake;
    const void *stack; /* the loop's own, as ASan tells it */
    size_t stack_size;
} fiber_loop;

/* ---- ASan's view --------------------------------------------------------------------------------
 */

static char *fiber_map_of(struct fiber *f)
{
    return (char *)(f + 1) - FIBER_MAP_SIZE;
}

static size_t fiber_stack_len(void)
{
    return (FIBER_MAP_SIZE - FIBER_GUARD - sizeof(struct fiber)) & ~(size_t)63;
}

static inline void fiber_asan_leave(void **save, const void *stack, size_t size)
{
#ifdef FIBER_ASAN
    __sanitizer_start_switch_fiber(save, stack, size);
#else
    (void)save, (void)stack, (void)size;
#endif
}

static inline void fiber_asan_arrive(void *save, const void **old_stack, size_t *old_size)
{
#ifdef FIBER_ASAN
    __sanitizer_finish_switch_fiber(save, old_stack, old_size);
#else
    (void)save, (void)old_stack, (void)old_size;
#endif
}

#ifdef FIBER_ASAN
/* ASan puts a siglongjmp of its own before libc's. It takes all frames of the stack that is left
 * for dead and clears their red zones, though a fiber's frames live on; and it asks for the signal
 * stack each time, which made a system call of each switch. Hence libc's own. That the compiler
 * does not know that it never returns is meant: it would clear the red zones too. */
static void (*fiber_libc_jump)(sigjmp_buf jmp, int value);

__attribute__((constructor)) static void fiber_find_jump(void)
{
    void *libc = dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD);

    CHECK(libc);
    *(void **)&fiber_libc_jump = dlsym(libc, "siglongjmp");
    CHECK(fiber_libc_jump);
}
#endif

/* ---- Switching ----------------------------------------------------------------------------------
 */

static inline void fiber_jump(sigjmp_buf jmp)
{
#ifdef FIBER_ASAN
    fiber_libc_jump(jmp, 1);
    __builtin_unreachable();
#else
    siglongjmp(jmp, 1);
#endif
}

static void fiber_to_loop(struct fiber *f)
{
    if (sigsetjmp(f->jmp, 0) == 0) {
        fiber_asan_leave(&f->fake, fiber_loop.stack, fiber_loop.stack_size);
        fiber_jump(fiber_loop.jmp);
    }
    fiber_asan_arrive(f->fake, &fiber_loop.stack, &fiber_loop.stack_size);
}

static void fiber_trampoline(void)
{
    fiber_asan_arrive(NULL, &fiber_loop.stack, &fiber_loop.stack_size);
    for (;;) {
        struct fiber *f = fiber_loop.current;

        f->fn(f->arg);
        f->state = FIBER_ENDED;
        fiber_to_loop(f);
    }
}

/* The frame is abandoned, so it must not leave red zones behind on the loop's stack. */
__attribute__((noinline, no_sanitize("address"))) static void fiber_first_entry(struct fiber *f)
{
    ucontext_t uc;

    f->started = true;
    CHECK(getcontext(&uc) == 0);
    uc.uc_stack.ss_sp = fiber_map_of(f) + FIBER_GUARD;
    uc.uc_stack.ss_size = fiber_stack_len();
    uc.uc_link = NULL;
    makecontext(&uc, fiber_trampoline, 0);
    setcontext(&uc);
    check_fail(__FILE__, __LINE__, "setcontext returned");
}

static void fiber_enter(struct fiber *f)
{
    fiber_loop.current = f;
    f->state = FIBER_RUNNING;
    if (sigsetjmp(fiber_loop.jmp, 0) == 0) {
        fiber_asan_leave(&fiber_loop.fake, fiber_map_of(f) + FIBER_GUARD, fiber_stack_len());
        if (!f->started)
            fiber_first_entry(f);
        fiber_jump(f->jmp);
    }
    fiber_asan_arrive(fiber_loop.fake, NULL, NULL);
    fiber_loop.current = NULL;
}

/* ---- Stacks -------------------------------------------------------------------------------------
 */

static struct fiber *fiber_map(void)
{
    char *map = mmap(NULL, FIBER_MAP_SIZE, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    struct fiber *f;

    CHECK(map != MAP_FAILED);
    CHECK(mprotect(map, FIBER_GUARD, PROT_NONE) == 0);
    f = (struct fiber *)(void *)(map + FIBER_MAP_SIZE) - 1;
    f->started = false;
    return f;
}

static void fiber_unmap(struct fiber *f)
{
    char *map = fiber_map_of(f);

#ifdef FIBER_ASAN
    __asan_unpoison_memory_region(map, FIBER_MAP_SIZE);
#endif
    CHECK(munmap(map, FIBER_MAP_SIZE) == 0);
}

void fiber_pool_init(struct fiber_pool *p)
{
    list_init(&p->idle);
    p->count = 0;
}

void fiber_pool_free(struct fiber_pool *p)
{
    struct list *it;

    while ((it = list_pop_front(&p->idle)) != NULL)
        fiber_unmap(LIST_ENTRY(it, struct fiber, link));
    p->count = 0;
}

static struct fiber *fiber_take(struct fiber_pool *p)
{
    struct list *it = list_pop_front(&p->idle);

    if (!it)
        return fiber_map();
    p->count--;
    return LIST_ENTRY(it, struct fiber, link);
}

static void fiber_retire(struct fiber *f)
{
    struct env *env = f->env;

    list_del(&f->all);
    env->fiber_count--;
    if (env->main == f)
        env->main = NULL;
    f->state = FIBER_POOLED;
    if (env->pool->count >= FIBER_POOL_MAX) {
        fiber_unmap(f);
        return;
    }
    list_push_front(&env->pool->idle, &f->link); /* the one in the CPU's caches is used first */
    env->pool->count++;
}

void fiber_drop_all(struct env *env)
{
    struct list *it;

    while ((it = list_pop_front(&env->fibers)) != NULL) {
        struct fiber *f = LIST_ENTRY(it, struct fiber, all);

        CHECK(f->state != FIBER_RUNNING);
        fiber_unmap(f);
    }
    list_init(&env->ready);
    env->fiber_count = env->ready_count = 0;
    env->main = NULL;
}

/* ---- Scheduling ---------------------------------------------------------------------------------
 */

static void fiber_enqueue(struct fiber *f, enum fiber_state state)
{
    f->state = state;
    list_push_back(&f->env->ready, &f->link);
    f->env->ready_count++;
}

struct fiber *fiber_make(struct env *env, const char *name, fiber_fn fn, void *arg)
{
    struct fiber *f = fiber_take(env->pool);

    f->env = env;
    f->name = name;
    f->why = "ready";
    f->fn = fn;
    f->arg = arg;
    f->woken = false;
    list_init(&f->link);
    list_push_back(&env->fibers, &f->all);
    env->fiber_count++;
    fiber_enqueue(f, FIBER_READY);
    return f;
}

void fiber_spawn(struct env *env, const char *name, fiber_fn fn, void *arg)
{
    fiber_make(env, name, fn, arg);
}

struct fiber *fiber_self(void)
{
    return fiber_loop.current;
}

/* A step of a watched env: see env_set_watch. `f` may be gone afterwards, its texts are constant.
 */
static void fiber_enter_watched(struct env *env, struct fiber *f)
{
    uint64_t start = env->watch_at ? env->watch_at : env_now(env), took;
    const struct env_watch *w;

    fiber_enter(f);
    w = env->watch; /* it may have ended in this very step */
    if (!w)
        return;
    env->watch_at = env_now(env);
    took = env->watch_at - start;
    metric_record(w->steps, took);
    if (took > w->threshold_ns)
        w->tell(w->arg, f->name, f->state == FIBER_ENDED ? "ended" : f->why, took);
}

bool fiber_step(struct env *env)
{
    struct list *it = list_pop_front(&env->ready);
    struct mem_domain *before;
    struct fiber *f;

    if (!it)
        return false;
    CHECK(!fiber_loop.current);
    f = LIST_ENTRY(it, struct fiber, link);
    env->ready_count--;
    before = env_enter(env);
    if (env->watch)
        fiber_enter_watched(env, f);
    else
        fiber_enter(f);
    env_leave(env, before);
    if (f->state == FIBER_ENDED)
        fiber_retire(f);
    return true;
}

void fiber_yield(void)
{
    struct fiber *f = fiber_loop.current;

    CHECK(f != NULL);
    f->why = "yield";
    fiber_enqueue(f, FIBER_YIELDED);
    fiber_to_loop(f);
}

void fiber_suspend(const char *why)
{
    struct fiber *f = fiber_loop.current;

    CHECK(f != NULL);
    if (f->woken) {
        f->woken = false;
        return;
    }
    f->why = why;
    f->state = FIBER_SUSPENDED;
    fiber_to_loop(f);
}

void fiber_wake(struct fiber *f)
{
    switch (f->state) {
    case FIBER_SUSPENDED:
        f->why = "ready";
        fiber_enqueue(f, FIBER_READY);
        break;
    case FIBER_RUNNING:
    case FIBER_YIELDED:
        f->woken = true;
        break;
    case FIBER_READY:
        break;
    case FIBER_POOLED:
    case FIBER_ENDED:
        check_fail(__FILE__, __LINE__, "wake of a fiber that has ended");
    }
}

void fiber_list(struct env *env, void (*visit)(void *arg, const char *name, const char *why),
                void *arg)
{
    list_for_each (it, &env->fibers) {
        struct fiber *f = LIST_ENTRY(it, struct fiber, all);

        visit(arg, f->name, f->state == FIBER_RUNNING ? "running" : f->why);
    }
}
