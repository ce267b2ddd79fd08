/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hangs FILE name | LINE: a process that looks like a BEAM, and puts a page of FILE where its node's
 * name is, when it reads a line, or at once in the middle of LINE, which has three pages or more.
 *
 * It has the first atoms of a VM, so that it is observed until then.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>
#include "atoms.h"

#define PAGE 4096

const char etp_otp_release[] = "25";
const char etp_erts_version[] = "13.1.5";
const int etp_beamasm = 1;

/* The pointer of this name, on a page of its own. */
__attribute__((aligned(PAGE))) void *erts_this_node[PAGE / sizeof(void *)] = {atoms};

__attribute__((noinline, aligned(16))) void erts_send_message(void *sender, void *receiver)
{
	__asm__ volatile("nop; nop; nop; nop" ::"r"(sender), "r"(receiver) : "memory");
}

static void *scheduler(void *unused)
{
	(void)unused;
	prctl(PR_SET_NAME, "1_scheduler");
	for (;;) {
		erts_send_message(NULL, NULL);
		usleep(10000);
	}
	return NULL;
}

static int cover(void *place, int file)
{
	void *page = (void *)((uintptr_t)place & ~(uintptr_t)(PAGE - 1));

	return mmap(page, PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, file, 0) == MAP_FAILED;
}

int main(int argc, char **argv)
{
	pthread_t thread;
	char line;
	int file, first;

	if (argc < 3)
		return 2;
	file = open(argv[1], O_RDONLY);
	first = strcmp(argv[2], "name") != 0;
	if (file < 0 || (first && cover(argv[2] + PAGE, file)))
		return 1;
	if (pthread_create(&thread, NULL, scheduler, NULL))
		return 1;
	puts("ready");
	fflush(stdout);
	if (!first && read(0, &line, 1) == 1 && cover(erts_this_node, file))
		return 1;
	for (;;)
		pause();
}
