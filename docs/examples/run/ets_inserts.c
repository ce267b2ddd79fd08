/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ets_inserts: how long ets:insert/2 takes, and into which tables.
 *
 *   sudo scope-trace run ets_inserts.c --pid PID
 *
 * A BIF is a function of the VM: ets_insert_2(Process *, Eterm *arguments, ErtsCodePtr). A table is
 * an atom if it is a named one; others are references, which all count as one.
 */
#include "beam.h"

BPF_HASH(calls, u32, u64, 4096); /* under way, by thread */
BEAM_COUNT(tables, eterm table;);
BEAM_HISTOGRAM(insert);

int uprobe__ets_insert_2(struct pt_regs *ctx, u64 process, u64 arguments)
{
	u32 thread = bpf_get_current_pid_tgid();
	u64 now = bpf_ktime_get_ns();
	struct tables key = {};

	key.table = beam_term(beam_word(arguments));
	if (!beam_is_atom(key.table))
		key.table = beam_term(0);
	beam_count(tables, key);
	calls.update(&thread, &now);
	return 0;
}

int uretprobe__ets_insert_2(struct pt_regs *ctx)
{
	u32 thread = bpf_get_current_pid_tgid();
	u64 *since = calls.lookup(&thread);

	if (!since)
		return 0;
	beam_observe(insert, bpf_ktime_get_ns() - *since);
	calls.delete(&thread);
	return 0;
}
