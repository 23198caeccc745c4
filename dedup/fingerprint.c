/* SHA-256 by OpenSSL's EVP, with the algorithm fetched once and a context per thread: at 4 KiB a
 * chunk the set-up would cost as much as the hashing. */
#include "dedup/fingerprint.h"

#include <openssl/evp.h>

#include "lib/base/check.h"

static const EVP_MD *fingerprint_md(void)
{
    static _Thread_local EVP_MD *md;

    if (!md)
        md = EVP_MD_fetch(NULL, "SHA256", NULL);
    CHECK(md != NULL);
    return md;
}

void fingerprint_make(const void *p, size_t n, uint8_t out[FINGERPRINT_SIZE])
{
    static _Thread_local EVP_MD_CTX *ctx;

    if (!ctx)
        ctx = EVP_MD_CTX_new();
    CHECK(ctx != NULL && EVP_DigestInit_ex2(ctx, fingerprint_md(), NULL) == 1);
    CHECK(EVP_DigestUpdate(ctx, p, n) == 1);
    CHECK(EVP_DigestFinal_ex(ctx, out, NULL) == 1);
}

/* The stream is OpenSSL's context under our name. */
struct fingerprint_stream *fingerprint_stream_new(void)
{
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();

    CHECK(ctx != NULL && EVP_DigestInit_ex2(ctx, fingerprint_md(), NULL) == 1);
    return (struct fingerprint_stream *)ctx;
}

void fingerprint_stream_add(struct fingerprint_stream *s, const void *p, size_t n)
{
    CHECK(EVP_DigestUpdate((EVP_MD_CTX *)s, p, n) == 1);
}

void fingerprint_stream_end(struct fingerprint_stream *s, uint8_t out[FINGERPRINT_SIZE])
{
    EVP_MD_CTX *ctx = (EVP_MD_CTX *)s;

    if (ctx && out)
        CHECK(EVP_DigestFinal_ex(ctx, out, NULL) == 1);
    EVP_MD_CTX_free(ctx);
}
