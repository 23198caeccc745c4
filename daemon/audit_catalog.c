/* The audit of the catalogue: instances, what stands above them (series, studies, patients), and
 * the indexes that lead to them, each seen from each.
 *
 * Counts are made by walking the rows below, which lie together: nothing is kept in memory. Rows
 * that have attributes are never made up, apart from a patient's, which is by definition what one
 * of its studies says.
 */
#include <string.h>

#include "daemon/audit_priv.h"
#include "daemon/catalog.h"
#include "daemon/recipe.h"
#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"

static bool same_key(const struct catalog_key *k, struct kv_slice key)
{
    return k->len == key.len && memcmp(k->bytes, key.data, key.len) == 0;
}

static bool has_row(struct audit *a, enum kv_table t, const struct catalog_key *k)
{
    size_t len;
    void *value = audit_get(a, t, catalog_key_slice(k), &len);

    mem_free(value);
    return value != NULL;
}

/* The parts of a key behind its level byte. */
static int key_split(struct kv_slice key, unsigned n, struct catalog_uids *ret_uids)
{
    if (key.len < 2 ||
        catalog_uids_split((struct kv_slice){(const char *)key.data + 1, key.len - 1}, n,
                           ret_uids) < 0)
        return ERR_FORMAT;
    for (unsigned i = 0; i < n; i++)
        if (strlen(ret_uids->part[i]) > OBJECT_UID_MAX)
            return ERR_FORMAT; /* keys are made of these again */
    return 0;
}

/* Walks the rows of one level, or of one level below others. */
static void walk_under(struct audit *a, enum kv_table t, const struct catalog_key *prefix,
                       void (*row)(struct audit *a, void *arg, const struct kv_row *row), void *arg)
{
    struct catalog_key after = *prefix;

    catalog_key_after(&after);
    audit_walk_range(a, t, catalog_key_slice(prefix), catalog_key_slice(&after), row, arg);
}

static void walk_level(struct audit *a, enum kv_table t, char level, const char *what,
                       void (*row)(struct audit *a, void *arg, const struct kv_row *row), void *arg)
{
    struct catalog_key k;

    if (a->p->progress)
        a->p->progress(a->p->arg, what, 0);
    catalog_key_make(&k, level, NULL, NULL, NULL);
    walk_under(a, t, &k, row, arg);
}

/* ---- Instances ---- */

struct instance_walk {
    char study[OBJECT_UID_MAX + 1], series[OBJECT_UID_MAX + 1]; /* of the row before */
};

/* The index must lead from the UID to this row, and to no other. */
static void instance_home(struct audit *a, const struct catalog_uids *uids)
{
    char want[2 * OBJECT_UID_MAX + 2];
    size_t n = strlen(uids->part[0]) + 1, m = strlen(uids->part[1]), len = 0;
    MEM_AUTO char *home = NULL;
    struct catalog_uids other;
    struct catalog_key k, key;

    memcpy(want, uids->part[0], n);
    memcpy(want + n, uids->part[1], m);
    catalog_key_make(&key, 'U', uids->part[2], NULL, NULL);
    home = audit_get(a, KV_INDEX, catalog_key_slice(&key), &len);
    if (home && len == n + m && memcmp(home, want, len) == 0)
        return;
    if (home && catalog_uids_split((struct kv_slice){home, len}, 2, &other) == 0 &&
        strlen(other.part[0]) <= OBJECT_UID_MAX && strlen(other.part[1]) <= OBJECT_UID_MAX) {
        catalog_key_make(&k, 'I', other.part[0], other.part[1], uids->part[2]);
        if (has_row(a, KV_CATALOG, &k)) {
            audit_leave(a, "instance-twice", "instance %s: in series %s and in series %s",
                        uids->part[2], uids->part[1], other.part[1]);
            return;
        }
    }
    audit_mend(a, "instance-index", "instance %s: the index %s", uids->part[2],
               home ? "leads elsewhere" : "does not lead to it");
    audit_put(a, KV_INDEX, catalog_key_slice(&key), (struct kv_slice){want, n + m});
}

static void instance_recipe(struct audit *a, const char *uid, uint64_t bytes)
{
    MEM_AUTO void *value = NULL;
    struct recipe recipe;
    struct catalog_key k;
    size_t len;

    catalog_key_make(&k, 'R', uid, NULL, NULL);
    value = audit_get(a, KV_RECIPE, catalog_key_slice(&k), &len);
    if (!value) {
        audit_leave(a, "instance-data", "instance %s: it is lost: its recipe is not there", uid);
        return;
    }
    if (recipe_decode(value, len, &recipe) < 0)
        return; /* the recipes' walk tells */
    if (recipe.size != bytes)
        audit_leave(a, "instance-size",
                    "instance %s: its recipe makes %llu bytes, its row says %llu", uid,
                    (unsigned long long)recipe.size, (unsigned long long)bytes);
    recipe_free(&recipe);
}

