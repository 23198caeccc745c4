/* The daemon's settings: defaults, file, command line, and the messages of what is wrong. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/config.h"
#include "lib/base/err.h"

static struct config config;
static struct strbuf message;

static int test_reset(void **state)
{
    (void)state;
    strbuf_reset(&message);
    return 0;
}

static int test_end(void **state)
{
    (void)state;
    strbuf_free(&message);
    return 0;
}

/* ---- The file ------------------------------------------------------------------------------- */

static void parse(const char *text)
{
    config_defaults(&config);
    strbuf_reset(&message);
    if (config_parse(&config, "f.conf", text, strlen(text), &message) < 0)
        fail_msg("%s", message.data);
}

static void parse_bad(const char *text, const char *want)
{
    config_defaults(&config);
    strbuf_reset(&message);
    assert_int_equal(config_parse(&config, "f.conf", text, strlen(text), &message), ERR_CONFIG);
    if (!strstr(message.data, want))
        fail_msg("\"%s\" not in: %s", want, message.data);
    assert_null(strchr(message.data, '\n'));
    config_free(&config);
}

static void test_defaults(void **state)
{
    (void)state;
    parse("");
    assert_string_equal(config.store.data, "");
    assert_int_equal(config.store.capacity, 64ull << 30);
    assert_int_equal(config.store.drives, 6);
    assert_int_equal(config.nbd.listen.port, 10809);
    assert_int_equal(config.dicom.listen.port, 11112);
    assert_string_equal(config.dicom.aet, "FILMROOM");
    assert_int_equal(config.http.listen.port, 8042);
    assert_string_equal(config.nbd.listen.host, "127.0.0.1");
    assert_string_equal(config.dicom.listen.host, "127.0.0.1");
    assert_string_equal(config.http.listen.host, "127.0.0.1");
    assert_int_equal(config.on_conflict, CONFIG_REFUSE);
    assert_int_equal(config.log_level, LOG_INFO);
    assert_int_equal(config.slow_ms, 1000);
}

static void test_every_setting(void **state)
{
    (void)state;
    parse("\xef\xbb\xbf# all of them\n"
          "[store]\n"
          "data = /srv/film room\n"
          "capacity = 10T\r\n"
          "  drives=8 ; indented, with a comment\n"
          "profile = 4+2\n"
          "journal_size = 512 MiB\n"
          "cache_size = 1G\n"
          "scrub_every = 30\n"
          "scrub_rate = 100M\n"
          "\n"
          "[nbd]\n"
          "listen = ::1\n"
          "\tport = 0\n"
          "socket = /run/filmroom/nbd.sock\n"
          "max_connections = 5\n"
          "[dicom]\n"
          "listen = 0.0.0.0\n"
          "port = 104\n"
          "aet = FILM ROOM 1\n"
          "max_associations = 7\n"
          "max_pdu = 65536\n"
          "[http]\n"
          "listen = 10.0.0.1\n"
          "port = 80\n"
          "max_connections = 9\n"
          "[studies]\n"
          "on_conflict = replace\n"
          "[log]\n"
          "level = debug\n"
          "slow_ms = 250\n"
          "watchdog_ms = 0");
    assert_string_equal(config.store.data, "/srv/film room");
    assert_int_equal(config.store.capacity, 10ull << 40);
    assert_int_equal(config.store.drives, 8);
    assert_null(config.store.paths);
    assert_int_equal(config.store.data_columns, 4);
    assert_int_equal(config.store.parity_columns, 2);
    assert_int_equal(config.store.journal_size, 512ull << 20);
    assert_int_equal(config.store.cache_size, 1ull << 30);
    assert_int_equal(config.store.scrub_every, 30);
    assert_int_equal(config.store.scrub_rate, 100ull << 20);
    assert_string_equal(config.nbd.listen.host, "::1");
    assert_int_equal(config.nbd.listen.port, 0);
    assert_string_equal(config.nbd.socket, "/run/filmroom/nbd.sock");
    assert_int_equal(config.nbd.max_connections, 5);
    assert_string_equal(config.dicom.listen.host, "0.0.0.0");
    assert_int_equal(config.dicom.listen.port, 104);
    assert_string_equal(config.dicom.aet, "FILM ROOM 1");
    assert_int_equal(config.dicom.max_associations, 7);
    assert_int_equal(config.dicom.max_pdu, 65536);
    assert_string_equal(config.http.listen.host, "10.0.0.1");
    assert_int_equal(config.http.listen.port, 80);
    assert_int_equal(config.http.max_connections, 9);
    assert_int_equal(config.on_conflict, CONFIG_REPLACE);
    assert_int_equal(config.log_level, LOG_DEBUG);
    assert_int_equal(config.slow_ms, 250);
    assert_int_equal(config.watchdog_ms, 0);
}

