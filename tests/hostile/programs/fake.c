/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake [hits PER_SECOND] [exec PROGRAM AFTER_MS]: a process that looks like a BEAM.
 *
 * It has the symbols that show a release, a thread called 1_scheduler, and calls the hooked
 * function erts_send_message. Its name and its thread's name are all that discovery sees at first.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>
#include "atoms.h"

const char etp_otp_release[] = "25";
const char etp_erts_version[] = "13.1.5";
const int etp_beamasm = 1;

static void pause_ms(long ms)
{
	struct timespec span = {ms / 1000, ms % 1000 * 1000000};

	nanosleep(&span, NULL);
}

__attribute__((noinline, aligned(16))) void erts_send_message(void *sender, void *receiver)
{
	__asm__ volatile("nop; nop; nop; nop" ::"r"(sender), "r"(receiver) : "memory");
}

static long hits_per_second = 1000;

static void *scheduler(void *unused)
{
	(void)unused;
	prctl(PR_SET_NAME, "1_scheduler");
	for (;;) {
		for (long n = 0; n < hits_per_second / 100; n++)
			erts_send_message(NULL, NULL);
		pause_ms(10);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	const char *program = NULL;
	long after = 0;
	pthread_t thread;

	for (int at = 1; at < argc; at++) {
		if (!strcmp(argv[at], "hits") && at + 1 < argc) {
			hits_per_second = atol(argv[++at]);
		} else if (!strcmp(argv[at], "exec") && at + 2 < argc) {
			program = argv[++at];
			after = atol(argv[++at]);
		}
	}
	if (pthread_create(&thread, NULL, scheduler, NULL))
		return 1;
	puts("ready");
	fflush(stdout);
	if (program) {
		pause_ms(after);
		execl(program, program, (char *)NULL);
		return 1;
	}
	for (;;)
		pause();
}