/* Rows above the first instance of a series. */
static void instance_upper(struct audit *a, struct instance_walk *w, const struct catalog_uids *u)
{
    bool new_study = strcmp(w->study, u->part[0]) != 0;
    struct catalog_key k;

    if (!new_study && strcmp(w->series, u->part[1]) == 0)
        return;
    memcpy(w->study, u->part[0], strlen(u->part[0]) + 1);
    memcpy(w->series, u->part[1], strlen(u->part[1]) + 1);
    catalog_key_make(&k, 'S', w->study, w->series, NULL);
    if (!has_row(a, KV_CATALOG, &k))
        audit_leave(a, "series-missing", "series %s is not there, and instances of it are",
                    w->series);
    catalog_key_make(&k, 'T', w->study, NULL, NULL);
    if (new_study && !has_row(a, KV_CATALOG, &k))
        audit_leave(a, "study-missing", "study %s is not there, and instances of it are", w->study);
}

static void row_instance(struct audit *a, void *arg, const struct kv_row *row)
{
    struct catalog_instance *i = mem_zalloc(sizeof(*i));
    struct catalog_uids uids;

    if (key_split(row->key, 3, &uids) < 0 || catalog_instance_decode(row->value, i) < 0) {
        a->catalog_doubtful = true;
        audit_leave(a, "instance-row", "an instance's row is broken");
    } else {
        a->r.instances++;
        a->bytes += i->bytes;
        if (a->p->progress && a->r.instances % AUDIT_PAGE == 0)
            a->p->progress(a->p->arg, "instances", a->r.instances);
        instance_home(a, &uids);
        instance_recipe(a, uids.part[2], i->bytes);
        instance_upper(a, arg, &uids);
    }
    mem_free(i);
}

void audit_instances(struct audit *a)
{
    struct instance_walk w = {0};

    walk_level(a, KV_CATALOG, 'I', "instances", row_instance, &w);
}

/* ---- Series and studies ---- */

struct below {
    uint64_t instances, bytes;
    struct catalog_study *study; /* series and their modalities; NULL: of one series */
};

static void below_instance(struct audit *a, void *arg, const struct kv_row *row)
{
    struct catalog_instance *i = mem_zalloc(sizeof(*i));
    struct below *b = arg;

    (void)a;
    b->instances++;
    if (catalog_instance_decode(row->value, i) == 0)
        b->bytes += i->bytes;
    mem_free(i);
}

static void below_series(struct audit *a, void *arg, const struct kv_row *row)
{
    struct catalog_series *s = mem_zalloc(sizeof(*s));
    struct below *b = arg;

    b->study->series++;
    if (catalog_series_decode(row->value, s) == 0)
        catalog_modality_count(b->study, s, 1);
    else
        a->catalog_doubtful = true;
    mem_free(s);
}

/* Counts differ: mended, unless rows that count could not be read. */
static bool count_finding(struct audit *a, const char *kind, const char *what, const char *uid,
                          const struct below *b, uint64_t instances, uint64_t bytes)
{
    if (a->catalog_doubtful)
        audit_leave(
            a, kind,
            "%s %s: %llu instances of %llu bytes found, its row says %llu of %llu; left, as "
            "others may be missing or broken",
            what, uid, (unsigned long long)b->instances, (unsigned long long)b->bytes,
            (unsigned long long)instances, (unsigned long long)bytes);
    else
        audit_mend(a, kind, "%s %s: %llu instances of %llu bytes, its row says %llu of %llu", what,
                   uid, (unsigned long long)b->instances, (unsigned long long)b->bytes,
                   (unsigned long long)instances, (unsigned long long)bytes);
    return !a->catalog_doubtful;
}

static void series_compare(struct audit *a, struct kv_slice key, const char *uid,
                           struct catalog_series *s, const struct below *b)
{
    STRBUF_AUTO struct strbuf out = STRBUF_INIT;

    if ((s->instances == b->instances && s->bytes == b->bytes && s->instances) ||
        !count_finding(a, "series-count", "series", uid, b, s->instances, s->bytes))
        return;
    if (b->instances == 0) {
        audit_delete(a, KV_CATALOG, key);
        return;
    }
    s->instances = b->instances;
    s->bytes = b->bytes;
    catalog_series_encode(s, &out);
    audit_put(a, KV_CATALOG, key, (struct kv_slice){out.data, out.len});
}

