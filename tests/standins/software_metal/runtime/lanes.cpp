#include "lanes.h"

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace software_metal
{
namespace
{
constexpr size_t lanes = 1024, stack_bytes = 512 * 1024;
// Tops of stacks a power of two apart would share the few places that a cache has for them.
constexpr size_t stagger = 17 * 64, staggered = 64;
char *stacks = nullptr;

struct Birth {
    Context *context;
    void (*start)();
    ucontext_t home;
};
Birth *birth;

void begin()
{
    void (*start)() = birth->start;
    // Back to prepare(): the next switch to this context comes here.
    if (_setjmp(birth->context->registers) == 0)
        setcontext(&birth->home);
    start();
    abort();
}
} // namespace

void prepare(Context &context, unsigned index, void (*start)())
{
    const size_t guard = size_t(getpagesize());
    if (!stacks) {
        void *room = mmap(nullptr, lanes * stack_bytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (room == MAP_FAILED) {
            perror("software Metal: no memory for the lanes' stacks");
            abort();
        }
        stacks = static_cast<char *>(room);
    }
    char *stack = stacks + index * stack_bytes;
    // Running over ends the process instead of another lane's variables.
    static bool guarded[lanes];
    if (!guarded[index]) {
        mprotect(stack, guard, PROT_NONE);
        guarded[index] = true;
    }
    Birth made{&context, start, {}};
    birth = &made;
    ucontext_t there;
    getcontext(&there);
    there.uc_stack.ss_sp = stack + guard;
    there.uc_stack.ss_size = stack_bytes - guard - index % staggered * stagger;
    there.uc_link = nullptr;
    makecontext(&there, begin, 0);
    swapcontext(&made.home, &there);
}

void switch_to(Context &from, Context &to)
{
    if (_setjmp(from.registers) == 0)
        _longjmp(to.registers, 1);
}

bool on_a_stack(const void *address)
{
    const uintptr_t at = uintptr_t(address), low = uintptr_t(stacks);
    return stacks && at >= low && at < low + lanes * stack_bytes;
}
} // namespace software_metal
