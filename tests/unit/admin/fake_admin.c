/* A daemon of tables for the CLI's tests: serves fake.h on the unix socket given, until SIGTERM. */
#include <stdio.h>

#include "lib/base/check.h"
#include "lib/rt/env.h"
#include "lib/rt/env_uring.h"
#include "proto/admin/admin_server.h"
#include "tests/unit/admin/fake.h"

struct fake_main {
    struct env *env;
    struct env_addr addr;
    struct fake fake;
};

static void fake_main_fiber(void *arg)
{
    struct fake_main *m = arg;
    struct admin_backend backend = fake_backend(&m->fake);
    struct admin_server *server;

    CHECK_OK(admin_server_start(m->env, &m->addr, &backend, &server));
    puts("ready");
    fflush(stdout);
    env_wait_stop(m->env);
    admin_server_stop(server);
}

int main(int argc, char **argv)
{
    static struct fake_main m;
    struct env_uring_options options = {1, 1, 16};

    CHECK(argc == 2);
    snprintf(m.addr.text, sizeof(m.addr.text), "unix:%s", argv[1]);
    fake_init(&m.fake);
    fake_metrics(&m.fake);
    CHECK_OK(env_uring_new(&options, &m.env));
    env_run(m.env, fake_main_fiber, &m);
    env_free(m.env);
    metrics_free(m.fake.metrics);
    return 0;
}