static void row_series(struct audit *a, void *arg, const struct kv_row *row)
{
    struct catalog_series *s = mem_zalloc(sizeof(*s));
    struct below b = {0};
    struct catalog_uids uids;
    struct catalog_key k;

    (void)arg;
    if (key_split(row->key, 2, &uids) < 0 || catalog_series_decode(row->value, s) < 0) {
        a->catalog_doubtful = true;
        audit_leave(a, "series-row", "a series' row is broken");
    } else {
        catalog_key_make(&k, 'I', uids.part[0], uids.part[1], "");
        walk_under(a, KV_CATALOG, &k, below_instance, &b);
        series_compare(a, row->key, uids.part[1], s, &b);
    }
    mem_free(s);
}

static bool same_modalities(const struct catalog_study *x, const struct catalog_study *y)
{
    bool same = x->modality_count == y->modality_count;

    for (uint32_t i = 0; same && i < x->modality_count; i++) {
        bool found = false;

        for (uint32_t j = 0; j < y->modality_count; j++)
            found |= strcmp(x->modalities[i].name, y->modalities[j].name) == 0 &&
                     x->modalities[i].series == y->modalities[j].series;
        same = found;
    }
    return same;
}

static void study_compare(struct audit *a, struct kv_slice key, const char *uid,
                          struct catalog_study *s, const struct below *b)
{
    STRBUF_AUTO struct strbuf out = STRBUF_INIT;
    /* Of more modalities than a row has room for, which ones are in it depends on their order. */
    bool modalities = same_modalities(s, b->study) || s->modality_count == CATALOG_MODALITIES_MAX ||
                      b->study->modality_count == CATALOG_MODALITIES_MAX;

    if (s->instances == b->instances && s->bytes == b->bytes && s->series == b->study->series &&
        modalities && s->instances)
        return;
    if (s->instances != b->instances || s->bytes != b->bytes || s->instances == 0) {
        if (!count_finding(a, "study-count", "study", uid, b, s->instances, s->bytes))
            return;
    } else if (a->catalog_doubtful) {
        audit_leave(a, "study-count", "study %s: its series are not those that its row counts",
                    uid);
        return;
    } else {
        audit_mend(a, "study-count", "study %s: %llu series, its row says %llu%s", uid,
                   (unsigned long long)b->study->series, (unsigned long long)s->series,
                   modalities ? "" : ", of other modalities");
    }
    if (b->instances == 0) {
        audit_delete(a, KV_CATALOG, key);
        return;
    }
    s->instances = b->instances;
    s->bytes = b->bytes;
    s->series = b->study->series;
    if (!modalities) {
        s->modality_count = b->study->modality_count;
        memcpy(s->modalities, b->study->modalities, sizeof(s->modalities));
    }
    catalog_study_encode(s, &out);
    audit_put(a, KV_CATALOG, key, (struct kv_slice){out.data, out.len});
}

/* ---- Patients ---- */

/* A study's rows in the patients' index, and its patient. */
static void study_patient(struct audit *a, const char *uid, const struct catalog_study *s)
{
    STRBUF_AUTO struct strbuf out = STRBUF_INIT;
    struct catalog_patient *p;
    struct catalog_key k;
    size_t len;

    for (const char *id = catalog_patient_id(&s->attrs); (id = catalog_id_next(id, &len));
         id += len) {
        catalog_id_key(&k, id, len, uid);
        if (has_row(a, KV_INDEX, &k))
            continue;
        audit_mend(a, "patient-index", "study %s: the patients' index does not lead to it", uid);
        audit_put(a, KV_INDEX, catalog_key_slice(&k), (struct kv_slice){"", 0});
    }
    if (!catalog_patient_key(&k, &s->attrs) || has_row(a, KV_CATALOG, &k))
        return;
    audit_mend(a, "patient-missing", "study %s: its patient is not there", uid);
    p = mem_zalloc(sizeof(*p));
    catalog_patient_begin(p, &s->attrs);
    p->studies = 1; /* counted below */
    catalog_patient_encode(p, &out);
    audit_put(a, KV_CATALOG, catalog_key_slice(&k), (struct kv_slice){out.data, out.len});
    mem_free(p);
}

