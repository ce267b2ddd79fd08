/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads the CPU's time stamps without pause and reports the gaps between two of them:
 * that was an interrupt, or another thread. What the looking itself takes is less than SHORTEST.
 */
#include <erl_nif.h>
#include <time.h>
#include <x86intrin.h>

#define SHORTEST 500   /* ns */
#define LONGEST	 50000 /* ns: what is away longer was not interrupted but put off the CPU */

static double nanoseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1e9 + now.tv_nsec;
}

/* How long a time stamp is, ns; the longer both lie apart the truer. */
static double unit(void)
{
	double began = nanoseconds();
	unsigned long long stamp = __rdtsc();

	while (nanoseconds() - began < 1e6)
		;
	return (nanoseconds() - began) / (__rdtsc() - stamp);
}

/* Milliseconds; returns {Gaps, NsOfThem, NsOnCpu}. */
static ERL_NIF_TERM watch(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[])
{
	unsigned long long first, last, now, gap, shortest, longest, end;
	unsigned long long sum = 0, away = 0;
	long milliseconds, count = 0;
	double each = unit();

	if (!enif_get_long(env, argv[0], &milliseconds))
		return enif_make_badarg(env);
	shortest = SHORTEST / each;
	longest = LONGEST / each;
	first = last = __rdtsc();
	end = first + milliseconds * 1e6 / each;
	while (last < end) {
		now = __rdtsc();
		gap = now - last;
		last = now;
		if (gap < shortest)
			continue;
		if (gap > longest) {
			away += gap;
			continue;
		}
		count++;
		sum += gap;
	}
	return enif_make_tuple3(env, enif_make_long(env, count), enif_make_uint64(env, sum * each),
				enif_make_uint64(env, (last - first - away) * each));
}

static ErlNifFunc functions[] = {
    {"watch", 1, watch, 0},
};

ERL_NIF_INIT(gaps, functions, NULL, NULL, NULL, NULL)
