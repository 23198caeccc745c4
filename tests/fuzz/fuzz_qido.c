/* QIDO-RS arguments: a query string of any bytes. What is taken must be a query that makes sense to
 * a store: known kinds, values within bounds, no empty UID in a list.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/base/strbuf.h"
#include "lib/dicom/dcm.h"
#include "lib/net/httpd_impl.h"
#include "proto/dicomweb/qido.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    CHECK_OK(dcm_init());
    return 0;
}

static void check_query(const struct qido *q)
{
    static const struct object_row row = {.study_uid = "1.2",
                                          .series_uid = "1.3",
                                          .instance_uid = "1.4",
                                          .sop_class_uid = "1.5",
                                          .transfer_syntax_uid = "1.6"};
    struct strbuf out = STRBUF_INIT;

    CHECK(q->match_count <= QIDO_MATCHES_MAX && q->include_count <= QIDO_INCLUDES_MAX);
    CHECK(q->limit <= QIDO_LIMIT_MAX);
    for (size_t i = 0; i < q->match_count; i++) {
        const struct object_match *m = &q->matches[i];

        CHECK(m->value[0] && m->kind <= OBJECT_MATCH_LIST);
        CHECK(m->kind != OBJECT_MATCH_LIST || strchr(m->value, '\\'));
        CHECK(m->kind != OBJECT_MATCH_RANGE || strchr(m->value, '-'));
    }
    qido_row_json(q, &row, "http://h/dicom-web", &out);
    CHECK(out.len > 2 && out.data[0] == '{' && out.data[out.len - 1] == '}');
    strbuf_free(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct httpd_uri *u = mem_zalloc(sizeof(*u));
    struct strbuf target = STRBUF_INIT;
    struct qido *q = mem_alloc(sizeof(*q));
    struct qido_arg args[HTTPD_ARGS_MAX];

    strbuf_adds(&target, "/?");
    if (size > 1)
        strbuf_add(&target, data + 1, size - 1);
    if (size > 0 && httpd_uri_parse(target.data, u) == 0) {
        for (size_t i = 0; i < u->arg_count; i++)
            args[i] = (struct qido_arg){u->args[i].name, u->args[i].value};
        if (qido_parse((enum object_level)(data[0] % 3), data[0] & 4, data[0] & 8, args,
                       u->arg_count, "accept", q) == 0)
            check_query(q);
        else
            CHECK(q->error[0]);
        qido_free(q);
    }
    httpd_uri_free(u);
    strbuf_free(&target);
    mem_free(q);
    mem_free(u);
    return 0;
}
