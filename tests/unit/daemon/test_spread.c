/* daemon/spread: volumes in two stores on two loops are one store: names are unique, every call
 * reaches the volume's own loop, and what comes back is right. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <pthread.h>
#include <cmocka.h>

#include "daemon/spread.h"
#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/rt/env_uring.h"
#include "lib/rt/sync.h"
#include "tests/unit/nbd/mem_block.h"

#define MIB (1u << 20)

/* Two loops, each with a store; the second on a thread of its own. */
static struct {
    struct env *env[2];
    struct mem_block *mem[2];
    pthread_t thread[2];
    struct fiber_cond stop, ended;
    bool stopping, over;
    unsigned wrong_loop, calls[2], next;
    struct spread *s;
    struct block_store *bs;
} t;

static int on_call(void *arg, char op, uint64_t off, uint64_t len)
{
    unsigned i = *(unsigned *)arg;

    (void)op, (void)off, (void)len;
    t.calls[i]++;
    t.wrong_loop += !pthread_equal(pthread_self(), t.thread[i]);
    return 0;
}

static unsigned by_turns(void *arg)
{
    (void)arg;
    fiber_yield(); /* others may come in between */
    return t.next++ % 2;
}

/* ---- The second loop ---- */

static void second_main(void *arg)
{
    (void)arg;
    t.thread[1] = pthread_self();
    while (!t.stopping)
        fiber_cond_wait(&t.stop);
}

static void second_stop(void *arg)
{
    (void)arg;
    t.stopping = true;
    fiber_cond_broadcast(&t.stop);
}

static void second_over(void *arg)
{
    (void)arg;
    t.over = true;
    fiber_cond_broadcast(&t.ended);
}

static void second_thread(void *arg)
{
    env_run(t.env[1], second_main, arg);
    CHECK_OK(env_post(t.env[0], "second loop over", second_over, NULL));
}

static void first_main(void *arg)
{
    void (*test)(void) = *(void (**)(void))arg;
    static unsigned index[2] = {0, 1};
    struct spread_part parts[2];
    char clash[BLOCK_NAME_MAX + 1];

    fiber_cond_init(&t.stop);
    fiber_cond_init(&t.ended);
    t.thread[0] = pthread_self();
    assert_int_equal(env_thread(t.env[0], "second", second_thread, NULL), 0);
    for (unsigned i = 0; i < 2; i++) {
        struct mem_block_hooks hooks = {on_call, &index[i]};

        t.mem[i] = mem_block_new();
        mem_block_set_hooks(t.mem[i], &hooks);
        parts[i] = (struct spread_part){t.env[i], mem_block_store(t.mem[i]), i ? "b" : ""};
    }
    assert_int_equal(spread_new(t.env[0], parts, 2, by_turns, NULL, clash, &t.s), 0);
    t.bs = spread_blocks(t.s);
    test();
    spread_free(t.s);
    assert_int_equal(env_remote(t.env[0], t.env[1], "stop", second_stop, NULL), 0);
    while (!t.over)
        fiber_cond_wait(&t.ended);
    assert_int_equal(t.wrong_loop, 0);
    mem_block_free(t.mem[0]);
    mem_block_free(t.mem[1]);
}

static void run(void (*test)(void))
{
    const struct env_uring_options first = {.keep_signals = true}, second = {.keep_signals = true};

    memset(&t, 0, sizeof(t));
    assert_int_equal(env_uring_new(&first, &t.env[0]), 0);
    assert_int_equal(env_uring_new(&second, &t.env[1]), 0);
    env_run(t.env[0], first_main, &test);
    env_free(t.env[1]);
    env_free(t.env[0]);
}

/* ---- Tests ---- */

static void volumes_are_spread_and_found(void)
{
    struct block_info *infos, info;
    unsigned in_b = 0;
    char name[16];
    size_t n;

    for (int i = 9; i >= 0; i--) {
        snprintf(name, sizeof(name), "v%d", i);
        assert_int_equal(block_create(t.bs, name, MIB, BLOCK_EVERY_WRITE), 0);
    }
    assert_int_equal(block_create(t.bs, "v3", MIB, BLOCK_EVERY_WRITE), ERR_EXIST);
    assert_int_equal(block_create(t.bs, "v3", MIB, BLOCK_EVERY_WRITE), ERR_EXIST);
    assert_int_equal(block_list(t.bs, &infos, &n), 0);
    assert_int_equal(n, 10);
    for (unsigned i = 0; i < 10; i++) {
        snprintf(name, sizeof(name), "v%u", i);
        assert_string_equal(infos[i].name, name);
        assert_int_equal(block_stat(t.bs, name, &info), 0);
        assert_string_equal(infos[i].partition, info.partition);
        in_b += strcmp(info.partition, "b") == 0;
    }
    assert_int_equal(in_b, 5);
    mem_free(infos);
    assert_int_equal(block_list(mem_block_store(t.mem[0]), &infos, &n), 0);
    assert_int_equal(n, 5);
    mem_free(infos);

    assert_int_equal(block_stat(t.bs, "v7", &info), 0);
    assert_string_equal(info.name, "v7");
    assert_int_equal(block_stat(t.bs, "v10", &info), ERR_NOENT);
    assert_int_equal(block_remove(t.bs, "v7"), 0);
    assert_int_equal(block_remove(t.bs, "v7"), ERR_NOENT);
    assert_int_equal(block_stat(t.bs, "v7", &info), ERR_NOENT);
    assert_int_equal(block_create(t.bs, "v7", MIB, BLOCK_EVERY_WRITE), 0);
}

