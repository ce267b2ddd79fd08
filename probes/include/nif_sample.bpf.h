/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Samples of NIFs, by name. A call is long if two samples find it: between them the scheduler has
 * not been in its loop, and the process has called nothing that takes a reduction.
 */
#ifndef NIF_SAMPLE_BPF_H
#define NIF_SAMPLE_BPF_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "events.generated.h"

/* NIFs of all targets: added by samples, removed with their target. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, MAX_NIFS);
	__type(key, struct nif_key);
	__type(value, struct nif);
} nifs SEC(".maps");

static __always_inline void sample_nif(struct thread *thread, struct thread_totals *totals)
{
	struct nif_key key = {.target = thread->target};
	struct nif empty = {}, *nif;
	__u64 process = 0, environment = 0, reductions = 0, code = 0, mfa[3];
	__u64 seen = thread->seen_process;
	__s64 fcalls = 0;
	bool same;

	thread->seen_process = 0;
	if (bpf_probe_read_user(&environment, sizeof(environment),
				(void *)(thread->scheduler + thread->at_nif)) ||
	    !environment)
		return;
	if (bpf_probe_read_user(&process, sizeof(process),
				(void *)(thread->scheduler + thread->at_process)) ||
	    bpf_probe_read_user(&reductions, sizeof(reductions),
				(void *)(thread->scheduler + thread->at_reductions)) ||
	    bpf_probe_read_user(&fcalls, sizeof(fcalls), (void *)(process + thread->at_fcalls)) ||
	    bpf_probe_read_user(&code, sizeof(code), (void *)(process + thread->at_code)) ||
	    !code || bpf_probe_read_user(mfa, sizeof(mfa), (void *)(code - thread->before_code))) {
		totals->refused++;
		return;
	}
	/* By name, because the code of a dirty call is used for another as soon as it is over. */
	key.module = mfa[0];
	key.function = mfa[1];
	key.arity = mfa[2];
	nif = bpf_map_lookup_elem(&nifs, &key);
	if (!nif) {
		bpf_map_update_elem(&nifs, &key, &empty, BPF_NOEXIST);
		nif = bpf_map_lookup_elem(&nifs, &key);
	}
	if (!nif) {
		totals->refused++;
		return;
	}
	nif->samples++;
	same = seen == process && thread->seen_reductions == reductions &&
	       thread->seen_fcalls == fcalls;
	if (same && !thread->long_call)
		nif->long_calls++;
	thread->long_call = same;
	thread->seen_process = process;
	thread->seen_reductions = reductions;
	thread->seen_fcalls = fcalls;
}

#endif