static void test_drive_paths(void **state)
{
    char text[5000];
    int n = snprintf(text, sizeof(text), "[store]\ndrive = /dev/a\ndrive = /dev/b\ndrive = ");

    (void)state;
    memset(text + n, 'x', 3000); /* longer than inih's own buffer */
    text[n + 3000] = 0;
    parse(text);
    assert_int_equal(config.store.drives, 3);
    assert_string_equal(config.store.paths[0], "/dev/a");
    assert_string_equal(config.store.paths[1], "/dev/b");
    assert_int_equal(strlen(config.store.paths[2]), 3000);
    config_free(&config);
    config_free(&config); /* twice is fine */
    parse_bad("[store]\ndrive = /dev/a\ndrives = 3\n", "f.conf:3: give either drives");
    parse_bad("[store]\ndrive =\n", "f.conf:2: drive: give the path");
}

/* As many as the format has numbers for, by either setting. */
static void test_most_drives(void **state)
{
    STRBUF_AUTO struct strbuf text = STRBUF_INIT;

    (void)state;
    strbuf_adds(&text, "[store]\n");
    for (unsigned i = 0; i < 32; i++)
        strbuf_addf(&text, "drive = /dev/%u\n", i);
    parse(text.data);
    assert_int_equal(config.store.drives, 32);
    config_free(&config);
    strbuf_adds(&text, "drive = /dev/x\n");
    parse_bad(text.data, "f.conf:34: too many drives, at most 32");
    parse("[store]\ndrives = 32\n");
    parse_bad("[store]\ndrives = 33\n", "give a number from 1 to 32");
}

static void test_partitions(void **state)
{
    struct config one;

    (void)state;
    parse("[store]\ndata = /srv/a\ndrives = 4\n"
          "[partition vm]\ndrive = /dev/a\ndrive = /dev/b\njournal_size = 32M\n"
          "[nbd]\nport = 99\n"
          "[partition more]\ncapacity = 1G\n"
          "[partition vm]\nprofile = 1+1\n");
    assert_int_equal(config.partition_count, 2);
    assert_string_equal(config.partitions[0].name, "vm");
    assert_string_equal(config.partitions[1].name, "more");
    config_for_partition(&config, 1, &one);
    assert_int_equal(one.store.drives, 2);
    assert_string_equal(one.store.paths[1], "/dev/b");
    assert_int_equal(one.store.journal_size, 32u << 20);
    assert_int_equal(one.store.data_columns, 1);
    assert_int_equal(one.nbd.listen.port, 99);
    config_for_partition(&config, 2, &one);
    assert_int_equal(one.store.drives, 6);
    assert_int_equal(one.store.capacity, 1u << 30);
    config_for_partition(&config, 0, &one);
    assert_int_equal(one.store.drives, 4);
    config_free(&config);

    parse("[partition x]\n[store]\ndrives = 4\n");
    assert_int_equal(config.partition_count, 1);
    assert_string_equal(config.partitions[0].name, "x");
    assert_int_equal(config.partitions[0].store.drives, 6);
    config_free(&config);
    parse_bad("[partition]\ndrives = 2\n", "f.conf:1: no such section: \"partition\"");
    parse_bad("[partition A]\ndrives = 2\n", "f.conf:1: a partition's name has 1 to 32 of");
    parse_bad("[partition ../x]\ndrives = 2\n", "f.conf:1: a partition's name has 1 to 32 of");
    parse_bad("[partition x]\ndata = /x\n", "f.conf:2: [partition x] has no setting \"data\"");
    parse_bad("[partition x]\nport = 1\n", "f.conf:2: [partition x] has no setting \"port\"");
    parse_bad("[partition x]\ndrives = 2\n[partition y]\ndrives = 3\n[partition x]\ndrives = 2\n",
              "f.conf:6: drives is given twice, first on line 2");
    parse_bad("[partition x]\ndrives = 2\ndrive = /a\n", "f.conf:2: give either drives");
    parse_bad("[partition a]\ndrives=1\n[partition b]\ndrives=1\n[partition c]\ndrives=1\n"
              "[partition d]\ndrives=1\n[partition e]\ndrives=1\n[partition f]\ndrives=1\n"
              "[partition g]\ndrives=1\n[partition h]\ndrives=1\n",
              "f.conf:15: too many partitions");
}

