/* Histograms' arithmetic, the registry, and Prometheus' text format; see metric.h. */
#include "lib/base/metric.h"

#include <inttypes.h>
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/list.h"
#include "lib/base/mem.h"

/* ---- Histograms ----------------------------------------------------------------------------- */

void metric_hist_init(struct metric_hist *h, enum metric_unit unit)
{
    memset(h, 0, sizeof(*h));
    h->shift = unit == METRIC_TIME ? METRIC_SHIFT : 0;
}

uint64_t metric_bucket_top(const struct metric_hist *h, unsigned bucket)
{
    uint64_t next = bucket + 1ull; /* in units: where the next bucket begins */

    if (bucket >= METRIC_SUB)
        next = (METRIC_SUB + bucket % METRIC_SUB + 1ull) << (bucket / METRIC_SUB - 1);
    return (next << h->shift) - 1;
}

static uint64_t hist_bucket(const struct metric_hist *h, unsigned i)
{
    return atomic_load_explicit(&h->buckets[i], memory_order_relaxed);
}

void metric_hist_merge(struct metric_hist *into, const struct metric_hist *from)
{
    uint64_t max = atomic_load_explicit(&from->max, memory_order_relaxed);
    uint64_t sum = atomic_load_explicit(&from->sum, memory_order_relaxed);

    CHECK(into->shift == from->shift);
    for (unsigned i = 0; i < METRIC_BUCKETS; i++)
        atomic_fetch_add_explicit(&into->buckets[i], hist_bucket(from, i), memory_order_relaxed);
    atomic_fetch_add_explicit(&into->sum, sum, memory_order_relaxed);
    if (max > atomic_load_explicit(&into->max, memory_order_relaxed))
        atomic_store_explicit(&into->max, max, memory_order_relaxed);
}

uint64_t metric_hist_count(const struct metric_hist *h)
{
    uint64_t n = 0;

    for (unsigned i = 0; i < METRIC_BUCKETS; i++)
        n += hist_bucket(h, i);
    return n;
}

uint64_t metric_hist_percentile(const struct metric_hist *h, unsigned permille)
{
    uint64_t count = metric_hist_count(h), seen = 0, rank, top;
    uint64_t max = atomic_load_explicit(&h->max, memory_order_relaxed);

    CHECK(permille <= 1000);
    if (count == 0)
        return 0;
    rank = count / 1000 * permille + (count % 1000 * permille + 999) / 1000;
    if (rank == 0)
        rank = 1;
    for (unsigned i = 0; i < METRIC_BUCKETS - 1; i++) {
        seen += hist_bucket(h, i);
        top = metric_bucket_top(h, i);
        if (seen >= rank)
            return top < max ? top : max;
    }
    return max; /* the last bucket has no top */
}

/* ---- The registry --------------------------------------------------------------------------- */

#define METRIC_LABELS_MAX 4u

struct series {
    struct list link; /* in its family */
    char *labels[2 * METRIC_LABELS_MAX + 1];
    char *text; /* as they are shown: name="value",... */
    const struct metric_counter *counter;
    const struct metric_hist *hist;
    const uint64_t *plain;
};

struct family {
    struct list link;
    const char *name, *help;
    enum metric_kind kind;
    enum metric_unit unit;
    struct list series;
};

struct metrics {
    struct list families;
    const char *owner_name; /* NULL: none */
    char *owner;
    void (*refresh)(void *arg);
    void *arg;
};

struct metrics *metrics_new(void)
{
    struct metrics *m = mem_zalloc(sizeof(*m));

    list_init(&m->families);
    return m;
}

static void family_free(struct family *f)
{
    for (struct list *it; (it = list_pop_front(&f->series)) != NULL;) {
        struct series *s = LIST_ENTRY(it, struct series, link);

        for (unsigned i = 0; s->labels[i]; i++)
            mem_free(s->labels[i]);
        mem_free(s->text);
        mem_free(s);
    }
    mem_free(f);
}

void metrics_free(struct metrics *m)
{
    if (!m)
        return;
    for (struct list *it; (it = list_pop_front(&m->families)) != NULL;)
        family_free(LIST_ENTRY(it, struct family, link));
    mem_free(m->owner);
    mem_free(m);
}

void metrics_set_owner(struct metrics *m, const char *name, const char *value)
{
    mem_free(m->owner);
    m->owner_name = name;
    m->owner = name ? mem_strdup(value) : NULL;
}

