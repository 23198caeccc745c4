/* Assertions that stay on in production.
 *
 * CHECK guards invariants: a false one means memory or logic can no longer be trusted, and stopping
 * beats serving wrong bytes (the journal brings the state back). Bad input is never a CHECK.
 */
#pragma once

_Noreturn void check_fail(const char *file, int line, const char *expr);

#define CHECK(expr)                                \
    do {                                           \
        if (__builtin_expect(!(expr), 0))          \
            check_fail(__FILE__, __LINE__, #expr); \
    } while (0)

/* A call that must succeed: an error code here is a broken invariant. */
#define CHECK_OK(call) CHECK((call) >= 0)
