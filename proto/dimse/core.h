/* What the DICOM front door decides, as pure functions: whom and what to accept, how to answer. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "lib/dicom/scp.h"

/* Verification's abstract syntax (PS3.4 annex A). */
#define DIMSE_VERIFICATION "1.2.840.10008.1.1"

/* Is the UID a storage SOP class of the standard (PS3.4 annex B.5, GG.3)? */
bool dimse_is_storage(const char *uid);

/* Do we take presentation contexts of this abstract syntax? */
bool dimse_takes_class(const char *uid, bool strict);

/* The scp_handler's choice (scp.h): index of a transfer syntax, -1 or -2. The first that the peer
 * proposes and that can be carried: it knows best what it can send without transcoding. */
int dimse_choose(const char *abstract_syntax, const char *const *syntaxes, unsigned count,
                 bool strict);

/* The C-STORE status of an outcome: 0 or an ERR_* code. */
struct scp_status dimse_status(int rc);

/* AE titles are compared without leading and trailing spaces (PS3.5 section 6.2). */
bool dimse_same_aet(const char *a, const char *b);
