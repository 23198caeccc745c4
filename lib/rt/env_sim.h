/* The simulated env: one event heap, one PRNG, one thread, any number of simulated processes.
 *
 * A struct sim holds the clock, the seed and everything that outlives a process: the media of files
 * and the network. A process is an env plus a memory domain; killing it drops its fibers and memory
 * at once and decides, write by write from the seed, what of the unsynced is kept, lost or torn at
 * 512-byte borders. Time passes only when no fiber is ready. The same seed and the same code give
 * the same run: sim_digest folds in every event.
 *
 * A write is durable when a SYNC (or its dsync) *completes*, never when it is submitted; between
 * start and completion a crash may find any part of it on the medium. The buffer of a write has to
 * stay unchanged until it is done: a change stops the run (CHECK).
 *
 * File names are flat here: directories need not be made. Handles (files, sockets, listeners) count
 * as memory of their process, so what is left open at a clean end shows as a leak.
 */
#pragma once

#include "lib/rt/env.h"

struct sim;

/* Rates are in events per million operations; 0 switches a fault off. A maximum of 0 means the
 * default latency (20 to 200 us). write_eio also makes SYNC fail; some of what it covered is then
 * never durable, whatever is synced later. */
struct sim_faults {
    uint32_t read_eio, write_eio;  /* the operation fails, nothing or a part of it happened */
    uint32_t bit_flip;             /* a read returns one flipped bit, which stays on the medium */
    uint32_t lost_write;           /* a write says it is durable and never was (a lying drive) */
    uint32_t misdirected_write;    /* a write lands on a wrong 4 KiB-aligned offset of that file */
    uint32_t sock_cut;             /* a connection breaks */
    uint32_t nospc;                /* RESERVE of, or WRITE to, space never written fails: the file
                                      system under the file is full */
    bool no_reserve;               /* RESERVE is not supported */
    uint64_t io_min_ns, io_max_ns; /* latency of one operation, uniform */
    uint64_t net_min_ns, net_max_ns;
    bool hang;     /* operations, those in flight too, are not answered as long as this is set */
    uint32_t slow; /* operations take so many times as long; 0 is 1 */
};

struct sim *sim_new(uint64_t seed);
void sim_free(struct sim *sim);
void sim_set_faults(struct sim *sim, const struct sim_faults *faults);
/* Faults of one file alone, by path; NULL takes the sim's again. */
void sim_set_file_faults(struct sim *sim, const char *path, const struct sim_faults *faults);

uint64_t sim_random(struct sim *sim, uint64_t below); /* 0 <= result < below */
uint64_t sim_now(struct sim *sim);
uint64_t sim_digest(const struct sim *sim);
void sim_digest_add(struct sim *sim, uint64_t value); /* for what a test wants covered */

/* A new process with main(arg) as its first fiber; runs once sim_run is called. Files are shared by
 * path over the whole sim. */
struct env *sim_process(struct sim *sim, const char *name, fiber_fn main, void *arg);

/* Runs until `until` (simulated time), or no process has anything left to do, or sim_pause was
 * called. Returns true when nothing is left to do. */
bool sim_run(struct sim *sim, uint64_t until);
void sim_pause(struct sim *sim);

/* True when the process's main fiber and all others have returned. */
bool sim_process_ended(struct env *env);
/* Kills a process as kill -9 (`power` false: what was written stays, synced or not) or as a power
 * cut (`power` true: unsynced writes of all files it has open are kept, lost or torn). The env is
 * gone. An ended process is also disposed of here; its memory domain must then be empty (CHECK). */
void sim_kill(struct env *env, bool power);
/* From now on what killed processes had in memory is left there: for a program that ends soon and
 * shares its memory with the one that forked it, where each page that is touched is copied. */
void sim_litter(struct sim *sim);
/* Makes env_wait_stop return in the process. */
void sim_stop(struct env *env);
/* Memory owned by the process now. */
size_t sim_process_memory(struct env *env);

/* The medium of a file, to corrupt, to copy or to look at: bytes are what a reader would get now.
 */
int sim_file_read(struct sim *sim, const char *path, void *buf, size_t len, uint64_t off);
int sim_file_corrupt(struct sim *sim, const char *path, uint64_t off, size_t len); /* noise */
int sim_file_delete(struct sim *sim, const char *path);    /* open handles go on working */
uint64_t sim_file_size(struct sim *sim, const char *path); /* 0 when missing */
/* Keeps a copy of the medium as it is, instead of one kept before; and puts that copy back, as if
 * the drive had been restored from it. The file must not be open. ERR_NOENT. */
int sim_file_keep(struct sim *sim, const char *path);
int sim_file_restore(struct sim *sim, const char *path);

/* State that outlives a process but is not a file (kv_mem's durable image): allocations made
 * between enter and leave belong to the sim, not to the running process. */
void sim_outside_enter(void **ret_saved);
void sim_outside_leave(void *saved);
