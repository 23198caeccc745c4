/* filmroomd: reads the settings, runs a node in the foreground until SIGTERM or SIGINT. */
#include <malloc.h>
#include <stdio.h>
#include <sys/resource.h>
#include <systemd/sd-daemon.h>

#include "daemon/config.h"
#include "daemon/node.h"
#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/dicom/dcm.h"
#include "lib/rt/env_uring.h"

struct run {
    struct env *env;
    const struct config *config;
    int result;
};

static void run_node(void *arg)
{
    struct run *r = arg;
    struct node *node;

    r->result = node_start(r->env, r->config, &node);
    if (r->result < 0)
        return;
    puts("ready");
    fflush(stdout);
    (void)sd_notify(0, "READY=1");
    env_wait_stop(r->env);
    (void)sd_notify(0, "STOPPING=1");
    log_info("main", "stopping");
    r->result = node_stop(node);
}

static int run_daemon(const struct config *config)
{
    struct run r = {.config = config};
    struct env_uring_options options = {0};
    int rc = env_uring_new(&options, &r.env);

    if (rc < 0) {
        log_error("main",
                  "io_uring is not to be had: Linux 5.15 or newer is needed, and "
                  "kernel.io_uring_disabled must be 0 error=%s",
                  err_name(rc));
        return 1;
    }
    env_run(r.env, run_node, &r);
    env_free(r.env);
    return r.result < 0;
}

/* Stripes and requests are large buffers that come and go all the time: let malloc keep them rather
 * than map and clear them anew. What it keeps is bounded by what was in use at once. */
static void tune_malloc(void)
{
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    mallopt(M_TRIM_THRESHOLD, 128 << 20);
    mallopt(M_ARENA_MAX, 4);
}

/* The soft limit is low for the sake of programs that use select(); nothing here does. */
static void raise_descriptors(const struct config *config)
{
    unsigned wanted = config_descriptors(config);
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit); /* what came of it is read next */
    }
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur >= wanted)
        return;
    log_warn("main",
             "fewer files may be open than the settings may take, and connections or drives may "
             "fail: raise the limit (LimitNOFILE= of the systemd unit, ulimit -Hn) or lower "
             "max_connections and max_associations limit=%llu wanted=%u",
             (unsigned long long)limit.rlim_cur, wanted);
}

int main(int argc, char **argv)
{
    struct config config;
    struct strbuf message = STRBUF_INIT;
    int verdict = config_load(argc, argv, &config, &message), rc;

    if (verdict != CONFIG_RUN) {
        if (verdict == CONFIG_TELL)
            fputs(message.data, stdout);
        else
            fprintf(stderr, "filmroomd: %s\n", message.data);
        strbuf_free(&message);
        return verdict == CONFIG_TELL ? 0 : 2;
    }
    strbuf_free(&message);
    log_set_level(config.log_level);
    tune_malloc();
    raise_descriptors(&config);
    rc = dcm_init();
    if (rc < 0) {
        log_error("main",
                  "DCMTK's data dictionary cannot be read: install the package libdcmtk17, or set "
                  "DCMDICTPATH path=%s",
                  log_q(dcm_dictionary_path()));
        return 1;
    }
    rc = run_daemon(&config);
    config_free(&config);
    return rc;
}
