// Contexts of lanes: made by ucontext, switched by _setjmp and _longjmp. swapcontext would ask the
// operating system for the signal mask at every switch, of which a head of 1124 tokens has 22
// million. Nothing here is assembly, so that it runs on x86-64 and AArch64 alike.
#pragma once
#include <csetjmp>
#include <cstddef>

namespace software_metal
{
struct Context {
    jmp_buf registers;
};

// Let `context` begin in `start`, on the stack of lane `index`, when it is first switched to.
void prepare(Context &context, unsigned index, void (*start)());

// Whether an address lies on the stack of any lane.
bool on_a_stack(const void *address);

// Not inline: what calls a function that returns twice is optimised less.
void switch_to(Context &from, Context &to);
} // namespace software_metal
