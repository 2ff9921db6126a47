#include "workspace.h"

#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

enum { ALIGNMENT = 64, MAX_KEPT = 16 << 20 };

/* Ahead of the memory that is handed out. */
typedef struct {
    size_t bytes;
} header;

static header *header_of(void *memory)
{
    return (header *)(void *)((unsigned char *)memory - ALIGNMENT);
}

static void release(void *memory)
{
    if (memory)
        free(header_of(memory));
}

void mfa_workspace_init(mfa_workspace *workspace) { atomic_init(&workspace->kept, NULL); }

void mfa_workspace_free(mfa_workspace *workspace)
{
    release(atomic_exchange(&workspace->kept, NULL));
}

void *mfa_workspace_take(mfa_workspace *workspace, size_t bytes)
{
    void *memory = atomic_exchange(&workspace->kept, NULL);
    if (memory && header_of(memory)->bytes >= bytes)
        return memory;
    release(memory);
    void *block = NULL;
    if (bytes > PTRDIFF_MAX - ALIGNMENT ||
        posix_memalign(&block, ALIGNMENT, ALIGNMENT + bytes) != 0)
        return NULL;
    ((header *)block)->bytes = bytes;
    return (unsigned char *)block + ALIGNMENT;
}

void mfa_workspace_return(mfa_workspace *workspace, void *memory)
{
    if (header_of(memory)->bytes <= MAX_KEPT)
        memory = atomic_exchange(&workspace->kept, memory);
    release(memory);
}
