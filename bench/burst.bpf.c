/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * burst: records without a trap, so that the ring and its reader are the limit.
 *
 * Run by BPF_PROG_TEST_RUN; each run writes BURST records as the probes do.
 */
#include "scope.bpf.h"

#define BURST 64

SEC("xdp")
int burst(struct xdp_md *ctx)
{
	struct send_record *send;

	for (__u32 i = 0; i < BURST; i++) {
		count_event(KIND_SEND, SEND_LOCAL);
		send = reserve_record(KIND_SEND, SEND_LOCAL, 0, i, i);
		if (send) {
			send->receiver = i;
			send->size = UNKNOWN;
			submit_record(send);
		}
	}
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
