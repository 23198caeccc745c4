/* lib/base: errors, memory domains, buffers, the codec's borders, string buffers, containers. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "lib/base/buf.h"
#include "lib/base/codec.h"
#include "lib/base/crc32c.h"
#include "lib/base/err.h"
#include "lib/base/hmap.h"
#include "lib/base/list.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/strbuf.h"

static void test_errors(void **state)
{
    (void)state;
    assert_string_equal(err_name(ERR_NOSPC), "NOSPC");
    assert_int_equal(err_errno(ERR_NOSPC), ENOSPC);
    assert_int_equal(err_from_errno(ENOSPC), ERR_NOSPC);
    assert_string_equal(err_name(0), "OK");
    assert_string_equal(err_name(-9999), "UNKNOWN");
    assert_int_equal(err_from_errno(ECONNRESET), ERR_CLOSED);
    for (int code = -1; code > -(int)ERR_COUNT_; code--) {
        assert_true(err_errno(code) > 0);
        assert_true(strlen(err_text(code)) > 0);
    }
}

static void test_domain(void **state)
{
    struct mem_domain *d = mem_domain_new();
    struct mem_domain *before = mem_domain_enter(d);
    void *a = mem_alloc(100), *b = mem_alloc_aligned(4096, 8192);

    (void)state;
    assert_int_equal((uintptr_t)b % 4096, 0);
    a = mem_realloc(a, 5000);
    mem_domain_enter(before);
    assert_int_equal(mem_domain_count(d), 2);
    assert_int_equal(mem_domain_bytes(d), 13192);
    mem_free(a); /* a block knows its domain, whichever is current */
    assert_int_equal(mem_domain_bytes(d), 8192);
    mem_domain_release(d); /* frees b */
}

static void test_codec(void **state)
{
    uint8_t bytes[16];
    struct codec_writer w = codec_writer_on(bytes, 7);
    struct codec_reader r;

    (void)state;
    codec_write_be32(&w, 0x01020304);
    codec_write_le16(&w, 0x0506);
    assert_true(codec_writer_ok(&w));
    codec_write_le16(&w, 1);
    assert_false(codec_writer_ok(&w));
    assert_int_equal(codec_written(&w), 6);
    assert_memory_equal(bytes, "\1\2\3\4\6\5", 6);
    r = codec_reader_on(bytes, 6);
    assert_int_equal(codec_read_be32(&r), 0x01020304);
    assert_int_equal(codec_read_le32(&r), 0);
    assert_false(codec_reader_ok(&r));
    assert_int_equal(codec_read_le16(&r), 0); /* bad stays bad */
}

static void test_strbuf(void **state)
{
    struct strbuf s = {.max = 10};
    char *t;

    (void)state;
    strbuf_addf(&s, "%d-%s", 12, "abc");
    assert_string_equal(s.data, "12-abc");
    strbuf_adds(&s, "toolong");
    assert_true(s.overflow);
    strbuf_reset(&s);
    strbuf_addc(&s, 'x');
    t = strbuf_take(&s);
    assert_string_equal(t, "x");
    mem_free(t);
    strbuf_free(&s);
}

struct item {
    struct hmap_node node;
    struct list link;
    uint64_t key;
};

static void test_containers(void **state)
{
    enum { N = 1000 };
    static struct item items[N];
    struct hmap m;
    struct list l;
    size_t seen = 0;

    (void)state;
    hmap_init(&m);
    list_init(&l);
    for (uint64_t i = 0; i < N; i++) {
        items[i].key = i;
        hmap_insert(&m, &items[i].node, hmap_mix(i / 2)); /* pairs collide */
        list_push_back(&l, &items[i].link);
    }
    for (struct hmap_node *n = hmap_first(&m, hmap_mix(7)); n; n = hmap_next(n))
        seen += HMAP_ENTRY(n, struct item, node)->key;
    assert_int_equal(seen, 14 + 15);
    hmap_remove(&m, &items[14].node);
    assert_ptr_equal(hmap_first(&m, hmap_mix(7)), &items[15].node);
    seen = 0;
    for (struct hmap_node *n = hmap_walk(&m, NULL); n; n = hmap_walk(&m, n))
        seen++;
    assert_int_equal(seen, N - 1);
    list_for_each_safe (it, &l)
        list_del(it);
    assert_true(list_empty(&l));
    assert_null(list_pop_front(&l));
    hmap_free(&m);
}

static void test_misc(void **state)
{
    struct buf *b = buf_new(100);

    (void)state;
    assert_int_equal(crc32c(0, "123456789", 9), 0xe3069283);
    assert_int_equal(crc32c(crc32c(0, "1234", 4), "56789", 5), 0xe3069283);
    assert_int_equal((uintptr_t)b->data % BUF_ALIGN, 0);
    buf_unref(buf_ref(b));
    buf_unref(b);
    buf_unref(NULL);
    assert_string_equal(log_q("a\"b\nc"), "\"a\\\"b\\x0ac\"");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_errors),     cmocka_unit_test(test_domain),
        cmocka_unit_test(test_codec),      cmocka_unit_test(test_strbuf),
        cmocka_unit_test(test_containers), cmocka_unit_test(test_misc),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
