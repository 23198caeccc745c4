/* A DICOM client for tests, made of bytes (PS3.8 section 9.3, PS3.7 section 9): it can say what a
 * well-bred toolkit cannot. All calls suspend; one fiber uses one client. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/base/strbuf.h"
#include "lib/rt/env.h"

#define DUL_VERIFICATION "1.2.840.10008.1.1"
#define DUL_CT           "1.2.840.10008.5.1.4.1.1.2"

struct dul {
    struct env *env;
    struct env_sock *sock;
    struct strbuf pdu; /* the last one received, its 6-byte head included */
    const char *called_aet;
    size_t fragment; /* data set bytes per PDV */
    /* From the last A-ASSOCIATE-AC, by context id: 0 accepted, 3 abstract syntax, 4 transfer
     * syntaxes not supported, 255 not proposed. */
    uint8_t results[256];
    char syntaxes[256][65];
    /* From the last response: */
    uint16_t status;
    char comment[80];
};

void dul_init(struct dul *d, struct env *env);
int dul_connect(struct dul *d, uint16_t port);
void dul_close(struct dul *d);

/* A proposed presentation context, its id chosen by the place in the list: 1, 3, 5, ... */
struct dul_context {
    const char *abstract_syntax;
    const char *syntaxes[4];
};

/* The type of the PDU that came back (2: accepted, 3: rejected), or an error. */
int dul_associate(struct dul *d, const struct dul_context *contexts, size_t count);

int dul_echo(struct dul *d, uint8_t id); /* 0 when the response came, with its status */
int dul_store(struct dul *d, uint8_t id, const char *sop_class, const char *sop_instance,
              const void *data_set, size_t n);
int dul_release(struct dul *d); /* 0 when the peer agreed */

/* The parts of a store, to stop in between. */
int dul_store_command(struct dul *d, uint8_t id, const char *sop_class, const char *sop_instance);
int dul_data(struct dul *d, uint8_t id, const void *p, size_t n, bool last);
int dul_response(struct dul *d); /* waits for a command; its status */

int dul_send(struct dul *d, const void *p, size_t n);
/* Receives a PDU: its type; 0 when the connection has ended. */
int dul_recv(struct dul *d);
