/* Sizes as text: what is taken, what is refused, and how they are shown. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "lib/base/err.h"
#include "lib/base/size.h"

static void takes(const char *text, uint64_t want)
{
    uint64_t got;

    assert_int_equal(size_parse(text, &got), 0);
    assert_int_equal(got, want);
}

static void refuses(const char *text, int error)
{
    uint64_t got = 77;

    assert_int_equal(size_parse(text, &got), error);
    assert_int_equal(got, 77);
}

static void test_parse(void **state)
{
    (void)state;
    takes("0", 0);
    takes("4096", 4096);
    takes("4096B", 4096);
    takes("1k", 1024);
    takes("10G", 10ull << 30);
    takes("10 GiB", 10ull << 30);
    takes("512Mib", 512ull << 20);
    takes("1T", 1ull << 40);
    takes("2p", 2ull << 50);
    takes("7E", 7ull << 60);
    takes("9223372036854775807", INT64_MAX);
    refuses("8E", ERR_RANGE);
    refuses("9223372036854775808", ERR_RANGE);
    refuses("99999999999999999999999999", ERR_RANGE);
    refuses("16E", ERR_RANGE);
    refuses("", ERR_INVAL);
    refuses("G", ERR_INVAL);
    refuses("10GB", ERR_INVAL);
    refuses("10KB", ERR_INVAL);
    refuses("1.5G", ERR_INVAL);
    refuses("-1", ERR_INVAL);
    refuses("+1", ERR_INVAL);
    refuses("10G ", ERR_INVAL);
    refuses("10 ", ERR_INVAL);
    refuses(" 10", ERR_INVAL);
    refuses("10  G", ERR_INVAL);
    refuses("10BiB", ERR_INVAL);
    refuses("10Gi", ERR_INVAL);
    refuses("10X", ERR_INVAL);
    refuses("0x10", ERR_INVAL);
}

static void test_format(void **state)
{
    char buf[SIZE_TEXT_MAX];

    (void)state;
    assert_string_equal(size_format(0, buf), "0 B");
    assert_string_equal(size_format(10239, buf), "10239 B");
    assert_string_equal(size_format(10240, buf), "10 KiB");
    assert_string_equal(size_format(12 * 1024 + 512, buf), "12.5 KiB");
    assert_string_equal(size_format(64ull << 30, buf), "64 GiB");
    assert_string_equal(size_format((1ull << 40) + (1ull << 39), buf), "1.50 TiB");
    assert_string_equal(size_format((1ull << 30) - 1, buf), "1023 MiB"); /* down, not to 1 GiB */
    assert_string_equal(size_format((2ull << 30) - 1, buf), "1.99 GiB");
    assert_string_equal(size_format((1ull << 30) + 1, buf), "1.00 GiB");
    assert_string_equal(size_format(UINT64_MAX, buf), "15.9 EiB");
}

static void test_format_exact(void **state)
{
    static const uint64_t sizes[] = {0,           1,         1023, 1024, 4097, 1536ull << 20,
                                     64ull << 30, 1ull << 60};
    char buf[SIZE_TEXT_MAX];

    (void)state;
    assert_string_equal(size_format_exact(64ull << 30, buf), "64G");
    assert_string_equal(size_format_exact(1536ull << 20, buf), "1536M");
    assert_string_equal(size_format_exact(4097, buf), "4097");
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
        takes(size_format_exact(sizes[i], buf), sizes[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_parse), cmocka_unit_test(test_format),
                                       cmocka_unit_test(test_format_exact)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
