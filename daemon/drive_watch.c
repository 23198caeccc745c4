/* Lines about drives' standing; see drive_watch.h. */
#include "daemon/drive_watch.h"

#include "lib/base/log.h"

bool drive_watch_suspect(const struct drive *d)
{
    return drive_usable(d) && d->health.state == HEALTH_SUSPECT;
}

const char *drive_watch_reason(const struct drive *d)
{
    return drive_watch_suspect(d) ? d->health.reason : d->reason;
}

static void note(struct drive_watch *w, const struct drive *d)
{
    w->told[d->index].state = d->state;
    w->told[d->index].health = d->health.state;
    w->told[d->index].kept = d->health.kept;
}

void drive_watch_init(struct drive_watch *w, const struct driveset *ds)
{
    for (unsigned i = 0; i < ds->count; i++)
        note(w, &ds->drives[i]);
}

static void tell(const struct drive *d)
{
    if (!drive_usable(d))
        log_warn("drive",
                 "is out: replace it, or look at its cable and log drive=%u path=%s why=%s",
                 d->index, log_q(d->path), log_q(d->reason));
    else if (d->health.kept)
        log_warn("drive",
                 "would be put out, and stays in because the store cannot spare it: bring other "
                 "drives back drive=%u path=%s why=%s",
                 d->index, log_q(d->path), log_q(d->health.reason));
    else if (drive_watch_suspect(d))
        log_warn("drive", "is suspect, and read around drive=%u path=%s why=%s", d->index,
                 log_q(d->path), log_q(d->health.reason));
    else
        log_info("drive", "is trusted again drive=%u path=%s", d->index, log_q(d->path));
}

/* A drive that has left its place, and a sound one that is new in it, are told by who did that. */
void drive_watch_tell(struct drive_watch *w, const struct driveset *ds)
{
    for (unsigned i = 0; i < ds->count; i++) {
        const struct drive *d = &ds->drives[i];
        bool came;

        if (w->told[i].state == d->state &&
            (!drive_usable(d) ||
             (w->told[i].health == d->health.state && w->told[i].kept == d->health.kept)))
            continue;
        came = w->told[i].state == DRIVE_NONE && drive_usable(d) && !drive_watch_suspect(d);
        note(w, d);
        if (d->state != DRIVE_NONE && !came)
            tell(d);
    }
}