void metrics_on_look(struct metrics *m, void (*refresh)(void *arg), void *arg)
{
    m->refresh = refresh;
    m->arg = arg;
}

#define METRIC_LETTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_"

static bool name_ok(const char *name)
{
    return *name && strspn(name, METRIC_LETTERS "0123456789") == strlen(name) &&
           strspn(name, METRIC_LETTERS) > 0;
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);

    return n >= m && strcmp(text + n - m, end) == 0;
}

static struct family *family_of(struct metrics *m, enum metric_kind kind, enum metric_unit unit,
                                const char *name, const char *help)
{
    struct family *f;

    list_for_each (it, &m->families) {
        f = LIST_ENTRY(it, struct family, link);
        if (strcmp(f->name, name) != 0)
            continue;
        CHECK(f->kind == kind && f->unit == unit && strcmp(f->help, help) == 0);
        return f;
    }
    CHECK(name_ok(name));
    CHECK((kind == METRIC_COUNTER) == ends_with(name, "_total"));
    CHECK(unit == METRIC_COUNT || ends_with(name, "_seconds"));
    f = mem_zalloc(sizeof(*f));
    *f = (struct family){.name = name, .help = help, .kind = kind, .unit = unit};
    list_init(&f->series);
    list_push_back(&m->families, &f->link);
    return f;
}

/* Escapes as the text format asks: backslash and newline, in label values quotes too. */
static void add_escaped(struct strbuf *out, const char *text, bool quotes)
{
    for (; *text; text++) {
        if (*text == '\\')
            strbuf_adds(out, "\\\\");
        else if (*text == '\n')
            strbuf_adds(out, "\\n");
        else if (*text == '"' && quotes)
            strbuf_adds(out, "\\\"");
        else
            strbuf_addc(out, *text);
    }
}

static void label_add(struct series *s, struct strbuf *text, const char *name, const char *value)
{
    unsigned n = 0;

    CHECK(name_ok(name) && strncmp(name, "__", 2) != 0 && strcmp(name, "le") != 0);
    while (s->labels[n])
        n += 2;
    CHECK(n < 2 * METRIC_LABELS_MAX && value);
    s->labels[n] = mem_strdup(name);
    s->labels[n + 1] = mem_strdup(value);
    strbuf_addf(text, "%s%s=\"", n ? "," : "", name);
    add_escaped(text, value, true);
    strbuf_addc(text, '"');
}

static struct series *series_add(const struct metrics *m, struct family *f,
                                 const char *const *labels)
{
    struct series *s = mem_zalloc(sizeof(*s));
    struct strbuf text = STRBUF_INIT;

    strbuf_adds(&text, "");
    if (m->owner_name)
        label_add(s, &text, m->owner_name, m->owner);
    for (unsigned i = 0; labels && labels[i]; i += 2)
        label_add(s, &text, labels[i], labels[i + 1]);
    s->text = strbuf_take(&text);
    list_for_each (it, &f->series)
        CHECK(strcmp(LIST_ENTRY(it, struct series, link)->text, s->text) != 0);
    list_push_back(&f->series, &s->link);
    return s;
}

void metrics_add_counter(struct metrics *m, const char *name, const char *help,
                         const char *const *labels, const struct metric_counter *counter)
{
    struct family *f = family_of(m, METRIC_COUNTER, METRIC_COUNT, name, help);

    series_add(m, f, labels)->counter = counter;
}

void metrics_add_hist(struct metrics *m, const char *name, const char *help,
                      const char *const *labels, const struct metric_hist *hist)
{
    enum metric_unit unit = hist->shift ? METRIC_TIME : METRIC_COUNT;

    series_add(m, family_of(m, METRIC_HIST, unit, name, help), labels)->hist = hist;
}

void metrics_add_plain(struct metrics *m, enum metric_kind kind, enum metric_unit unit,
                       const char *name, const char *help, const char *const *labels,
                       const uint64_t *value)
{
    CHECK(kind != METRIC_HIST);
    series_add(m, family_of(m, kind, unit, name, help), labels)->plain = value;
}

/* ---- Looking -------------------------------------------------------------------------------- */

