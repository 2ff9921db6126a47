/* Running a problem with chosen kernels, in this thread alone. */
#ifndef MFA_ENGINE_H
#define MFA_ENGINE_H

#include "cpu.h"
#include "problem.h"

/* As mfa_engine_run, but nothing is checked, asked of the environment, or shared with helpers. */
int mfa_engine_run_alone(const mfa_problem *problem, const mfa_kernels *kernels,
                         mfa_workspace *workspace);

#endif
