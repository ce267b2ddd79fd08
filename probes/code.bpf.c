/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * code: modules are loaded.
 *
 * Hooks:  erts_finish_loading entry and return
 * Counts: code_load that succeeded
 * Emits:  code_load
 */
#include "scope.bpf.h"
#include "terms.bpf.h"

struct loading {
	__u64 process, module; /* module: address to which the function writes its name */
};

/* Loads under way, by thread; removed by the return probe of the same call. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_THREADS);
	__type(key, __u32);
	__type(value, struct loading);
} loads SEC(".maps");

SEC("uprobe")
int BPF_KPROBE(code_load_entry, __u64 binary, __u64 process, __u32 locks, __u64 module)
{
	struct loading loading = {.process = process, .module = module};
	__u32 tid;

	if (!enter_program(PROGRAM_CODE_LOAD_ENTRY, &tid))
		return 0;
	if (bpf_map_update_elem(&loads, &tid, &loading, BPF_ANY))
		count_failure(KIND_CODE_LOAD);
	return 0;
}

SEC("uretprobe")
int BPF_KRETPROBE(code_load_return, __u64 result)
{
	struct code_load_record *load;
	struct loading *loading;
	__u64 process;
	__u32 tid;

	if (!enter_program(PROGRAM_CODE_LOAD_RETURN, &tid))
		return 0;
	loading = bpf_map_lookup_elem(&loads, &tid);
	if (!loading)
		return 0; /* it began before counting */
	process = id_of(KIND_CODE_LOAD, loading->process);
	if (result == TERM_NIL && is_wanted(0, process)) {
		count_event(KIND_CODE_LOAD, 0);
		load = reserve_record(KIND_CODE_LOAD, 0, 0, tid, process);
		if (load) {
			load->module = vm_word(KIND_CODE_LOAD, loading->module, 0);
			submit_record(load);
		}
	}
	bpf_map_delete_elem(&loads, &tid);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
