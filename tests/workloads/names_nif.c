/* SPDX-License-Identifier: Apache-2.0 */
/* Native functions that sleep for ever on the scheduler that calls them, or compute for a while,
 * or sleep until a pipe is opened; and one that keeps memory of the C library. */
#include <erl_nif.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
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

/* Milliseconds of the thread's own CPU time. */
static ERL_NIF_TERM names_spin(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[])
{
        struct timespec now;
        long milliseconds, end;

        if (!enif_get_long(env, argv[0], &milliseconds))
                return enif_make_badarg(env);
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
        end = now.tv_sec * 1000 + now.tv_nsec / 1000000 + milliseconds;
        do
                clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
        while (now.tv_sec * 1000 + now.tv_nsec / 1000000 < end);
        return enif_make_atom(env, "ok");
}

/* Sleeps until the named pipe of this path was opened for writing. */
static ERL_NIF_TERM names_held(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[])
{
        char path[4096];
        int pipe;

        if (enif_get_string(env, argv[0], path, sizeof path, ERL_NIF_LATIN1) <= 0)
                return enif_make_badarg(env);
        do
                pipe = open(path, O_RDONLY | O_CLOEXEC);
        while (pipe < 0 && errno == EINTR);
        close(pipe);
        return enif_make_atom(env, "ok");
}

/* Keeps so many bytes, resident, instead of those that it kept before; not for two at a time. */
static ERL_NIF_TERM names_keep(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[])
{
        static void *kept;
        unsigned long bytes;

        if (!enif_get_ulong(env, argv[0], &bytes))
                return enif_make_badarg(env);
        free(kept);
        kept = bytes ? malloc(bytes) : NULL;
        if (kept)
                memset(kept, 1, bytes);
        return enif_make_atom(env, "ok");
}

/* Ends the VM: its process runs what the variable BECOME says instead. */
static ERL_NIF_TERM names_become(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[])
{
        execl("/bin/sh", "sh", "-c", getenv("BECOME"), NULL);
        return enif_make_badarg(env);
}

static ErlNifFunc functions[] = {
        {"spin", 1, names_spin, 0},
        {"dirty_spin", 1, names_spin, ERL_NIF_DIRTY_JOB_CPU_BOUND},
        {"held", 1, names_held, 0},
        {"dirty_held", 1, names_held, ERL_NIF_DIRTY_JOB_CPU_BOUND},
        {"keep", 1, names_keep, 0},
        {"become", 0, names_become, 0},
        {"wedge", 0, names_wedge, 0},
        {"dirty", 0, names_dirty, ERL_NIF_DIRTY_JOB_CPU_BOUND},
};

ERL_NIF_INIT(names_nif, functions, NULL, NULL, NULL, NULL)
