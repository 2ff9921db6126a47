/* Work memory of a context, kept from one call to the next: fresh pages cost more than small calls.
 */
#ifndef MFA_WORKSPACE_H
#define MFA_WORKSPACE_H

#include <stddef.h>

typedef struct {
    _Atomic(void *) kept; /* a block, or null while a call uses it or none is kept */
} mfa_workspace;

void mfa_workspace_init(mfa_workspace *workspace);
void mfa_workspace_free(mfa_workspace *workspace);

/* 64-byte aligned memory for one call, or null. Calls that overlap get blocks of their own. */
void *mfa_workspace_take(mfa_workspace *workspace, size_t bytes);

/* Keeps the block if it is small and none is kept; frees it otherwise. */
void mfa_workspace_return(mfa_workspace *workspace, void *memory);

#endif