static void io_reaches_the_volume(void)
{
    static const char *const names[] = {"a", "b"};
    struct block_volume *v[2];
    struct block_extent extents[4];
    struct block_info info;
    uint8_t buf[8192], back[8192];
    size_t n;

    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(block_create(t.bs, names[i], MIB, BLOCK_EVERY_WRITE), 0);
        assert_int_equal(block_open(t.bs, names[i], &v[i]), 0);
        memset(buf, 'x' + (int)i, sizeof(buf));
        assert_int_equal(block_write(v[i], 4096, buf, sizeof(buf), BLOCK_FUA), 0);
        assert_int_equal(block_flush(v[i]), 0);
    }
    assert_int_equal(mem_block_get_counts(t.mem[0]).fuas, 1);
    assert_int_equal(mem_block_get_counts(t.mem[1]).fuas, 1);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(block_read(v[i], 4096, back, sizeof(back)), 0);
        memset(buf, 'x' + (int)i, sizeof(buf));
        assert_memory_equal(back, buf, sizeof(buf));
        assert_int_equal(block_discard(v[i], 4096, 4096, 0), 0);
        assert_int_equal(block_zero(v[i], 8192, 4096, 0), 0);
        assert_int_equal(block_read(v[i], 4096, back, sizeof(back)), 0);
        memset(buf, 0, sizeof(buf));
        assert_memory_equal(back, buf, sizeof(buf));
        assert_int_equal(block_extents(v[i], 0, MIB, extents, 4, &n), 0);
        assert_true(n > 0);
        assert_int_equal(block_read(v[i], MIB, back, 1), ERR_RANGE);
        assert_int_equal(block_resize(t.bs, names[i], 2 * MIB), 0);
        block_get_info(v[i], &info);
        assert_int_equal(info.size, 2 * MIB);
        assert_string_equal(info.partition, i ? "b" : "");
        assert_int_equal(block_read(v[i], MIB, back, 1), 0);
        assert_int_equal(block_remove(t.bs, names[i]), ERR_BUSY);
        block_close(v[i]);
        assert_int_equal(block_remove(t.bs, names[i]), 0);
    }
    assert_true(t.calls[0] > 0 && t.calls[0] == t.calls[1]);
}

static void a_group_lies_in_one_partition(void)
{
    static const char *const names[] = {"a", "b"}, *const gone[] = {"a", "c"};

    assert_int_equal(block_create(t.bs, "a", MIB, BLOCK_EVERY_WRITE), 0);
    assert_int_equal(block_create(t.bs, "b", MIB, BLOCK_EVERY_WRITE), 0);
    assert_int_equal(block_snapshot(t.bs, names, 2, "s"), ERR_SPREAD);
    assert_int_equal(block_snapshot(t.bs, gone, 2, "s"), ERR_NOENT);
}

static struct fiber_group racing;
static int won;

static void racer(void *arg)
{
    (void)arg;
    int rc = block_create(t.bs, "same", MIB, BLOCK_EVERY_WRITE);

    assert_true(rc == 0 || rc == ERR_EXIST);
    won += rc == 0;
    fiber_group_done(&racing);
}

static void a_name_is_given_once(void)
{
    won = 0;
    fiber_group_init(&racing);
    fiber_group_add(&racing, 8);
    for (unsigned i = 0; i < 8; i++)
        fiber_spawn(t.env[0], "racer", racer, NULL);
    fiber_group_wait(&racing);
    assert_int_equal(won, 1);
}

static void two_of_one_name_are_told(void)
{
    struct spread_part parts[2] = {{t.env[0], mem_block_store(t.mem[0]), ""},
                                   {t.env[0], mem_block_store(t.mem[0]), "b"}};
    char clash[BLOCK_NAME_MAX + 1];
    struct spread *s;

    assert_int_equal(block_create(parts[0].store, "twice", MIB, BLOCK_EVERY_WRITE), 0);
    assert_int_equal(spread_new(t.env[0], parts, 2, by_turns, NULL, clash, &s), ERR_EXIST);
    assert_string_equal(clash, "twice");
}

#define TEST(name)                    \
    static void test_##name(void **u) \
    {                                 \
        (void)u;                      \
        run(name);                    \
    }
TEST(volumes_are_spread_and_found)
TEST(io_reaches_the_volume)
TEST(a_group_lies_in_one_partition)
TEST(a_name_is_given_once)
TEST(two_of_one_name_are_told)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_volumes_are_spread_and_found),
        cmocka_unit_test(test_io_reaches_the_volume),
        cmocka_unit_test(test_a_group_lies_in_one_partition),
        cmocka_unit_test(test_a_name_is_given_once),
        cmocka_unit_test(test_two_of_one_name_are_told),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