static void test_bad_files(void **state)
{
    char text[CONFIG_LINE_MAX * 2];

    (void)state;
    parse_bad("[store]\n\ncapacity = lots\n",
              "f.conf:3: capacity: \"lots\" will not do: give a size");
    parse_bad("[store]\ncapacity = 10GB\n", "f.conf:2: capacity");
    parse_bad("[store]\ncapacity = 1000001\n", "f.conf:2: capacity");
    parse_bad("[store]\ncapacity = 1M\n", "f.conf:2: capacity");
    parse_bad("[store]\ndrives = 0\n", "f.conf:2: drives");
    parse_bad("[store]\nscrub_every = 366\n", "f.conf:2: scrub_every");
    parse_bad("[store]\nscrub_rate = 1K\n", "f.conf:2: scrub_rate");
    parse_bad("[store]\ndrives = -1\n", "f.conf:2: drives");
    parse_bad("[store]\ndrives =\n", "f.conf:2: drives: \"\"");
    parse_bad("[store]\nprofile = 4-2\n", "f.conf:2: profile");
    parse_bad("[store]\nprofile = 0+2\n", "f.conf:2: profile");
    parse_bad("[store]\nprofile = 4+\n", "f.conf:2: profile");
    parse_bad("[nbd]\nport = 65536\n", "f.conf:2: port");
    parse_bad("[nbd]\nport = 99999999999999999999999\n", "f.conf:2: port");
    parse_bad("[nbd]\nport = 80x\n", "f.conf:2: port");
    parse_bad("[nbd]\nlisten = localhost\n", "f.conf:2: listen");
    parse_bad("[dicom]\naet = SEVENTEEN CHARS..\n", "f.conf:2: aet");
    parse_bad("[dicom]\naet = A\\B\n", "f.conf:2: aet");
    parse_bad("[dicom]\naet = \xc3\x84\n", "f.conf:2: aet");
    parse_bad("[dicom]\nmax_pdu = 100\n", "f.conf:2: max_pdu");
    parse_bad("[studies]\non_conflict = maybe\n", "give refuse or replace");
    parse_bad("[log]\nlevel = loud\n", "f.conf:2: level");
    parse_bad("[nbd]\nport = 1\n#\nport = 2\n", "f.conf:4: port is given twice, first on line 2");
    parse_bad("[nbd]\nports = 1\n", "f.conf:2: [nbd] has no setting \"ports\"");
    parse_bad("[nbdd]\nport = 1\n", "f.conf:1: no such section: \"nbdd\"");
    parse_bad("[nbd]\n[wat] # empty\n", "f.conf:2: no such section: \"wat\"");
    parse_bad("\xef\xbb\xbf[wat]\n", "f.conf:1: no such section: \"wat\"");
    parse_bad("[]\n", "f.conf:1: no such section: \"\"");
    parse_bad("port = 1\n", "f.conf:1: a setting before the first [section]: \"port\"");
    parse_bad("[nbd]\n\njust words\n", "f.conf:3: neither [section] nor name = value");
    parse_bad("[nbd\nport = 1\n", "f.conf:1: neither");
    memset(text, 'x', sizeof(text));
    memcpy(text, "[store]\n\ndata = ", 16);
    text[sizeof(text) - 1] = 0;
    parse_bad(text, "f.conf:3: the line is too long");
    memset(text + 16, 'y', CONFIG_PATH_MAX);
    text[16 + CONFIG_PATH_MAX] = 0;
    parse_bad(text, "f.conf:3: data: \"yyyy");
}

