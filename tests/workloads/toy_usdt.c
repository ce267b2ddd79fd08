/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program that carries USDT probes as a BEAM does, and fires each a known number of times.
 *
 * It is no VM: it has the provider, the names, the semaphores, several sites per probe and the
 * forms of arguments that gcc gave a real beam.smp (a register, memory behind a register, memory
 * by symbol, a constant), so a reader of probes can be tested in a second, without Erlang.
 *
 *   cc -O2 -fno-omit-frame-pointer -fPIE -pie -rdynamic -o beam.smp toy_usdt.c
 *
 * Prints "ready". Each line "go" fires one round and is answered by
 *
 *   done 23 enabled E forbidden F
 *
 * with the number of probes that were enabled in this round, and of those that must not be enabled:
 * in a real VM they hang or crash it.
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define _SDT_HAS_SEMAPHORES 1
#include <sys/sdt.h>

#define ROUND 23 /* prime: a count that is right is right for no other reason */

#define PROBES(X)                                                                                  \
	X(process__spawn)                                                                          \
	X(process__exit)                                                                           \
	X(process__hibernate)                                                                      \
	X(message__send)                                                                           \
	X(message__queued)                                                                         \
	X(message__receive)                                                                        \
	X(gc_minor__start)                                                                         \
	X(gc_minor__end)                                                                           \
	X(gc_major__start)                                                                         \
	X(gc_major__end)                                                                           \
	X(port__open)                                                                              \
	X(port__exit)                                                                              \
	X(port__busy)                                                                              \
	X(port__not_busy)                                                                          \
	X(driver__init)                                                                            \
	X(dist__output)                                                                            \
	X(dist__outputv)                                                                           \
	X(process__port_unblocked)                                                                 \
	X(global__function__entry)

#define SEMAPHORE(probe)                                                                           \
	volatile unsigned short erlang_##probe##_semaphore                                         \
	    __attribute__((section(".probes"), used));
PROBES(SEMAPHORE)
#define ENABLED(probe) __builtin_expect(erlang_##probe##_semaphore, 0)

/* What a BEAM prints about itself, for those who look for it in the file. */
__attribute__((used)) const char banner[] =
    "Erlang/OTP 25 [erts-13.1.5] [source] [64-bit] [smp:2:2] [ds:2:2:10] [jit:ns] [systemtap]";

/* An exported variable, as in a BEAM: the argument form 8@erts_this_node_sysname(%rip). */
char *erts_this_node_sysname = "toy@127.0.0.1";

/* A driver whose fields are arguments: the forms 8@24(%rbx) and -4@32(%rbx). */
struct driver {
	char padding[24];
	char *name;
	int major, minor, flags;
};

static const char *const reasons[] = {"normal", "shutdown", "{shutdown,toy}", "killed", "badarg"};

/* Hides where a value comes from, so that the compiler puts it into a register or into memory. */
#define OPAQUE(value) __asm__ volatile("" : "+r"(value))

static __attribute__((noinline)) void processes(int i)
{
	char pid[64], mfa[64];
	const char *reason = reasons[i % 5];

	snprintf(pid, sizeof(pid), "<0.%d.0>", 82 + i);
	snprintf(mfa, sizeof(mfa), "toy:fun_%d/%d", i, i % 4);
	if (ENABLED(process__spawn))
		STAP_PROBE2(erlang, process__spawn, pid, mfa);
	if (ENABLED(process__hibernate))
		STAP_PROBE2(erlang, process__hibernate, pid, mfa);
	if (ENABLED(process__exit))
		STAP_PROBE2(erlang, process__exit, pid, reason);
}

