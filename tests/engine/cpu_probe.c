/* Prints what the engine makes of a cgroup tree: cpu_probe MEMBERSHIP ROOT. 0 means no quota. */
#include "cpu.h"

#include <stdio.h>

int main(int count, char **argument)
{
    if (count != 3)
        return 2;
    printf("%u\n", mfa_cgroup_cpus(argument[1], argument[2]));
    return 0;
}
