// Runs one kernel of a source that is linked with it, over one threadgroup of 64 lanes, and prints
// what it writes: `dispatch_one NAME`. For processors that this machine only emulates.
#include <cstdio>

#include "../standins/software_metal/runtime/execute.h"

extern "C" int software_metal_dispatch(const char *name, const software_metal::Dispatch *request);

int main(int, char **arguments)
{
    float out[64] = {};
    software_metal::Dispatch request = {};
    request.buffers[0] = {out, 0, sizeof out, software_metal::Kind::device, 0};
    request.threadgroup_bytes[3] = 512;
    request.threads = request.group = {64, 1, 1};
    if (software_metal_dispatch(arguments[1], &request) != 0)
        return 1;
    for (float value : out)
        printf("%g ", double(value));
}
