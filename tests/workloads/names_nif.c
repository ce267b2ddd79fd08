/* SPDX-License-Identifier: Apache-2.0 */
/* Native functions that sleep for ever on the scheduler that calls them. */
#include <erl_nif.h>
#include <unistd.h>

static ERL_NIF_TERM names_wedge(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[])
{
        for (;;)
                pause();
}

static ERL_NIF_TERM names_dirty(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[])
{
        for (;;)
                pause();
}

static ErlNifFunc functions[] = {
        {"wedge", 0, names_wedge, 0},
        {"dirty", 0, names_dirty, ERL_NIF_DIRTY_JOB_CPU_BOUND},
};

ERL_NIF_INIT(names_nif, functions, NULL, NULL, NULL, NULL)