/* Three sites for one probe: sizes in a register, in memory and as a constant. */
static __attribute__((noinline)) void message(int i)
{
	char sender[64], receiver[64];
	volatile uint64_t in_memory = 100 + i;
	uint32_t in_register = 100 + i;
	long label = -1 - i, previous = i, current = i + 1;

	snprintf(sender, sizeof(sender), "<0.%d.0>", 82 + i);
	snprintf(receiver, sizeof(receiver), "<0.%d.0>", 83 + i);
	OPAQUE(in_register);
	OPAQUE(label);
	if (ENABLED(message__send)) {
		if (i < 10)
			STAP_PROBE6(erlang, message__send, sender, receiver, in_register, label,
				    previous, current);
		else if (i < 18)
			STAP_PROBE6(erlang, message__send, sender, receiver, in_memory, label,
				    previous, current);
		else
			STAP_PROBE6(erlang, message__send, sender, receiver, (uint64_t)7, 0L, 0L,
				    0L);
	}
	if (ENABLED(message__queued))
		STAP_PROBE6(erlang, message__queued, receiver, in_register, current, label,
			    previous, current);
	if (ENABLED(message__receive))
		STAP_PROBE6(erlang, message__receive, receiver, in_register, previous, label,
			    previous, current);
}

static __attribute__((noinline)) void collection(int i)
{
	char pid[64];
	volatile int need = 10 + i;
	volatile uint64_t reclaimed = 1000 + i;

	snprintf(pid, sizeof(pid), "<0.%d.0>", 82 + i);
	if (ENABLED(gc_minor__start))
		STAP_PROBE2(erlang, gc_minor__start, pid, need);
	if (ENABLED(gc_minor__end))
		STAP_PROBE2(erlang, gc_minor__end, pid, reclaimed);
	if (ENABLED(gc_major__start))
		STAP_PROBE2(erlang, gc_major__start, pid, need);
	if (ENABLED(gc_major__end))
		STAP_PROBE2(erlang, gc_major__end, pid, reclaimed);
}

static __attribute__((noinline)) void port(int i, const struct driver *driver)
{
	char pid[64], name[64];

	snprintf(pid, sizeof(pid), "<0.%d.0>", 82 + i);
	snprintf(name, sizeof(name), "#Port<0.%d>", 5 + i);
	OPAQUE(driver);
	if (ENABLED(driver__init))
		STAP_PROBE4(erlang, driver__init, driver->name, driver->major, driver->minor,
			    driver->flags);
	if (ENABLED(port__open))
		STAP_PROBE3(erlang, port__open, pid, driver->name, name);
	if (ENABLED(port__busy))
		STAP_PROBE1(erlang, port__busy, name);
	if (ENABLED(port__not_busy))
		STAP_PROBE1(erlang, port__not_busy, name);
	if (ENABLED(port__exit))
		STAP_PROBE4(erlang, port__exit, pid, name, driver->name, reasons[0]);
}

static __attribute__((noinline)) void distribution(int i)
{
	char name[64], remote[64];
	volatile uint64_t bytes = 64 * (i + 1);

	snprintf(name, sizeof(name), "#Port<0.%d>", 5 + i);
	snprintf(remote, sizeof(remote), "peer_%d@127.0.0.1", i);
	if (ENABLED(dist__output))
		STAP_PROBE4(erlang, dist__output, erts_this_node_sysname, name, remote, bytes);
	if (ENABLED(dist__outputv))
		STAP_PROBE4(erlang, dist__outputv, erts_this_node_sysname, name, remote,
			    (uint64_t)0);
}

/* Never fired: what counts is whether anybody enabled them. */
static __attribute__((noinline)) int forbidden(void)
{
	if (ENABLED(process__port_unblocked))
		STAP_PROBE2(erlang, process__port_unblocked, "", "");
	if (ENABLED(global__function__entry))
		STAP_PROBE3(erlang, global__function__entry, "", "", 0);
	return (ENABLED(process__port_unblocked) != 0) + (ENABLED(global__function__entry) != 0);
}

static int enabled(void)
{
	int count = 0;

#define COUNT(probe) count += erlang_##probe##_semaphore != 0;
	PROBES(COUNT)
	return count;
}

int main(void)
{
	static const struct driver driver = {"", "tcp_inet", 3, 1, -7};
	char line[16];

	setvbuf(stdout, NULL, _IOLBF, 0);
	puts("ready");
	while (fgets(line, sizeof(line), stdin)) {
		int traps = 0;

		if (strcmp(line, "go\n") != 0)
			continue;
		for (int i = 0; i < ROUND; i++) {
			processes(i);
			message(i);
			collection(i);
			port(i, &driver);
			distribution(i);
			traps |= forbidden();
		}
		printf("done %d enabled %d forbidden %d\n", ROUND, enabled(), traps);
	}
	return 0;
}