static void row_study(struct audit *a, void *arg, const struct kv_row *row)
{
    struct catalog_study *s = mem_zalloc(sizeof(*s));
    struct below b = {.study = mem_zalloc(sizeof(*s))};
    struct catalog_uids uids;
    struct catalog_key k;

    (void)arg;
    if (key_split(row->key, 1, &uids) < 0 || catalog_study_decode(row->value, s) < 0) {
        a->catalog_doubtful = true;
        audit_leave(a, "study-row", "a study's row is broken");
    } else {
        catalog_key_make(&k, 'I', uids.part[0], NULL, NULL);
        walk_under(a, KV_CATALOG, &k, below_instance, &b);
        catalog_key_make(&k, 'S', uids.part[0], NULL, NULL);
        walk_under(a, KV_CATALOG, &k, below_series, &b);
        study_compare(a, row->key, uids.part[0], s, &b);
        if (b.instances || !a->p->repair || a->catalog_doubtful) {
            a->r.studies++;
            study_patient(a, uids.part[0], s);
        }
    }
    mem_free(b.study);
    mem_free(s);
}

/* The study that a row of the patients' index leads to; NULL where there is none. *ret_value holds
 * what it points into. */
static struct catalog_study *indexed_study(struct audit *a, struct kv_slice key, void **ret_value)
{
    const char *at = key.data, *nul = memrchr(at, 0, key.len);
    size_t n = nul ? (size_t)(at + key.len - nul) - 1 : 0, len;
    char uid[OBJECT_UID_MAX + 1] = "";
    struct catalog_study *s;
    struct catalog_key k;

    *ret_value = NULL;
    if (n == 0 || n > OBJECT_UID_MAX)
        return NULL;
    memcpy(uid, nul + 1, n);
    catalog_key_make(&k, 'T', uid, NULL, NULL);
    *ret_value = audit_get(a, KV_CATALOG, catalog_key_slice(&k), &len);
    if (!*ret_value)
        return NULL;
    s = mem_zalloc(sizeof(*s));
    if (catalog_study_decode((struct kv_slice){*ret_value, len}, s) == 0)
        return s;
    mem_free(s);
    return NULL;
}

/* Is the study under this key one with such a Patient ID? */
static void row_indexed(struct audit *a, void *arg, const struct kv_row *row)
{
    const char *at = row->key.data, *nul = memrchr(at, 0, row->key.len);
    bool found = false;
    struct catalog_key k;
    size_t len;
    void *bytes;
    struct catalog_study *s = indexed_study(a, row->key, &bytes);

    (void)arg;
    for (const char *id = s ? catalog_patient_id(&s->attrs) : "";
         nul && (id = catalog_id_next(id, &len)); id += len) {
        catalog_id_key(&k, id, len, NULL);
        found |= same_key(&k, (struct kv_slice){at, (size_t)(nul + 1 - at)});
    }
    mem_free(s);
    if (!found && bytes && !s) {
        mem_free(bytes);
        return; /* its row is broken: who knows whose it is */
    }
    mem_free(bytes);
    if (found)
        return;
    audit_mend(a, "patient-index", "the patients' index leads to a study that %s",
               s ? "has another Patient ID" : "is not there");
    audit_delete(a, KV_INDEX, row->key);
}

struct patient_count {
    struct kv_slice key;
    uint64_t studies;
};

static void patient_study(struct audit *a, void *arg, const struct kv_row *row)
{
    struct patient_count *pc = arg;
    struct catalog_key k;
    void *bytes;
    struct catalog_study *s = indexed_study(a, row->key, &bytes);

    pc->studies += s && catalog_patient_key(&k, &s->attrs) && same_key(&k, pc->key);
    mem_free(s);
    mem_free(bytes);
}

static void patient_compare(struct audit *a, struct kv_slice key, struct catalog_patient *p,
                            uint64_t studies)
{
    STRBUF_AUTO struct strbuf out = STRBUF_INIT;
    const char *id = catalog_patient_id(&p->attrs);

    a->r.patients++;
    if (p->studies == studies && studies)
        return;
    if (a->catalog_doubtful && studies < p->studies) {
        audit_leave(a, "patient-count",
                    "patient %s: %llu studies found, its row says %llu; left, as others may be "
                    "missing or broken",
                    id, (unsigned long long)studies, (unsigned long long)p->studies);
        return;
    }
    audit_mend(a, "patient-count", "patient %s: %llu studies, its row says %llu", id,
               (unsigned long long)studies, (unsigned long long)p->studies);
    if (studies == 0) {
        audit_delete(a, KV_CATALOG, key);
        return;
    }
    p->studies = studies;
    catalog_patient_encode(p, &out);
    audit_put(a, KV_CATALOG, key, (struct kv_slice){out.data, out.len});
}

