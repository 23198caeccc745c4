/* dimse_mem_server: the DICOM front door over the store in memory, for tests with real clients.
 *
 *   dimse_mem_server [--port N] [--aet T] [--max N] [--strict] [--idle S] [--acse S] [--dimse S]
 *                    [--commit-error NAME] [--dump DIR]
 *
 * Prints "port N" when it listens; serves until SIGTERM; then writes each instance to
 * DIR/<SOP Instance UID>.dcm and prints its counters. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/dicom/dcm.h"
#include "lib/rt/env.h"
#include "lib/rt/env_uring.h"
#include "proto/dimse/dimse_server.h"
#include "tests/unit/dimse/mem_object.h"

struct program {
    struct dimse_options options;
    struct mem_object_faults faults;
    const char *dump;
    int rc;
};

static int program_error(const char *name)
{
    for (int code = -1; code > -(int)ERR_COUNT_; code--) {
        if (strcmp(err_name(code), name) == 0)
            return code;
    }
    return ERR_INVAL;
}

static bool program_option(struct program *p, const char *name, const char *value)
{
    unsigned n = (unsigned)strtoul(value, NULL, 10);

    if (strcmp(name, "--port") == 0)
        p->options.port = (uint16_t)n;
    else if (strcmp(name, "--aet") == 0)
        p->options.aet = value;
    else if (strcmp(name, "--max") == 0)
        p->options.max_associations = n;
    else if (strcmp(name, "--idle") == 0)
        p->options.idle_timeout_s = n;
    else if (strcmp(name, "--acse") == 0)
        p->options.acse_timeout_s = n;
    else if (strcmp(name, "--dimse") == 0)
        p->options.dimse_timeout_s = n;
    else if (strcmp(name, "--commit-error") == 0)
        p->faults.commit = program_error(value);
    else if (strcmp(name, "--dump") == 0)
        p->dump = value;
    else
        return false;
    return true;
}

static bool program_parse(struct program *p, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--strict") == 0)
            p->options.strict_aet = p->options.strict_classes = true;
        else if (i + 1 >= argc || !program_option(p, argv[i], argv[i + 1]))
            return false;
        else
            i++;
    }
    return true;
}

static void program_dump(const struct object_store *os, const char *dir)
{
    const char *uid;
    const void *bytes;
    size_t len;

    for (size_t i = 0; (bytes = mem_object_bytes(os, i, &len, &uid)) != NULL; i++) {
        char path[512];
        FILE *f;

        snprintf(path, sizeof(path), "%s/%s.dcm", dir, uid);
        f = fopen(path, "wb");
        if (!f || fwrite(bytes, 1, len, f) != len || fclose(f) != 0)
            fprintf(stderr, "cannot write %s\n", path);
    }
}

static void program_main(void *arg)
{
    struct program *p = arg;
    struct dimse_server *server;
    struct dimse_stats st;

    p->options.store = mem_object_new(p->options.env);
    mem_object_set_faults(p->options.store, &p->faults);
    p->rc = dimse_server_start(&p->options, &server);
    if (p->rc == 0) {
        printf("port %u\n", dimse_server_port(server));
        fflush(stdout);
        env_wait_stop(p->options.env);
        dimse_server_stats(server, &st);
        dimse_server_stop(server);
        printf("associations=%llu rejected=%llu broken=%llu active=%llu echoes=%llu stored=%llu "
               "identical=%llu failed=%llu bytes=%llu\n",
               (unsigned long long)st.associations, (unsigned long long)st.rejected,
               (unsigned long long)st.broken, (unsigned long long)st.active,
               (unsigned long long)st.echoes, (unsigned long long)st.stored,
               (unsigned long long)st.identical, (unsigned long long)st.failed,
               (unsigned long long)st.bytes);
        if (p->dump)
            program_dump(p->options.store, p->dump);
    }
    mem_object_free(p->options.store);
}

int main(int argc, char **argv)
{
    struct env_uring_options uring = {0};
    struct program p = {0};

    if (!program_parse(&p, argc, argv)) {
        fprintf(stderr, "bad option; see the top of the source\n");
        return 2;
    }
    p.rc = dcm_init();
    if (p.rc == 0)
        p.rc = env_uring_new(&uring, &p.options.env);
    if (p.rc == 0) {
        env_run(p.options.env, program_main, &p);
        env_free(p.options.env);
    }
    if (p.rc < 0)
        fprintf(stderr, "%s\n", err_text(p.rc));
    return p.rc < 0;
}
