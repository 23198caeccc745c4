/* SHA-256 by OpenSSL's EVP, with the algorithm fetched once and contexts kept: at 4 KiB a chunk the
 * set-up would cost as much as the hashing. */
#include "dedup/fingerprint.h"

#include <openssl/evp.h>

#include "lib/base/check.h"
#include "lib/base/slots.h"

static struct slots fingerprint_contexts;

static const EVP_MD *fingerprint_md(void)
{
    static EVP_MD *md;
    EVP_MD *have = __atomic_load_n(&md, __ATOMIC_ACQUIRE), *none = NULL;

    if (have)
        return have;
    have = EVP_MD_fetch(NULL, "SHA256", NULL);
    CHECK(have != NULL);
    if (__atomic_compare_exchange_n(&md, &none, have, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        return have;
    EVP_MD_free(have); /* another thread was first */
    return none;
}

static EVP_MD_CTX *fingerprint_begin(void)
{
    EVP_MD_CTX *ctx = slots_take(&fingerprint_contexts);

    if (!ctx)
        ctx = EVP_MD_CTX_new();
    CHECK(ctx != NULL && EVP_DigestInit_ex2(ctx, fingerprint_md(), NULL) == 1);
    return ctx;
}

static void fingerprint_end(EVP_MD_CTX *ctx)
{
    EVP_MD_CTX_free(slots_put(&fingerprint_contexts, ctx));
}

void fingerprint_make(const void *p, size_t n, uint8_t out[FINGERPRINT_SIZE])
{
    EVP_MD_CTX *ctx = fingerprint_begin();

    CHECK(EVP_DigestUpdate(ctx, p, n) == 1);
    CHECK(EVP_DigestFinal_ex(ctx, out, NULL) == 1);
    fingerprint_end(ctx);
}

/* The stream is OpenSSL's context under our name. */
struct fingerprint_stream *fingerprint_stream_new(void)
{
    return (struct fingerprint_stream *)fingerprint_begin();
}

void fingerprint_stream_add(struct fingerprint_stream *s, const void *p, size_t n)
{
    CHECK(EVP_DigestUpdate((EVP_MD_CTX *)s, p, n) == 1);
}

void fingerprint_stream_end(struct fingerprint_stream *s, uint8_t out[FINGERPRINT_SIZE])
{
    EVP_MD_CTX *ctx = (EVP_MD_CTX *)s;

    if (!ctx)
        return;
    if (out)
        CHECK(EVP_DigestFinal_ex(ctx, out, NULL) == 1);
    fingerprint_end(ctx);
}