static void row_patient(struct audit *a, void *arg, const struct kv_row *row)
{
    struct catalog_patient *p = mem_zalloc(sizeof(*p));
    struct patient_count pc = {.key = row->key};
    struct catalog_key k;
    const char *id;

    (void)arg;
    if (catalog_patient_decode(row->value, p) < 0 || !catalog_patient_key(&k, &p->attrs) ||
        !same_key(&k, row->key)) {
        audit_leave(a, "patient-row", "a patient's row is broken, or not its own");
    } else {
        id = catalog_patient_id(&p->attrs);
        catalog_id_key(&k, id, strlen(id), NULL);
        walk_under(a, KV_INDEX, &k, patient_study, &pc);
        patient_compare(a, row->key, p, pc.studies);
    }
    mem_free(p);
}

/* ---- The index of instances, and the totals ---- */

/* A home that leads to no instance: it goes, unless there is a recipe to be found by it. */
static void row_home(struct audit *a, void *arg, const struct kv_row *row)
{
    struct catalog_uids uid, home;
    struct catalog_key k;

    (void)arg;
    if (key_split(row->key, 1, &uid) < 0) {
        audit_leave(a, "instance-index", "the index of instances has a key that is no UID");
        return;
    }
    if (catalog_uids_split(row->value, 2, &home) == 0 && strlen(home.part[0]) <= OBJECT_UID_MAX &&
        strlen(home.part[1]) <= OBJECT_UID_MAX) {
        catalog_key_make(&k, 'I', home.part[0], home.part[1], uid.part[0]);
        if (has_row(a, KV_CATALOG, &k))
            return;
    }
    catalog_key_make(&k, 'R', uid.part[0], NULL, NULL);
    if (has_row(a, KV_RECIPE, &k)) {
        audit_leave(a, "instance-index",
                    "instance %s: the index and a recipe know of it, and it is not there",
                    uid.part[0]);
        return;
    }
    audit_mend(a, "instance-index", "instance %s: in the index, and not there", uid.part[0]);
    audit_delete(a, KV_INDEX, row->key);
}

static void catalog_totals(struct audit *a)
{
    static const struct kv_slice key = {CATALOG_TOTALS_KEY, sizeof(CATALOG_TOTALS_KEY) - 1};
    struct catalog_totals t = {0}, want = {a->r.studies, a->r.instances, a->bytes};
    uint8_t bytes[CATALOG_TOTALS_SIZE];
    MEM_AUTO void *value = NULL;
    size_t len = 0;

    value = audit_get(a, KV_META, key, &len);
    if (value)
        (void)catalog_totals_decode((struct kv_slice){value, len}, &t);
    if (memcmp(&t, &want, sizeof(t)) == 0)
        return;
    if (a->catalog_doubtful) {
        audit_leave(a, "catalog-totals", "the totals of the catalogue are not those of its rows");
        return;
    }
    audit_mend(a, "catalog-totals",
               "there are %llu studies, %llu instances of %llu bytes, the totals say %llu, %llu of "
               "%llu",
               (unsigned long long)want.studies, (unsigned long long)want.instances,
               (unsigned long long)want.bytes, (unsigned long long)t.studies,
               (unsigned long long)t.instances, (unsigned long long)t.bytes);
    catalog_totals_encode(&want, bytes);
    audit_put(a, KV_META, key, (struct kv_slice){bytes, sizeof(bytes)});
}

static void row_unknown(struct audit *a, void *arg, const struct kv_row *row)
{
    if (row->key.len == 0 || !memchr(arg, *(const char *)row->key.data, strlen(arg)))
        audit_leave(a, "catalog-row", "an unknown row in the catalogue or its indexes");
}

void audit_catalog(struct audit *a)
{
    static char levels[] = "IPST", indexes[] = "UP";
    struct kv_slice first = {"", 1}, end = {"", 0};

    walk_level(a, KV_CATALOG, 'S', "series", row_series, NULL);
    walk_level(a, KV_CATALOG, 'T', "studies", row_study, NULL);
    walk_level(a, KV_INDEX, 'P', "patients", row_indexed, NULL);
    walk_level(a, KV_CATALOG, 'P', "patients", row_patient, NULL);
    walk_level(a, KV_INDEX, 'U', "index", row_home, NULL);
    audit_walk_range(a, KV_CATALOG, first, end, row_unknown, levels);
    audit_walk_range(a, KV_INDEX, first, end, row_unknown, indexes);
    catalog_totals(a);
}
