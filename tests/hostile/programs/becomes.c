/* SPDX-License-Identifier: Apache-2.0 */
/*
 * becomes: a process that is something else a moment later. What it becomes may be a setuid copy
 * of itself, in another file: then every offset of the one is one of the other.
 *
 *   becomes beam HITS cc N PROGRAM ARGUMENT...   looks like a BEAM, calls a hooked function HITS
 *                                                times in 10 ms, and executes PROGRAM when it has
 *                                                seen a breakpoint come in N times
 *   becomes beam HITS us N PROGRAM ARGUMENT...   the same, N microseconds after a line of stdin
 *   becomes beam HITS uid N                      the same, but then it is user and group N
 *   becomes text MS                              compares its text with its file for so long, or
 *                                                until a line of stdin
 *   becomes page ADDRESS TEXT [hide] PROGRAM...  has a page with TEXT, and executes PROGRAM after a
 *                                                line of stdin; hide: while another process goes
 *                                                on using its memory
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <grp.h>
#include <link.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>
#include "atoms.h"

#define HOOK_BYTES 16

const char etp_otp_release[] = "25";
const char etp_erts_version[] = "13.1.5";
const int etp_beamasm = 1;

static void pause_us(long us)
{
	struct timespec span = {us / 1000000, us % 1000000 * 1000};

	nanosleep(&span, NULL);
}

__attribute__((noinline, aligned(64))) void erts_send_message(void *sender, void *receiver)
{
	__asm__ volatile("nop; nop; nop; nop; nop; nop; nop; nop" ::"r"(sender), "r"(receiver)
			 : "memory");
	__asm__ volatile("nop; nop; nop; nop; nop; nop; nop; nop" ::: "memory");
}

static void *scheduler(void *hits)
{
	prctl(PR_SET_NAME, "1_scheduler");
	for (;;) {
		for (long n = 0; n < (long)hits; n++)
			erts_send_message(NULL, NULL);
		pause_us(10000);
	}
	return NULL;
}

static int hooked(void)
{
	const volatile uint8_t *code = (const volatile uint8_t *)erts_send_message;

	for (int n = 0; n < HOOK_BYTES; n++)
		if (code[n] == 0xCC)
			return 1;
	return 0;
}

static void wait_for_breakpoints(long times)
{
	while (times--) {
		while (hooked())
			pause_us(20);
		while (!hooked())
			pause_us(20);
	}
}

static void wait_for_line(void)
{
	char c;

	while (read(0, &c, 1) == 1 && c != '\n')
		;
}

static int beam(char **words)
{
	pthread_t thread;
	long number = atol(words[2]);

	if (pthread_create(&thread, NULL, scheduler, (void *)atol(words[0])))
		return 1;
	puts("ready");
	fflush(stdout);
	if (!strcmp(words[1], "cc")) {
		wait_for_breakpoints(number);
	} else {
		wait_for_line();
		if (!strcmp(words[1], "uid")) {
			if (setgroups(0, NULL) || setgid(number) || setuid(number))
				return 1;
			puts("changed");
			fflush(stdout);
			wait_for_line();
			return 0;
		}
		pause_us(number);
	}
	execv(words[3], words + 3);
	return 1;
}

struct text {
	const uint8_t *in_memory;
	size_t size;
	off_t offset;
};

static int find_text(struct dl_phdr_info *info, size_t size, void *found)
{
	struct text *text = found;

	(void)size;
	for (int n = 0; n < info->dlpi_phnum; n++) {
		const ElfW(Phdr) *part = &info->dlpi_phdr[n];

		if (part->p_type == PT_LOAD && part->p_flags & PF_X) {
			text->in_memory = (const uint8_t *)(info->dlpi_addr + part->p_vaddr);
			text->size = part->p_filesz;
			text->offset = part->p_offset;
		}
	}
	return 1; /* the first is the program itself */
}

static int compare(long ms)
{
	struct text text = {0};
	struct pollfd line = {.fd = 0, .events = POLLIN};
	size_t changed = 0;
	uint8_t *in_file;
	int fd = open("/proc/self/exe", O_RDONLY);

	dl_iterate_phdr(find_text, &text);
	in_file = malloc(text.size);
	if (!in_file || pread(fd, in_file, text.size, text.offset) != (ssize_t)text.size)
		return 1;
	printf("comparing as %d\n", geteuid());
	fflush(stdout);
	for (int last = 0; !last && ms >= 0; ms--) {
		size_t now = 0;

		last = poll(&line, 1, 0) == 1;

		for (size_t n = 0; n < text.size; n++)
			now += ((const volatile uint8_t *)text.in_memory)[n] != in_file[n];
		changed = now > changed ? now : changed;
		pause_us(1000);
	}
	printf("changed %zu\n", changed);
	return 0;
}

static int hidden(void *unused)
{
	(void)unused;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;)
		pause();
	return 0;
}

static int page(char **words)
{
	void *place = (void *)strtoull(words[0], NULL, 16);
	char **next = words + 2;

	place = mmap(place, 4096, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (place == MAP_FAILED)
		return 1;
	strcpy(place, words[1]);
	if (*next && !strcmp(*next, "hide")) {
		char *stack = malloc(65536);

		next++;
		if (clone(hidden, stack + 65536, CLONE_VM | SIGCHLD, NULL) < 0)
			return 1;
	}
	puts(words[1]);
	fflush(stdout);
	wait_for_line();
	if (*next)
		execv(*next, next);
	return 1;
}

int main(int argc, char **argv)
{
	if (argc >= 5 && !strcmp(argv[1], "beam"))
		return beam(argv + 2);
	if (argc >= 3 && !strcmp(argv[1], "text"))
		return compare(atol(argv[2]));
	if (argc >= 4 && !strcmp(argv[1], "page"))
		return page(argv + 2);
	return 2;
}
