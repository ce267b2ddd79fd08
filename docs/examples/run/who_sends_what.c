/* SPDX-License-Identifier: Apache-2.0 */
/*
 * who_sends_what: messages by sender, receiver and tag, counted in the kernel.
 *
 *   sudo scope-trace run who_sends_what.c --pid PID
 *
 * erts_send_message(Process *sender, Process *receiver, ErtsProcLocks *, Eterm message).
 */
#include "beam.h"

BEAM_COUNT(messages, eterm sender; eterm receiver; eterm tag;);

int on_send_local(struct pt_regs *ctx, u64 sender, u64 receiver, u64 locks, u64 message)
{
	struct messages key = {};

	key.sender = beam_pid(sender);
	key.receiver = beam_pid(receiver);
	key.tag = beam_tag(beam_term(message));
	beam_count(messages, key);
	return 0;
}
