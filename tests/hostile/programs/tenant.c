/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tenant fakes COUNT | flood COUNT: what a tenant does to be looked at all the time.
 *
 * fakes: COUNT processes that look like a VM from outside, as fake.c does, without any memory of
 * one. flood: COUNT processes with a thread that calls itself a scheduler and something else by
 * turns.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

const char etp_otp_release[] = "25";
const char etp_erts_version[] = "13.1.5";
const int etp_beamasm = 1;

#ifdef ATOMS
#include "atoms.h"
#endif

__attribute__((noinline)) void erts_send_message(void *sender, void *receiver)
{
	__asm__ volatile("nop; nop; nop; nop" ::"r"(sender), "r"(receiver) : "memory");
}

static int flood;

static void *scheduler(void *unused)
{
	(void)unused;
	prctl(PR_SET_NAME, "1_scheduler");
	erts_send_message(NULL, NULL);
	while (flood) {
		prctl(PR_SET_NAME, "x");
		prctl(PR_SET_NAME, "1_scheduler");
	}
	for (;;)
		pause();
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t thread;

	if (argc < 3)
		return 2;
	flood = !strcmp(argv[1], "flood");
	for (int left = atoi(argv[2]); left > 1; left--) {
		if (!fork()) {
			prctl(PR_SET_PDEATHSIG, 9);
			break;
		}
	}
	if (pthread_create(&thread, NULL, scheduler, NULL))
		return 1;
	puts("ready");
	fflush(stdout);
	for (;;)
		pause();
}