static void test_zero_byte(void **state)
{
    static const char text[] = "[nbd]\nport = 1\0\n";

    (void)state;
    config_defaults(&config);
    assert_int_equal(config_parse(&config, "f", text, sizeof(text) - 1, &message), ERR_CONFIG);
    assert_non_null(strstr(message.data, "f:2: the line has a zero byte"));
}

/* ---- The command line ----------------------------------------------------------------------- */

static int load(const char *line)
{
    static char copy[1024];
    char *argv[20] = {"filmroomd"}, *rest = copy, *piece;
    int argc = 1;

    snprintf(copy, sizeof(copy), "%s", line);
    while ((piece = strsep(&rest, " ")) != NULL)
        if (*piece)
            argv[argc++] = piece;
    strbuf_reset(&message);
    return config_load(argc, argv, &config, &message);
}

static void load_bad(const char *line, const char *want)
{
    assert_int_equal(load(line), ERR_CONFIG);
    if (!strstr(message.data, want))
        fail_msg("\"%s\" not in: %s", want, message.data);
}

static void test_options(void **state)
{
    (void)state;
    assert_int_equal(load("--data /d --capacity=1T --nbd-port 0 --dicom-port=1 --http-port 2 "
                          "--aet ME"),
                     CONFIG_RUN);
    assert_string_equal(config.store.data, "/d");
    assert_int_equal(config.store.capacity, 1ull << 40);
    assert_int_equal(config.nbd.listen.port, 0);
    assert_int_equal(config.dicom.listen.port, 1);
    assert_int_equal(config.http.listen.port, 2);
    assert_string_equal(config.dicom.aet, "ME");
    assert_string_equal(config.file, "");
    assert_int_equal(load("--version"), CONFIG_TELL);
    assert_non_null(strstr(message.data, FILMROOM_VERSION));
    assert_int_equal(load("--data /d --help"), CONFIG_TELL);
    assert_non_null(strstr(message.data, "--dicom-port"));
}

static void test_bad_options(void **state)
{
    (void)state;
    load_bad("", "no data directory: give --data DIR");
    load_bad("--data", "--data: a value is missing");
    load_bad("--data /d --port 3", "--port: no such option");
    load_bad("--data /d --nbd-portt 3", "--nbd-portt: no such option");
    load_bad("--data /d --nbd-port x", "--nbd-port: \"x\" will not do: give a number");
    load_bad("--data /d --nbd-port=", "--nbd-port: \"\"");
    load_bad("--data /d --data /e", "--data is given twice");
    load_bad("--data=", "--data: \"\" will not do");
    load_bad("/d", "/d: not an option");
    load_bad("--data /d --capacity 64Q", "--capacity: \"64Q\"");
    load_bad("--config /no/such/file", "--config /no/such/file: cannot be read: No such file");
    load_bad("--config /", "--config /: cannot be read: Is a directory");
}