static struct metric_series series_show(const struct family *f, const struct series *s)
{
    return (struct metric_series){.name = f->name,
                                  .help = f->help,
                                  .kind = f->kind,
                                  .unit = f->unit,
                                  .labels = (const char *const *)s->labels,
                                  .hist = s->hist,
                                  .value = s->counter ? metric_get(s->counter)
                                           : s->plain ? __atomic_load_n(s->plain, __ATOMIC_RELAXED)
                                                      : 0};
}

void metrics_visit(struct metrics *m, void (*visit)(void *arg, const struct metric_series *s),
                   void *arg)
{
    if (m->refresh)
        m->refresh(m->arg);
    list_for_each (fi, &m->families) {
        const struct family *f = LIST_ENTRY(fi, struct family, link);

        list_for_each (si, &f->series) {
            struct metric_series shown = series_show(f, LIST_ENTRY(si, struct series, link));

            visit(arg, &shown);
        }
    }
}

/* A number in the unit that is shown. Whole nanoseconds have nine decimals: nothing is rounded. */
static void add_number(struct strbuf *out, enum metric_unit unit, uint64_t n)
{
    if (unit == METRIC_TIME)
        strbuf_addf(out, "%" PRIu64 ".%09" PRIu64, n / 1000000000, n % 1000000000);
    else
        strbuf_addf(out, "%" PRIu64, n);
}

/* "name_suffix{labels} " or "name_suffix ". */
static void add_series(struct strbuf *out, const struct family *f, const char *suffix,
                       const struct series *s)
{
    strbuf_addf(out, "%s%s", f->name, suffix);
    if (*s->text)
        strbuf_addf(out, "{%s}", s->text);
    strbuf_addc(out, ' ');
}

/* The powers of two at which buckets are shown: 4 us to 69 s, and counts to some 16 million. */
#define SHOW_TIME_FIRST  12u
#define SHOW_TIME_LAST   36u
#define SHOW_COUNT_FIRST 0u
#define SHOW_COUNT_LAST  24u

static void add_bucket(struct strbuf *out, const struct family *f, const struct series *s)
{
    strbuf_addf(out, "%s_bucket{%s%sle=\"", f->name, s->text, *s->text ? "," : "");
}

static void add_hist(struct strbuf *out, const struct family *f, const struct series *s)
{
    unsigned first = f->unit == METRIC_TIME ? SHOW_TIME_FIRST : SHOW_COUNT_FIRST;
    unsigned last = f->unit == METRIC_TIME ? SHOW_TIME_LAST : SHOW_COUNT_LAST, bucket = 0;
    uint64_t n = 0;

    for (unsigned power = first; power <= last; power++) {
        uint64_t top = (1ull << power) - 1; /* the last value before the power */

        while (bucket < METRIC_BUCKETS - 1 && metric_bucket_top(s->hist, bucket) <= top)
            n += hist_bucket(s->hist, bucket++);
        add_bucket(out, f, s);
        add_number(out, f->unit, top);
        strbuf_addf(out, "\"} %" PRIu64 "\n", n);
    }
    while (bucket < METRIC_BUCKETS)
        n += hist_bucket(s->hist, bucket++);
    add_bucket(out, f, s);
    strbuf_addf(out, "+Inf\"} %" PRIu64 "\n", n);
    add_series(out, f, "_sum", s);
    add_number(out, f->unit, atomic_load_explicit(&s->hist->sum, memory_order_relaxed));
    strbuf_addc(out, '\n');
    add_series(out, f, "_count", s);
    strbuf_addf(out, "%" PRIu64 "\n", n);
}

static void add_family(struct strbuf *out, const struct family *f)
{
    static const char *const kinds[] = {"counter", "gauge", "histogram"};

    strbuf_addf(out, "# HELP %s ", f->name);
    add_escaped(out, f->help, false);
    strbuf_addf(out, "\n# TYPE %s %s\n", f->name, kinds[f->kind]);
    list_for_each (it, &f->series) {
        const struct series *s = LIST_ENTRY(it, struct series, link);

        if (f->kind == METRIC_HIST) {
            add_hist(out, f, s);
            continue;
        }
        add_series(out, f, "", s);
        add_number(out, f->unit, series_show(f, s).value);
        strbuf_addc(out, '\n');
    }
}

void metrics_text(struct metrics *m, struct strbuf *out)
{
    if (m->refresh)
        m->refresh(m->arg);
    list_for_each (it, &m->families)
        add_family(out, LIST_ENTRY(it, struct family, link));
}