static void test_file_and_options(void **state)
{
    char path[] = "/tmp/filmroom-config-XXXXXX", line[200];
    int fd = mkstemp(path);
    static const char text[] = "[store]\ndata = /from-file\nprofile = 4+2\n[nbd]\nport = 7\n"
                               "[http]\nport = 8\n";

    (void)state;
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, sizeof(text) - 1), sizeof(text) - 1);
    snprintf(line, sizeof(line), "--nbd-port 9 --config %s", path);
    assert_int_equal(load(line), CONFIG_RUN);
    assert_string_equal(config.file, path);
    assert_string_equal(config.store.data, "/from-file");
    assert_int_equal(config.nbd.listen.port, 9); /* wherever it stands, an option wins */
    assert_int_equal(config.http.listen.port, 8);
    config_free(&config);

    assert_int_equal(write(fd, "[store]\ndrives = 5\n", 19), 19);
    load_bad(line, "profile 4+2 needs 6 drives, there are 5");
    assert_int_equal(write(fd, "[nbd]\nwrong\n", 12), 12);
    load_bad(line, ":11: neither");
    assert_non_null(strstr(message.data, path));
    close(fd);
    unlink(path);
}

/* Drives outside the data directory have absolute paths, those inside are named by it. */
static void test_descriptors(void **state)
{
    unsigned plain, one;

    (void)state;
    parse("");
    plain = config_descriptors(&config);
    assert_in_range(plain, 500, 1000); /* fits into the limit that nobody has raised */
    parse("[partition a]\n[nbd]\nmax_connections = 4096\n[dicom]\nmax_associations = 256\n"
          "[http]\nmax_connections = 4096\n");
    one = config_descriptors(&config);
    assert_in_range(one, 4096 + 2 * 256 + 4096 + 2 * 256, 4096 + 2 * 256 + 4096 + 1000);
    config_free(&config);
}

static void test_relative_drives(void **state)
{
    static const char text[] = "[store]\ndata = st\ndrive = d0\ndrive = st/d1\ndrive = /dev/x\n"
                               "drive = stx/d\n[partition p]\ndrive = p0\n";
    char path[] = "/tmp/filmroom-config-XXXXXX", line[200], here[2000], want[2100];
    int fd = mkstemp(path);

    (void)state;
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, sizeof(text) - 1), sizeof(text) - 1);
    close(fd);
    assert_non_null(getcwd(here, sizeof(here)));
    snprintf(line, sizeof(line), "--config %s", path);
    assert_int_equal(load(line), CONFIG_RUN);
    snprintf(want, sizeof(want), "%s/d0", here);
    assert_string_equal(config.store.paths[0], want);
    assert_string_equal(config.store.paths[1], "st/d1");
    assert_string_equal(config.store.paths[2], "/dev/x");
    snprintf(want, sizeof(want), "%s/stx/d", here);
    assert_string_equal(config.store.paths[3], want);
    snprintf(want, sizeof(want), "%s/p0", here);
    assert_string_equal(config.partitions[0].store.paths[0], want);
    config_free(&config);
    unlink(path);
}

static void test_drive_twice(void **state)
{
    static const char *const texts[] = {"[store]\ndrive = /a\ndrive = /b\ndrive = /a\n",
                                        "[store]\ndrive = /a\n[partition p]\ndrive = /a\n"};

    (void)state;
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        char path[] = "/tmp/filmroom-config-XXXXXX", line[200];
        int fd = mkstemp(path);

        assert_true(fd >= 0);
        assert_int_equal(write(fd, texts[i], strlen(texts[i])), strlen(texts[i]));
        close(fd);
        snprintf(line, sizeof(line), "--data /d --config %s", path);
        load_bad(line, "drive = /a is given twice");
        unlink(path);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_defaults, test_reset),
        cmocka_unit_test_setup(test_every_setting, test_reset),
        cmocka_unit_test_setup(test_drive_paths, test_reset),
        cmocka_unit_test_setup(test_most_drives, test_reset),
        cmocka_unit_test_setup(test_relative_drives, test_reset),
        cmocka_unit_test_setup(test_drive_twice, test_reset),
        cmocka_unit_test_setup(test_descriptors, test_reset),
        cmocka_unit_test_setup(test_partitions, test_reset),
        cmocka_unit_test_setup(test_bad_files, test_reset),
        cmocka_unit_test_setup(test_zero_byte, test_reset),
        cmocka_unit_test_setup(test_options, test_reset),
        cmocka_unit_test_setup(test_bad_options, test_reset),
        cmocka_unit_test_setup_teardown(test_file_and_options, test_reset, test_end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
